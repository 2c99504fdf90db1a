"""`crontab` agrees with Celery's, line by line of a recording, and does as it says when the clocks are changed."""

from __future__ import annotations

import json
import pickle
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celeriq import ScheduleError, crontab
from celeriq.cron_fields import FIELDS
from celeriq.schedule import due_between, read_schedule
from tests.conformance.crontabs import KEPT
from tests.conformance.rows import RECORDING

CELERY: dict[str, Any] = json.loads(KEPT.read_text())
NAMES = tuple(field.name for field in FIELDS)

# How fast the machine is decides nothing.
steadily = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def numbers(field: str, spec: Any) -> list[int] | None:
    """What `spec` means in a field, None if it is refused."""
    one = next(one for one in FIELDS if one.name == field)
    try:
        return list(one.numbers_of(one.text_of(spec)))
    except ScheduleError:
        return None


def at(reading: str, zone: str, fold: int = 0) -> datetime:
    return datetime.fromisoformat(reading).replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


def after(cron: crontab, moment: datetime, count: int) -> list[datetime]:
    return due_between(cron, moment, datetime.max.replace(tzinfo=UTC), count)


def shown(line: str, zone: str, reading: str, count: int) -> list[str]:
    """What the clock shows at the next ticks, with its distance from UTC."""
    ticks = after(crontab.from_string(line, tz=zone), at(reading, zone), count)
    return [tick.astimezone(ZoneInfo(zone)).strftime("%d %H:%M %z") for tick in ticks]


# -- as Celery does ----------------------------------------------------------------------------------------------------


def test_the_recording_is_of_the_pinned_celery() -> None:
    assert CELERY["celery"] == json.loads(RECORDING.read_text())["versions"]["celery"]


@pytest.mark.parametrize("field", NAMES)
def test_each_field_means_what_it_means_to_celery(field: str) -> None:
    """BEAT-04, BEAT-05."""
    # Blanks are forgiven, and no minute at all is refused here, where Celery finds out when it is asked for the next.
    ours = {"minute": {'"* "': list(range(60)), "[]": None}}
    recorded: dict[str, Any] = CELERY["fields"][field] | ours.get(field, {})
    assert len(recorded) > 60
    assert {spec: numbers(field, json.loads(spec)) for spec in recorded} == recorded


@pytest.mark.parametrize(("day", "month", "possible"), CELERY["possible"])
def test_a_date_that_never_comes_is_an_error_as_in_celery(day: str, month: str, possible: bool) -> None:
    """BEAT-04."""
    if possible:
        crontab(day_of_month=day, month_of_year=month)
    else:
        with pytest.raises(ScheduleError, match="never comes in month_of_year="):
            crontab(day_of_month=day, month_of_year=month)


def test_what_comes_next_is_what_celery_says_for_each_line_of_the_recording() -> None:
    """BEAT-04, BEAT-07, away from the days when the clocks are changed."""
    assert len(CELERY["lines"]) >= 2000
    unlike: list[Any] = []
    for line in CELERY["lines"]:
        *fields, zone, moment, expected = line
        cron = crontab(*fields, tz=CELERY["zones"][zone])
        found = cron.next_after(datetime.fromtimestamp(moment, UTC))
        if found != datetime.fromtimestamp(expected, UTC):
            unlike.append((line, found))
    assert unlike == []


OURS_WHEN_CLOCKS_CHANGE = {
    ("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00"): ["29 03:00 +0200", "30 02:30 +0200", "31 02:30 +0200"],
    ("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00"): "the same",
    ("Europe/Berlin", "*/30 * * * *", "2026-03-29T01:00"): "the same",
    ("Europe/Berlin", "*/30 * * * *", "2026-10-25T01:30"): ["25 02:00 +0200", "25 02:30 +0200", "25 02:00 +0100"],
    ("Europe/Berlin", "0 * * * *", "2026-10-25T00:30"): ["25 01:00 +0200", "25 02:00 +0200", "25 02:00 +0100"],
    ("America/New_York", "30 2 * * *", "2026-03-07T12:00"): ["08 03:00 -0400", "09 02:30 -0400", "10 02:30 -0400"],
    ("America/New_York", "30 1 * * *", "2026-10-31T12:00"): "the same",
    ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00"): ["04 02:30 +1100", "05 02:15 +1100", "06 02:15 +1100"],
}
"""What the clock shows at three ticks; where there is a list, Celery does something else."""


