"""The kinds of schedule: `crontab`, an interval, a single moment. All of them are values, and have a form as text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Protocol, cast, runtime_checkable

from celeriq.cron import crontab
from celeriq.errors import ScheduleError
from celeriq.wall_clock import in_utc

SHORTEST = timedelta(seconds=1)
"""Between two ticks of an interval."""


@runtime_checkable
class Schedule(Protocol):
    """When something is due: its moments are called ticks. All moments know their time zone; answers are in UTC."""

    def next_after(self, moment: datetime) -> datetime | None:
        """The first tick later than `moment`, a tick before it or the beginning; None if there is none any more."""
        ...

    def latest_between(self, after: datetime, until: datetime) -> datetime | None:
        """The last tick later than `after` and not later than `until`; None if there is none."""
        ...

    def as_text(self) -> str:
        """What `read_schedule` makes an equal one of: a JSON object."""
        ...


@dataclass(frozen=True, slots=True)
class Interval:
    """A tick each `every`, counted from the tick before and not from when that one ran.

    So it does not drift, as Celery's does when a run is late (BEAT-03). The first tick is one `every` after the
    beginning (BEAT-03). Real time counts: nothing changes when the clocks are changed (BEAT-07).
    Raises `ScheduleError` for less than a second.
    """

    every: timedelta

    def __post_init__(self) -> None:
        if self.every < SHORTEST:
            raise ScheduleError(f"an interval of {self.every.total_seconds():g} s; it must be 1 second or more")

    def next_after(self, moment: datetime) -> datetime | None:
        try:
            return in_utc(moment) + self.every
        except OverflowError:
            return None

    def latest_between(self, after: datetime, until: datetime) -> datetime | None:
        passed = (in_utc(until) - in_utc(after)) // self.every
        return in_utc(after) + passed * self.every if passed > 0 else None

    def as_text(self) -> str:
        return json.dumps({"interval": self.every.total_seconds()})


@dataclass(frozen=True, slots=True)
class Once:
    """One tick, at a moment that knows its time zone; raises `ScheduleError` for one that does not."""

    at: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", in_utc(self.at))

    def next_after(self, moment: datetime) -> datetime | None:
        return self.at if self.at > in_utc(moment) else None

    def latest_between(self, after: datetime, until: datetime) -> datetime | None:
        return self.at if in_utc(after) < self.at <= in_utc(until) else None

    def as_text(self) -> str:
        return json.dumps({"once": self.at.isoformat()})


def interval(every: float | timedelta) -> Interval:
    """Of seconds, or of a `timedelta`. Raises `ScheduleError` for less than a second, NaN and infinity."""
    if isinstance(every, timedelta):
        return Interval(every)
    if not math.isfinite(every) or every > timedelta.max.total_seconds():
        raise ScheduleError(f"an interval of {every!r} s; it must be a number of seconds, 1 or more")
    return Interval(timedelta(seconds=every))


def due_between(schedule: Schedule, after: datetime, until: datetime, most: int) -> list[datetime]:
    """The ticks later than `after` and not later than `until`, the first `most` of them, in their order."""
    return list(islice(_ticks(schedule, after, until), most))


def _ticks(schedule: Schedule, after: datetime, until: datetime) -> Iterator[datetime]:
    tick = schedule.next_after(after)
    while tick is not None and tick <= until:
        yield tick
        tick = schedule.next_after(tick)


def read_schedule(text: str) -> Schedule:
    """What `as_text()` wrote; people may have edited it. Raises `ScheduleError` for anything else.

    `{"cron": "0 2 * * *", "tz": "Europe/Berlin"}`, with `"either_day": true` where one of the two days is enough;
    `{"interval": 30.0}` in seconds; `{"once": "2026-11-21T02:00:00+00:00"}`.
    """
    try:
        told: object = json.loads(text)
    except ValueError as error:
        raise ScheduleError(f"{text!r} is no JSON; {_FORMS}") from error
    fields: dict[str, Any] = cast("dict[str, Any]", told) if isinstance(told, Mapping) else {}
    for kind, allowed in _ALLOWED.items():
        if kind in fields and allowed.issuperset(fields):
            return _of_kind(kind, fields)
    raise ScheduleError(f"{text!r} is no schedule; {_FORMS}")


_FORMS = """write {"cron": "0 2 * * *", "tz": "Europe/Berlin"}, {"interval": 30} or {"once": "2026-11-21T02:00:00Z"}"""
_ALLOWED = {"cron": {"cron", "tz", "either_day"}, "interval": {"interval"}, "once": {"once"}}


def _of_kind(kind: str, fields: Mapping[str, Any]) -> Schedule:
    given = fields[kind]
    if kind == "interval":
        if isinstance(given, bool) or not isinstance(given, int | float):
            raise ScheduleError(f"an interval of {given!r}; {_FORMS}")
        return interval(given)
    if not isinstance(given, str):
        raise ScheduleError(f"{kind} is {given!r}; {_FORMS}")
    if kind == "cron":
        return crontab.from_string(given, tz=fields.get("tz"), either_day=fields.get("either_day", False))
    try:
        return Once(datetime.fromisoformat(given))
    except ScheduleError:
        raise
    except ValueError as error:
        raise ScheduleError(f"once is {given!r}, which is no moment; {_FORMS}") from error
