"""What may be said about a task where it is declared."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from celeriq.errors import TaskDefinitionError, UnknownOptionError
from celeriq.routing import LOWEST


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """The options of one task, validated when its module is imported (DEF-07)."""

    queue: str | None = None
    """The queue it is sent to. Defaults to the broker's default queue."""

    priority: int | None = None
    """0, the highest, to 9 (RT-06). Defaults to what the routes say, else 0."""

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
        for option, (fits, remedy) in _LEGAL.items():
            if not fits(given := getattr(self, option)):
                raise TaskDefinitionError(f"{option} is {given!r}; {remedy}")


def _is_queue(given: object) -> bool:
    return given is None or (isinstance(given, str) and given != "")


def _is_priority(given: object) -> bool:
    return given is None or (isinstance(given, int) and not isinstance(given, bool) and 0 <= given <= LOWEST)


def _are_exception_classes(given: Any) -> bool:
    return isinstance(given, tuple) and all(
        isinstance(error, type) and issubclass(error, Exception) for error in cast("tuple[object, ...]", given)
    )


def _is_count(given: object) -> bool:
    return given is None or (isinstance(given, int) and not isinstance(given, bool) and given >= 0)


def _is_delay(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < math.inf


def _is_schedule(given: Any) -> bool:
    return isinstance(given, list | tuple) and all(
        isinstance(entry, Mapping) for entry in cast("Sequence[object]", given)
    )


def _are_labels(given: Any) -> bool:
    return isinstance(given, Mapping) and all(isinstance(name, str) for name in cast("Mapping[object, Any]", given))


_LEGAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "queue": (_is_queue, 'it must be the name of a queue: write queue="mail"'),
    "priority": (_is_priority, "it must be a number from 0, the highest, to 9"),
    "autoretry_for": (
        _are_exception_classes,
        "it must be a tuple of exception classes: write autoretry_for=(ConnectionError, TimeoutError)",
    ),
    "max_retries": (_is_count, "it must be 0 or more, or None for no limit"),
    "default_retry_delay": (_is_delay, "it must be 0 or more, in seconds"),
    "acks_late": (lambda given: isinstance(given, bool), "it must be True or False"),
    "schedule": (_is_schedule, 'it must be a list of entries: write schedule=[{"cron": "0 3 * * *"}]'),
    "labels": (_are_labels, 'it must be a mapping of names to values: write labels={"timeout": 5}'),
}
"""For each option what is legal, and what to tell whoever says something else."""


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
