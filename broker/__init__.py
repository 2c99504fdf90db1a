"""The composition root: what everything runs on, in one place.

`taskiq worker broker:broker tasks` runs the work, `taskiq scheduler broker:scheduler tasks` sends what is periodic.
"""

from __future__ import annotations

import taskiq_fastapi

from broker.announcement import Announcement
from broker.correlation import Correlation
from broker.settings import BrokerSettings
from celeriq import RedisBroker, Scheduler
from celeriq.middleware import (
    Acknowledgement,
    CircuitBreaker,
    ConcurrencyLimits,
    EarlyEnds,
    ErrorCallbacks,
    Expiry,
    Handlers,
    Once,
    ProcessPool,
    RateLimits,
    Results,
    Retries,
    Revocation,
    Signals,
    TimeLimits,
    TrackStarted,
    UniqueTasks,
    WorkerLoss,
)
from db.engine import open_sessions

settings = BrokerSettings()

# The middlewares are an onion: the first in the list is entered first and left last. Each of celeriq's is one of
# Celery's behaviours; without the list a broker has all of them.
broker = RedisBroker(
    settings.url,
    namespace=settings.namespace,
    lease=settings.lease,
    queues=settings.read_queues,
    # What computes and what waits for others, so that a worker may be given one of them; by default it reads all.
    routes={"documents.*": "cpu_heavy", "mail.*": "io_heavy"},
    middlewares=[
        Correlation(),
        Announcement(),
        WorkerLoss(),  # what its worker did not survive
        Revocation(),  # what was called off does not run, or is ended
        Expiry(),  # nor what comes too late
        UniqueTasks(),  # nor what waits or runs already
        CircuitBreaker(),  # and what fails again and again has to wait
        ConcurrencyLimits(),  # so many at a time, over all workers
        RateLimits(),  # so many in a second
        Signals(),  # tell functions of yours
        TrackStarted(),  # the state STARTED
        Handlers(),  # on_success, on_failure and others of a task's base class
        ProcessPool(),  # def tasks in processes of their own
        TimeLimits(),  # soft and hard
        Once(),  # effects that happen once, however often a message comes
        ErrorCallbacks(),  # link_error
        EarlyEnds(),  # Ignore and Reject
        Acknowledgement(),  # messages that are kept
        Retries(),  # self.retry(), autoretry_for, backoff
        Results(),  # ignore_result
    ],
).with_sessions(open_sessions, settings.pool)

# The one arrow that points back, by name only: workers resolve FastAPI's dependencies with the API's own application.
taskiq_fastapi.init(broker, "api.main:app")

# What tasks declare with `schedule` is in the table of schedules, where it can be edited while everything runs.
scheduler = Scheduler(broker)