@pytest.mark.parametrize(("zone", "line", "reading", "celery"), CELERY["changes"])
def test_where_it_differs_from_celery_when_the_clocks_are_changed(
    zone: str, line: str, reading: str, celery: list[int]
) -> None:
    """BEAT-07."""
    theirs = [datetime.fromtimestamp(tick, ZoneInfo(zone)).strftime("%d %H:%M %z") for tick in celery]
    ours = OURS_WHEN_CLOCKS_CHANGE[zone, line, reading]
    assert theirs != ours
    assert shown(line, zone, reading, 3) == (theirs if ours == "the same" else ours)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"minute": "*/0"}, r"minute='\*/0' has a step of 0; write a step of 1 or more"),
        ({"hour": 24}, "hour='24' has 24, which is out of range; write numbers from 0 to 23"),
        ({"day_of_week": 7}, "Sunday is 0 here: write numbers from 0 to 6, .* or names such as 'mon-fri'"),
        ({"day_of_week": "son"}, "day_of_week='son' has a name 'son' that is none here"),
        ({"day_of_month": 31, "month_of_year": "2,4"}, "day_of_month='31' never comes in month_of_year='2,4'"),
        ({"minute": "5/10"}, "has a step, but no range that it goes through; write '5-59/10'"),
        ({"minute": []}, r"minute=\[\] means no moment at all"),
        ({"hour": None}, "hour=None is neither a number, nor text, nor a list of numbers"),
        ({"hour": True}, "hour=True is neither"),
        ({"hour": [1.5]}, r"hour=\[1.5\] is neither"),
        ({"tz": "Europe/Berlim"}, "no time zone 'Europe/Berlim'; did you mean 'Europe/Berlin'?"),
        ({"tz": "../etc"}, "no time zone '../etc'; write a name such as 'Europe/Berlin'"),
        ({"tz": datetime.now().astimezone().tzinfo}, "has no name; write that of an IANA zone"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ScheduleError, match=told) as raised:
        crontab(**given)
    assert isinstance(raised.value, ValueError)


def test_what_celery_reads_in_part_and_takes_for_something_else_is_an_error() -> None:
    """To Celery they are 1-5, the 1st minute, January, Monday."""
    for field, spec in (("minute", "1-5-7"), ("minute", "jan"), ("month_of_year", "mon"), ("day_of_week", "jan")):
        assert numbers(field, spec) is None


@pytest.mark.parametrize("line", ["* * * *", "* * * * * *", "", "1, 2 * * * *"])
def test_a_line_of_cron_has_five_fields(line: str) -> None:
    with pytest.raises(ScheduleError, match="write five of them, without blanks in between: minute, hour"):
        crontab.from_string(line)


