"""The history: what became of each attempt, recorded in PostgreSQL, read by a monitor, and what of it is missing."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from redis.exceptions import ResponseError

from celeriq import HistoryLogs, RedisBroker, TablesMissingError, chain, group, upkeep
from celeriq.embedded import Valkey
from celeriq.redis import recorder
from celeriq.redis.history_entry import HistoryEntry
from celeriq.redis.keys import GROUP
from tests import databases
from tests.integration.conftest import MakeBroker, MakeBrokerAt
from tests.waiting import wait_for
from tests.workers import running


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "GATHER", 0.02)
    monkeypatch.setattr(recorder, "LOOK", 0.05)


@pytest.fixture
def make(make_broker: MakeBroker, open_sessions: Any) -> MakeBroker:
    def make(**options: Any) -> RedisBroker:
        return make_broker(**{"record_history": True, **options}).with_sessions(open_sessions)

    return make


@pytest.fixture
async def broker(make: MakeBroker) -> AsyncGenerator[RedisBroker]:
    """As in an API: it records nothing by itself."""
    broker = make()
    await broker.startup()
    yield broker
    await broker._recorder.end()


async def settle(broker: RedisBroker, count: int, **fields: Any) -> None:
    """What the settlement of so many attempts adds to the stream."""
    pipeline: Any = broker._client.pipeline()
    entry: dict[str, Any] = {"id": "id", "task": "task", "queue": "default", "state": "SUCCESS", **fields}
    for _ in range(count):
        data = msgspec.json.encode(HistoryEntry(**entry))
        pipeline.xadd(broker.keys.history, {"data": data}, maxlen=broker.history_limit, approximate=False)
    await pipeline.execute()


async def recorded(url: str) -> int:
    return int(await databases.value_of(url, "select count(*) from celeriq_history"))


def has(url: str, count: int) -> Callable[[], Any]:
    async def has() -> bool:
        return await recorded(url) == count

    return has


async def pending(broker: RedisBroker) -> int:
    try:
        told: Any = await broker._client.xpending(broker.keys.history, GROUP)
    except ResponseError:  # no recorder has begun
        return 0
    return int(told["pending"])


# -- recording ---------------------------------------------------------------------------------------------------------


async def test_what_becomes_of_a_task_is_recorded(make: MakeBroker, database_url: str) -> None:
    broker = make()

    @broker.task(name="divide", max_retries=1, autoretry_for=(ZeroDivisionError,), default_retry_delay=0)
    async def divide(a: int, b: int) -> float:
        return a / b

    async with running(broker):
        failing = await divide.kiq(1, 0)
        await failing.get(timeout=10, propagate=False)
        good = await divide.kiq(1, 2)
        await good.get(timeout=10)
        await wait_for(has(database_url, 3))
        [row] = await broker.history.of(good.id)
        assert (row.task, row.state, row.queue, row.retries, row.error) == ("divide", "SUCCESS", "default", 0, None)
        assert (row.root, row.parent, row.group_id) == (good.id, None, None)
        assert row.worker == broker.worker.name  # type: ignore[union-attr]
        assert 0 < row.runtime < 10
        assert abs(row.finished_at - datetime.now(UTC)) < timedelta(minutes=1)
        states = [(row.state, row.retries) for row in await broker.history.of(failing.id)]
        assert states == [("RETRY", 0), ("FAILURE", 1)]
        assert [row.error for row in await broker.history.failures()] == ["ZeroDivisionError('division by zero')"]
        assert await broker._client.xlen(broker.keys.history) == 0
        assert await broker.history.gaps() == []


async def test_plain_successes_are_recorded_by_share_and_workflows_always(make: MakeBroker, database_url: str) -> None:
    broker = make(history_share=0.0)

    @broker.task
    async def add(x: int, y: int = 0) -> int:
        return x + y

    async with running(broker):
        await (await add.kiq(1)).get(timeout=10)
        parts = await group(add.s(1), add.s(2)).apply_async()
        await parts.get(timeout=10)
        await (await chain(add.s(1), add.s(2), add.s(3)).apply_async()).get(timeout=10)
        await wait_for(lambda: recorded(database_url))
    rows = await databases.column_of(database_url, "select coalesce(group_id, '') from celeriq_history")
    assert Counter(rows) == {parts.id: 2, "": 2}


async def test_a_worker_that_stops_records_what_it_has_done(
    make: MakeBroker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "GATHER", 60.0)
    broker = make()

    @broker.task
    async def task() -> None: ...

    async with running(broker):
        for _ in range(5):
            await (await task.kiq()).get(timeout=10)
    assert await recorded(database_url) == 5
    assert await broker._client.xlen(broker.keys.history) == 0
    told: Any = await broker._client.xinfo_consumers(broker.keys.history, GROUP)
    assert told == []


async def test_a_broker_may_leave_it_to_others(make: MakeBroker, make_broker: MakeBroker, database_url: str) -> None:
    for broker in (make(record_history=None), make(record_history=False), make_broker(record_history=True)):

        @broker.task(name="task")
        async def task() -> None: ...

        async with running(broker):
            await (await task.kiq()).get(timeout=10)
    assert await recorded(database_url) == 0
    assert await broker._client.xlen(broker.keys.history) == 3


async def test_many_recorders_write_each_entry_once(make: MakeBroker, database_url: str) -> None:
    brokers = [make() for _ in range(3)]
    for broker in brokers:
        await broker.startup()
        broker._recorder.begin()
    await settle(brokers[0], 7000)
    await wait_for(has(database_url, 7000))
    await wait_for(lambda: _none_pending(brokers[0]))
    assert await databases.value_of(database_url, "select count(*) from celeriq_history_gaps") == 0


async def _none_pending(broker: RedisBroker) -> bool:
    return await pending(broker) == 0


async def test_what_was_written_and_not_acknowledged_is_written_once(
    broker: RedisBroker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorder dies, or Redis does, between the two."""
    await settle(broker, 30)
    failures = iter(range(2))
    acknowledge = broker._scripts.recorded

    async def fail_twice(**told: Any) -> Any:
        if next(failures, None) is not None:
            raise OSError("the connection is gone")
        return await acknowledge(**told)

    monkeypatch.setattr(broker._scripts, "recorded", fail_twice)
    broker._recorder.begin()
    await wait_for(lambda: _none_pending_after(broker, 30))
    assert await recorded(database_url) == 30
    assert await broker.history.gaps() == []


