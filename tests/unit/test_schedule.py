"""Kinds of schedule, the tables that they are read from, and which of their ticks fire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celeriq import ScheduleError, crontab
from celeriq.schedule import Interval, Once, Schedule, due_between, interval, read_schedule
from celeriq.schedule_entry import ScheduleEntry, as_schedule, read_beat_schedule, read_task_schedules
from celeriq.ticks import MOST_COUNTED, Due, TickPolicy, beginning, fires_at, plan, still_runs

# How fast the machine is decides nothing.
steadily = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NIGHTLY = crontab(minute=0, hour=2, tz="UTC")
HOURLY = crontab(minute=0, tz="UTC")

moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
schedules: st.SearchStrategy[Schedule] = (
    st.sampled_from([NIGHTLY, HOURLY, crontab("*/7", tz="Europe/Berlin"), crontab(30, 2, "mon", tz="America/New_York")])
    | st.timedeltas(SECOND, 3 * DAY).map(Interval)
    | moments.map(Once)
)
policies = st.builds(
    TickPolicy,
    misfire=st.sampled_from(["skip", "once", "all"]),
    grace=st.floats(0, 4000),
    most=st.integers(1, 20),
    jitter=st.just(0.0) | st.floats(0, 5000),
)


# -- kinds -------------------------------------------------------------------------------------------------------------


def test_an_interval_is_counted_from_the_tick_before() -> None:
    """BEAT-03."""
    each = interval(30)
    assert each.next_after(NOON) == NOON + 30 * SECOND
    assert due_between(each, NOON, NOON + 95 * SECOND, 10) == [NOON + count * 30 * SECOND for count in (1, 2, 3)]
    assert each.latest_between(NOON, NOON + 95 * SECOND) == NOON + 90 * SECOND
    assert each.latest_between(NOON, NOON + 29 * SECOND) is None
    assert each.latest_between(NOON, NOON - DAY) is None


@pytest.mark.parametrize("every", [0, 0.5, -1, float("nan"), float("inf"), 1e300, timedelta(milliseconds=999)])
def test_an_interval_is_a_second_or_more(every: Any) -> None:
    with pytest.raises(ScheduleError, match=r"it must be .*1 .*or more"):
        interval(every)


def test_a_single_moment_is_due_once() -> None:
    once = Once(NOON)
    assert once.next_after(NOON - SECOND) == NOON
    assert once.next_after(NOON) is None
    assert once.latest_between(NOON - SECOND, NOON) == NOON
    assert once.latest_between(NOON, NOON + DAY) is None
    with pytest.raises(ScheduleError, match="has no time zone"):
        Once(NOON.replace(tzinfo=None))


def test_at_the_end_of_the_calendar_nothing_comes() -> None:
    assert interval(60).next_after(datetime.max.replace(tzinfo=UTC)) is None


def test_due_between_gives_the_first_ones() -> None:
    assert due_between(HOURLY, NOON, NOON + DAY, 2) == [NOON + HOUR, NOON + 2 * HOUR]
    assert len(due_between(HOURLY, NOON, NOON + DAY, 100)) == 24


@steadily
@given(schedules)
def test_text_is_read_as_what_was_written(schedule: Schedule) -> None:
    assert read_schedule(schedule.as_text()) == schedule


def test_text_can_be_read_by_people() -> None:
    assert crontab(0, 2, tz="Europe/Berlin").as_text() == '{"cron": "0 2 * * *", "tz": "Europe/Berlin"}'
    assert interval(30).as_text() == '{"interval": 30.0}'
    assert Once(NOON).as_text() == '{"once": "2026-06-01T12:00:00+00:00"}'
    assert read_schedule('{"once": "2026-06-01T14:00:00+02:00"}') == Once(NOON)
    assert read_schedule('{"cron": "0 2 1 * mon", "either_day": true}') == crontab(0, 2, "mon", 1, either_day=True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0 2 * * *", 'is no JSON; write {"cron"'),
        ("[]", "is no schedule"),
        ('{"cron": "0 2 * * *", "zone": "UTC"}', "is no schedule"),
        ('{"cron": "0 2 * * *", "either_day": 1}', "either_day is 1; it must be True or False"),
        ('{"cron": 5}', "cron is 5"),
        ('{"cron": "0 25 * * *"}', "hour='25' has 25"),
        ('{"cron": "* * * * *", "tz": 1}', "tz is 1, which has no name"),
        ('{"interval": "30"}', "an interval of '30'"),
        ('{"interval": 0}', "it must be 1 second or more"),
        ('{"once": "tomorrow"}', "once is 'tomorrow', which is no moment"),
        ('{"once": "2026-06-01T12:00:00"}', "has no time zone"),
    ],
)
def test_text_that_is_no_schedule_is_refused(text: str, told: str) -> None:
    with pytest.raises(ScheduleError) as raised:
        read_schedule(text)
    assert told in str(raised.value)


# -- Celery's table ----------------------------------------------------------------------------------------------------


class CeleryCrontab:
    """What Celery's object has."""

    def __init__(self, **fields: Any) -> None:
        for name in ("minute", "hour", "day_of_week", "day_of_month", "month_of_year"):
            setattr(self, f"_orig_{name}", fields.get(name, "*"))


