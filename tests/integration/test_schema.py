"""celeriq's tables: each version a step, under workers that go on, and what is in code is what is in the database."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from celeriq import PoolAdvice, TaskSession, injected, schema, tables
from celeriq.embedded import Services
from celeriq.redis import recorder
from tests import databases
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running


@pytest.fixture
async def empty(services: Services) -> AsyncGenerator[str]:
    async with databases.copy_of(services.database_url, "template1") as url:
        yield url


async def change(url: str, work: Callable[[Connection], Any]) -> Any:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        done = await connection.run_sync(work)
    await engine.dispose()
    return done


def step(version: int, direction: Callable[[Any, int], None] = schema.upgrade) -> Callable[[Connection], None]:
    return lambda connection: direction(Operations(MigrationContext.configure(connection)), version)


def differences(connection: Connection) -> list[Any]:
    return list(compare_metadata(MigrationContext.configure(connection), tables.metadata))


async def test_the_versions_lead_to_the_tables_and_back(empty: str) -> None:
    for version in range(1, schema.LATEST + 1):
        await change(empty, step(version))
    assert await change(empty, differences) == []
    for version in range(schema.LATEST, 0, -1):
        await change(empty, step(version, schema.downgrade))
    assert await databases.column_of(empty, "select tablename from pg_tables where schemaname = 'public'") == []


@pytest.mark.parametrize("version", [0, schema.LATEST + 1])
async def test_a_version_that_there_is_not_is_told_which_there_are(empty: str, version: int) -> None:
    with pytest.raises(ValueError, match=rf"no version {version}: say 1 to {schema.LATEST}, one in each revision"):
        await change(empty, step(version))


async def test_workers_go_on_while_the_tables_are_made(
    make_broker: MakeBroker, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are of this release, and the database is of each of the ones before."""
    monkeypatch.setattr(recorder, "NOT_THERE", 0.1)

    @asynccontextmanager
    async def open_sessions(pool: PoolAdvice) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
        engine = create_async_engine(empty, **pool.engine_options())
        yield async_sessionmaker(engine)
        await engine.dispose()

    broker = make_broker(record_history=True).with_sessions(open_sessions)

    @broker.task(name="plain")
    async def plain(session: TaskSession = injected) -> str:
        return "plain"

    @broker.task(name="once", once=True)
    async def once(session: TaskSession = injected) -> str:
        return "once"

    async with running(broker):
        for version in range(1, schema.LATEST + 1):
            assert await (await plain.kiq()).get(timeout=10) == "plain"
            await change(empty, step(version))
            assert await (await once.kiq()).get(timeout=10) == "once"
        ended = schema.LATEST * 2
        await wait_for(lambda: recorded(empty, ended))


async def recorded(url: str, count: int) -> bool:
    return bool(await databases.value_of(url, "select count(*) from celeriq_history") == count)
