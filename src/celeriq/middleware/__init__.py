"""Celery's behaviours, one in each file; a broker has those that it is given, by default all of them."""

from __future__ import annotations

from celeriq.hooks import Middleware
from celeriq.middleware.acknowledgement import Acknowledgement
from celeriq.middleware.circuit_breaker import CircuitBreaker
from celeriq.middleware.concurrency_limits import ConcurrencyLimits
from celeriq.middleware.early_ends import EarlyEnds
from celeriq.middleware.error_callbacks import ErrorCallbacks
from celeriq.middleware.expiry import Expiry
from celeriq.middleware.handlers import Handlers
from celeriq.middleware.once import Once
from celeriq.middleware.process_pool import ProcessPool
from celeriq.middleware.rate_limits import RateLimits
from celeriq.middleware.results import Results
from celeriq.middleware.retries import Retries
from celeriq.middleware.revocation import Revocation
from celeriq.middleware.signals import Signals
from celeriq.middleware.time_limits import TimeLimits
from celeriq.middleware.track_started import TrackStarted
from celeriq.middleware.unique_tasks import UniqueTasks
from celeriq.middleware.worker_loss import WorkerLoss

__all__ = [
    "Acknowledgement",
    "CircuitBreaker",
    "ConcurrencyLimits",
    "EarlyEnds",
    "ErrorCallbacks",
    "Expiry",
    "Handlers",
    "Middleware",
    "Once",
    "ProcessPool",
    "RateLimits",
    "Results",
    "Retries",
    "Revocation",
    "Signals",
    "TimeLimits",
    "TrackStarted",
    "UniqueTasks",
    "WorkerLoss",
    "standard",
]

# What will not run takes no key. What is a duplicate, or must wait until something works again, takes neither a slot
# nor a moment of a rate from those that may run.
STANDARD: tuple[type[Middleware], ...] = (
    WorkerLoss,
    Revocation,
    Expiry,
    UniqueTasks,
    CircuitBreaker,
    ConcurrencyLimits,
    RateLimits,
    Signals,
    TrackStarted,
    Handlers,
    ProcessPool,
    TimeLimits,
    ErrorCallbacks,
    Once,
    EarlyEnds,
    Acknowledgement,
    Retries,
    Results,
)


def standard() -> list[Middleware]:
    """One of each, in the order in which they are asked; leave one out, and what it does is not done."""
    return [kind() for kind in STANDARD]