class CeleryInterval:
    def __init__(self, run_every: timedelta, *, relative: bool = False) -> None:
        self.run_every, self.relative = run_every, relative


class CelerySolar:
    event, lat, lon = "sunset", 52, 13


def test_celerys_table_is_read_as_it_is() -> None:
    """BEAT-01, BEAT-07."""
    table = {
        "beat": {"task": "health.beat", "schedule": 30.0},
        "feeds": {"task": "feeds.fetch", "schedule": timedelta(minutes=5), "relative": False},
        "purge": {
            "task": "documents.purge",
            "schedule": crontab(minute=0, hour=2),
            "args": (90,),
            "kwargs": {"dry": False},
            "options": {"queue": "slow", "expires": 600},
        },
        "theirs": {"task": "a", "schedule": CeleryCrontab(minute="*/15", hour={8, 9}, day_of_week="mon-fri")},
        "theirs too": {"task": "b", "schedule": CeleryInterval(MINUTE), "args": [1], "kwargs": None},
        "elsewhere": {"task": "c", "schedule": crontab(tz="Asia/Kolkata"), "misfire": "all", "jitter": 5},
    }
    beat, feeds, purge, theirs, theirs_too, elsewhere = read_beat_schedule(table, tz="Europe/Berlin")
    assert beat == ScheduleEntry(name="beat", task="health.beat", schedule=interval(30))
    assert feeds.schedule == interval(300)
    assert purge == ScheduleEntry(
        name="purge",
        task="documents.purge",
        schedule=crontab(0, 2, tz="Europe/Berlin"),
        args=(90,),
        kwargs={"dry": False},
        options={"queue": "slow", "expires": 600},
    )
    assert theirs.schedule == crontab("*/15", "8,9", "mon-fri", tz="Europe/Berlin")
    assert theirs_too == ScheduleEntry(name="theirs too", task="b", schedule=interval(60), args=(1,))
    assert elsewhere.schedule == crontab(tz="Asia/Kolkata")
    assert elsewhere.policy == TickPolicy(misfire="all", jitter=5)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"task": "a", "shedule": 30}, "unknown key 'shedule'; did you mean 'schedule'?"),
        ({"task": "a", "schedule": 30, "zzz": 1}, "unknown key 'zzz'; known are task, schedule, args"),
        ({"schedule": 30}, "it has no 'task'; write {'task': 'mail.send'"),
        ({"task": "a"}, "it has no 'schedule'; write"),
        ({"task": print, "schedule": 30}, "task is <built-in function print>; it must be the name of a task"),
        ({"task": "a", "schedule": "0 2 * * *"}, "write crontab.from_string('0 2 * * *')"),
        ({"task": "a", "schedule": None}, "schedule is None; write seconds, a timedelta or a crontab"),
        ({"task": "a", "schedule": True}, "schedule is True; write seconds"),
        ({"task": "a", "schedule": 0.1}, "an interval of 0.1 s; it must be 1 second or more"),
        ({"task": "a", "schedule": CelerySolar()}, "schedules by the sun are not there (BEAT-13)"),
        ({"task": "a", "schedule": CeleryCrontab(hour=24)}, "hour='24' has 24, which is out of range"),
        ({"task": "a", "schedule": HOUR, "relative": True}, "relative is True, which rounds an interval"),
        ({"task": "a", "schedule": CeleryInterval(HOUR, relative=True)}, "crontab(minute=0) for each full hour"),
        ({"task": "a", "schedule": 30, "args": "abc"}, "args is 'abc'; it must be a list or tuple: write ('abc',)"),
        ({"task": "a", "schedule": 30, "args": 5}, "args is 5; it must be a list or tuple: write (5,)"),
        ({"task": "a", "schedule": 30, "kwargs": [1]}, "kwargs is [1]; it must be a mapping of names to values"),
        ({"task": "a", "schedule": 30, "options": {1: 2}}, "options is {1: 2}; it must be a mapping"),
        ({"task": "a", "schedule": 30, "misfire": "never"}, "misfire is 'never'; it must be 'skip', 'once' or 'all'"),
        (30, "it is 30; it must be a mapping with task, schedule"),
    ],
)
def test_a_broken_entry_is_named_with_its_key_and_the_remedy(entry: Any, told: str) -> None:
    with pytest.raises(ScheduleError) as raised:
        read_beat_schedule({"fine": {"task": "a", "schedule": 1}, "nightly": entry})
    assert str(raised.value).startswith("entry 'nightly': ")
    assert told in str(raised.value)


