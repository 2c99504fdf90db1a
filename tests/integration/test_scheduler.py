"""The scheduler: each tick once, whoever looks, whatever the clock does, and whoever edits meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from celeriq import (
    RedisBroker,
    ScheduleConflictError,
    ScheduleError,
    Scheduler,
    SessionsMissingError,
    TablesMissingError,
    TaskDefinitionError,
    TickPolicy,
    UnknownScheduleError,
    crontab,
)
from celeriq.embedded import Services
from celeriq.envelope import Envelope
from tests import databases
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

MIDNIGHT = datetime(2026, 11, 21, tzinfo=UTC)
EVERY_MINUTE = {"task": "note", "schedule": 60}
DAILY = {"task": "note", "schedule": crontab(hour=2, minute=0)}


class Wall:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = MIDNIGHT

    async def __call__(self, session: AsyncSession) -> datetime:
        return self.now

    def goes(self, **by: float) -> None:
        self.now += timedelta(**by)


@pytest.fixture
def wall() -> Wall:
    return Wall()


def noting(broker: RedisBroker) -> Any:
    @broker.task(name="note")
    async def note(number: int = 0) -> int:
        return number

    return note


@pytest.fixture
async def broker(make_broker: MakeBroker, open_sessions: Any) -> AsyncGenerator[RedisBroker]:
    broker = make_broker().with_sessions(open_sessions)
    noting(broker)
    await broker.startup()
    yield broker
    await broker.shutdown()


Make = Callable[..., Scheduler]


@pytest.fixture
def make(broker: RedisBroker, wall: Wall) -> Make:
    def make(**beat_schedule: dict[str, Any]) -> Scheduler:
        return Scheduler(broker, beat_schedule=beat_schedule, clock=wall)

    return make


async def begin(scheduler: Scheduler) -> Scheduler:
    """As at its start, but nothing ticks by itself."""
    await scheduler._declare()
    return scheduler


async def fire(scheduler: Scheduler) -> int:
    return await scheduler._firing.fire_all()


async def sent(broker: RedisBroker) -> list[Envelope]:
    """What is in the queue, as soon as nothing waits for it any more."""

    async def nothing_waits() -> bool:
        async with broker.sessions() as session:
            return not await session.scalar(text("select count(*) from celeriq_outbox"))

    await wait_for(nothing_waits)
    entries: Any = await broker._client.xrange(broker.keys.queue("default"))
    return [msgspec.json.decode(fields[b"data"], type=Envelope) for _, fields in entries]


async def count(broker: RedisBroker) -> int:
    return len(await sent(broker))


# -- ticks -------------------------------------------------------------------------------------------------------------


async def test_a_schedule_is_fired_when_it_is_due_and_not_before(make: Make, broker: RedisBroker, wall: Wall) -> None:
    """BEAT-03: first after one interval."""
    scheduler = await begin(make(minutely={**EVERY_MINUTE, "args": [5], "options": {"priority": 1}}))
    wall.goes(seconds=59)
    assert await fire(scheduler) == 0
    wall.goes(seconds=1)
    assert await fire(scheduler) == 1
    assert await fire(scheduler) == 0
    [call] = await sent(broker)
    assert (call.task, call.args, call.headers) == ("note", [5], {"celery_beat_task": True})
    assert (call.labels["schedule_id"], call.labels["priority"]) == ("minutely", "1")
    row = await scheduler.schedules.get("minutely")
    assert (row.runs, row.last_task_id, row.last_run_at) == (1, call.id, wall.now)
    assert (row.last_due, row.next_due) == (wall.now, wall.now + timedelta(minutes=1))


async def test_a_late_interval_does_not_drift_and_misses_are_counted(
    make: Make, broker: RedisBroker, wall: Wall
) -> None:
    scheduler = await begin(make(minutely=EVERY_MINUTE))
    wall.goes(minutes=3, seconds=20)
    assert await fire(scheduler) == 1
    row = await scheduler.schedules.get("minutely")
    assert (row.runs, row.missed, row.next_due) == (1, 2, MIDNIGHT + timedelta(minutes=4))
    assert await count(broker) == 1


async def test_labels_of_a_schedule_keep_their_types(make_broker: MakeBroker, open_sessions: Any, wall: Wall) -> None:
    broker = make_broker().with_sessions(open_sessions)
    broker.task(name="labelled", schedule=[{"interval": 60, "labels": {"trace": False, "depth": 3}}])(print)
    async with broker:
        scheduler = await begin(Scheduler(broker, clock=wall))
        wall.goes(minutes=1)
        await fire(scheduler)
        [call] = await sent(broker)
    message = call.message()
    message.parse_labels()
    assert (message.labels["trace"], message.labels["depth"]) == (False, 3)


@pytest.mark.parametrize(
    ("policy", "fired", "missed"),
    [
        ({"misfire": "once"}, 1, 2),
        ({"misfire": "skip", "grace": 10}, 0, 3),
        ({"misfire": "skip", "grace": 30}, 1, 2),
        ({"misfire": "all"}, 3, 0),
        ({"misfire": "all", "most": 2}, 2, 1),
    ],
    ids=str,
)
async def test_what_becomes_of_ticks_that_come_too_late_is_its_policy(
    make: Make, broker: RedisBroker, wall: Wall, policy: dict[str, Any], fired: int, missed: int
) -> None:
    scheduler = await begin(make(minutely={**EVERY_MINUTE, **policy}))
    wall.goes(minutes=3, seconds=20)
    await fire(scheduler)
    row = await scheduler.schedules.get("minutely")
    assert (row.runs, row.missed, await count(broker)) == (fired, missed, fired)


async def test_a_clock_that_is_set_back_fires_no_tick_twice(make: Make, broker: RedisBroker, wall: Wall) -> None:
    scheduler = await begin(make(minutely=EVERY_MINUTE))
    wall.goes(minutes=90)
    await fire(scheduler)
    wall.goes(hours=-1)
    assert await fire(scheduler) == 0
    # A scheduler that starts meanwhile does not forget it either.
    again = await begin(make(minutely=EVERY_MINUTE))
    wall.goes(minutes=30)
    assert await fire(again) == 0
    wall.goes(minutes=31)
    assert await fire(again) == 1
    ids = [call.id for call in await sent(broker)]
    assert len(set(ids)) == len(ids) == 2


async def test_a_single_moment_fires_once_for_ever(make: Make, broker: RedisBroker, wall: Wall) -> None:
    moment = {"task": "note", "schedule": MIDNIGHT + timedelta(hours=1)}
    scheduler = await begin(make(once=moment))
    wall.goes(hours=2)
    assert await fire(scheduler) == 1
    assert (await scheduler.schedules.get("once")).next_due is None
    wall.goes(hours=2)
    assert await fire(await begin(make(once=moment))) == 0
    assert await count(broker) == 1


async def test_any_number_of_schedulers_fire_each_tick_once(
    make_broker: MakeBroker, open_sessions: Any, wall: Wall
) -> None:
    table = {f"entry {number}": {**EVERY_MINUTE, "args": [number]} for number in range(30)}
    brokers = [make_broker().with_sessions(open_sessions) for _ in range(3)]
    for broker in brokers:
        noting(broker)
        await broker.startup()
    schedulers = [Scheduler(broker, beat_schedule=table, clock=wall) for broker in brokers]
    await asyncio.gather(*map(begin, schedulers))
    for _ in range(3):
        wall.goes(minutes=1)
        shares = await asyncio.gather(*map(fire, schedulers))
        assert sum(shares) == len(table)
        assert all(shares)
    calls = await sent(brokers[0])
    assert Counter(call.args[0] for call in calls) == dict.fromkeys(range(30), 3)
    assert len({call.id for call in calls}) == 90


async def test_what_fails_before_the_commit_has_not_happened_and_is_tried_again(
    make: Make, broker: RedisBroker, wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = await begin(make(minutely=EVERY_MINUTE, other={**EVERY_MINUTE, "args": [1]}))
    commit, fails = AsyncSession.commit, iter(range(1))

    async def fail(session: AsyncSession) -> None:
        if next(fails, None) is not None:
            raise OperationalError("commit", {}, OSError("the connection is gone"))
        await commit(session)

    wall.goes(minutes=1)
    with monkeypatch.context() as patched:
        patched.setattr(AsyncSession, "commit", fail)
        await fire(scheduler)
    assert [call.args for call in await sent(broker)] == [[1]]
    scheduler._firing._put_off.clear()
    await fire(scheduler)
    assert [call.args for call in await sent(broker)] == [[1], []]


async def test_the_id_of_a_tick_is_the_same_wherever_it_is_computed(
    make: Make, broker: RedisBroker, wall: Wall, database_url: str
) -> None:
    """So a database that was restored fires no tick under another name."""
    scheduler = await begin(make(minutely=EVERY_MINUTE))
    wall.goes(minutes=1)
    await fire(scheduler)
    await databases.execute(
        database_url, "update celeriq_schedules set last_due = last_due - interval '1 min', next_due = last_due"
    )
    await fire(scheduler)
    first, second = await sent(broker)
    assert first.id == second.id


# -- overlap -----------------------------------------------------------------------------------------------------------


async def test_a_run_that_goes_on_is_not_overlapped_but_for_its_longest_time(
    make: Make, broker: RedisBroker, wall: Wall
) -> None:
    scheduler = await begin(make(minutely={**EVERY_MINUTE, "overlap": "skip", "max_overlap": 150, "misfire": "all"}))
    wall.goes(minutes=2)
    await fire(scheduler)
    assert await count(broker) == 1
    for _ in range(2):
        wall.goes(minutes=1)
        await fire(scheduler)
    row = await scheduler.schedules.get("minutely")
    assert (row.runs, row.skipped, await count(broker)) == (1, 3, 1)
    # It was lost: nobody will ever tell of its end.
    wall.goes(minutes=1)
    await fire(scheduler)
    assert (await scheduler.schedules.get("minutely")).runs == 2


async def test_a_run_that_has_ended_is_followed_by_the_next(
    make_broker: MakeBroker, open_sessions: Any, wall: Wall
) -> None:
    """Though its task stores no results: a schedule that must know of its end lets it."""
    broker = make_broker().with_sessions(open_sessions)

    @broker.task(name="quiet", ignore_result=True)
    async def quiet() -> None: ...

    entry = {"task": "quiet", "schedule": 60, "overlap": "skip"}
    scheduler = Scheduler(broker, beat_schedule={"quiet": entry}, clock=wall)
    async with running(broker):
        await begin(scheduler)
        for runs in (1, 2):
            wall.goes(minutes=1)
            await fire(scheduler)
            row = await scheduler.schedules.get("quiet")
            assert (row.runs, row.skipped) == (runs, 0)
            await wait_for(partial(broker.result_backend.is_result_ready, str(row.last_task_id)))


# -- while it runs -----------------------------------------------------------------------------------------------------


async def test_a_started_scheduler_ticks_and_heeds_every_change(make_broker: MakeBroker, open_sessions: Any) -> None:
    """By the clock of the database."""
    broker = make_broker().with_sessions(open_sessions)

    @broker.task(name="ticking", schedule=1)
    async def ticking(number: int = 0) -> int:
        return number

    scheduler = Scheduler(broker)
    schedules = scheduler.schedules
    await scheduler.startup()
    await wait_for(lambda: sent(broker))

    paused = await schedules.pause("ticking")
    await wait_for(lambda: _idle(schedules, "ticking", paused.runs))
    result = await schedules.run_now("ticking")
    await schedules.edit("ticking", args=[7], schedule=crontab())
    await schedules.edit("ticking", schedule={"interval": 1})
    await schedules.resume("ticking")

    async def edited() -> list[Envelope]:
        return [call for call in await sent(broker) if call.args == [7]]

    await wait_for(edited)
    assert result.task_id in {call.id for call in await sent(broker)}

    await schedules.add("second", ticking, 1, args=(8,))
    await wait_for(lambda: _runs(schedules, "second"))
    await schedules.delete("second")
    await scheduler.shutdown()
    ids = [call.id for call in await sent_without(broker)]
    assert len(ids) == len(set(ids))


async def sent_without(broker: RedisBroker) -> list[Envelope]:
    """What is in the queue, of a broker that is down."""
    entries: Any = await broker._client.xrange(broker.keys.queue("default"))
    return [msgspec.json.decode(fields[b"data"], type=Envelope) for _, fields in entries]


async def _runs(schedules: Any, name: str) -> int:
    return int((await schedules.get(name)).runs)


async def _idle(schedules: Any, name: str, runs: int) -> bool:
    return await _runs(schedules, name) == runs


async def test_the_scheduler_outlives_a_database_that_is_away(
    make: Make, broker: RedisBroker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wall: Wall
) -> None:
    scheduler = make(minutely=EVERY_MINUTE)
    await scheduler.startup()
    wall.goes(minutes=1)
    look, fails = scheduler._firing.seconds_left, iter(range(2))

    async def fail() -> float | None:
        if next(fails, None) is not None:
            raise OSError("nobody listens")
        return await look()

    monkeypatch.setattr(scheduler._firing, "seconds_left", fail)
    await wait_for(lambda: sent(broker))
    assert "no schedule can be looked at, next try in 0.2 s: nobody listens" in caplog.text
    await scheduler.shutdown()


async def test_what_waits_in_the_outbox_is_sent_without_a_worker(
    make: Make, broker: RedisBroker, make_broker: MakeBroker, open_sessions: Any, database_url: str
) -> None:
    """A process that has died cannot ring."""
    await broker.shutdown()
    engine = create_async_engine(database_url)
    async with AsyncSession(engine) as session:
        await noting(make_broker()).apply_async((1,), session=session)
        await session.commit()
    await engine.dispose()
    scheduler = make()
    await scheduler.startup()
    assert len(await sent(broker)) == 1
    await scheduler.shutdown()


# -- what the code declares --------------------------------------------------------------------------------------------


async def test_what_is_declared_is_inserted_changed_and_deleted(make: Make, wall: Wall) -> None:
    """BEAT-10."""
    first = await begin(make(stays=EVERY_MINUTE, changes=EVERY_MINUTE, goes=EVERY_MINUTE))
    wall.goes(minutes=1)
    await fire(first)
    await first.schedules.pause("changes")
    await first.schedules.add("by hand", "note", 60)
    second = await begin(make(stays=EVERY_MINUTE, changes={**DAILY, "args": [1]}))
    rows = {row.name: row for row in await second.schedules.list()}
    assert list(rows) == ["by hand", "changes", "stays"]
    assert (rows["stays"].version, rows["stays"].runs) == (1, 1)
    changed = rows["changes"]
    assert (changed.args, changed.paused, changed.runs) == ([1], True, 1)
    assert (changed.last_due, changed.next_due) == (MIDNIGHT + timedelta(minutes=1), MIDNIGHT + timedelta(hours=2))


async def test_an_edit_by_hand_stays_until_the_code_changes(make: Make) -> None:
    schedules = (await begin(make(daily=DAILY))).schedules
    await schedules.edit("daily", args=[5])
    await begin(make(daily=DAILY))
    assert (await schedules.get("daily")).args == [5]
    await begin(make(daily={**DAILY, "kwargs": {"number": 6}}))
    row = await schedules.get("daily")
    assert (row.args, row.kwargs) == ([], {"number": 6})


async def test_a_name_that_was_added_by_hand_is_left_alone(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    schedules = (await begin(make())).schedules
    await schedules.add("daily", "note", 60)
    await begin(make(daily=DAILY))
    assert (await schedules.get("daily")).schedule == '{"interval": 60.0}'
    assert "'daily' was made by add()" in caplog.text
    await begin(make())
    assert [row.name for row in await schedules.list()] == ["daily"]


async def test_tasks_declare_their_schedules_in_every_form(make_broker: MakeBroker, open_sessions: Any) -> None:
    broker = make_broker().with_sessions(open_sessions)

    @broker.task(name="several", schedule=[crontab(hour=2), 30.0, {"cron": "0 3 * * *", "schedule_id": "at three"}])
    async def several() -> None: ...

    @broker.task(name="one", aliases=["was"], schedule=crontab(minute=0))
    async def one() -> None: ...

    # Taskiq's own scheduler gets what it can read.
    assert several.labels["schedule"] == [{"cron": "0 3 * * *", "schedule_id": "at three"}]
    assert "schedule" not in one.labels
    async with broker:
        scheduler = await begin(Scheduler(broker, tz="Europe/Berlin"))
        rows = {row.name: row.schedule for row in await scheduler.schedules.list()}
    assert rows == {
        "at three": '{"cron": "0 3 * * *", "tz": "Europe/Berlin"}',
        "one": '{"cron": "0 * * * *", "tz": "Europe/Berlin"}',
        "several": '{"cron": "* 2 * * *", "tz": "Europe/Berlin"}',
        "several#2": '{"interval": 30.0}',
    }


def test_a_schedule_that_means_nothing_fails_at_import(make_broker: MakeBroker) -> None:
    with pytest.raises(TaskDefinitionError, match=r"task 'note', schedule 1: .*'cron', 'interval' and 'time'"):
        make_broker().task(name="note", schedule=[{"args": [1]}])(print)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"task": "nots", "schedule": 60}, r"entry 'it': there is no task 'nots'; did you mean 'note'\?"),
        ({"task": "note", "schedule": 60, "args": [1, 2]}, "entry 'it': the call of task 'note': too many"),
        ({"task": "note", "schedule": 60, "options": {"expries": 5}}, "unknown option 'expries'.*'expires'"),
        ({"task": "note", "schedule": 60, "options": {"expires": "soon"}}, "expires is 'soon'"),
        ({"task": "note", "schedule": 60, "options": {"task_id": "a"}}, "'task_id' of a schedule: each tick has"),
        ({"task": "note", "schedule": 60, "args": [{1, 2}.__class__]}, "args cannot be stored as JSON"),
    ],
    ids=str,
)
async def test_what_cannot_run_is_told_when_it_starts(make: Make, entry: dict[str, Any], told: str) -> None:
    with pytest.raises(ScheduleError, match=told):
        await begin(make(it=entry))


async def test_two_declarations_of_one_name_are_told(broker: RedisBroker) -> None:
    @broker.task(name="named", schedule=60)
    async def named() -> None: ...

    scheduler = Scheduler(broker, beat_schedule={"named": EVERY_MINUTE})
    with pytest.raises(ScheduleError, match="two schedules are named 'named', of tasks 'note' and 'named'"):
        await begin(scheduler)


async def test_a_task_that_only_workers_have_is_called_where_that_is_allowed(broker: RedisBroker, wall: Wall) -> None:
    table = {"far": {"task": "far.away", "schedule": 60, "args": [1], "kwargs": {"x": 2}}}
    scheduler = await begin(Scheduler(broker, beat_schedule=table, tasks_elsewhere=True, clock=wall))
    wall.goes(minutes=1)
    await fire(scheduler)
    [call] = await sent(broker)
    assert (call.task, call.args, call.kwargs) == ("far.away", [1], {"x": 2})


async def test_a_scheduler_without_a_database_says_what_it_needs(make_broker: MakeBroker, services: Services) -> None:
    with pytest.raises(SessionsMissingError, match="with_sessions"):
        await Scheduler(make_broker()).startup()


async def test_a_database_without_the_table_says_how_to_make_it(make: Make, database_url: str) -> None:
    await databases.execute(database_url, "drop table celeriq_schedules")
    with pytest.raises(TablesMissingError, match=r"celeriq_schedules: call celeriq.schema.upgrade\(op, version=2\)"):
        await begin(make())


# -- broken rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("""schedule = '{"cron": "61 * * * *"}'""", "61"),
        ("schedule = 'daily'", "no JSON"),
        ("args = '5'", "args is 5; it must be a list"),
        ("args = '[1, 2]'", "the call of task 'note': too many"),
        ("""policy = '{"misfire": "maybe"}'""", "misfire is 'maybe'"),
        ("""policy = '{"mifsire": "once"}'""", "unknown key 'mifsire'"),
        ("""options = '{"priority": 50}'""", "50"),
        ("task = 'gone'", "there is no task 'gone'"),
    ],
    ids=str,
)
async def test_a_broken_row_is_told_once_and_the_others_go_on(
    make: Make,
    broker: RedisBroker,
    wall: Wall,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    broken: str,
    told: str,
) -> None:
    scheduler = await begin(make(broken=EVERY_MINUTE, whole={**EVERY_MINUTE, "args": [1]}))
    await databases.execute(database_url, f"update celeriq_schedules set {broken} where name = 'broken'")
    for _ in range(2):
        wall.goes(minutes=1)
        await fire(scheduler)
    assert [call.args for call in await sent(broker)] == [[1], [1]]
    row = await scheduler.schedules.get("broken")
    assert told in str(row.error)
    assert caplog.text.count("schedule 'broken'") == 1
    # It is mended where it is edited.
    await scheduler.schedules.edit(
        "broken", schedule=60, task="note", args=[3], options={}, policy=TickPolicy(misfire="all")
    )
    await fire(scheduler)
    assert [call.args for call in await sent(broker)][2:] == [[3], [3]]
    assert (await scheduler.schedules.get("broken")).error is None


async def test_what_one_scheduler_does_not_know_another_fires(
    make: Make, make_broker: MakeBroker, open_sessions: Any, wall: Wall
) -> None:
    """As when a new release is deployed beside the old one."""
    newer = make_broker().with_sessions(open_sessions)
    newer.task(name="new")(noting(newer).original_func)
    async with newer:
        table = {"new": {"task": "new", "schedule": 60}}
        new = await begin(Scheduler(newer, beat_schedule=table, clock=wall))
        old = make()
        wall.goes(minutes=1)
        await fire(old)
        row = await old.schedules.get("new")
        assert "there is no task 'new'" in str(row.error)
        assert await fire(old) == 0
        assert await fire(new) == 1
        row = await new.schedules.get("new")
        assert (row.error, row.runs) == (None, 1)


async def test_a_start_mends_what_can_run_again(make: Make, broker: RedisBroker, wall: Wall, database_url: str) -> None:
    scheduler = await begin(make(minutely=EVERY_MINUTE))
    await databases.execute(database_url, "update celeriq_schedules set args = '[1, 2]'")
    wall.goes(minutes=1)
    await fire(scheduler)
    await databases.execute(database_url, "update celeriq_schedules set args = '[1]'")
    assert await fire(await begin(make(minutely=EVERY_MINUTE))) == 1
    assert await count(broker) == 1


# -- the interface -----------------------------------------------------------------------------------------------------


async def test_a_change_joins_the_callers_transaction(make: Make, broker: RedisBroker) -> None:
    schedules = (await begin(make(daily=DAILY))).schedules
    async with broker.sessions() as session:
        await schedules.add("second", "note", 60, session=session)
        await schedules.pause("daily", session=session)
        await schedules.run_now("daily", session=session)
        assert [row.name for row in await schedules.list(session=session)] == ["daily", "second"]
        await session.rollback()
    [row] = await schedules.list()
    assert (row.paused, row.runs, row.version) == (False, 0, 1)
    assert await count(broker) == 0


async def test_ticks_of_a_pause_are_given_up(make: Make, broker: RedisBroker, wall: Wall) -> None:
    moment = {"task": "note", "schedule": MIDNIGHT + timedelta(minutes=5), "args": [1]}
    scheduler = await begin(make(minutely={**EVERY_MINUTE, "misfire": "all"}, moment=moment))
    for name in ("minutely", "moment"):
        await scheduler.schedules.pause(name)
    wall.goes(minutes=10)
    assert await fire(scheduler) == 0
    for name in ("minutely", "moment"):
        await scheduler.schedules.resume(name)
    await fire(scheduler)
    assert [call.args for call in await sent(broker)] == [[1]]
    assert (await scheduler.schedules.get("minutely")).next_due == MIDNIGHT + timedelta(minutes=11)


@pytest.mark.parametrize("method", ["get", "edit", "pause", "resume", "run_now", "delete"])
async def test_an_unknown_name_is_told_with_the_nearest(make: Make, method: str) -> None:
    schedules = (await begin(make(daily=DAILY))).schedules
    with pytest.raises(UnknownScheduleError, match=r"there is no schedule 'dialy'; did you mean 'daily'\?"):
        await getattr(schedules, method)("dialy")


async def test_what_is_wrong_is_told_where_it_is_given(make: Make) -> None:
    schedules = (await begin(make(daily=DAILY))).schedules
    with pytest.raises(ScheduleConflictError, match="there is a schedule 'daily' already"):
        await schedules.add("daily", "note", 60)
    with pytest.raises(ScheduleError, match="did you mean 'note'"):
        await schedules.add("other", "nots", 60)
    with pytest.raises(ScheduleError, match="never comes"):
        await schedules.edit("daily", schedule={"cron": "0 0 31 2 *"})
    with pytest.raises(ScheduleError, match=r"crontab\.from_string"):
        await schedules.edit("daily", schedule="0 0 * * *")  # type: ignore[arg-type]
    with pytest.raises(ScheduleError, match="unknown change 'shedule'"):
        await schedules.edit("daily", shedule=60)  # type: ignore[call-arg]
    with pytest.raises(ScheduleError, match="NUL"):
        await schedules.edit("daily", args=["\0"])
    await schedules.edit("daily", args=[1], version=1)
    with pytest.raises(ScheduleConflictError, match="it has version 2, not 1; read it again"):
        await schedules.edit("daily", args=[2], version=1)


async def test_a_scheduler_records_the_history_and_workers_need_not(
    make_broker: MakeBroker, open_sessions: Any
) -> None:
    worker, other = (make_broker().with_sessions(open_sessions) for _ in range(2))

    @worker.task(name="nothing")
    async def nothing() -> None: ...

    async with running(worker):
        await (await nothing.kiq()).get(timeout=10)
    scheduler = Scheduler(other)
    await scheduler.startup()
    [row] = await wait_for(lambda: worker_rows(other))
    assert row.task == "nothing"
    await scheduler.shutdown()


async def worker_rows(broker: RedisBroker) -> list[Any]:
    return [*await broker.history.latest(10)]
