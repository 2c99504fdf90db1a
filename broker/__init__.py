"""The composition root: what everything runs on, in one place.

`taskiq worker broker:broker tasks` runs the work, `taskiq scheduler broker:scheduler tasks` sends what is periodic.
"""

from __future__ import annotations

import taskiq_fastapi
from taskiq import TaskiqScheduler
from taskiq.schedule_sources import LabelScheduleSource

from broker.announcement import Announcement
from broker.correlation import Correlation
from broker.settings import BrokerSettings
from celeriq import RedisBroker
from db.engine import open_sessions

settings = BrokerSettings()

# The middlewares are an onion: the first in the list is entered first and left last.
broker = (
    RedisBroker(settings.url, namespace=settings.namespace, lease=settings.lease)
    .with_sessions(open_sessions, settings.pool)
    .with_middlewares(Correlation(), Announcement())
)

# The one arrow that points back, by name only: workers resolve FastAPI's dependencies with the API's own application.
taskiq_fastapi.init(broker, "api.main:app")

scheduler = TaskiqScheduler(broker, [LabelScheduleSource(broker)])
