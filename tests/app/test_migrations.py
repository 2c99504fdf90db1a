from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from alembic import command

from celeriq.embedded import Services
from tests import databases


@pytest.fixture
async def empty_database(services: Services) -> AsyncGenerator[str]:
    async with databases.copy_of(services.database_url, "template1") as url:
        yield url


async def tables(url: str) -> set[str]:
    return set(await databases.column_of(url, "select tablename from pg_tables where schemaname = 'public'"))


async def test_the_migrations_lead_to_the_models_and_back(empty_database: str) -> None:
    config = databases.alembic_config(empty_database)
    await asyncio.to_thread(command.upgrade, config, "head")
    await asyncio.to_thread(command.check, config)
    assert {"users", "articles", "documents", "chunks"} <= await tables(empty_database)
    await asyncio.to_thread(command.downgrade, config, "base")
    assert await tables(empty_database) == {"alembic_version"}
    await asyncio.to_thread(command.upgrade, config, "head")
    await asyncio.to_thread(command.check, config)
