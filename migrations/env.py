"""Alembic, async: `alembic upgrade head` on the database that DB_URL names."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection, pool
from sqlalchemy.ext.asyncio import create_async_engine

from celeriq import tables
from db.models import Base
from db.settings import DatabaseSettings

METADATA = [Base.metadata, tables.metadata]


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=METADATA, compare_server_default=True)
    with context.begin_transaction():
        context.run_migrations()


async def migrate_online() -> None:
    url = context.config.get_main_option("sqlalchemy.url") or DatabaseSettings().url
    engine = create_async_engine(url, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


if context.is_offline_mode():
    context.configure(url=DatabaseSettings().url, target_metadata=METADATA, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(migrate_online())
