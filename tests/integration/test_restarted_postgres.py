"""PostgreSQL is killed under load and comes back: no task is lost, and nothing stays open."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from celeriq import PoolAdvice, TaskSession, injected
from celeriq.embedded import Postgres
from tests import databases
from tests.conftest import Figure
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

FULL = bool(os.environ.get("PROVE"))
AWAY = 20.0 if FULL else 1.0
TASKS = 5_000 if FULL else 300
POOL = 5
OPEN = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'"
CONNECTIONS = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"


@pytest.mark.proof(of="transaction")
@pytest.mark.timeout(300)
async def test_a_postgres_that_is_killed_under_load_loses_no_task_and_leaves_nothing_open(
    make_broker: MakeBroker, postgres: Postgres, receiver: str, figure: Figure
) -> None:
    await databases.execute(postgres.url, "create table effect (number int)")
    pools: list[Any] = []

    @asynccontextmanager
    async def open_sessions(pool: PoolAdvice) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
        engine = create_async_engine(postgres.url, **pool.engine_options())
        pools.append(engine.pool)
        yield async_sessionmaker(engine)
        await engine.dispose()

    broker = make_broker().with_sessions(open_sessions, PoolAdvice(size=POOL, max_overflow=2))

    @broker.task(name="write", autoretry_for=(Exception,), max_retries=None, default_retry_delay=0.2)
    async def write(number: int, session: TaskSession = injected) -> None:
        await session.execute(text("insert into effect values (:number)"), {"number": number})

    async with running(broker, patience=60):
        sending = asyncio.create_task(write.kiq_many([(number,) for number in range(TASKS)]))
        await wait_for(lambda: written(postgres.url, TASKS // 10))
        await asyncio.to_thread(postgres.kill)
        await asyncio.sleep(AWAY)
        await asyncio.to_thread(postgres.start)
        await sending
        await wait_for(lambda: written(postgres.url, TASKS), within=120)
        await wait_for(lambda: nothing_open(postgres.url))
        assert pools[-1].checkedout() <= 1  # the outbox may be looked at
        assert await databases.value_of(postgres.url, CONNECTIONS) <= POOL + 1
    twice = await databases.value_of(postgres.url, "select count(*) - count(distinct number) from effect")
    figure(
        f"PostgreSQL killed under load and away for {AWAY:g} s, {receiver}'s receiver: all of {TASKS} tasks ran, "
        f"{twice} of them twice; nothing is open, the pool has its size"
    )


async def written(url: str, count: int) -> bool:
    return bool(await databases.value_of(url, "select count(distinct number) from effect") >= count)


async def nothing_open(url: str) -> bool:
    return not await databases.value_of(url, OPEN)
