"""A PostgreSQL for celeriq's transactions; Celery plays with those of Django."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from celeriq import PoolAdvice, tables
from celeriq.embedded import Postgres


@cache
def url() -> str:
    """Of one that is started when it is first asked for, and stopped with this process."""
    folder = Path(tempfile.mkdtemp(prefix="celeriq-"))
    server = Postgres(folder, folder / "s", durable=False)
    server.start()
    atexit.register(server.stop)
    return server.url


@asynccontextmanager
async def open_sessions(pool: PoolAdvice) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
    engine = create_async_engine(url(), **pool.engine_options())
    async with engine.begin() as connection:
        await connection.run_sync(tables.metadata.create_all)
    yield async_sessionmaker(engine)
    await engine.dispose()