# -- a task's own schedules --------------------------------------------------------------------------------------------


def test_labels_are_read_as_taskiq_writes_them() -> None:
    labels = [
        {"cron": "0 2 * * *", "cron_offset": "Europe/Berlin", "args": [1], "kwargs": {"a": 2}, "labels": {"x": "y"}},
        {"cron": "*/10 * * * *", "cron_offset": timedelta(hours=2), "schedule_id": "often"},
        {"interval": 30},
        {"interval": timedelta(minutes=2), "options": {"queue": "slow"}, "overlap": "skip"},
        {"time": datetime(2027, 1, 1), "cron": None},  # noqa: DTZ001 - in UTC
    ]
    nightly, often, seconds, minutes, once = read_task_schedules("mail.send", labels)
    assert nightly == ScheduleEntry(
        name="mail.send",
        task="mail.send",
        schedule=crontab(0, 2, tz="Europe/Berlin"),
        args=(1,),
        kwargs={"a": 2},
        labels={"x": "y"},
    )
    assert often == ScheduleEntry(name="often", task="mail.send", schedule=crontab("*/10", tz="Etc/GMT-2"))
    assert seconds == ScheduleEntry(name="mail.send#3", task="mail.send", schedule=interval(30))
    assert minutes.schedule == interval(120)
    assert minutes.options == {"queue": "slow"}
    assert minutes.policy == TickPolicy(overlap="skip")
    assert once.schedule == Once(datetime(2027, 1, 1, tzinfo=UTC))


def test_an_offset_of_the_clock_is_ahead_of_utc() -> None:
    (entry,) = read_task_schedules("a", {"cron": "0 2 * * *", "cron_offset": timedelta(hours=-3)})
    assert entry.schedule.next_after(NOON) == datetime(2026, 6, 2, 5, tzinfo=UTC)


def test_a_label_that_says_both_days_means_either_and_a_crontab_means_both() -> None:
    """BEAT-04, and cron."""
    label, ours = read_task_schedules("a", [{"cron": "0 0 1 * mon"}, crontab.from_string("0 0 1 * mon")], tz="UTC")
    assert label.schedule == crontab(0, 0, "mon", 1, tz="UTC", either_day=True)
    assert ours.schedule == crontab(0, 0, "mon", 1, tz="UTC")
    (starred,) = read_task_schedules("a", {"cron": "0 0 */2 * mon"}, tz="UTC")
    assert starred.schedule == crontab(0, 0, "mon", "*/2", tz="UTC")


def test_a_task_may_say_its_schedule_as_a_value() -> None:
    assert [entry.schedule for entry in read_task_schedules("a", NIGHTLY)] == [NIGHTLY]
    several = [crontab(hour=2), 30, MINUTE, NOON, Once(NOON), Interval(HOUR)]
    entries = read_task_schedules("a", several, tz="Europe/Berlin")
    expected = [crontab(hour=2, tz="Europe/Berlin"), interval(30), interval(60), Once(NOON), Once(NOON), interval(3600)]
    assert [entry.schedule for entry in entries] == expected
    assert [entry.name for entry in entries] == ["a", "a#2", "a#3", "a#4", "a#5", "a#6"]


def test_a_schedule_of_ones_own_is_taken_as_it_is() -> None:
    """BEAT-15."""

    class Full:
        def next_after(self, moment: datetime) -> datetime | None:
            return None

        def latest_between(self, after: datetime, until: datetime) -> datetime | None:
            return None

        def as_text(self) -> str:
            return ""

    full = Full()
    assert as_schedule(full) is full


