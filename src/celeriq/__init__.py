"""Celery's semantics, native async, and every task is a database transaction."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celeriq.attempt_logs import HistoryLogs
    from celeriq.backoff import RetryPolicy
    from celeriq.bound_task import BoundTask, CurrentTask
    from celeriq.canvas import Signature, chain, chord, group
    from celeriq.cron import crontab
    from celeriq.dependencies import injected
    from celeriq.errors import (
        CeleriqError,
        ChordError,
        CommitNotYoursError,
        CommitTimeoutError,
        DuplicateCallError,
        DuplicateTaskNameWarning,
        EncodeError,
        MaxRetriesExceededError,
        NotRegistered,
        PayloadTooLargeError,
        PoolTooLargeError,
        QueueNotFound,
        ResultTimeoutError,
        ScheduleConflictError,
        ScheduleError,
        SendError,
        SessionsMissingError,
        SoftTimeLimitExceeded,
        TablesMissingError,
        TaskDefinitionError,
        TaskRevokedError,
        TimeLimitExceeded,
        UnknownOptionError,
        UnknownScheduleError,
        UnsupportedOptionError,
        WorkerLostError,
    )
    from celeriq.group_result import GroupResult, result_from_tuple
    from celeriq.history import History, HistoryCount, HistoryGap, HistoryRow
    from celeriq.options import TaskOptions
    from celeriq.outcome import Ignore, Reject, Retry, Snooze
    from celeriq.pool import PoolAdvice
    from celeriq.record import Record
    from celeriq.redis.dead_letters import DeadLetter, DeadLetters
    from celeriq.redis.results import RedisResults
    from celeriq.redis.streams import RedisBroker
    from celeriq.request import Request
    from celeriq.result import AsyncResult, allow_join_result
    from celeriq.routing import Route
    from celeriq.schedule_rows import StoredSchedule
    from celeriq.scheduler import Scheduler
    from celeriq.schedules import Schedules
    from celeriq.session import TaskSession, task_session
    from celeriq.shared import shared_task
    from celeriq.ticks import TickPolicy

__all__ = [
    "AsyncResult",
    "BoundTask",
    "CeleriqError",
    "ChordError",
    "CommitNotYoursError",
    "CommitTimeoutError",
    "CurrentTask",
    "DeadLetter",
    "DeadLetters",
    "DuplicateCallError",
    "DuplicateTaskNameWarning",
    "EncodeError",
    "GroupResult",
    "History",
    "HistoryCount",
    "HistoryGap",
    "HistoryLogs",
    "HistoryRow",
    "Ignore",
    "MaxRetriesExceededError",
    "NotRegistered",
    "PayloadTooLargeError",
    "PoolAdvice",
    "PoolTooLargeError",
    "QueueNotFound",
    "Record",
    "RedisBroker",
    "RedisResults",
    "Reject",
    "Request",
    "ResultTimeoutError",
    "Retry",
    "RetryPolicy",
    "Route",
    "ScheduleConflictError",
    "ScheduleError",
    "Scheduler",
    "Schedules",
    "SendError",
    "SessionsMissingError",
    "Signature",
    "Snooze",
    "SoftTimeLimitExceeded",
    "StoredSchedule",
    "TablesMissingError",
    "TaskDefinitionError",
    "TaskOptions",
    "TaskRevokedError",
    "TaskSession",
    "TickPolicy",
    "TimeLimitExceeded",
    "UnknownOptionError",
    "UnknownScheduleError",
    "UnsupportedOptionError",
    "WorkerLostError",
    "allow_join_result",
    "chain",
    "chord",
    "crontab",
    "group",
    "injected",
    "result_from_tuple",
    "shared_task",
    "task_session",
]

_HOMES = {
    "AsyncResult": "celeriq.result",
    "BoundTask": "celeriq.bound_task",
    "CeleriqError": "celeriq.errors",
    "ChordError": "celeriq.errors",
    "CommitNotYoursError": "celeriq.errors",
    "CommitTimeoutError": "celeriq.errors",
    "DuplicateTaskNameWarning": "celeriq.errors",
    "QueueNotFound": "celeriq.errors",
    "CurrentTask": "celeriq.bound_task",
    "DeadLetter": "celeriq.redis.dead_letters",
    "DeadLetters": "celeriq.redis.dead_letters",
    "DuplicateCallError": "celeriq.errors",
    "EncodeError": "celeriq.errors",
    "GroupResult": "celeriq.group_result",
    "History": "celeriq.history",
    "HistoryCount": "celeriq.history",
    "HistoryGap": "celeriq.history",
    "HistoryLogs": "celeriq.attempt_logs",
    "HistoryRow": "celeriq.history",
    "Ignore": "celeriq.outcome",
    "MaxRetriesExceededError": "celeriq.errors",
    "NotRegistered": "celeriq.errors",
    "TablesMissingError": "celeriq.errors",
    "PayloadTooLargeError": "celeriq.errors",
    "PoolAdvice": "celeriq.pool",
    "PoolTooLargeError": "celeriq.errors",
    "Record": "celeriq.record",
    "RedisBroker": "celeriq.redis.streams",
    "RedisResults": "celeriq.redis.results",
    "Reject": "celeriq.outcome",
    "Request": "celeriq.request",
    "ResultTimeoutError": "celeriq.errors",
    "Retry": "celeriq.outcome",
    "RetryPolicy": "celeriq.backoff",
    "Route": "celeriq.routing",
    "ScheduleConflictError": "celeriq.errors",
    "ScheduleError": "celeriq.errors",
    "Scheduler": "celeriq.scheduler",
    "Schedules": "celeriq.schedules",
    "StoredSchedule": "celeriq.schedule_rows",
    "TickPolicy": "celeriq.ticks",
    "UnknownScheduleError": "celeriq.errors",
    "SendError": "celeriq.errors",
    "SessionsMissingError": "celeriq.errors",
    "Signature": "celeriq.canvas",
    "Snooze": "celeriq.outcome",
    "SoftTimeLimitExceeded": "celeriq.errors",
    "TaskDefinitionError": "celeriq.errors",
    "TaskOptions": "celeriq.options",
    "TaskRevokedError": "celeriq.errors",
    "TaskSession": "celeriq.session",
    "TimeLimitExceeded": "celeriq.errors",
    "UnknownOptionError": "celeriq.errors",
    "UnsupportedOptionError": "celeriq.errors",
    "WorkerLostError": "celeriq.errors",
    "allow_join_result": "celeriq.result",
    "chain": "celeriq.canvas",
    "chord": "celeriq.canvas",
    "crontab": "celeriq.cron",
    "group": "celeriq.canvas",
    "result_from_tuple": "celeriq.group_result",
    "task_session": "celeriq.session",
    "shared_task": "celeriq.shared",
    "injected": "celeriq.dependencies",
}


if not TYPE_CHECKING:  # checkers must see what is not there

    def __getattr__(name: str) -> Any:
        """Import a public name when it is asked for: the supervisor of `celeriq worker` needs none, and stays small."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