async def _none_pending_after(broker: RedisBroker, count: int) -> bool:
    counted = await broker._client.hget(broker.keys.recorded, "recorded")
    return int(counted or 0) == count and await pending(broker) == 0


async def test_what_a_dead_recorder_has_read_is_taken_over(
    broker: RedisBroker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await settle(broker, 30)
    client: Any = broker._client
    await client.xgroup_create(broker.keys.history, GROUP, id="0")
    await client.xreadgroup(GROUP, "dead", {broker.keys.history: ">"}, count=20)
    monkeypatch.setattr(recorder, "TAKE_OVER", 0.1)
    monkeypatch.setattr(recorder, "LONGEST", 0.2)
    monkeypatch.setattr(recorder, "GIVE_UP", 0.5)
    broker._recorder.begin()
    await wait_for(has(database_url, 30))
    await wait_for(lambda: _only_mine(broker))


async def _only_mine(broker: RedisBroker) -> bool:
    told: Any = await broker._client.xinfo_consumers(broker.keys.history, GROUP)
    return [one["name"].decode() for one in told] == [broker._recorder._name]


async def test_without_tables_nothing_is_read_and_it_says_how_to_make_them(
    broker: RedisBroker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await databases.execute(
        database_url,
        "create schema away",
        "alter table celeriq_history set schema away",
        "alter table celeriq_history_gaps set schema away",
    )
    monkeypatch.setattr(recorder, "NOT_THERE", 0.05)
    await settle(broker, 3)
    broker._recorder.begin()
    for ask in (broker.history.latest, broker.history.gaps):
        with pytest.raises(TablesMissingError, match=r"celeriq.schema.upgrade\(op, version=3\)"):
            await ask()
    assert await broker._client.xlen(broker.keys.history) == 3
    await databases.execute(
        database_url,
        "alter table away.celeriq_history_gaps set schema public",
        "alter table away.celeriq_history set schema public",
    )
    await wait_for(has(database_url, 3))


async def test_a_redis_that_is_restarted_goes_on(
    make_broker_at: MakeBrokerAt, open_sessions: Any, valkey: Valkey, database_url: str
) -> None:
    broker = make_broker_at(valkey.url).with_sessions(open_sessions)
    await broker.startup()
    broker._recorder.begin()
    await settle(broker, 3)
    await wait_for(has(database_url, 3))
    valkey.kill()
    await asyncio.to_thread(valkey.start)
    await settle(broker, 4)
    await wait_for(has(database_url, 7))
    assert await broker.history.gaps() == []


# -- logs --------------------------------------------------------------------------------------------------------------


def logging_tasks(broker: RedisBroker) -> Any:
    @broker.task(name="logs")
    async def logs(lines: int, fails: bool) -> None:
        for number in range(lines):
            logging.getLogger("shop").warning("line %d", number)
            logging.getLogger("celeriq.something").warning("of celeriq's")
        logging.getLogger("shop").debug("nobody asks for it")
        await asyncio.to_thread(logging.getLogger("shop").warning, "in a thread")
        if fails:
            raise LookupError

    return logs


async def test_a_failure_keeps_the_last_lines_that_it_has_logged(make: MakeBroker, database_url: str) -> None:
    broker = make(history_logs=HistoryLogs(lines=3))
    logs = logging_tasks(broker)
    async with running(broker):
        failed, succeeded = await logs.kiq(10, True), await logs.kiq(1, False)
        await wait_for(has(database_url, 2))
        [row] = await broker.history.of(failed.id)
        assert row.logs is not None
        lines = row.logs.splitlines()
        assert [line.partition("WARNING ")[2] for line in lines] == [
            "shop: line 8",
            "shop: line 9",
            "shop: in a thread",
        ]
        [row] = await broker.history.of(succeeded.id)
        assert row.logs is None


async def test_lines_are_kept_of_all_attempts_or_of_none_and_are_bounded(make: MakeBroker, database_url: str) -> None:
    every = make(history_logs=HistoryLogs(successes=True, size=100))
    logs = logging_tasks(every)
    async with running(every):
        succeeded = await logs.kiq(200, False)
        await wait_for(has(database_url, 1))
        [row] = await every.history.of(succeeded.id)
        assert row.logs is not None
        assert len(row.logs) == 100
        assert row.logs.endswith("in a thread")
    none = make(history_logs=None)
    logs = logging_tasks(none)
    async with running(none):
        failed = await logs.kiq(2, True)
        await wait_for(has(database_url, 2))
        [row] = await none.history.of(failed.id)
        assert row.logs is None


# -- what is missing ---------------------------------------------------------------------------------------------------


async def test_what_was_dropped_unread_is_counted_exactly(
    make: MakeBroker, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker = make(history_limit=500)
    await broker.startup()
    await settle(broker, 1234)
    broker._recorder.begin()
    await wait_for(has(database_url, 500))
    [gap] = await broker.history.gaps()
    assert (gap.reason, gap.entries, gap.began_at) == ("trimmed", 734, None)
    first = await databases.value_of(database_url, "select min(finished_at) from celeriq_history")
    assert gap.ended_at == first
    # The same gap goes on.
    await broker._recorder.end()
    await settle(broker, 600)
    broker._recorder.begin()
    await wait_for(has(database_url, 1000))
    [gap] = await broker.history.gaps()
    assert gap.entries == 834
    told = [record.getMessage() for record in caplog.records if "misses" in record.getMessage()]
    assert [line.split(" from ")[0] for line in told] == [
        "the history misses 734 entries",
        "the history misses 100 entries",
    ]


async def test_a_later_gap_is_one_of_its_own(make: MakeBroker, database_url: str) -> None:
    broker = make(history_limit=10)
    await broker.startup()
    await settle(broker, 15)
    broker._recorder.begin()
    await wait_for(has(database_url, 10))
    await broker._recorder.end()
    await databases.execute(database_url, "update celeriq_history_gaps set ended_at = ended_at - interval '1 hour'")
    await settle(broker, 12)
    broker._recorder.begin()
    await wait_for(has(database_url, 20))
    newest, oldest = await broker.history.gaps()
    assert (newest.entries, oldest.entries) == (2, 5)
    assert newest.began_at is not None
    assert newest.began_at <= newest.ended_at


async def test_several_recorders_count_what_is_missing_once(make: MakeBroker, database_url: str) -> None:
    brokers = [make(history_limit=100) for _ in range(4)]
    for broker in brokers:
        await broker.startup()
    await settle(brokers[0], 1000)
    for broker in brokers:
        broker._recorder.begin()
    await wait_for(has(database_url, 100))
    for broker in brokers:
        await broker._recorder.end()
    assert await databases.column_of(database_url, "select entries from celeriq_history_gaps") == [900]


async def test_what_was_dropped_while_a_recorder_had_it_is_not_missing_if_it_records_it(
    make: MakeBroker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker, other = make(history_limit=50), make(history_limit=50)
    await broker.startup()
    await other.startup()
    await settle(broker, 50)
    slow, write = asyncio.Event(), broker._recorder._write

    async def write_slowly(entries: Any) -> None:
        await slow.wait()
        await write(entries)

    monkeypatch.setattr(broker._recorder, "_write", write_slowly)
    broker._recorder.begin()
    await wait_for(lambda: _has_pending(broker, 50))
    await settle(other, 60)
    other._recorder.begin()
    await wait_for(has(database_url, 50))
    slow.set()
    await wait_for(has(database_url, 100))
    await wait_for(lambda: _none_pending(broker))
    assert await databases.column_of(database_url, "select entries from celeriq_history_gaps") == [10]


async def _has_pending(broker: RedisBroker, count: int) -> bool:
    return await pending(broker) == count


async def test_what_was_dropped_while_a_dead_recorder_had_it_is_missing_after_a_while(
    make: MakeBroker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make(history_limit=50)
    await broker.startup()
    await settle(broker, 50)
    client: Any = broker._client
    await client.xgroup_create(broker.keys.history, GROUP, id="0")
    await client.xreadgroup(GROUP, "dead", {broker.keys.history: ">"}, count=20)
    await settle(broker, 10)
    monkeypatch.setattr(recorder, "TAKE_OVER", 0.1)
    monkeypatch.setattr(recorder, "GIVE_UP", 0.3)
    monkeypatch.setattr(recorder, "LONGEST", 0.2)
    broker._recorder.begin()
    await wait_for(has(database_url, 50))
    await wait_for(lambda: _gap_of(broker, 10))


async def _gap_of(broker: RedisBroker, entries: int) -> bool:
    return [gap.entries for gap in await broker.history.gaps()] == [entries]


async def test_a_redis_that_has_forgotten_something_is_seen(
    broker: RedisBroker, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a crash that has lost its last second."""
    broker._recorder.begin()
    client: Any = broker._client
    await settle(broker, 3)
    await wait_for(has(database_url, 3))
    keys = broker.keys.history, broker.keys.recorded
    before = [await client.dump(key) for key in keys]
    await settle(broker, 4)
    await wait_for(has(database_url, 7))
    for key, dumped in zip(keys, before, strict=True):
        await client.restore(key, 0, dumped, replace=True)
    await settle(broker, 1)
    await wait_for(has(database_url, 8))
    [gap] = await wait_for(broker.history.gaps)
    assert (gap.reason, gap.entries) == ("forgotten", None)
    assert "Redis has forgotten what it knew" in caplog.text


async def test_a_stream_that_begins_anew_is_counted_anew(make: MakeBroker, database_url: str) -> None:
    broker = make(history_limit=10)
    await broker.startup()
    for round_ in range(2):
        await settle(broker, 15)
        broker._recorder.begin()
        await wait_for(has(database_url, 10 * (round_ + 1)))
        await broker._recorder.end()
        await broker._client.delete(broker.keys.history, broker.keys.recorded)
    assert [gap.entries for gap in await broker.history.gaps()] == [5, 5]


async def test_what_is_no_entry_is_counted_and_the_others_go_on(broker: RedisBroker, database_url: str) -> None:
    client: Any = broker._client
    await settle(broker, 1, error="a\0b")
    await client.xadd(broker.keys.history, {"data": b"garbage"})
    await client.xadd(broker.keys.history, {"other": b"garbage"})
    await settle(broker, 1, retries=2**40)
    await settle(broker, 1)
    broker._recorder.begin()
    await wait_for(has(database_url, 2))
    assert await databases.column_of(database_url, "select error from celeriq_history order by entry") == [
        "a\ufffdb",
        None,
    ]
    [gap] = await wait_for(broker.history.gaps)
    assert (gap.reason, gap.entries) == ("unreadable", 3)
    await wait_for(lambda: _none_pending(broker))


async def test_what_a_server_cannot_count_is_said_once(
    broker: RedisBroker, database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis 6 does not say how many entries were ever added."""
    count = broker._recorder._count

    async def uncounted(stream: str, total: int, read: str, first: str) -> None:
        await count(stream, -1, read, first)

    monkeypatch.setattr(broker._recorder, "_count", uncounted)
    await settle(broker, 3)
    broker._recorder.begin()
    await wait_for(has(database_url, 3))
    await settle(broker, 3)
    await wait_for(has(database_url, 6))
    assert caplog.text.count("what the history loses is not counted") == 1
    assert await broker.history.gaps() == []


# -- reading -----------------------------------------------------------------------------------------------------------


async def test_pages_are_read_from_the_newest_on_whatever_comes_meanwhile(
    broker: RedisBroker, database_url: str
) -> None:
    broker._recorder.begin()
    for number in range(30):
        state = ("SUCCESS", "FAILURE", "DEAD")[number % 3]
        await settle(broker, 1, id=str(number), task=f"task{number % 2}", state=state)
    await wait_for(has(database_url, 30))
    history = broker.history
    first = await history.latest(10)
    assert [row.task_id for row in first] == [str(number) for number in range(29, 19, -1)]
    await settle(broker, 1, id="new")
    await wait_for(has(database_url, 31))
    second = await history.latest(10, before=first[-1].entry)
    assert [row.task_id for row in second] == [str(number) for number in range(19, 9, -1)]
    assert [row.task_id for row in await history.latest(3, task="task1")] == ["29", "27", "25"]
    assert [row.task_id for row in await history.latest(3, state="DEAD")] == ["29", "26", "23"]
    failures = await history.failures(4)
    assert [row.task_id for row in failures] == ["29", "28", "26", "25"]
    assert [row.task_id for row in await history.failures(2, before=failures[1].entry)] == ["26", "25"]
    assert [row.task_id for row in await history.failures(2, task="task0")] == ["28", "26"]
    assert [row.task_id for row in await history.latest(2, task="task0", state="SUCCESS")] == ["24", "18"]


async def test_counts_and_the_slowest(broker: RedisBroker, database_url: str) -> None:
    broker._recorder.begin()
    for number in range(6):
        await settle(broker, 1, id=str(number), task=f"task{number % 2}", runtime=float(number))
    await settle(broker, 1, id="old", task="task0", state="FAILURE")
    await wait_for(has(database_url, 7))
    await databases.execute(
        database_url,
        "update celeriq_history set entry = entry - (3 * 86400000::bigint << 20), finished_at = finished_at - interval '3 days' where task_id = 'old'",
    )
    history = broker.history
    told = Counter[tuple[str, str]]()
    for count in await history.counts():
        told[count.task, count.state] += count.count
        assert count.at.minute == count.at.second == 0
        assert timedelta(0) <= datetime.now(UTC) - count.at < timedelta(hours=2)
    assert told == {("task0", "SUCCESS"): 3, ("task1", "SUCCESS"): 3}
    since = datetime.now(UTC) - timedelta(days=5)
    days = await history.counts(since, by="day", task="task0")
    assert sum(count.count for count in days) == 4
    assert days[0].state == "FAILURE"
    assert sum(count.runtime for count in days) == 6.0
    assert [row.task_id for row in await history.slowest(3)] == ["5", "4", "3"]
    assert [row.task_id for row in await history.slowest(2, task="task0")] == ["4", "2"]


async def test_other_namespaces_are_not_seen(broker: RedisBroker, database_url: str) -> None:
    broker._recorder.begin()
    await settle(broker, 2)
    await wait_for(has(database_url, 2))
    await databases.execute(database_url, "update celeriq_history set namespace = 'another'")
    history = broker.history
    assert not any([await history.latest(), await history.of("id"), await history.counts(), await history.slowest()])


# -- what is old -------------------------------------------------------------------------------------------------------

OLD_HISTORY = """
    insert into celeriq_history
    select $1, ((extract(epoch from now()) - n * 86400) * 1000)::bigint << 20, now() - n * interval '1 day', 'id', 'task',
           'default', 'SUCCESS', 'worker', 0, 0, null, 'id', null, null, null
    from generate_series(0.5, 59.5, 1) n
"""
OLD_INBOX = "insert into celeriq_inbox select $1, n::text, 'null', now() - n * interval '1 day' from generate_series(0.5, 59.5, 1) n"


async def fill_with_old(url: str, namespace: str) -> None:
    connection = await databases.connect(url)
    for rows in (OLD_HISTORY, OLD_INBOX):
        await connection.execute(rows, namespace)
        await connection.execute(rows, "another")
    await connection.close()


async def left(url: str, namespace: str) -> tuple[int, int]:
    count = "select count(*) from {} where namespace = $1"
    tables = ("celeriq_history", "celeriq_inbox")
    history, inbox = [int(await databases.value_of(url, count.format(table), namespace)) for table in tables]
    return history, inbox


async def test_what_is_old_is_deleted_in_portions(
    make: MakeBroker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "PORTION", 7)
    broker = make()
    await broker.startup()
    await fill_with_old(database_url, broker.namespace)
    assert await broker._upkeep.run() == 30 + 46
    assert await broker._upkeep.run() == 0
    assert await left(database_url, broker.namespace) == (30, 14)
    assert await left(database_url, "another") == (60, 60)


async def test_how_long_is_settable(make: MakeBroker, database_url: str) -> None:
    broker = make(history_days=1.0, inbox_days=None)
    await broker.startup()
    await fill_with_old(database_url, broker.namespace)
    await broker._upkeep.run()
    assert await left(database_url, broker.namespace) == (1, 60)


async def test_one_process_at_a_time_deletes_what_is_old(make: MakeBroker, database_url: str) -> None:
    broker = make()
    await broker.startup()
    await fill_with_old(database_url, broker.namespace)
    other = await databases.connect(database_url)
    async with other.transaction():
        await other.execute("select pg_advisory_xact_lock(hashtext($1))", f"celeriq_upkeep/{broker.namespace}")
        assert await broker._upkeep.run() == 0
    await other.close()
    assert await broker._upkeep.run() == 76


async def test_workers_delete_what_is_old_each_hour(
    make: MakeBroker, database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(upkeep, "EVERY", 0.05)
    broker = make()
    async with running(broker):
        await fill_with_old(database_url, broker.namespace)
        await wait_for(lambda: _is_left(database_url, broker.namespace, (30, 14)))
        await databases.execute(database_url, "alter table celeriq_history rename to gone")
        await databases.execute(database_url, "update celeriq_inbox set created_at = now() - interval '20 days'")
        await databases.execute(database_url, "alter table gone rename to celeriq_history")
        await wait_for(lambda: _is_left(database_url, broker.namespace, (30, 0)))


async def _is_left(url: str, namespace: str, count: tuple[int, int]) -> bool:
    return await left(url, namespace) == count
