from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from taskiq.api import run_receiver_task

from celeriq import PoolAdvice, RedisBroker
from celeriq.embedded import Services

MakeBroker = Callable[..., RedisBroker]
Running = Callable[[RedisBroker], AbstractAsyncContextManager[RedisBroker]]


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


@asynccontextmanager
async def running(broker: RedisBroker, *, slots: int = 20) -> AsyncGenerator[RedisBroker]:
    """The broker in a worker: Taskiq's stock receiver, in this process."""
    broker.is_worker_process = True
    await broker.startup()
    receiver = asyncio.create_task(run_receiver_task(broker, max_async_tasks=slots))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(broker.shutdown)
        yield broker
        receiver.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await receiver
