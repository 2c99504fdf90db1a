"""What may be said about a task where it is declared."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from celeriq.errors import TaskDefinitionError, UnknownOptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """The options of one task, validated when its module is imported (DEF-07)."""

    queue: str | None = None
    """The queue it is sent to. Defaults to the broker's default queue."""

    autoretry_for: tuple[type[Exception], ...] = ()
    """Exceptions after which the task runs again, subclasses included (RETRY-14). Defaults to none."""

    max_retries: int | None = 3
    """How often it may run again; None is without end (RETRY-02). Defaults to 3, so at most 4 executions."""

    default_retry_delay: float = 180.0
    """Seconds before it runs again (RETRY-03, RETRY-15). Defaults to 180."""

    acks_late: bool = True
    """Acknowledge after settlement (ACK-02). False acknowledges before the body: a crash loses the task (ACK-01)."""

    schedule: Sequence[Mapping[str, Any]] = ()
    """When the scheduler sends it, in the form of Taskiq's label schedule source. Defaults to never."""

    labels: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Labels for third-party Taskiq middlewares, which celeriq passes on unread."""

    def __post_init__(self) -> None:
        if not all(_is_exception_class(error) for error in self.autoretry_for):
            raise TaskDefinitionError(
                f"autoretry_for takes a tuple of exception classes, not {self.autoretry_for!r}: "
                "write autoretry_for=(ConnectionError, TimeoutError)"
            )
        if self.max_retries is not None and self.max_retries < 0:
            raise TaskDefinitionError(f"max_retries is {self.max_retries}; it must be 0 or more, or None for no limit")
        if self.default_retry_delay < 0:
            raise TaskDefinitionError(f"default_retry_delay is {self.default_retry_delay} s; it must be 0 or more")


def _is_exception_class(given: object) -> bool:
    return isinstance(given, type) and issubclass(given, Exception)


KNOWN = frozenset(option.name for option in dataclasses.fields(TaskOptions))


def read_options(task_name: str, given: Mapping[str, Any]) -> TaskOptions:
    """The options of `task_name`; raises `UnknownOptionError` naming the nearest right one."""
    for option in given:
        if option not in KNOWN:
            nearest = difflib.get_close_matches(option, KNOWN, n=1)
            remedy = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(sorted(KNOWN))}"
            raise UnknownOptionError(f"task {task_name!r}: unknown option {option!r}; {remedy}")
    try:
        return TaskOptions(**given)
    except TypeError as error:
        raise TaskDefinitionError(f"task {task_name!r}: {error}") from error
