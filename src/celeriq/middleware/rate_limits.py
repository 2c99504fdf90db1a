"""Rate limits: how many of a task start in a second, in all workers together (LIM-06, LIM-07)."""

from __future__ import annotations

import asyncio
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celeriq.hooks import Middleware
from celeriq.middleware.kinds import KEY, Key, check_key, is_key, kind_of
from celeriq.options import DeclaredOptions, Options, option
from celeriq.outcome import Deferred, Outcome

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.definition import Definition

LATE = 0.1
"""Seconds by which tasks may start closer to each other than the rate says, if they come late to their moments. In no
second may more start than the rate says, those of so many seconds more, and one."""

SUSPECTS_ASK_AGAIN = 0.05
"""Seconds; there is one at a time, and it needs no moment of its own, only that others leave one."""

_RATE = re.compile(r"^(\d+(?:\.\d+)?)(?:/([smh]))?$")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def per_second(given: object) -> float | None:
    """A rate in starts per second, from a number or from text like '10/s', '10/m' or '10/h'; None for what is none.

    0 is no limit (LIM-06).
    """
    if isinstance(given, int | float) and not isinstance(given, bool):
        return float(given) if 0 <= given < math.inf else None
    found = _RATE.match(given) if isinstance(given, str) else None
    return None if found is None else float(found[1]) / _UNITS[found[2] or "s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RateOptions(DeclaredOptions):
    """What `RateLimits` reads."""

    rate_limit: float | str | None = option(
        None,
        lambda given: given is None or per_second(given) is not None,
        'it must be a number per second, or text: write "10/s", "10/m" or "10/h"',
    )
    """How many may start, evenly spaced, in all workers together (LIM-06). Defaults to no limit."""

    rate_limit_key: Key | None = option(None, is_key, KEY)
    """Those with the same key share the rate, as a text with the names of arguments, or a function of them.
    Defaults to all calls of the task."""


class RateLimits(Middleware):
    """Reserves the next moment for a task once, and sends it there: it holds no slot while it waits.

    A message that a worker died with waits in its slot.
    """

    options = RateOptions

    def concerns(self, options: Options) -> bool:
        return bool(per_second(options[RateOptions].rate_limit))

    def check(self, task: Definition) -> None:
        mine = task.options[RateOptions]
        check_key(task, "rate_limit_key", mine.rate_limit_key, "rate_limit", mine.rate_limit)

    async def before(self, attempt: Attempt) -> Outcome | None:
        mine = attempt.options[RateOptions]
        rate = per_second(mine.rate_limit)
        assert rate
        assert attempt.definition is not None
        kind = kind_of(attempt.definition, attempt.envelope, mine.rate_limit_key)
        if attempt.delivery.crashes:
            # Sent again, its crashes would not be known, and it would not run alone: poison would never end.
            while await attempt.engine.reserve(kind, 1 / rate, 0, LATE):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(SUSPECTS_ASK_AGAIN)
            return None
        moment = await attempt.engine.reserve(kind, 1 / rate, attempt.envelope.reserved, LATE)
        return None if moment is None else Deferred(_in_milliseconds(moment), {"reserved": moment})


def _in_milliseconds(moment: int) -> float:
    """In seconds, and as Redis knows when a message is due: not a moment too early."""
    return math.ceil(moment / 1000) / 1000
