"""`python -m tests.conformance crontabs`: what Celery's `crontab` makes of random fields, kept in `crontabs.json`.

It runs in Celery's environment; `tests/unit/test_crontab.py` compares ours with every line of it. Nothing random happens
on a day when the clocks are changed, for there we differ on purpose: those days are in a table of their own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

KEPT = Path(__file__).parent / "crontabs.json"
LINES = 2000
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
FIELDS = {"minute": (0, 59), "hour": (0, 23), "day_of_week": (0, 6), "day_of_month": (1, 31), "month_of_year": (1, 12)}
NAMES = {
    "day_of_week": ("sun", "Monday", "tues", "WED", "thurs", "fri", "saturday"),
    "month_of_year": ("jan", "February", "mar", "apr", "May", "june", "jul", "aug", "sept", "OCT", "nov", "december"),
}

WRITTEN: dict[str, list[Any]] = {
    "minute": [
        "*/0",
        "*/60",
        "*/59",
        "60",
        "-1",
        "5-",
        "-5",
        "*/",
        "/5",
        "",
        "1,,2",
        ",",
        "1-60",
        "x",
        "1 2",
        "* ",
        [60],
        [],
    ],
    "hour": ["24", "*/24", "22-2/2", "23-0", "12-11", "0-0", 24, -1, [1, 24]],
    "day_of_week": ["7", "0-7", "fri-mon", "sat-sun", "sun-sat", "mon-fri/2", "*/2", "son", "6-0", 7],
    "day_of_month": ["0", "32", "*/3", "30-2", "2-30/2", "31", 0, 32],
    "month_of_year": ["0", "13", "*/3", "nov-feb", "2-12/2", "dec", "Sept,oct", 0],
}
"""What people may write, right or wrong, beside what is drawn."""

IMPOSSIBLE = [("31", "2"), ("30", "feb"), ("31", "2,4,6,9,11"), ("30-31", "2"), ("29", "2"), ("30,1", "2"), ("31", "*")]
"""Days and months, some of which never come together."""

CHANGES = [
    ("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00"),
    ("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00"),
    ("Europe/Berlin", "*/30 * * * *", "2026-03-29T01:00"),
    ("Europe/Berlin", "*/30 * * * *", "2026-10-25T01:30"),
    ("Europe/Berlin", "0 * * * *", "2026-10-25T00:30"),
    ("America/New_York", "30 2 * * *", "2026-03-07T12:00"),
    ("America/New_York", "30 1 * * *", "2026-10-31T12:00"),
    ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00"),
]
"""Time zone, line of cron, and the reading of the clock before the first of three runs."""


def drawn(field: str, random: Random) -> Any:
    """What could stand in the field: text in all its forms, a number, numbers."""
    least, most = FIELDS[field]

    def word() -> str:
        number = random.randint(least, most)
        return random.choice((str(number), NAMES[field][number - least])) if field in NAMES else str(number)

    def span() -> str:
        return f"{word()}-{word()}"

    def step() -> str:
        return f"/{random.randint(1, most)}"

    forms: tuple[Callable[[], str], ...] = (word, span, lambda: span() + step(), lambda: "*" + step())
    if (kind := random.random()) < 0.35:
        return "*"
    if kind < 0.45:
        return random.randint(least, most)
    if kind < 0.55:
        return sorted(random.sample(range(least, most + 1), random.randint(1, 4)))
    return ",".join(random.choice(forms)() for _ in range(random.choice((1, 1, 1, 2, 3))))


class Recorder:
    """Celery's crontabs, in all the zones."""

    def __init__(self) -> None:
        celery: Any = import_module("celery")
        self.version = celery.__version__
        self._crontab = import_module("celery.schedules").crontab
        self._apps = {zone: celery.Celery(set_as_current=False) for zone in ZONES}
        for zone, app in self._apps.items():
            app.conf.timezone = zone

    def numbers(self, field: str, spec: Any) -> list[int] | None:
        try:
            return sorted(getattr(self._crontab(**{field: spec}), field))
        except (ValueError, TypeError, self._crontab_error()):
            return None

    def next(self, fields: dict[str, Any], zone: str, moment: datetime) -> datetime:
        """When a run at `moment` is followed by the next."""
        made = self._crontab(**fields, app=self._apps[zone], nowfun=lambda: moment)
        found: datetime = moment + made.remaining_estimate(moment)
        return found

    def following(self, zone: str, line: str, reading: str) -> Iterator[int]:
        names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
        fields: dict[str, Any] = dict(zip(names, line.split(), strict=True))
        moment = datetime.fromisoformat(reading).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
        for _ in range(3):
            moment = self.next(fields, zone, moment)
            yield int(moment.timestamp())

    def possible(self, day: str, month: str) -> bool:
        try:
            self._crontab(day_of_month=day, month_of_year=month)
        except ValueError:
            return False
        return True

    def _crontab_error(self) -> type[Exception]:
        raised: type[Exception] = import_module("celery.schedules").ParseException
        return raised


def changes(moment: datetime, zone: str) -> bool:
    """Whether the clocks are changed on that day, or on the one before or after."""
    around = (moment + timedelta(days=days) for days in (-1.5, 1.5))
    return len({each.astimezone(ZoneInfo(zone)).utcoffset() for each in around}) > 1


def lines(recorder: Recorder, random: Random) -> Iterator[list[Any]]:
    while True:
        fields = {name: drawn(name, random) for name in FIELDS}
        zone = random.choice(ZONES)
        moment = datetime.fromtimestamp(random.randrange(1_700_000_000, 2_100_000_000), UTC)
        if random.random() < 0.3:
            moment = moment.replace(second=0)
        try:
            found = recorder.next(fields, zone, moment)
        except ValueError:  # a date that never comes
            continue
        if not changes(moment, zone) and not changes(found, zone):
            yield [*fields.values(), ZONES.index(zone), int(moment.timestamp()), int(found.timestamp())]


def recorded() -> dict[str, Any]:
    random, recorder = Random(1), Recorder()
    several = lines(recorder, random)
    kept = [next(several) for _ in range(LINES)]
    specs: dict[str, dict[str, Any]] = {name: {} for name in FIELDS}
    for position, name in enumerate(FIELDS):
        for spec in [*WRITTEN[name], *(line[position] for line in kept[:150])]:
            specs[name][json.dumps(spec)] = recorder.numbers(name, spec)
    return {
        "celery": recorder.version,
        "zones": ZONES,
        "fields": specs,
        "possible": [[*dates, recorder.possible(*dates)] for dates in IMPOSSIBLE],
        "changes": [[*change, list(recorder.following(*change))] for change in CHANGES],
        "lines": kept,
    }


def written(told: dict[str, Any]) -> str:
    """JSON with a line for each line of what is large."""
    whole = {**told, "lines": []}
    rows = ",\n".join(json.dumps(line, separators=(",", ":")) for line in told["lines"])
    return json.dumps(whole, separators=(",", ":"))[:-2] + f"\n{rows}\n]}}\n"


if __name__ == "__main__":
    KEPT.write_text(written(recorded()))
