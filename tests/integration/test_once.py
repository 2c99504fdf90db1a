"""Once: effects in the database that happen once, however often a message comes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from celeriq import (
    BoundTask,
    CommitNotYoursError,
    RedisBroker,
    Retry,
    TablesMissingError,
    TaskSession,
    chain,
    inbox,
    injected,
)
from celeriq.embedded import Services
from celeriq.middleware import once as once_middleware
from celeriq.redis.keys import GROUP
from tests import databases
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running


@pytest.fixture
async def make(make_broker: MakeBroker, open_sessions: Any, database_url: str) -> MakeBroker:
    await databases.execute(database_url, "create table effect (who text)")
    return lambda **options: make_broker(**options).with_sessions(open_sessions)


async def effects(database_url: str) -> int:
    return int(await databases.value_of(database_url, "select count(*) from effect"))


class Noting(BoundTask):
    """Its handlers tell."""

    told: list[str]

    async def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any, /) -> None:
        self.told.append(task_id)


def writing(broker: RedisBroker) -> tuple[Any, list[str]]:
    runs: list[str] = []

    class Told(Noting):
        told = runs

    @broker.task(name="write", once=True, base=Told)
    async def write(who: str, session: TaskSession = injected) -> str:
        runs.append("body")
        await session.execute(text("insert into effect values (:who)"), {"who": who})
        return f"by {who}, {len(runs)}"

    return write, runs


async def test_a_second_delivery_of_what_has_run_changes_nothing(make: MakeBroker, database_url: str) -> None:
    broker = make()
    write, runs = writing(broker)
    async with running(broker):
        first = await write.apply_async(("me",), task_id="one")
        assert await first.get(timeout=10) == "by me, 1"
        await first.forget()
        again = await write.apply_async(("me",), task_id="one")
        assert await again.get(timeout=10) == "by me, 1"
        await wait_for(lambda: len(runs) >= 3)
    assert await effects(database_url) == 1
    # The handler was called by the first alone.
    assert sorted(runs) == ["body", "body", "one"]


async def test_what_was_committed_and_not_settled_is_not_run_again(
    make: MakeBroker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker dies between the two; its links follow, and its handlers do not."""
    first, second = make(), make()
    write, _ = writing(first)
    _, more_runs = writing(second)
    note: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @second.task(name="note")
    async def note_it(told: str) -> None:
        note.set_result(told)

    @first.task(name="note")
    async def note_nothing(told: str) -> None: ...

    async def refuse(*_: Any) -> bool:
        committed.set()
        raise RedisError("not settled")

    committed = asyncio.Event()
    monkeypatch.setattr(first.settlement, "settle", refuse)
    async with running(first):
        sent = await write.apply_async(("me",), link=note_nothing.s())
        await committed.wait()
    async with running(second):
        assert await sent.get(timeout=10) == "by me, 1"
        assert await note == "by me, 1"
    assert await effects(database_url) == 1
    assert more_runs == []


