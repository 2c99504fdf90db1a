"""How an attempt can end: a closed set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taskiq.exceptions import NoResultError

from celeriq.options import TaskOptions
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
    error: Exception
    delay: float
    """Seconds until the task runs again."""


@dataclass(frozen=True, slots=True)
class Postponed:
    """It could not begin here, and is tried once more later; this is no retry of the task."""

    error: BaseException
    delay: float
    """Seconds until then."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """The task is over, and no state of it is stored (EXE-04)."""


@dataclass(frozen=True, slots=True)
class Released:
    """The worker stopped before the task ended: the message stays for another one."""


Outcome = Succeeded | Failed | Retrying | Postponed | Ignored | Released


class NotFinishedError(NoResultError):
    """Tells Taskiq's receiver that this attempt has no result to save."""


def after_error(error: BaseException, options: TaskOptions, retries: int) -> Failed | Retrying:
    """What an exception makes of an attempt that was already retried `retries` times (RETRY-02, RETRY-14)."""
    if not isinstance(error, options.autoretry_for):
        return Failed(error)
    if options.max_retries is not None and retries >= options.max_retries:
        return Failed(error)
    return Retrying(error, options.default_retry_delay)


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