@pytest.mark.parametrize(
    ("label", "told"),
    [
        ({"cron": "0 2 * * *", "cron_ofset": "UTC"}, "unknown key 'cron_ofset'; did you mean 'cron_offset'?"),
        ({"args": []}, "it needs one of 'cron', 'interval' and 'time', and has none"),
        ({"cron": "0 2 * * *", "interval": 3}, "and has cron and interval; write one label for each"),
        ({"cron": crontab()}, "it must be text, '0 2 * * *', or write schedule=[crontab(...)]"),
        ({"cron": "0 2 * *"}, "'0 2 * *' has 4 fields; write five"),
        ({"cron": "0 2 * * *", "cron_offset": "Berlin"}, "no time zone 'Berlin'"),
        ({"cron": "0 2 * * *", "cron_offset": timedelta(minutes=330)}, "write the name of a time zone"),
        ({"interval": 30, "cron_offset": "UTC"}, "cron_offset is for 'cron', not for 'interval'; leave it out"),
        ({"interval": "30"}, "interval is '30'; it must be seconds or a timedelta"),
        ({"time": "2027-01-01"}, "time is '2027-01-01'; write a datetime"),
        ({"interval": 30, "schedule_id": 5}, "schedule_id is 5; it must be text"),
        ("0 2 * * *", "write crontab.from_string('0 2 * * *')"),
    ],
)
def test_a_broken_label_is_named_with_its_task_and_the_remedy(label: Any, told: str) -> None:
    with pytest.raises(ScheduleError) as raised:
        read_task_schedules("mail.send", [30, label])
    assert str(raised.value).startswith("task 'mail.send', schedule 2: ")
    assert told in str(raised.value)


def test_two_schedules_of_one_name_are_an_error() -> None:
    with pytest.raises(ScheduleError, match="task 'a': two schedules are named 'x'; give them a schedule_id each"):
        read_task_schedules("a", [{"interval": 1, "schedule_id": "x"}, {"interval": 2, "schedule_id": "x"}])


# -- which ticks fire --------------------------------------------------------------------------------------------------


def days(*which: int) -> tuple[datetime, ...]:
    return tuple(datetime(2026, 6, day, 2, tzinfo=UTC) for day in which)


@pytest.mark.parametrize(
    ("policy", "fire", "missed"),
    [
        (TickPolicy(), days(5), 3),
        (TickPolicy(misfire="skip"), (), 4),
        (TickPolicy(misfire="skip", grace=3600), days(5), 3),
        (TickPolicy(misfire="all"), days(2, 3, 4, 5), 0),
        (TickPolicy(misfire="all", most=2), days(4, 5), 2),
    ],
)
def test_after_four_nights_off(policy: TickPolicy, fire: tuple[datetime, ...], missed: int) -> None:
    """BEAT-06: Celery runs it once, or not at all if it is later than its deadline."""
    now = datetime(2026, 6, 5, 2, 30, tzinfo=UTC)
    assert plan("nightly", NIGHTLY, days(1)[0], now, policy) == Due(
        fire=fire, missed=missed, last=days(5)[0], next=days(6)[0]
    )


def test_a_tick_in_time_fires_whatever_was_missed_before() -> None:
    now = days(5)[0] + 2 * SECOND
    assert plan("nightly", NIGHTLY, days(1)[0], now, TickPolicy(misfire="skip")).fire == days(5)


def test_before_the_next_tick_nothing_is_due() -> None:
    now = NOON + 29 * SECOND
    assert plan("a", interval(30), NOON, now) == Due(fire=(), missed=0, last=NOON, next=NOON + 30 * SECOND)


def test_an_interval_that_ran_late_is_not_late_for_ever() -> None:
    """BEAT-03: Celery counts from the run, and drifts."""
    due = plan("a", interval(30), NOON, NOON + 44 * SECOND)
    assert due == Due(fire=(NOON + 30 * SECOND,), missed=0, last=NOON + 30 * SECOND, next=NOON + 60 * SECOND)


def test_what_was_missed_is_counted_up_to_a_limit() -> None:
    due = plan("a", interval(1), NOON, NOON + 30 * DAY)
    assert due.missed == MOST_COUNTED
    assert due.fire == (NOON + 30 * DAY,)


def test_a_clock_that_is_set_back_fires_nothing_twice() -> None:
    last = NOON
    for minute in (*range(1, 121), *range(60, 121)):
        due = plan("a", HOURLY, last, NOON + minute * MINUTE)
        assert due.fire == ((NOON + minute * MINUTE,) if NOON + minute * MINUTE > last and minute % 60 == 0 else ())
        last = due.last
    assert plan("a", HOURLY, last, NOON).next == NOON + 3 * HOUR


def test_a_schedule_begins_when_it_is_new() -> None:
    """BEAT-03."""
    assert plan("a", interval(60), beginning(interval(60), NOON), NOON).next == NOON + MINUTE
    assert plan("a", NIGHTLY, beginning(NIGHTLY, NOON), NOON).fire == ()
    over = Once(NOON - DAY)
    due = plan("a", over, beginning(over, NOON), NOON)
    assert due == Due(fire=(NOON - DAY,), missed=0, last=NOON - DAY, next=None)
    assert plan("a", over, due.last, NOON).fire == ()