def test_a_moment_without_a_time_zone_is_an_error() -> None:
    with pytest.raises(ScheduleError, match=r"has no time zone: write datetime\(\.\.\., tzinfo=UTC\)"):
        crontab().next_after(datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point


# -- a value -----------------------------------------------------------------------------------------------------------


def test_it_is_a_value() -> None:
    cron = crontab(minute={30, 0}, hour=2, tz=ZoneInfo("Europe/Berlin"))
    assert cron == crontab("0,30", "2", tz="Europe/Berlin")
    assert hash(cron) == hash(crontab("0, 30", [2], tz="Europe/Berlin"))
    assert pickle.loads(pickle.dumps(cron)) == cron
    assert cron.line == "0,30 2 * * *"
    with pytest.raises(AttributeError):
        cron.minute = "1"  # type: ignore[misc]


def test_a_line_of_cron_has_the_day_of_the_week_last() -> None:
    assert crontab.from_string("1 2  3 4 5") == crontab(1, 2, 5, 3, 4)


def test_without_a_time_zone_it_is_in_utc_until_it_is_told_one() -> None:
    """BEAT-07."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    nightly = crontab(minute=0, hour=2)
    assert nightly.next_after(moment) == datetime(2026, 1, 1, 2, tzinfo=UTC)
    assert nightly.in_zone("Asia/Kolkata").next_after(moment) == datetime(2026, 1, 1, 20, 30, tzinfo=UTC)
    assert crontab(tz=UTC).in_zone("Asia/Kolkata") == crontab(tz="UTC")


def test_either_day_is_enough_where_it_is_said() -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    both = crontab(0, 0, "mon", 1)
    either = crontab(0, 0, "mon", 1, either_day=True)
    assert [tick.date() for tick in after(both, moment, 2)] == [date(2026, 6, 1), date(2027, 2, 1)]
    assert [tick.day for tick in after(either, moment, 6)] == [5, 12, 19, 26, 1, 2]
    assert crontab(day_of_week="mon", day_of_month=31, month_of_year=2, either_day=True).next_after(moment)


# -- dates that are rare -----------------------------------------------------------------------------------------------


def test_the_29th_of_february() -> None:
    leap = crontab(0, 0, day_of_month=29, month_of_year="feb")
    years = [tick.year for tick in after(leap, datetime(2095, 1, 1, tzinfo=UTC), 3)]
    assert years == [2096, 2104, 2108]  # 2100 is none


def test_the_29th_of_february_on_a_given_day_of_the_week_may_be_forty_years_away() -> None:
    leap = crontab(0, 0, "sun", 29, 2)
    found = after(leap, datetime(2080, 1, 1, tzinfo=UTC), 2)
    assert [tick.year for tick in found] == [2088, 2128]


def test_the_calendar_ends() -> None:
    assert crontab(tz="America/New_York").next_after(datetime.max.replace(tzinfo=UTC)) is None
    assert crontab(tz="Asia/Kolkata").next_after(datetime.max.replace(tzinfo=UTC)) is None
    assert crontab(0, 0, month_of_year=1).next_after(datetime(9999, 2, 1, tzinfo=UTC)) is None


# -- when the clocks are changed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "line", "reading", "expected"),
    [
        # In spring: what the gap has swallowed fires once, at its end, and what fires then anyway fires no second time.
        ("Europe/Berlin", "0,15,30 2 * * *", "2026-03-29T01:00", ["29 03:00 +0200", "30 02:00 +0200"]),
        ("Europe/Berlin", "0 2,3 * * *", "2026-03-29T01:00", ["29 03:00 +0200", "30 02:00 +0200"]),
        ("Europe/Berlin", "*/20 2 * * *", "2026-03-29T01:00", ["29 03:00 +0200", "30 02:00 +0200"]),
        ("Europe/Berlin", "*/30 0-6 * * *", "2026-03-29T01:00", ["29 01:30 +0100", "29 03:00 +0200", "29 03:30 +0200"]),
        # Where every hour matches nothing is lost.
        ("Europe/Berlin", "45 * * * *", "2026-03-29T01:00", ["29 01:45 +0100", "29 03:45 +0200"]),
        ("America/New_York", "*/30 * * * *", "2026-03-08T01:15", ["08 01:30 -0500", "08 03:00 -0400"]),
        # Gaps of half an hour, at midnight, of a whole day.
        ("Australia/Lord_Howe", "0 2 * * *", "2026-10-04T01:00", ["04 02:30 +1100", "05 02:00 +1100"]),
        ("Australia/Lord_Howe", "*/10 * * * *", "2026-10-04T01:45", ["04 01:50 +1030", "04 02:30 +1100"]),
        ("Africa/Cairo", "0 0 * * *", "2026-04-23T12:00", ["24 01:00 +0300", "25 00:00 +0300"]),
        ("Pacific/Apia", "0 2 * * *", "2011-12-29T12:00", ["31 00:00 +1400", "31 02:00 +1400"]),
        # In autumn: a time of day fires the first time.
        ("Europe/Berlin", "0,30 2 * * *", "2026-10-25T01:00", ["25 02:00 +0200", "25 02:30 +0200", "26 02:00 +0100"]),
        ("America/New_York", "0 1 * * *", "2026-11-01T00:30", ["01 01:00 -0400", "02 01:00 -0500"]),
        ("Australia/Lord_Howe", "45 1 * * *", "2026-04-05T01:00", ["05 01:45 +1100", "06 01:45 +1030"]),
        # What is about the time in between runs on.
        ("America/New_York", "0 * * * *", "2026-11-01T00:30", ["01 01:00 -0400", "01 01:00 -0500", "01 02:00 -0500"]),
        ("Europe/Berlin", "*/40 2 * * *", "2026-10-25T02:30", ["25 02:40 +0200", "25 02:00 +0100", "25 02:40 +0100"]),
        ("Australia/Lord_Howe", "*/20 * * * *", "2026-04-05T01:30", ["05 01:40 +1100", "05 01:40 +1030"]),
        # The clock is set back over midnight, from 0:01 to 23:01 of the day before.
        ("America/St_Johns", "0 * * * *", "2010-11-06T22:30", ["06 23:00 -0230", "07 00:00 -0230", "07 00:00 -0330"]),
        ("America/St_Johns", "*/30 * * * *", "2010-11-06T23:45", ["07 00:00 -0230", "06 23:30 -0330"]),
    ],
)  # fmt: skip
def test_on_the_days_when_the_clocks_are_changed(zone: str, line: str, reading: str, expected: list[str]) -> None:
    """BEAT-07."""
    assert shown(line, zone, reading, len(expected)) == expected


def test_a_time_that_came_twice_does_not_fire_again_in_the_second_hour() -> None:
    cron = crontab.from_string("30 2 * * *", tz="Europe/Berlin")
    for reading in ("2026-10-25T02:00", "2026-10-25T02:29", "2026-10-25T02:45"):
        assert cron.next_after(at(reading, "Europe/Berlin", fold=1)) == at("2026-10-26T02:30", "Europe/Berlin")


# -- whatever the fields ----------------------------------------------------------------------------------------------


def words(least: int, most: int) -> st.SearchStrategy[str]:
    number = st.integers(least, most).map(str)
    step = st.integers(1, most).map("/{}".format)
    span = st.builds("{}-{}".format, number, number)
    part = number | span | st.builds("{}{}".format, span | st.just("*"), step)
    return st.just("*") | st.lists(part, min_size=1, max_size=3).map(",".join)


zones = st.sampled_from([*CELERY["zones"], "America/St_Johns", "Africa/Cairo", "Pacific/Apia"])
crontabs = st.builds(
    crontab,
    words(0, 59),
    words(0, 23),
    st.just("*") | words(0, 6),
    st.just("*") | words(1, 28),
    st.just("*") | words(1, 12),
    tz=zones,
    either_day=st.booleans(),
)
moments = st.datetimes(datetime(1995, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
CHANGES = [
    at(reading, zone)
    for zone, reading in (
        ("Europe/Berlin", "2026-03-29T03:00"),
        ("Europe/Berlin", "2026-10-25T03:00"),
        ("America/New_York", "2026-11-01T02:00"),
        ("America/St_Johns", "2010-11-07T00:01"),
        ("Australia/Lord_Howe", "2026-04-05T02:00"),
        ("Australia/Lord_Howe", "2026-10-04T02:30"),
        ("Pacific/Apia", "2011-12-31T00:00"),
    )
]
around_changes = st.builds(
    lambda change, before: change - timedelta(minutes=before), st.sampled_from(CHANGES), st.integers(-90, 300)
)


@settings(steadily, max_examples=300)
@given(crontabs, moments)
def test_the_next_one_is_later_and_matches_the_fields_on_the_wall(cron: crontab, moment: datetime) -> None:
    found = cron.next_after(moment)
    assert found is not None
    assert found > moment
    assert found.tzinfo is UTC
    if not near_a_change(found, cron):
        assert matches(cron, found)


@settings(steadily, max_examples=200)
@given(crontabs, moments | around_changes, st.integers(0, 59))
def test_no_minute_is_passed_over(cron: crontab, moment: datetime, seconds: int) -> None:
    """Compared minute by minute with what the docstring of `crontab` says."""
    start = moment.replace(second=seconds, microsecond=0)
    minutes = (start.replace(second=0) + timedelta(minutes=each) for each in range(1, 500))
    assert due_between(cron, start, start + timedelta(minutes=499), 500) == [
        each for each in minutes if fires(cron, each)
    ]


@settings(steadily, max_examples=100)
@given(crontabs, moments | around_changes, st.integers(0, 10**7))
def test_the_latest_one_is_the_last_before_the_one_that_is_next(cron: crontab, moment: datetime, seconds: int) -> None:
    until = moment + timedelta(seconds=seconds)
    latest = cron.latest_between(moment, until)
    if latest is None:
        following = cron.next_after(moment)
        assert following is not None
        assert following > until
    else:
        assert moment < latest <= until
        assert cron.next_after(latest - timedelta(microseconds=1)) == latest
        following = cron.next_after(latest)
        assert following is not None
        assert following > until


@steadily
@given(crontabs)
def test_what_is_read_is_what_was_written(cron: crontab) -> None:
    assert read_schedule(cron.as_text()) == cron
    assert crontab.from_string(cron.line, tz=cron.tz, either_day=cron.either_day) == cron


@steadily
@given(crontabs, around_changes)
def test_ticks_come_in_order_when_the_clocks_are_changed(cron: crontab, moment: datetime) -> None:
    ticks = after(cron, moment, 200)
    assert all(one < other for one, other in pairwise(ticks))


@cache
def told(cron: crontab) -> dict[str, set[int]]:
    return {name: set(numbers(name, getattr(cron, name)) or ()) for name in NAMES}


def matches(cron: crontab, moment: datetime) -> bool:
    """Whether the clock on the wall does, by another way than stepping."""
    return reads(cron, moment.astimezone(ZoneInfo(str(cron.tz))))


def reads(cron: crontab, wall: datetime) -> bool:
    of = told(cron)
    days = (wall.day in of["day_of_month"], wall.isoweekday() % 7 in of["day_of_week"])
    times = wall.minute in of["minute"] and wall.hour in of["hour"] and wall.month in of["month_of_year"]
    return times and (any(days) if cron.either_day else all(days))


def fires(cron: crontab, minute: datetime) -> bool:
    every_hour = len(told(cron)["hour"]) == 24
    wall = minute.astimezone(ZoneInfo(str(cron.tz)))
    if reads(cron, wall) and (wall.fold == 0 or every_hour or cron.minute.startswith("*")):
        return True
    return not every_hour and any(reads(cron, reading) for reading in skipped(wall, minute))


def skipped(wall: datetime, minute: datetime) -> list[datetime]:
    """What the clock would have shown between this minute and the one before."""
    before = (minute - timedelta(minutes=1)).astimezone(wall.tzinfo)
    gap = (wall.replace(tzinfo=None) - before.replace(tzinfo=None)) // timedelta(minutes=1)
    return [wall.replace(tzinfo=None) - timedelta(minutes=each) for each in range(1, gap)]


def near_a_change(moment: datetime, cron: crontab) -> bool:
    zone = ZoneInfo(str(cron.tz))
    around = (moment + timedelta(days=days) for days in (-1, 1))
    return len({each.astimezone(zone).utcoffset() for each in around}) > 1