async def test_what_was_committed_is_no_dead_letter_however_many_workers_died(
    make: MakeBroker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make(), make(max_crashes=1)
    write, _ = writing(first)
    _, more_runs = writing(second)

    async def refuse(*_: Any) -> bool:
        committed.set()
        raise RedisError("not settled")

    committed = asyncio.Event()
    monkeypatch.setattr(first.settlement, "settle", refuse)
    async with running(first):
        sent = await write.kiq("me")
        await committed.wait()
    stream = first.keys.queue("default")
    pending: Any
    [pending] = await first._client.xpending_range(stream, GROUP, "-", "+", 10)
    await first._client.hset(first.keys.crashes, f"{stream}/{pending['message_id'].decode()}", "1")
    async with running(second):
        assert await sent.get(timeout=10) == "by me, 1"
    assert await effects(database_url) == 1
    assert more_runs == []
    assert await second.dead_letters().count() == 0


async def test_of_two_deliveries_at_once_one_rolls_back(make: MakeBroker, database_url: str) -> None:
    broker = make()
    both = asyncio.Barrier(2)

    @broker.task(once=True)
    async def write(session: TaskSession = injected) -> str:
        await session.execute(text("insert into effect values ('me')"))
        await both.wait()
        return "done"

    async with running(broker):
        await write.apply_async(task_id="one")
        sent = await write.apply_async(task_id="one")
        assert await sent.get(timeout=10) == "done"
        await wait_for(lambda: _is_settled(broker))
    assert await effects(database_url) == 1


async def _is_settled(broker: RedisBroker) -> bool:
    return not await broker._client.xlen(broker.keys.queue("default"))


async def test_a_task_without_a_session_runs_once_as_well(make: MakeBroker, database_url: str) -> None:
    broker = make(task_defaults={"once": True})
    runs: list[int] = []

    @broker.task
    def count() -> int:
        runs.append(1)
        return len(runs)

    async with running(broker):
        for _ in range(2):
            assert await (await count.apply_async(task_id="one")).get(timeout=10) == 1
            await wait_for(lambda: _is_settled(broker))
    assert await databases.column_of(database_url, "select convert_from(value, 'utf8') from celeriq_inbox") == ["1"]


async def test_a_failure_and_a_retry_leave_nothing_written_down(make: MakeBroker, database_url: str) -> None:
    broker = make()
    runs: list[int] = []

    @broker.task(once=True)
    async def third_time_lucky(session: TaskSession = injected) -> int:
        runs.append(1)
        await session.execute(text("insert into effect values ('me')"))
        if len(runs) < 3:
            raise Retry(countdown=0)
        return len(runs)

    async with running(broker):
        assert await (await third_time_lucky.kiq()).get(timeout=10) == 3
    assert await effects(database_url) == 1


async def test_a_chain_goes_on_once(make: MakeBroker, database_url: str) -> None:
    broker = make(task_defaults={"once": True})

    @broker.task
    async def add(x: int, y: int, session: TaskSession = injected) -> int:
        await session.execute(text("insert into effect values ('me')"))
        return x + y

    async with running(broker):
        last = await chain(add.s(1, 2), add.s(3), add.s(4)).apply_async()
        assert await last.get(timeout=10) == 10
    assert await effects(database_url) == 3


# -- what it sends -----------------------------------------------------------------------------------------------------


async def test_what_it_sends_goes_with_its_transaction(make: MakeBroker, database_url: str) -> None:
    broker = make()
    runs: list[str] = []

    @broker.task
    async def child(name: str) -> None:
        runs.append(name)

    @broker.task(once=True, bind=True)
    async def parent(self: BoundTask, fails: bool) -> str:
        name = "failing" if fails else "succeeding"
        await child.delay(name)
        await child.kiq_many([(name,), (name,)])
        await chain(child.si(name), child.si(name)).apply_async()
        assert not runs
        if fails:
            raise LookupError
        return name

    async with running(broker):
        assert isinstance(await (await parent.kiq(True)).get(timeout=10, propagate=False), LookupError)
        for _ in range(2):
            assert await (await parent.apply_async((False,), task_id="one")).get(timeout=10) == "succeeding"
            await wait_for(lambda: len(runs) == 5)
            await wait_for(lambda: _is_settled(broker))
            break
        again = await parent.apply_async((False,), task_id="one")
        assert await again.get(timeout=10) == "succeeding"
        await wait_for(lambda: _is_settled(broker))
    assert runs == ["succeeding"] * 5
    assert await databases.value_of(database_url, "select count(*) from celeriq_outbox") == 0


# -- who commits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["commit", "begin", "both"])
async def test_its_session_is_committed_by_celeriq_alone(make: MakeBroker, database_url: str, how: str) -> None:
    broker = make()

    @broker.task(once=True, name="commits")
    async def commits(session: TaskSession = injected) -> None:
        if how != "begin":
            await session.execute(text("insert into effect values ('me')"))
            await session.commit()
        async with session.begin():
            await session.execute(text("insert into effect values ('me')"))

    async with running(broker):
        with pytest.raises(CommitNotYoursError, match=r"task 'commits' has once=True, so celeriq commits"):
            await (await commits.kiq()).get(timeout=10)
    assert await effects(database_url) == 0


async def test_savepoints_and_rollbacks_are_its_own_affair(make: MakeBroker, database_url: str) -> None:
    broker = make()

    @broker.task(once=True)
    async def careful(session: TaskSession = injected) -> None:
        await session.execute(text("insert into effect values ('dropped')"))
        await session.rollback()
        async with session.begin_nested():
            await session.execute(text("insert into effect values ('me')"))

    async with running(broker):
        await (await careful.kiq()).get(timeout=10)
    assert await databases.column_of(database_url, "select who from effect") == ["me"]


# -- a commit whose answer is lost -------------------------------------------------------------------------------------


class LosesAnswers(AsyncSession):
    """The connection breaks while it commits: before the server did, or after."""

    lose_after: list[bool]

    async def commit(self) -> None:
        if self.lose_after and self.in_transaction():
            if self.lose_after.pop():
                await super().commit()
            else:
                await super().rollback()
            raise OperationalError("COMMIT", {}, OSError("connection is closed"))
        await super().commit()


@pytest.mark.parametrize("happened", [True, False])
async def test_the_inbox_tells_whether_a_lost_commit_has_happened(
    make: MakeBroker, database_url: str, monkeypatch: pytest.MonkeyPatch, happened: bool
) -> None:
    broker = make()
    write, runs = writing(broker)
    async with running(broker):
        monkeypatch.setattr(LosesAnswers, "lose_after", [happened], raising=False)
        broker.sessions.class_ = LosesAnswers
        sent = await write.kiq("me")
        if happened:
            assert await sent.get(timeout=10) == "by me, 1"
        else:
            with pytest.raises(Exception, match="connection is closed"):
                await sent.get(timeout=10)
    assert await effects(database_url) == int(happened)
    assert runs == ["body"]


async def test_a_task_whose_database_is_away_is_asked_for_again(
    make: MakeBroker, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make()
    write, runs = writing(broker)
    monkeypatch.setattr(once_middleware, "ASK_AGAIN", 0.1)
    away = iter(range(1))
    find_for_certain = inbox.find_for_certain

    async def find(*arguments: Any) -> bytes | None:
        if next(away, None) is not None:
            raise OSError("nobody answers")
        return await find_for_certain(*arguments)

    monkeypatch.setattr(inbox, "find_for_certain", find)
    async with running(broker):
        monkeypatch.setattr(LosesAnswers, "lose_after", [True], raising=False)
        broker.sessions.class_ = LosesAnswers
        assert await (await write.kiq("me")).get(timeout=10) == "by me, 1"
    assert await effects(database_url) == 1
    assert runs == ["body"]


# -- housekeeping and errors -------------------------------------------------------------------------------------------


async def test_what_is_old_is_forgotten(make: MakeBroker, database_url: str) -> None:
    broker = make()
    await broker.startup()
    rows = "insert into celeriq_inbox select $1, n::text, 'null', now() - n * interval '1 day' from generate_series(1, 30) n"
    connection = await databases.connect(database_url)
    await connection.execute(rows, broker.namespace)
    await connection.execute(rows, "another")
    await connection.close()
    async with broker.sessions() as session:
        assert await inbox.forget(session, broker.namespace, 14.5 * 86_400, most=10) == 10
        assert await inbox.forget(session, broker.namespace, 14.5 * 86_400, most=10) == 6
        await session.commit()
    assert await databases.value_of(database_url, "select count(*) from celeriq_inbox") == 44
    await broker.shutdown()


async def test_without_the_tables_it_says_how_to_make_them(
    make_broker: MakeBroker, services: Services, monkeypatch: pytest.MonkeyPatch, database_url: str, open_sessions: Any
) -> None:
    await databases.execute(database_url, "drop table celeriq_inbox", "drop table celeriq_outbox")
    broker = make_broker().with_sessions(open_sessions)

    @broker.task(once=True)
    async def asks(session: TaskSession = injected) -> None:
        await session.execute(text("select 1"))

    @broker.task(once=True)
    async def asks_nothing() -> None: ...

    async with running(broker):
        for task in (asks, asks_nothing):
            with pytest.raises(TablesMissingError, match=r"celeriq_inbox: call celeriq.schema.upgrade"):
                await (await task.kiq()).get(timeout=10)
