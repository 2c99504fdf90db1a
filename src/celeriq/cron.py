"""`crontab`: moments by the clock on the wall, as Celery's users write them (BEAT-04 to BEAT-07)."""

from __future__ import annotations

import json
from bisect import bisect_left
from calendar import monthrange
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import MAXYEAR, date, datetime, time, timedelta, tzinfo
from functools import cached_property
from zoneinfo import ZoneInfo

from celeriq.cron_fields import FIELDS, HOUR, CronSpec
from celeriq.errors import ScheduleError
from celeriq.wall_clock import after_the_gap, in_utc, moments_of, set_back_after, zone_name

_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
"""Days of the months, of February in a leap year."""


@dataclass(frozen=True, init=False)
class crontab:  # noqa: N801 - Celery's name
    """Every moment at which the clock on the wall matches all five fields (BEAT-04).

    A field is a number, several numbers, or text: `*`, `*/n`, `a`, `a-b`, `a-b/n`, lists of these, names of days and
    months. A range may go over the end (`fri-mon`, `22-2`). Sunday is 0, and 7 is an error. `*/n` counts from the
    least number of the field: the days of `*/3` are 1, 4, 7 … (BEAT-05). `crontab(hour=4)` is every minute from 4:00
    to 4:59. The day of the week and the day of the month must both match; with `either_day` one of them is enough, as
    in cron and in Taskiq's labels.

    `tz` is the name of an IANA time zone, or a `ZoneInfo`. Defaults to the scheduler's, which is UTC unless it is told.

    On the two days when the clocks are changed, a day's work is done once, and what runs all day long runs on:

    - A time that never comes (02:30 in spring) fires once, at the first moment after the gap, and so do all those of
      the gap together. Celery fires as much later as the gap is long: at 03:30 (BEAT-07). Where every hour matches,
      nothing is made up for: the next one is near.
    - A time that comes twice (02:30 in autumn) fires once, the first time. Where every hour matches, or where the
      minutes are `*` or `*/n`, it fires both times, for the one who writes this thinks of the minutes in between, not
      of the time of day. So does cronie; Celery is silent throughout the second hour (BEAT-07).

    Raises `ScheduleError`, a `ValueError`, for a field that means nothing, a date that never comes (31 February) and
    an unknown time zone. Unlike Celery, text is read to its end ("1-5-7" is an error, not "1-5"), and names belong to
    their field: minute="jan" is an error, not 1.
    """

    minute: str
    hour: str
    day_of_week: str
    day_of_month: str
    month_of_year: str
    tz: str | None
    either_day: bool

    def __init__(
        self,
        minute: CronSpec = "*",
        hour: CronSpec = "*",
        day_of_week: CronSpec = "*",
        day_of_month: CronSpec = "*",
        month_of_year: CronSpec = "*",
        *,
        tz: str | tzinfo | None = None,
        either_day: bool = False,
    ) -> None:
        given = (minute, hour, day_of_week, day_of_month, month_of_year)
        for one, spec in zip(FIELDS, given, strict=True):
            object.__setattr__(self, one.name, one.text_of(spec))
        object.__setattr__(self, "tz", None if tz is None else zone_name(tz))
        if not isinstance(either_day, bool):  # pyright: ignore[reportUnnecessaryIsInstance] - JSON may say anything
            raise ScheduleError(f"crontab: either_day is {either_day!r}; it must be True or False")
        object.__setattr__(self, "either_day", either_day)
        self._check_dates()

    @classmethod
    def from_string(cls, line: str, *, tz: str | tzinfo | None = None, either_day: bool = False) -> crontab:
        """Of a line of cron: minute, hour, day of the month, month, day of the week.

        Raises `ScheduleError` for any other number of fields, and for what the fields say.
        """
        fields = line.split()
        if len(fields) != len(FIELDS):
            raise ScheduleError(
                f"crontab: {line!r} has {len(fields)} fields; write five of them, without blanks in between: "
                "minute, hour, day of the month, month, day of the week, as in '0 2 * * mon-fri'"
            )
        minute, hour, day_of_month, month_of_year, day_of_week = fields
        return cls(minute, hour, day_of_week, day_of_month, month_of_year, tz=tz, either_day=either_day)

    @property
    def line(self) -> str:
        """As a line of cron."""
        return f"{self.minute} {self.hour} {self.day_of_month} {self.month_of_year} {self.day_of_week}"

    def as_text(self) -> str:
        """JSON that `celeriq.schedule.read_schedule` reads."""
        told: dict[str, object] = {"cron": self.line}
        if self.tz is not None:
            told["tz"] = self.tz
        if self.either_day:
            told["either_day"] = True
        return json.dumps(told)

    def in_zone(self, tz: str | tzinfo) -> crontab:
        """In this time zone, unless it names one itself."""
        return self if self.tz is not None else replace(self, tz=zone_name(tz))

    def next_after(self, moment: datetime) -> datetime | None:
        """The first moment later than `moment`, in UTC; None if the calendar ends before.

        Raises `ScheduleError` for a moment without a time zone.
        """
        moment = in_utc(moment)
        try:
            first = self._first_after(moment, self._shown_at(moment) + timedelta(minutes=1))
            # The hour that is about to come again is earlier on the wall, but not in time.
            set_back = set_back_after(moment, self._zone) if self._runs_on else None
            if set_back is None or (first is not None and first < set_back):
                return first
            return self._first_after(set_back - timedelta(microseconds=1), self._shown_at(set_back))
        except OverflowError:
            return None

    def latest_between(self, after: datetime, until: datetime) -> datetime | None:
        """The last moment later than `after` and not later than `until`, in UTC; None if there is none."""
        latest, beyond = self.next_after(after), in_utc(until)
        if latest is None or latest > beyond:
            return None
        # By halving what is left: after a year, a crontab of every minute has half a million of them.
        while (following := self.next_after(latest)) is not None and following <= until:
            middle = latest + (beyond - latest) / 2
            found = self.next_after(middle)
            if found is not None and found <= until:
                latest = found
            else:
                latest, beyond = following, middle
        return latest

    @cached_property
    def _numbers(self) -> dict[str, tuple[int, ...]]:
        return {one.name: one.numbers_of(getattr(self, one.name)) for one in FIELDS}

    @cached_property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.tz or "UTC")

    @cached_property
    def _every_hour(self) -> bool:
        return len(self._numbers["hour"]) == HOUR.most + 1

    @cached_property
    def _runs_on(self) -> bool:
        """Whether it is about the time in between, so that an hour that comes twice counts twice."""
        return self._every_hour or self.minute.startswith("*")

    def _check_dates(self) -> None:
        days, months = self._numbers["day_of_month"], self._numbers["month_of_year"]
        if not self.either_day and days[0] > max(_LONGEST[month - 1] for month in months):
            raise ScheduleError(
                f"crontab: day_of_month={self.day_of_month!r} never comes in month_of_year={self.month_of_year!r}; "
                "write a day that one of these months has"
            )

    def _shown_at(self, moment: datetime) -> datetime:
        return moment.astimezone(self._zone).replace(tzinfo=None, fold=0)

    def _first_after(self, moment: datetime, reading: datetime) -> datetime | None:
        """The first of those that the clock shows at `reading` or later; `moment` itself is none."""
        for shown in self._readings(reading):
            for found in self._moments(shown):
                if found > moment:
                    return found
        return None

    def _moments(self, reading: datetime) -> tuple[datetime, ...]:
        moments = moments_of(reading, self._zone)
        if not moments:
            return () if self._every_hour else (after_the_gap(reading, self._zone),)
        return moments if self._runs_on else moments[:1]

    def _readings(self, start: datetime) -> Iterator[datetime]:
        """What the clock shows, from the minute of `start` on, ordered as on the wall."""
        start = start.replace(second=0, microsecond=0)
        for day in self._days(start.date()):
            for at in self._times(start.time() if day == start.date() else time.min):
                yield datetime.combine(day, at)

    def _times(self, start: time) -> Iterator[time]:
        hours, minutes = self._numbers["hour"], self._numbers["minute"]
        for hour in hours[bisect_left(hours, start.hour) :]:
            least = start.minute if hour == start.hour else 0
            for minute in minutes[bisect_left(minutes, least) :]:
                yield time(hour, minute)

    def _days(self, start: date) -> Iterator[date]:
        months = self._numbers["month_of_year"]
        for year in range(start.year, MAXYEAR + 1):
            for month in months[bisect_left(months, start.month) if year == start.year else 0 :]:
                least = start.day if (year, month) == (start.year, start.month) else 1
                yield from self._days_of(year, month, least)

    def _days_of(self, year: int, month: int, least: int) -> Iterator[date]:
        of_month, of_week = self._numbers["day_of_month"], self._numbers["day_of_week"]
        among = range(1, 32) if self.either_day else of_month
        for number in among[bisect_left(among, least) :]:
            if number > monthrange(year, month)[1]:
                return
            day = date(year, month, number)
            matches = any if self.either_day else all
            if matches((number in of_month, day.isoweekday() % 7 in of_week)):
                yield day
