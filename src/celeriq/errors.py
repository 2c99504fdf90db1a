"""Everything celeriq raises.

    CeleriqError
    ├── TaskDefinitionError      a task cannot be registered as it is written
    │   └── UnknownOptionError   an option that nothing reads
    ├── ScheduleError            a schedule that means nothing as it is written
    │   ├── UnknownScheduleError   there is none of this name
    │   └── ScheduleConflictError  there is one of this name, or somebody else has edited it
    ├── EncodeError              a value that cannot be stored as JSON
    ├── PayloadTooLargeError     a message or result beyond the broker's limit
    ├── SendError                a task that could not be sent
    ├── QueueNotFound            a call for a queue that nobody named, where no others may be made
    ├── DuplicateCallError       a unique task that waits or runs already
    ├── CommitNotYoursError      a task with `once` commits its session by itself
    ├── CommitTimeoutError       a commit that did not end in time: nobody knows whether it happened
    ├── NotRegistered            the outcome of a task that no worker has registered for too long
    ├── WorkerLostError          the outcome of a task whose process died, or whose workers did again and again
    ├── ChordError               the outcome of a chord's body when a part of the header has failed
    ├── TaskRevokedError         the outcome of a task that was revoked, terminated or expired
    ├── MaxRetriesExceededError  the outcome of a task that asked for one retry too many
    ├── SoftTimeLimitExceeded    raised inside a task that takes longer than its soft limit
    ├── TimeLimitExceeded        the outcome of a task that took longer than its hard limit
    ├── ResultTimeoutError       a result did not come in time
    ├── PoolTooLargeError        the pools of all workers are more than the database allows
    ├── TablesMissingError       a call that joins a transaction, of a database without celeriq's tables
    ├── SessionsMissingError     a session was asked for, but nobody said where sessions come from
    └── UnsupportedOptionError   an inherited broker option whose meaning would lose or double work

    DuplicateTaskNameWarning     a warning: the second of two tasks of one name is none

What a task raises to say how it ends, which is no error, lives in `celeriq.outcome`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from taskiq.exceptions import SendTaskError


class CeleriqError(Exception):
    """Base of celeriq's own errors."""


class TaskDefinitionError(CeleriqError, TypeError):
    """A task that cannot work as it is written; raised at import, with the remedy."""


class UnknownOptionError(TaskDefinitionError):
    """A task option that nothing reads, most often a misspelled one."""


class UnsupportedOptionError(CeleriqError, ValueError):
    """A broker option of Taskiq's that celeriq refuses, with the reason."""


class ScheduleError(CeleriqError, ValueError):
    """A schedule, or an entry of a table of them, that means nothing as it is written; it says the remedy (BEAT-04)."""


class UnknownScheduleError(ScheduleError, LookupError):
    """There is no schedule of this name; it names the nearest one."""


class ScheduleConflictError(ScheduleError):
    """There is a schedule of this name already, or it was edited since it was read."""


class EncodeError(CeleriqError, TypeError):
    """A value that JSON cannot hold (ST-12)."""


class PayloadTooLargeError(CeleriqError, ValueError):
    """A message or a return value beyond `max_payload`: store it elsewhere, and send its key."""


class SendError(CeleriqError, SendTaskError):
    """A task that was not sent, with the reason and the remedy; a `SendTaskError` of Taskiq's as well."""

    __template__ = "{reason}"
    reason: str
    unsent: tuple[int, ...] = ()
    """Of many calls: the positions of those that were not sent."""
    refused: bool = False
    """Whether Redis will not take it, however often it is asked: the key of the queue holds something else."""


class QueueNotFound(CeleriqError, KeyError):  # noqa: N818 - Celery's name
    """The queue is none that this broker, a task or a route names, and `create_missing_queues` is False (RT-04)."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class DuplicateCallError(CeleriqError):
    """A unique task was called while a call with the same key waits or runs; `first` is that one's id."""

    first: str = ""


class CommitNotYoursError(CeleriqError, RuntimeError):
    """A task with `once=True` calls `session.commit()`, or begins a transaction: celeriq commits it, once."""


class CommitTimeoutError(CeleriqError):
    """A commit did not end within `commit_timeout`: it was given up, and may or may not have happened."""


class NotRegistered(CeleriqError, KeyError):  # noqa: N818 - Celery's name, which is stored and looked for
    """A task of this name, its one argument, was asked for, and no worker registered it in time (ST-20)."""

    def __str__(self) -> str:
        return f"unknown task {self.args[0]!r}: no worker registered it in time" if self.args else ""


class WorkerLostError(CeleriqError):
    """The process that ran this task died, or so did too many workers (ACK-04)."""


class ChordError(CeleriqError):
    """A part of the chord's header has failed, so that its body never runs (CERR-08)."""


class TaskRevokedError(CeleriqError):
    """The task was called off: 'revoked', 'terminated' or 'expired' (ERR-03, RES-01), a 'duplicate' or 'replaced'."""


class MaxRetriesExceededError(CeleriqError):
    """A task asked for a retry when it had none left, and gave no exception of its own (RETRY-05).

    Its one argument is the text; `task_args` and `task_kwargs` are the call's, where it was raised.
    """

    task_args: tuple[Any, ...] = ()
    task_kwargs: Mapping[str, Any] = MappingProxyType({})


class SoftTimeLimitExceeded(CeleriqError):  # noqa: N818 - Celery's name
    """Raised inside a task, which may catch it, clean up and return (LIM-01)."""


class TimeLimitExceeded(CeleriqError):  # noqa: N818 - Celery's name
    """The task took longer than its hard limit, in seconds its one argument (LIM-02)."""


class ResultTimeoutError(CeleriqError, TimeoutError):
    """The result did not come in time; the task goes on (ERR-02)."""


class TablesMissingError(CeleriqError, RuntimeError):
    """A call joins a transaction, or a task has `once`, where celeriq's tables are missing: see `celeriq.schema`."""


class SessionsMissingError(CeleriqError, RuntimeError):
    """A session was asked for before `with_sessions(...)` was called and the broker was started."""


class PoolTooLargeError(CeleriqError):
    """The pools of all workers want more connections than the database allows, with the numbers and what would fit."""


class DuplicateTaskNameWarning(UserWarning):
    """Two functions were registered under one name; the first one stays (DEF-04)."""