@settings(steadily, max_examples=200)
@given(schedules, moments, policies, st.lists(st.integers(-3000, 20000), min_size=1, max_size=12))
def test_each_tick_fires_at_most_once_and_is_never_early(
    schedule: Schedule, start: datetime, policy: TickPolicy, steps: list[int]
) -> None:
    """Whatever the clock does: it may be set back, too."""
    last, now = beginning(schedule, start), start
    fired: list[datetime] = []
    for step in steps:
        now += step * SECOND
        due = plan("a", schedule, last, now, policy)
        assert len(due.fire) <= (policy.most if policy.misfire == "all" else 1)
        assert all(last < tick <= now and fires_at("a", schedule, tick, policy.jitter) <= now for tick in due.fire)
        assert due.last >= last
        assert due.next is None or due.next > min(now, due.last)
        fired += due.fire
        last = due.last
    assert fired == sorted(set(fired))


@settings(steadily, max_examples=100)
@given(schedules, moments, policies, st.integers(0, 90000))
def test_what_is_due_is_fired_or_counted(schedule: Schedule, start: datetime, policy: TickPolicy, seconds: int) -> None:
    now = start + seconds * SECOND
    due = plan("a", schedule, start, now, policy)
    ticks = due_between(schedule, start, now, 2000)
    expected = [tick for tick in ticks if fires_at("a", schedule, tick, policy.jitter) <= now]
    assert due.missed == min(len(expected) - len(due.fire), MOST_COUNTED) or len(ticks) == 2000
    assert due.last == (expected[-1] if expected and len(ticks) < 2000 else due.last)
    assert due.next is None or due.next > now


# -- jitter, overlap, policies -----------------------------------------------------------------------------------------


def test_jitter_is_the_same_for_all_schedulers_and_another_for_each_tick_and_name() -> None:
    ticks = due_between(NIGHTLY, NOON, NOON + 50 * DAY, 50)
    delays = [fires_at("a", NIGHTLY, tick, 600) - tick for tick in ticks]
    assert delays == [fires_at("a", NIGHTLY, tick, 600) - tick for tick in ticks]
    assert len(set(delays)) == 50
    assert delays[0] != fires_at("b", NIGHTLY, ticks[0], 600) - ticks[0]
    assert all(timedelta(0) <= delay < 600 * SECOND for delay in delays)
    assert max(delays) > 400 * SECOND
    assert min(delays) < 200 * SECOND
    # Written down, so that the schedulers of the next release agree with those of this one.
    assert fires_at("mail.digest", NIGHTLY, days(1)[0], 600) == datetime(2026, 6, 1, 2, 5, 54, 18045, tzinfo=UTC)


def test_jitter_stays_before_the_next_tick() -> None:
    for tick in due_between(HOURLY, NOON, NOON + DAY, 24):
        assert tick <= fires_at("a", HOURLY, tick, 1e6) < tick + HOUR


def test_a_tick_with_jitter_fires_when_its_time_has_come() -> None:
    policy = TickPolicy(jitter=600, misfire="skip", grace=5)
    (tick,) = days(2)
    at = fires_at("a", NIGHTLY, tick, 600)
    assert plan("a", NIGHTLY, days(1)[0], at - SECOND, policy) == Due(fire=(), missed=0, last=days(1)[0], next=at)
    assert plan("a", NIGHTLY, days(1)[0], at, policy).fire == (tick,)
    assert plan("a", NIGHTLY, days(1)[0], at + 6 * SECOND, policy).missed == 1


def test_a_run_counts_as_running_for_so_long_and_no_longer() -> None:
    assert still_runs(NOON, NOON + 59 * SECOND, 60)
    assert not still_runs(NOON, NOON + MINUTE, 60)
    assert still_runs(NOON, NOON - DAY, 60)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"misfire": "never"}, "misfire is 'never'; it must be 'skip', 'once' or 'all'"),
        ({"overlap": True}, "overlap is True; it must be 'allow' or 'skip'"),
        ({"most": 0}, "most is 0; it must be a number, 1 or more"),
        ({"grace": -1}, "grace is -1; it must be seconds, 0 or more"),
        ({"jitter": float("inf")}, "jitter is inf; it must be seconds, 0 or more"),
        ({"max_overlap": 0}, "max_overlap is 0; it must be seconds above 0"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ScheduleError, match=told):
        TickPolicy(**given)
