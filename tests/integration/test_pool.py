"""The pool of a worker: as large as its work, and no larger than what the database has left beside the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from celeriq import PoolAdvice, PoolTooLargeError, RedisBroker, TaskSession, injected
from celeriq.redis.keys import Keys
from celeriq.redis.pools import Family, Published
from tests import databases
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

ALLOWED = 197
"""The servers of the tests allow 200, three of them for superusers."""


class Opened:
    """`open_sessions`, and what it received each time."""

    def __init__(self, open_sessions: Callable[[PoolAdvice], AbstractAsyncContextManager[Any]]) -> None:
        self._open_sessions = open_sessions
        self.received: list[PoolAdvice] = []
        self.open = 0

    @asynccontextmanager
    async def __call__(self, pool: PoolAdvice) -> AsyncGenerator[Any]:
        self.received.append(pool)
        async with self._open_sessions(pool) as sessions:
            self.open += 1
            yield sessions
        self.open -= 1

    @property
    def size(self) -> tuple[int | None, int | None]:
        return self.received[-1].size, self.received[-1].overflow


@pytest.fixture
def opened(open_sessions: Any) -> Opened:
    return Opened(open_sessions)


@asynccontextmanager
async def worker(broker: RedisBroker, family: Family | None = None) -> AsyncGenerator[RedisBroker]:
    """A worker that takes nothing."""
    broker.is_worker_process, broker.family = True, family
    await broker.startup()
    try:
        yield broker
    finally:
        await broker.shutdown()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [one for one in caplog.records if one.name in {"celeriq.redis.pools", "celeriq.databases"}]
    return [one.getMessage() for one in found if one.levelno == logging.WARNING]


async def some_other(redis: Redis, namespace: str, url: str, connections: int, *, leaving: bool = False) -> None:
    """A worker that has published a pool, and does not beat."""
    host = url.partition("?host=")[2].partition("&")[0].replace("%2F", "/")
    keys, pools = Keys(namespace), {f"{host}:5432/else": connections}
    await redis.hset(keys.beats, "other", "7")
    await redis.hset(keys.pools, "other", msgspec.json.encode(Published(pools=pools)))
    if leaving:
        await redis.sadd(keys.leaving, "other")


# -- advice ------------------------------------------------------------------------------------------------------------


async def test_a_pool_has_a_connection_for_each_task_at_a_time(make_broker: MakeBroker, opened: Opened) -> None:
    async with worker(make_broker(concurrency=7).with_sessions(opened)):
        assert opened.size == (7, 1)


async def test_who_does_not_say_how_many_tasks_run_gets_ten(make_broker: MakeBroker, opened: Opened) -> None:
    async with worker(make_broker().with_sessions(opened)):
        assert opened.size == (10, 2)


async def test_a_pool_is_half_of_what_the_server_allows_at_the_most(
    make_broker: MakeBroker, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "celeriq.redis.pools")
    async with worker(make_broker(concurrency=500).with_sessions(opened)):
        assert opened.size == (82, 16)
        assert opened.open == 1
    assert "500 tasks at a time share a pool of 82 connections" in caplog.text
    assert opened.open == 0


async def test_what_the_application_says_wins(make_broker: MakeBroker, opened: Opened) -> None:
    said = PoolAdvice(size=100, max_overflow=3, recycle=60, idle_in_transaction=None)
    async with worker(make_broker(concurrency=7).with_sessions(opened, said)):
        assert opened.size == (100, 3)
        assert opened.received[-1].recycle == 60
        assert len(opened.received) == 1


async def test_what_is_no_worker_publishes_nothing(make_broker: MakeBroker, opened: Opened) -> None:
    broker = make_broker(concurrency=7).with_sessions(opened)
    async with broker:
        assert opened.size == (10, 2)
        assert await broker.pools() == {}
        await broker.startup()
        assert len(opened.received) == 1


# -- sums --------------------------------------------------------------------------------------------------------------


async def test_a_second_worker_takes_what_the_first_has_left_and_says_so(
    make_broker: MakeBroker, opened: Opened, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = PoolAdvice(size=100)
    async with worker(make_broker(lease=5).with_sessions(opened, said)) as first:
        assert opened.size == (100, 20)
        async with worker(make_broker(lease=5).with_sessions(opened, said)) as second:
            assert opened.size == (64, 12)
            assert {sum(one.values()) for one in (await second.pools()).values()} == {120, 76}
        assert [sum(one.values()) for one in (await first.pools()).values()] == [120]
    (told,) = warnings(caplog)
    assert told.startswith("120 connections, and other workers have 120; PostgreSQL ")
    assert "allows 197: say PoolAdvice(size=64), or raise max_connections; this one takes what is left" in told
    assert await first.pools() == {}


async def test_workers_that_start_at_the_same_moment_fit_as_well(make_broker: MakeBroker, open_sessions: Any) -> None:
    said = [Opened(open_sessions) for _ in range(4)]
    brokers = [make_broker(lease=5).with_sessions(one, PoolAdvice(size=60)) for one in said]
    for broker in brokers:
        broker.is_worker_process = True
    await asyncio.gather(*(broker.startup() for broker in brokers))
    sizes = sorted(sum(one.values()) for one in (await brokers[0].pools()).values())
    assert sizes[2:] == [72, 72]
    # Who comes when nothing is left has one connection, for it cannot do with less.
    assert sum(sizes) <= ALLOWED + 1
    for broker in brokers:
        await broker.shutdown()


async def test_a_process_of_our_own_worker_refuses_what_cannot_fit(make_broker: MakeBroker, opened: Opened) -> None:
    broker = make_broker().with_sessions(opened, PoolAdvice(size=100))
    with pytest.raises(PoolTooLargeError) as refused:
        async with worker(broker, Family("f", 2)):
            pass
    assert str(refused.value).startswith("2 processes x 120 connections = 240; PostgreSQL ")
    assert str(refused.value).endswith("allows 197: say --workers 1, or PoolAdvice(size=82), or raise max_connections")
    assert opened.open == 0
    assert await broker.pools() == {}
    assert not await broker._client.exists(broker.keys.beats)


async def test_what_suits_the_worker_can_be_too_much_beside_others(
    make_broker: MakeBroker, opened: Opened, open_sessions: Any
) -> None:
    first = make_broker(lease=5).with_sessions(open_sessions, PoolAdvice(size=130))
    async with worker(first):
        with pytest.raises(
            PoolTooLargeError, match=r"48 connections, and other workers have 156; .*: say -c 34, or Pool"
        ):
            async with worker(make_broker(concurrency=40, lease=5).with_sessions(opened), Family("f", 1)):
                pass
        with pytest.raises(PoolTooLargeError, match="no pool fits"):
            async with worker(make_broker(concurrency=40, lease=5).with_sessions(opened), Family("f", 50)):
                pass


async def test_processes_of_one_worker_are_counted_once(make_broker: MakeBroker, opened: Opened) -> None:
    """Each of them counts all, so that it does not matter who comes first."""
    said = PoolAdvice(size=80)
    first, second = (make_broker().with_sessions(opened, said) for _ in range(2))
    async with worker(first, Family("f", 2)), worker(second, Family("f", 2)):
        assert [sum(one.values()) for one in (await second.pools()).values()] == [96, 96]


async def test_processes_of_one_worker_share_half_of_the_server(make_broker: MakeBroker, opened: Opened) -> None:
    async with worker(make_broker(concurrency=500).with_sessions(opened), Family("f", 2)):
        assert opened.size == (41, 8)


async def test_the_pool_of_a_dead_worker_does_not_count_and_is_forgotten(
    make_broker: MakeBroker,
    opened: Opened,
    redis: Redis,
    namespace: str,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await some_other(redis, namespace, database_url, 190)
    async with worker(make_broker(lease=0.5).with_sessions(opened)) as broker:
        assert opened.size == (10, 2)
        await wait_for(lambda: only_one(broker))
    assert warnings(caplog) == []


async def only_one(broker: RedisBroker) -> bool:
    return len(await broker.pools()) == 1


async def test_who_was_told_to_stop_does_not_count(
    make_broker: MakeBroker, opened: Opened, redis: Redis, namespace: str, database_url: str
) -> None:
    await some_other(redis, namespace, database_url, 190, leaving=True)
    async with worker(make_broker(lease=30).with_sessions(opened)):
        assert opened.size == (10, 2)


async def test_who_was_given_up_and_lives_says_it_again(make_broker: MakeBroker, opened: Opened, redis: Redis) -> None:
    async with worker(make_broker(lease=1).with_sessions(opened)) as broker:
        await redis.delete(broker.keys.pools)
        await wait_for(lambda: only_one(broker))


async def test_an_engine_that_takes_no_advice_is_counted_as_it_is(
    make_broker: MakeBroker, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def stubborn(_: PoolAdvice) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
        engine = create_async_engine(database_url, pool_size=150, max_overflow=90)
        yield async_sessionmaker(engine)
        await engine.dispose()

    async with worker(make_broker().with_sessions(stubborn)) as broker:
        assert [sum(one.values()) for one in (await broker.pools()).values()] == [240]
    first, second = warnings(caplog)
    assert "240 connections; PostgreSQL" in first
    assert "has up to 240 connections all the same: open it with **pool.engine_options()" in second


async def test_a_database_that_is_away_is_no_reason_not_to_start(
    make_broker: MakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def nowhere(pool: PoolAdvice) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
        engine = create_async_engine("postgresql+asyncpg://127.0.0.1:1/shop", **pool.engine_options())
        yield async_sessionmaker(engine)
        await engine.dispose()

    async with worker(make_broker(concurrency=500).with_sessions(nowhere)) as broker:
        assert broker.worker is not None
    (told,) = warnings(caplog)
    assert told.startswith("database 127.0.0.1:1/shop does not say how many connections it allows: ")


# -- guards ------------------------------------------------------------------------------------------------------------


async def test_connections_bear_the_name_of_their_worker_and_end_when_they_idle_in_a_transaction(
    make_broker: MakeBroker, open_sessions: Any
) -> None:
    broker = make_broker().with_sessions(open_sessions)

    @broker.task
    async def settings(session: TaskSession = injected) -> list[str]:
        names = ("application_name", "idle_in_transaction_session_timeout", "statement_timeout")
        return [str(await session.scalar(text(f"show {name}"))) for name in names]

    async with running(broker):
        assert broker.worker is not None
        told = await (await settings.delay()).get(timeout=20)
        assert told == [broker.worker.name[-63:], "10min", "0"]


async def test_a_statement_that_takes_too_long_is_cancelled_by_the_server(
    make_broker: MakeBroker, open_sessions: Any
) -> None:
    broker = make_broker().with_sessions(open_sessions, PoolAdvice(size=2, statement_timeout=0.1))

    @broker.task
    async def ask(session: TaskSession = injected) -> None:
        await session.execute(text("select pg_sleep(20)"))

    async with running(broker):
        result = await (await ask.delay()).wait_result(timeout=20)
        assert "canceling statement due to statement timeout" in str(result.error)


async def test_tasks_queue_at_the_pool(make_broker: MakeBroker, open_sessions: Any, database_url: str) -> None:
    await databases.execute(database_url, "create table seen (pid int)")
    broker = make_broker().with_sessions(open_sessions, PoolAdvice(size=2, max_overflow=0))

    @broker.task
    async def note(session: TaskSession = injected) -> None:
        await session.execute(text("insert into seen select pg_backend_pid() from pg_sleep(0.01)"))

    async with running(broker):
        sent = [await note.delay() for _ in range(20)]
        for one in sent:
            await one.get(timeout=20)
    assert len(set(await databases.column_of(database_url, "select pid from seen"))) <= 2
