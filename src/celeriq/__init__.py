"""Celery's semantics, native async, and every task is a database transaction."""

from celeriq.bound_task import BoundTask, CurrentTask
from celeriq.calling import Signature, chain
from celeriq.dependencies import injected
from celeriq.errors import (
    CeleriqError,
    CommitTimeoutError,
    EncodeError,
    NotRegistered,
    PayloadTooLargeError,
    SendError,
    SessionsMissingError,
    TaskDefinitionError,
    UnknownOptionError,
    UnsupportedOptionError,
    WorkerLostError,
)
from celeriq.options import TaskOptions
from celeriq.record import Record
from celeriq.redis.dead_letters import DeadLetter, DeadLetters
from celeriq.redis.results import RedisResults
from celeriq.redis.streams import RedisBroker
from celeriq.result import AsyncResult
from celeriq.routing import Route
from celeriq.session import PoolAdvice, TaskSession

__all__ = [
    "AsyncResult",
    "BoundTask",
    "CeleriqError",
    "CommitTimeoutError",
    "CurrentTask",
    "DeadLetter",
    "DeadLetters",
    "EncodeError",
    "NotRegistered",
    "PayloadTooLargeError",
    "PoolAdvice",
    "Record",
    "RedisBroker",
    "RedisResults",
    "Route",
    "SendError",
    "SessionsMissingError",
    "Signature",
    "TaskDefinitionError",
    "TaskOptions",
    "TaskSession",
    "UnknownOptionError",
    "UnsupportedOptionError",
    "WorkerLostError",
    "chain",
    "injected",
]
