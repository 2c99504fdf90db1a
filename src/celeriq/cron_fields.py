"""The five fields of a crontab: what may be written in one, and which numbers it means (BEAT-04, BEAT-05)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from celeriq.errors import ScheduleError

CronSpec = int | str | Iterable[int]
"""A number, several numbers, or text: `*`, `*/n`, `a`, `a-b`, `a-b/n`, names, and lists of these."""

_PART = re.compile(
    r"(?:(?P<star>\*)|(?P<first>[a-z0-9]+)(?:-(?P<last>[a-z0-9]+))?)(?:/(?P<step>[0-9]+))?", re.IGNORECASE
)
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


@dataclass(frozen=True, slots=True)
class CronField:
    """One of the five: its name, its numbers from `least` to `most`, and their names, which begin at `least`."""

    name: str
    least: int
    most: int
    names: tuple[str, ...] = ()

    def text_of(self, given: Any) -> str:
        """`given` as it is stored: text without blanks, numbers in their order.

        Raises `ScheduleError` for what is neither a number, nor text, nor numbers.
        """
        if isinstance(given, str):
            return ",".join(part.strip() for part in given.split(","))
        numbers: list[int] = []
        for number in cast("Iterable[object]", given) if isinstance(given, Iterable) else (given,):
            if isinstance(number, bool) or not isinstance(number, int):
                raise self._broken(given, "is neither a number, nor text, nor a list of numbers", self._example)
            numbers.append(number)
        if not numbers:
            raise self._broken(given, "means no moment at all", self._example)
        return ",".join(map(str, sorted(set(numbers))))

    def numbers_of(self, text: str) -> tuple[int, ...]:
        """The numbers that `text` means, in their order. Raises `ScheduleError` for text that means none."""
        return tuple(sorted({number for part in text.split(",") for number in self._expand(part, text)}))

    def _expand(self, part: str, text: str) -> Iterable[int]:
        found = _PART.fullmatch(part)
        if found is None:
            raise self._broken(text, f"has a part {part!r} that is none", self._example)
        step = int(found["step"] or 1)
        if step == 0:
            raise self._broken(text, "has a step of 0", "write a step of 1 or more, as in '*/5'")
        return list(self._range(found, text))[::step]

    def _range(self, found: re.Match[str], text: str) -> Iterator[int]:
        if found["star"]:
            yield from range(self.least, self.most + 1)
            return
        first = self._number(found["first"], text)
        if found["last"] is None:
            if found["step"]:
                remedy = f"write '{first}-{self.most}/{found['step']}'"
                raise self._broken(text, "has a step, but no range that it goes through", remedy)
            yield first
            return
        last = self._number(found["last"], text)
        if first <= last:
            yield from range(first, last + 1)
        else:  # fri-mon, 22-2
            yield from range(first, self.most + 1)
            yield from range(self.least, last + 1)

    def _number(self, word: str, text: str) -> int:
        if not word.isdigit():
            # The first three letters count, as in Celery: tues, thurs, sept.
            if (short := word[:3].lower()) not in self.names:
                raise self._broken(text, f"has a name {word!r} that is none here", self._example)
            return self.names.index(short) + self.least
        number = int(word)
        if not self.least <= number <= self.most:
            sunday = "Sunday is 0 here: " if self.names is _DAYS and number == self.most + 1 else ""
            raise self._broken(text, f"has {number}, which is out of range", f"{sunday}{self._example}")
        return number

    @property
    def _example(self) -> str:
        named = f", or names such as '{self.names[1]}-{self.names[-2]}'" if self.names else ""
        return f"write numbers from {self.least} to {self.most}, as in '*', '*/5', '{self.most - 2}' or '1-5,6'{named}"

    def _broken(self, given: Any, reason: str, remedy: str) -> ScheduleError:
        return ScheduleError(f"crontab: {self.name}={given!r} {reason}; {remedy}")


MINUTE = CronField("minute", 0, 59)
HOUR = CronField("hour", 0, 23)
DAY_OF_WEEK = CronField("day_of_week", 0, 6, _DAYS)
DAY_OF_MONTH = CronField("day_of_month", 1, 31)
MONTH_OF_YEAR = CronField("month_of_year", 1, 12, _MONTHS)

FIELDS = (MINUTE, HOUR, DAY_OF_WEEK, DAY_OF_MONTH, MONTH_OF_YEAR)
"""In the order of the arguments of `crontab`; in a line of cron, the day of the week comes last."""
