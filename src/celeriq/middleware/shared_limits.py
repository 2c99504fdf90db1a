"""What tasks of one kind share over all workers: a rate at which they start, and how many run at once (LIM-06)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celeriq.errors import TaskDefinitionError
from celeriq.hooks import Middleware
from celeriq.options import DeclaredOptions, Options, TaskOptions, is_count, option
from celeriq.outcome import Deferred, InLine, Outcome, Released

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.definition import Definition

LATE = 0.1
"""Seconds that a task may start after the moment that was reserved for it; later it needs another one. In no second do
more start than the rate says and those of so many seconds more."""

_RATE = re.compile(r"^(\d+(?:\.\d+)?)(?:/([smh]))?$")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}

Key = str | Callable[..., object]


def per_second(given: object) -> float | None:
    """A rate in starts per second, from a number or from text like '10/s', '10/m' or '10/h'; None for what is none.

    0 is no limit (LIM-06).
    """
    if isinstance(given, int | float) and not isinstance(given, bool):
        return float(given) if 0 <= given < math.inf else None
    found = _RATE.match(given) if isinstance(given, str) else None
    return None if found is None else float(found[1]) / _UNITS[found[2] or "s"]


def _is_key(given: object) -> bool:
    return given is None or isinstance(given, str) or callable(given)


KEY = 'it must be a text with the names of arguments, or a function of them: write "{user_id}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class RateOptions(DeclaredOptions):
    """What `RateLimits` reads."""

    rate_limit: float | str | None = option(
        None,
        lambda given: given is None or per_second(given) is not None,
        'it must be a number per second, or text: write "10/s", "10/m" or "10/h"',
    )
    """How many may start, evenly spaced, in all workers together (LIM-06). Defaults to no limit."""

    rate_limit_key: Key | None = option(None, _is_key, KEY)
    """Those with the same key share the rate, as a text with the names of arguments, or a function of them.
    Defaults to all calls of the task."""


class RateLimits(Middleware):
    """Reserves the next moment for a task once, and sends it there: it holds no slot while it waits."""

    options = RateOptions

    def concerns(self, options: Options) -> bool:
        return bool(per_second(options[RateOptions].rate_limit))

    def check(self, task: Definition) -> None:
        check_key(
            task, "rate_limit_key", task.options[RateOptions].rate_limit_key, task.options[RateOptions].rate_limit
        )

    async def before(self, attempt: Attempt) -> Outcome | None:
        mine = attempt.options[RateOptions]
        rate = per_second(mine.rate_limit)
        assert rate
        kind = kind_of(attempt, mine.rate_limit_key)
        wait, moment = await attempt.engine.reserve(kind, 1 / rate, attempt.envelope.reserved, LATE)
        return Deferred(wait, {"reserved": moment}) if wait > 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyOptions(DeclaredOptions):
    """What `ConcurrencyLimits` reads."""

    concurrency_limit: int | None = option(
        None, lambda given: given is None or (is_count(given) and given > 0), "it must be a number, 1 or more"
    )
    """How many may run at a time, in all workers together. Defaults to no limit."""

    concurrency_limit_key: Key | None = option(None, _is_key, KEY)
    """Those with the same key share it, as with `rate_limit_key`. Defaults to all calls of the task."""


class ConcurrencyLimits(Middleware):
    """Lets so many run; the others leave their queue and wait in line, where they hold no slot of a worker."""

    options = ConcurrencyOptions

    def concerns(self, options: Options) -> bool:
        return options[ConcurrencyOptions].concurrency_limit is not None

    def check(self, task: Definition) -> None:
        mine = task.options[ConcurrencyOptions]
        check_key(task, "concurrency_limit_key", mine.concurrency_limit_key, mine.concurrency_limit)
        if mine.concurrency_limit is not None and not task.options[TaskOptions].acks_late:
            raise TaskDefinitionError(
                f"task {task.name!r}: with acks_late=False nobody knows when it has ended, so it can have no "
                "concurrency_limit: leave one of them out"
            )

    async def before(self, attempt: Attempt) -> Outcome | None:
        mine = attempt.options[ConcurrencyOptions]
        assert mine.concurrency_limit is not None
        kind = kind_of(attempt, mine.concurrency_limit_key)
        may_run = await attempt.engine.acquire(attempt, kind, mine.concurrency_limit)
        if may_run is None:
            return Released()
        attempt.has_slot = may_run
        return None if may_run else InLine()


def check_key(task: Definition, option_name: str, key: Key | None, limit: object) -> None:
    """Raise `TaskDefinitionError` for a key without a limit, or with a name that is no argument."""
    if key is None:
        return
    if limit is None:
        raise TaskDefinitionError(f"task {task.name!r}: {option_name} without a limit does nothing: leave it out")
    if isinstance(key, str):
        try:
            key.format(**dict.fromkeys(task.signature.parameters, ""))
        except (LookupError, ValueError) as error:
            known = ", ".join(task.signature.parameters)
            raise TaskDefinitionError(
                f"task {task.name!r}: {option_name} is {key!r}, and {error} is no argument; known are {known}"
            ) from error


def kind_of(attempt: Attempt, key: Key | None) -> str:
    """The task and its key, without spaces, for Redis: `mail.send:5`."""
    assert attempt.definition is not None
    name, call = attempt.definition.name, attempt.envelope
    if key is None:
        return name
    if callable(key):
        return f"{name}:{_plain(key(*call.args, **call.kwargs))}"
    bound = attempt.definition.signature.bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    return f"{name}:{_plain(key.format(**bound.arguments))}"


def _plain(value: Any) -> str:
    return str(value).replace(" ", "_")
