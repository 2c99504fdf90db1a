"""How an attempt can end: a closed set, and what a task raises to choose from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from taskiq.exceptions import NoResultError

from celeriq.options import check_wait
from celeriq.record import describe


@dataclass(frozen=True, slots=True)
class Succeeded:
    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    error: BaseException
    dead_because: str = ""
    """Why it could not be run at all: then its message is kept as a dead letter."""


@dataclass(frozen=True, slots=True)
class Retrying:
    error: BaseException | None
    delay: float
    """Seconds until the task runs again."""
    at: float | None = None
    """Or seconds since 1970."""
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of its envelope that are other ones then."""
    counted: bool = True
    """Whether it uses up a retry."""
    asked: Retry | None = field(default=None, compare=False)
    """What the task raised to say so."""


@dataclass(frozen=True, slots=True)
class Postponed:
    """It could not begin here, and is tried once more later; this is no retry of the task."""

    error: BaseException
    delay: float
    """Seconds until then."""
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Deferred:
    """It may not begin yet, and runs later; nothing of it is told, and the slot that it has it keeps."""

    at: float
    """Seconds since 1970."""
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Fields of its envelope that are other ones then."""


@dataclass(frozen=True, slots=True)
class InLine:
    """Its message waits in Redis until others have ended: there is nothing to settle."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """The task is over, and no state of it is stored (EXE-04)."""

    error: BaseException | None = None
    """What it raised to say so; None if it goes on under another message."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """It was called off, and counts as failed for whoever waits for it (RES-01)."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Released:
    """The worker stopped before the task ended: the message stays for another one."""


Outcome = Succeeded | Failed | Retrying | Postponed | Deferred | InLine | Ignored | Revoked | Released


class NotFinishedError(NoResultError):
    """Tells Taskiq's receiver that this attempt has no result to save."""


# -- what a task raises ------------------------------------------------------------------------------------------------


class Ignore(Exception):  # noqa: N818 - Celery's name, and no error
    """Raised by a task that is over without a result: no state of it is stored (EXE-04)."""


class Reject(Exception):  # noqa: N818 - Celery's name, and no error
    """Raised by a task that refuses its message: it has failed, and the message is kept as a dead letter.

    With `requeue=True` it runs again, behind what waits already, as often as it raises this (EXE-05).
    """

    def __init__(self, reason: object = None, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - as in Celery
        super().__init__(reason, requeue)
        self.reason = reason
        self.requeue = requeue


class Retry(Exception):  # noqa: N818 - Celery's name, and no error
    """Raised by a task that wants to run again; `self.retry(...)` raises it with what it knows (RETRY-01, RETRY-06).

    `countdown`: seconds until then, `eta`: the moment; by default the task's `default_retry_delay`.
    `args` of the call and its `kwargs` replace those that the task was called with.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        exc: BaseException | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        max_retries: int | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        if countdown is not None:
            check_wait("countdown", countdown)
        super().__init__(message)
        self.message = message
        self.exc = exc
        self.countdown = countdown
        self.eta = eta
        self.max_retries = max_retries
        self.changes = dict(changes or {})

    @property
    def when(self) -> float | datetime | None:
        """Seconds or a moment, whichever was given (RETRY-06)."""
        return self.countdown if self.eta is None else self.eta

    def __str__(self) -> str:
        if self.message:
            return self.message
        when = "" if self.when is None else f" at {self.eta}" if self.eta is not None else f" in {self.countdown}s"
        return f"Retry{when}" + (f": {describe(self.exc)}" if self.exc is not None else "")


class Snooze(Exception):  # noqa: N818 - no error
    """Raised by a task that is to run again in `seconds`, without using up a retry."""

    def __init__(self, seconds: float) -> None:
        check_wait("a snooze", seconds)
        super().__init__(seconds)
        self.seconds = seconds


# -- what becomes of a message that could not begin --------------------------------------------------------------------

POSTPONED_ONCE = 1
POSTPONED_FOR = 10.0
"""Seconds: a worker of another release may take it meanwhile."""


def after_misfit(error: TypeError, postponed: int) -> Failed | Postponed:
    """What becomes of a message whose arguments do not fit the task: once more elsewhere, then a dead letter."""
    if postponed < POSTPONED_ONCE:
        return Postponed(error, POSTPONED_FOR)
    return Failed(error, dead_because=f"its arguments do not fit: {error}")


def after_broken_hook(error: BaseException, postponed: int, limit: int) -> Failed | Postponed:
    """What becomes of a message that a middleware kept from beginning: again later, `limit` times in all."""
    if postponed + 1 < limit:
        return Postponed(error, 2.0**postponed)
    return Failed(error, dead_because=f"a middleware raised before the task began: {describe(error)}")
