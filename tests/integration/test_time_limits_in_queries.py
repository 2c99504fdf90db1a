"""Limits that pass while PostgreSQL works: the query ends there, and the session works again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from asyncpg.transaction import Transaction
from sqlalchemy import text
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import QueuePool

from celeriq.errors import SoftTimeLimitExceeded, TimeLimitExceeded
from celeriq.session import Sessions, transaction
from celeriq.time_limits import within
from tests import databases
from tests.waiting import wait_for

SOON = 0.05
SLEEP = text("select pg_sleep(30)")
INSTANTS = 40


@pytest.fixture
async def engine(database_url: str) -> AsyncGenerator[AsyncEngine]:
    """One connection, so that one that is lost is missed."""
    await databases.execute(database_url, "create table effect (id int)")
    engine = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=10)
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(engine: AsyncEngine) -> Sessions:
    return async_sessionmaker(engine)


async def rows(database_url: str) -> int:
    return int(await databases.value_of(database_url, "select count(*) from effect"))


async def nobody_sleeps(database_url: str) -> bool:
    query = """select count(*) from pg_stat_activity
        where datname = current_database() and state = 'active' and query like '%pg_sleep%'
        and pid <> pg_backend_pid()"""
    return int(await databases.value_of(database_url, query)) == 0


async def backend(session: AsyncSession) -> int:
    return int((await session.execute(text("select pg_backend_pid()"))).scalar_one())


async def insert(session: AsyncSession) -> None:
    await session.execute(text("insert into effect values (1)"))


async def pool_is_whole(engine: AsyncEngine, sessions: Sessions) -> bool:
    async with sessions() as session:
        await backend(session)
    pool: Any = engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedout() == 0


def cancellations() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def test_a_soft_limit_ends_the_query_and_the_session_works_after_a_rollback(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    async def body(session: AsyncSession) -> None:
        try:
            await session.execute(SLEEP)
        except SoftTimeLimitExceeded:
            with pytest.raises(PendingRollbackError, match="rollback"):
                await backend(session)
            await session.rollback()
            await insert(session)
            await session.commit()

    async with sessions() as session:
        await insert(session)
        await within(body(session), SOON, 20)
        assert await backend(session) > 0
    await wait_for(lambda: nobody_sleeps(database_url))
    assert await rows(database_url) == 1
    assert await pool_is_whole(engine, sessions)
    assert cancellations() == 0


async def in_a_timeout(session: AsyncSession) -> None:
    async with asyncio.timeout(20):
        await session.execute(SLEEP)


async def in_wait_for(session: AsyncSession) -> None:
    await asyncio.wait_for(session.execute(SLEEP), 20)


async def in_gather(session: AsyncSession) -> None:
    """Alone: gather does not wait until the others have ended as well."""
    await asyncio.gather(session.execute(SLEEP))


async def at_the_end_of_a_task_group(session: AsyncSession) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(session.execute(SLEEP))


async def inside_a_task_group(session: AsyncSession) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(20))
        await session.execute(SLEEP)


async def in_a_stream(session: AsyncSession) -> None:
    async for _ in await session.stream(text("select pg_sleep(30) from generate_series(1, 3)")):
        pass


async def in_a_generator(session: AsyncSession) -> None:
    async def generate() -> AsyncGenerator[None]:
        await session.execute(SLEEP)
        yield

    async for _ in generate():
        pass


@pytest.mark.parametrize(
    "wait",
    [
        in_a_timeout,
        in_wait_for,
        in_gather,
        at_the_end_of_a_task_group,
        inside_a_task_group,
        in_a_stream,
        in_a_generator,
    ],
    ids=lambda wait: wait.__name__,
)
async def test_wherever_the_query_is_awaited(
    engine: AsyncEngine, sessions: Sessions, database_url: str, wait: Callable[[AsyncSession], Awaitable[None]]
) -> None:
    async def body(session: AsyncSession) -> str:
        try:
            await wait(session)
        except* SoftTimeLimitExceeded:
            await session.rollback()
            await insert(session)
            await session.commit()
        return "cleaned up"

    async with sessions() as session:
        await insert(session)
        assert await within(body(session), SOON, 20) == "cleaned up"
    await wait_for(lambda: nobody_sleeps(database_url))
    assert await rows(database_url) == 1
    assert await pool_is_whole(engine, sessions)
    assert cancellations() == 0


@pytest.mark.parametrize(
    ("soft", "hard", "expected"), [(SOON, None, SoftTimeLimitExceeded), (None, SOON, TimeLimitExceeded)]
)
async def test_a_limit_that_is_not_caught_rolls_back_and_gives_the_connection_back(
    engine: AsyncEngine,
    sessions: Sessions,
    database_url: str,
    soft: float | None,
    hard: float | None,
    expected: type[Exception],
) -> None:
    async def body(session: AsyncSession) -> None:
        await insert(session)
        await session.execute(SLEEP)

    with pytest.raises(expected):
        async with transaction(sessions) as session:
            await within(body(session), soft, hard)
    await wait_for(lambda: nobody_sleeps(database_url))
    assert await rows(database_url) == 0
    assert await pool_is_whole(engine, sessions)
    assert cancellations() == 0


async def test_a_session_works_again_after_a_hard_limit_too(
    engine: AsyncEngine, sessions: Sessions, database_url: str
) -> None:
    async with sessions() as session:
        with pytest.raises(TimeLimitExceeded):
            await within(session.execute(SLEEP), None, SOON)
        await session.rollback()
        await insert(session)
        await session.commit()
    await wait_for(lambda: nobody_sleeps(database_url))
    assert await rows(database_url) == 1
    assert await pool_is_whole(engine, sessions)


async def test_a_soft_limit_while_the_pool_is_empty_loses_no_connection(
    engine: AsyncEngine, sessions: Sessions
) -> None:
    async with sessions() as holder, sessions() as waiter:
        await backend(holder)
        with pytest.raises(SoftTimeLimitExceeded):
            await within(backend(waiter), SOON, 20)
        await holder.rollback()
        assert await backend(waiter) > 0
    assert await pool_is_whole(engine, sessions)


async def test_a_connection_that_was_interrupted_while_it_began_a_transaction_is_not_used_again(
    engine: AsyncEngine, sessions: Sessions, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL has begun it, SQLAlchemy knows nothing of it: whatever is committed later is inside of it, and lost."""
    begin = Transaction.start

    async def begin_slowly(transaction: Transaction) -> None:
        await begin(transaction)
        await asyncio.sleep(20)

    async with sessions() as session:
        await backend(session)
        await session.rollback()
        with monkeypatch.context() as patched:
            patched.setattr(Transaction, "start", begin_slowly)
            with pytest.raises(SoftTimeLimitExceeded):
                await within(insert(session), SOON, None)
        await session.rollback()
        await insert(session)
        await session.commit()
    assert await rows(database_url) == 1
    assert await pool_is_whole(engine, sessions)


async def test_a_soft_limit_at_any_instant_leaves_the_session_usable_after_a_rollback(
    engine: AsyncEngine, sessions: Sessions
) -> None:
    chance = random.Random(1)

    async def body(session: AsyncSession) -> None:
        while True:
            await insert(session)
            await session.rollback()

    for _ in range(INSTANTS):
        async with sessions() as session:
            with pytest.raises(SoftTimeLimitExceeded):
                await within(body(session), chance.uniform(0, 0.006), 20)
            await session.rollback()
            assert await backend(session) > 0
        assert await pool_is_whole(engine, sessions)
    assert cancellations() == 0
