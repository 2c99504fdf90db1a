"""Which ticks of a schedule fire now, which are given up, and when to look again: arithmetic alone.

Whoever calls it stores the last tick that was dealt with, and compares all others with that. So a clock that is set
back fires nothing twice, and any number of schedulers come to the same answer.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Literal, get_args

from celeriq.errors import ScheduleError
from celeriq.schedule import Once, Schedule, due_between
from celeriq.wall_clock import in_utc

Misfire = Literal["skip", "once", "all"]
Overlap = Literal["allow", "skip"]

MOST_COUNTED = 1000
"""Ticks that were missed are counted up to here: nobody needs to know more, and the count takes time."""

_INSTANT = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TickPolicy:
    """What becomes of ticks that were not fired in time, and of those that come while a run goes on.

    Raises `ScheduleError` for a value that is not legal.
    """

    misfire: Misfire = "once"
    """Of the ticks since the last look, "once" fires the latest, however late it is (BEAT-06); "skip" fires it if it is
    at most `grace` late; "all" fires each of them, the latest `most` if there are more. Defaults to "once"."""

    grace: float = 60.0
    """Seconds that a tick may be late and still fire, read where `misfire` is "skip"; Celery's
    `beat_cron_starting_deadline` (BEAT-06). Defaults to 60."""

    most: int = 100
    """Ticks that fire at once at most, read where `misfire` is "all". Defaults to 100."""

    jitter: float = 0.0
    """Seconds by which a tick may fire later, a different number for each, but always before the next one. So what
    many schedules do at midnight is spread. Defaults to 0."""

    overlap: Overlap = "allow"
    """Whether a tick fires while the run of the one before goes on: "allow", as in Celery (BEAT-11), or "skip", which
    gives it up. Defaults to "allow"."""

    max_overlap: float | None = None
    """Seconds after which a run counts as ended for "skip", whatever is known of it: a run that was lost does not stop
    its schedule for ever. Defaults to the time limit of the task, or an hour where it has none."""

    def __post_init__(self) -> None:
        self._check("misfire", self.misfire in get_args(Misfire), "it must be 'skip', 'once' or 'all'")
        self._check("overlap", self.overlap in get_args(Overlap), "it must be 'allow' or 'skip'")
        self._check("most", _is_whole(self.most) and self.most > 0, "it must be a number, 1 or more")
        for name in ("grace", "jitter"):
            self._check(name, _is_seconds(getattr(self, name)), "it must be seconds, 0 or more")
        unlimited = self.max_overlap is None
        longest = self.max_overlap
        self._check("max_overlap", unlimited or (_is_seconds(longest) and longest != 0), "it must be seconds above 0")

    def _check(self, name: str, legal: bool, remedy: str) -> None:  # noqa: FBT001 - what the check found
        if not legal:
            raise ScheduleError(f"{name} is {getattr(self, name)!r}; {remedy}")


def _is_whole(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _is_seconds(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and 0 <= given < math.inf


POLICY_KEYS = tuple(field.name for field in fields(TickPolicy))
DEFAULT_POLICY = TickPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What is to be done with a schedule now."""

    fire: tuple[datetime, ...]
    """Ticks that fire, in their order, in UTC."""

    missed: int
    """How many are given up, counted up to `MOST_COUNTED`."""

    last: datetime
    """The last tick that is dealt with hereby: to be stored, in the same transaction in which they fire."""

    next: datetime | None
    """When to look again; None if nothing comes any more."""


def beginning(schedule: Schedule, now: datetime) -> datetime:
    """What a schedule that is new counts as its last tick.

    An interval begins now (BEAT-03), a crontab does not make up for what was before it. A single moment has not been
    yet, even if it is over: who declares it wants it to happen.
    """
    return schedule.at - _INSTANT if isinstance(schedule, Once) else in_utc(now)


def continued(schedule: Schedule, last: datetime) -> datetime:
    """What a schedule that was changed counts as its last tick: the one before the change (BEAT-10).

    So what it would have fired since then is due at once. A single moment that is new has not been yet.
    """
    return min(in_utc(last), schedule.at - _INSTANT) if isinstance(schedule, Once) else in_utc(last)


def resumed(schedule: Schedule, last: datetime, now: datetime) -> datetime:
    """What a schedule that was paused counts as its last tick: those of the pause are given up, but a single moment."""
    latest = None if isinstance(schedule, Once) else schedule.latest_between(last, now)
    return latest or in_utc(last)


def plan(name: str, schedule: Schedule, last: datetime, now: datetime, policy: TickPolicy = DEFAULT_POLICY) -> Due:
    """What is due `now` of a schedule whose last tick that was dealt with is `last`; `name` draws its jitter."""
    latest = _latest_due(name, schedule, last, now, policy.jitter)
    if latest is None:
        return Due(fire=(), missed=0, last=in_utc(last), next=next_look(name, schedule, last, policy))
    late = now - fires_at(name, schedule, latest, policy.jitter)
    fire = _fired(schedule, last, latest, late, policy)
    given_up = fire[0] - _INSTANT if fire else latest
    missed = len(due_between(schedule, last, given_up, MOST_COUNTED))
    return Due(fire=fire, missed=missed, last=latest, next=next_look(name, schedule, latest, policy))


def fires_at(name: str, schedule: Schedule, tick: datetime, jitter: float) -> datetime:
    """The moment at which a tick fires: up to `jitter` seconds later, and before the next tick.

    It is drawn by a hash of the schedule's name and the tick, so that several schedulers agree.
    """
    tick = in_utc(tick)
    if not jitter:
        return tick
    span = timedelta(seconds=jitter)
    following = schedule.next_after(tick)
    if following is not None:
        span = min(span, following - tick)
    return tick + span * _draw(name, tick)


def next_look(name: str, schedule: Schedule, last: datetime, policy: TickPolicy = DEFAULT_POLICY) -> datetime | None:
    """When the tick after `last` fires, None if there is none any more."""
    coming = schedule.next_after(last)
    return None if coming is None else fires_at(name, schedule, coming, policy.jitter)


def still_runs(started: datetime, now: datetime, longest: float) -> bool:
    """Whether a run of which no end is known counts as running: at most for `longest` seconds.

    One that started in the future, for the clock was set back, counts as running.
    """
    return in_utc(now) - in_utc(started) < timedelta(seconds=longest)


def _latest_due(name: str, schedule: Schedule, last: datetime, now: datetime, jitter: float) -> datetime | None:
    latest = schedule.latest_between(last, now)
    if latest is None or fires_at(name, schedule, latest, jitter) <= now:
        return latest
    # The one before fires before this one's tick, which is over.
    return schedule.latest_between(last, latest - _INSTANT)


def _fired(
    schedule: Schedule, last: datetime, latest: datetime, late: timedelta, policy: TickPolicy
) -> tuple[datetime, ...]:
    if policy.misfire == "skip":
        return (latest,) if late.total_seconds() <= policy.grace else ()
    if policy.misfire == "once":
        return (latest,)
    ticks = [latest]
    while len(ticks) < policy.most and (before := schedule.latest_between(last, ticks[-1] - _INSTANT)) is not None:
        ticks.append(before)
    return tuple(reversed(ticks))


def _draw(name: str, tick: datetime) -> float:
    """A number from 0 to less than 1."""
    drawn = hashlib.blake2b(f"{name}\n{tick.isoformat()}".encode(), digest_size=6).digest()
    return int.from_bytes(drawn) / 256**6
