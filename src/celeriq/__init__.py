"""Celery's semantics, native async, and every task is a database transaction."""

from celeriq.bound_task import BoundTask, CurrentTask
from celeriq.dependencies import injected
from celeriq.errors import (
    CeleriqError,
    EncodeError,
    NotRegistered,
    SessionsMissingError,
    TaskDefinitionError,
    UnknownOptionError,
    UnsupportedOptionError,
    WorkerLostError,
)
from celeriq.options import TaskOptions
from celeriq.record import Record
from celeriq.redis.results import RedisResults
from celeriq.redis.streams import RedisBroker
from celeriq.session import PoolAdvice, TaskSession

__all__ = [
    "BoundTask",
    "CeleriqError",
    "CurrentTask",
    "EncodeError",
    "NotRegistered",
    "PoolAdvice",
    "Record",
    "RedisBroker",
    "RedisResults",
    "SessionsMissingError",
    "TaskDefinitionError",
    "TaskOptions",
    "TaskSession",
    "UnknownOptionError",
    "UnsupportedOptionError",
    "WorkerLostError",
    "injected",
]
