"""What may be said about a task where it is declared, and of a call where it is made."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeVar, cast

from celeriq.errors import TaskDefinitionError, UnknownOptionError
from celeriq.routing import LOWEST
from celeriq.schedule_entry import Scheduled, may_be_scheduled

T = TypeVar("T", bound="DeclaredOptions")


def option(default: Any, fits: Callable[[Any], bool], remedy: str, *, per_call: bool = False) -> Any:
    """A field of a class of options: what is legal, and what to tell whoever says something else.

    `per_call`: a single call may say it, too, and then wins over the task (CALL-02).
    """
    metadata = {"fits": fits, "remedy": remedy, "per_call": per_call}
    if callable(default):
        return dataclasses.field(default_factory=cast("Callable[[], Any]", default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredOptions:
    """Options that belong together: each middleware declares those that it reads.

    Raises `TaskDefinitionError`, with the remedy, for a value that is not legal.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if not field.metadata["fits"](given):
                raise TaskDefinitionError(f"{field.name} is {given!r}; {field.metadata['remedy']}")


def is_bool(given: object) -> bool:
    return isinstance(given, bool)


def is_count(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given >= 0


def is_count_or_none(given: object) -> bool:
    return given is None or is_count(given)


def is_time(given: object) -> bool:
    """A length of time in seconds."""
    return isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < math.inf


def check_wait(name: str, given: float) -> None:
    """Raise `ValueError` for what nobody can wait."""
    if not is_time(given) or given >= 2**31:
        raise ValueError(f"{name} is {given!r}; it must be seconds, 0 or more and less than 2**31")


def is_limit_or_none(given: object) -> bool:
    return given is None or (is_time(given) and given != 0)


def are_exception_classes(given: Any) -> bool:
    return isinstance(given, tuple) and all(
        isinstance(error, type) and issubclass(error, Exception) for error in cast("tuple[object, ...]", given)
    )


def is_mapping_of_names(given: Any) -> bool:
    return isinstance(given, Mapping) and all(isinstance(name, str) for name in cast("Mapping[object, Any]", given))


def _are_exceptions(given: Any) -> bool:
    return isinstance(given, tuple) and all(
        isinstance(error, type) and issubclass(error, BaseException) for error in cast("tuple[object, ...]", given)
    )


EXCEPTIONS = "it must be a tuple of exception classes: write {}=(ConnectionError, TimeoutError)"


def _are_names(given: object) -> bool:
    return isinstance(given, list | tuple) and all(
        isinstance(name, str) and name for name in cast("list[object]", given)
    )


def _is_queue(given: object) -> bool:
    return given is None or (isinstance(given, str) and given != "")


def _is_priority(given: object) -> bool:
    return given is None or (is_count(given) and cast("int", given) <= LOWEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions(DeclaredOptions):
    """The options of every task, whatever middlewares there are, validated when its module is imported (DEF-07)."""

    queue: str | None = option(None, _is_queue, 'it must be the name of a queue: write queue="mail"')
    """The queue it is sent to. Defaults to the broker's default queue."""

    priority: int | None = option(None, _is_priority, "it must be a number from 0, the highest, to 9")
    """0, the highest, to 9 (RT-06). Defaults to what the routes say, else 0."""

    bind: bool = option(False, is_bool, "it must be True or False")  # noqa: FBT003
    """Whether the running task is the function's first argument, `self: BoundTask` (DEF-05). Defaults to False."""

    base: type[Any] | None = option(
        None, lambda given: given is None or isinstance(given, type), "it must be a class: write base=YourTask"
    )
    """A class derived from `BoundTask`, whose methods are told how the task ends (DEF-06). Defaults to none."""

    aliases: Sequence[str] = option((), _are_names, 'it must be a list of names: write aliases=["old.name"]')
    """Names that it had before: messages that bear one of them run it, too. Defaults to none."""

    acks_late: bool = option(True, is_bool, "it must be True or False")  # noqa: FBT003
    """Acknowledge after settlement (ACK-02). False acknowledges before the body: a crash loses the task (ACK-01)."""

    throws: tuple[type[BaseException], ...] = option((), _are_exceptions, EXCEPTIONS.format("throws"))
    """Exceptions that are expected: the task has failed all the same, and the log says so in one line of level INFO,
    without a traceback, under `celeriq worker` (DEF-12). Defaults to none."""

    typing: bool = option(True, is_bool, "it must be True or False")  # noqa: FBT003
    """Whether arguments are compared with the function's where it is called (DEF-09). Defaults to True."""

    schedule: Scheduled | Sequence[Scheduled] = option(
        (), may_be_scheduled, 'write schedule=crontab(hour=3, minute=0), seconds, or [{"cron": "0 3 * * *"}]'
    )
    """When the scheduler sends it: a `crontab`, seconds, a `timedelta`, a moment, or several of them; or the form of
    Taskiq's labels: see `celeriq.schedule_entry.read_task_schedules`. Defaults to never."""

    labels: Mapping[str, Any] = option(
        dict, is_mapping_of_names, 'it must be a mapping of names to values: write labels={"timeout": 5}'
    )
    """Labels for third-party Taskiq middlewares, which celeriq passes on unread."""


class Options:
    """The options of one task, by the class that declares them: `options[TaskOptions].queue`."""

    def __init__(self, *parts: DeclaredOptions) -> None:
        self._parts = {type(part): part for part in parts}

    def __getitem__(self, kind: type[T]) -> T:
        """Raises `KeyError` for options of a middleware that was not there when the task was registered."""
        return cast("T", self._parts[kind])

    def __contains__(self, kind: type[DeclaredOptions]) -> bool:
        return kind in self._parts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and self._parts == other._parts

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Options({', '.join(map(repr, self._parts.values()))})"

    def changed(self, given: Mapping[str, Any]) -> Options:
        """With other values; names that no part has are passed over. Raises `TaskDefinitionError` for illegal ones."""
        return Options(*(_changed(part, given) for part in self._parts.values()))

    def changed_by_call(self, given: Mapping[str, Any]) -> Options:
        """With what one call says; raises `TypeError` for an option that no call has, or an illegal value."""
        known = self.per_call
        for name in given:
            if name not in known:
                raise TypeError(f"unknown option {name!r} of a call; of the task's, a call may say {', '.join(known)}")
        return self.changed(given)

    @cached_property
    def per_call(self) -> list[str]:
        """What a call may say."""
        return sorted(name for kind in self._parts for name in names_of(kind, per_call=True))

    def get(self, name: str) -> Any:
        """One by its name, None if nothing here declares it."""
        return next((getattr(part, name) for kind, part in self._parts.items() if name in names_of(kind)), None)

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(part, name) for kind, part in self._parts.items() for name in names_of(kind)}


NO_OPTIONS = Options()


def _changed(part: DeclaredOptions, given: Mapping[str, Any]) -> DeclaredOptions:
    mine = {name: value for name, value in given.items() if name in names_of(type(part))}
    return dataclasses.replace(part, **mine) if mine else part


def names_of(kind: type[DeclaredOptions], *, per_call: bool = False) -> frozenset[str]:
    """The names of its options, all of them or those that a call may say."""
    return _names_of(cast("Any", kind), per_call)


@cache
def _names_of(kind: Any, per_call: bool) -> frozenset[str]:  # noqa: FBT001
    fields = dataclasses.fields(kind)
    return frozenset(field.name for field in fields if field.metadata["per_call"] or not per_call)


def read_options(
    task_name: str,
    given: Mapping[str, Any],
    kinds: Iterable[type[DeclaredOptions]],
    elsewhere: Mapping[str, str] | None = None,
) -> Options:
    """The options of `task_name`, one part for each of `kinds`.

    Raises `UnknownOptionError` naming the nearest right one, or who would read it: `elsewhere` names the middlewares
    that are not in use, by option. Raises `TaskDefinitionError` for a value that is not legal.
    """
    kinds = tuple(kinds)
    known = frozenset(name for kind in kinds for name in names_of(kind))
    for name in given:
        if name not in known:
            raise UnknownOptionError(f"task {task_name!r}: unknown option {name!r}; {_remedy(name, known, elsewhere)}")
    try:
        return Options(*(kind(**{name: given[name] for name in given if name in names_of(kind)}) for kind in kinds))
    except TypeError as error:
        raise TaskDefinitionError(f"task {task_name!r}: {error}") from error


def _remedy(name: str, known: Iterable[str], elsewhere: Mapping[str, str] | None) -> str:
    if elsewhere and name in elsewhere:
        return f"{elsewhere[name]} reads it, which this broker does not have: add it with with_middlewares(...)"
    nearest = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(sorted(known))}"
