"""The engine and its sessions, opened once per process: by FastAPI's lifespan and by every worker."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from db.settings import DatabaseSettings


class Pool(Protocol):
    """Advice on the pool, from whoever runs the process."""

    def engine_options(self, url: str, /, **own: Any) -> dict[str, Any]: ...


# The default for disks that spin makes the planner read all of a small table instead of its HNSW index. And the
# default's 40 candidates may all lack the question's words, so that the one right chunk of 1,000 is missed: in 9 of
# 220 indexes; with 120 candidates in none.
SEARCH = {"random_page_cost": "1.1", "hnsw.ef_search": "120"}


@asynccontextmanager
async def open_sessions(pool: Pool) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
    settings = DatabaseSettings()
    own = {"connect_args": {"server_settings": {**SEARCH, **settings.named}}}
    engine = create_async_engine(settings.url, **pool.engine_options(settings.url, **own))
    try:
        yield async_sessionmaker(engine, expire_on_commit=False)
    finally:
        await engine.dispose()
