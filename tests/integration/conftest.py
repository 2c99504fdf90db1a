from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from celeriq import PoolAdvice, RedisBroker
from celeriq.embedded import Services

MakeBroker = Callable[..., RedisBroker]


@pytest.fixture
def make_broker(services: Services, namespace: str) -> MakeBroker:
    def make(**options: Any) -> RedisBroker:
        return RedisBroker(services.redis_url, namespace=namespace, **options)

    return make


@pytest.fixture
def open_sessions(database_url: str) -> Callable[[PoolAdvice], AbstractAsyncContextManager[Any]]:
    @asynccontextmanager
    async def open_sessions(pool: PoolAdvice) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
        engine = create_async_engine(database_url, **pool.engine_options())
        yield async_sessionmaker(engine, expire_on_commit=False)
        await engine.dispose()

    return open_sessions
