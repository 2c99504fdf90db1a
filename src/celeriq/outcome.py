"""How an attempt can end: a closed set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taskiq.exceptions import NoResultError

from celeriq.options import TaskOptions


@dataclass(frozen=True, slots=True)
class Succeeded:
    value: Any


@dataclass(frozen=True, slots=True)
class Failed:
    error: BaseException


@dataclass(frozen=True, slots=True)
class Retrying:
    error: Exception
    delay: float
    """Seconds until the task runs again."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """The task is over, and no state of it is stored (EXE-04)."""


@dataclass(frozen=True, slots=True)
class Released:
    """The worker stopped before the task ended: the message stays for another one."""


Outcome = Succeeded | Failed | Retrying | Ignored | Released


class NotFinishedError(NoResultError):
    """Tells Taskiq's receiver that this attempt has no result to save."""


def after_error(error: BaseException, options: TaskOptions, retries: int) -> Failed | Retrying:
    """What an exception makes of an attempt that was already retried `retries` times (RETRY-02, RETRY-14)."""
    if not isinstance(error, options.autoretry_for):
        return Failed(error)
    if options.max_retries is not None and retries >= options.max_retries:
        return Failed(error)
    return Retrying(error, options.default_retry_delay)
