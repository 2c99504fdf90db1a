from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from celeriq import PoolAdvice, RedisBroker
from celeriq.embedded import Services
from tests.workers import RECEIVERS

MakeBroker = Callable[..., RedisBroker]
MakeBrokerAt = Callable[..., RedisBroker]


@pytest.fixture
async def make_broker_at() -> AsyncGenerator[MakeBrokerAt]:
    """Brokers anywhere; their connections are closed with the test."""
    brokers: list[RedisBroker] = []

    def make(url: str, **options: Any) -> RedisBroker:
        brokers.append(RedisBroker(url, **options))
        return brokers[-1]

    yield make
    for broker in brokers:
        await broker.shutdown()


@pytest.fixture
def make_broker(make_broker_at: MakeBrokerAt, services: Services, namespace: str) -> MakeBroker:
    """Brokers of the test's own namespace."""
    return partial(make_broker_at, services.redis_url, namespace=namespace)


@pytest.fixture
def open_sessions(database_url: str) -> Callable[[PoolAdvice], AbstractAsyncContextManager[Any]]:
    @asynccontextmanager
    async def open_sessions(pool: PoolAdvice) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
        engine = create_async_engine(database_url, **pool.engine_options())
        yield async_sessionmaker(engine, expire_on_commit=False)
        await engine.dispose()

    return open_sessions


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What starts a worker does so under Taskiq's receiver, and under ours."""
    if "running" in metafunc.function.__code__.co_names:
        metafunc.parametrize("receiver", RECEIVERS, indirect=True)


@pytest.fixture(autouse=True)
def receiver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    chosen = str(getattr(request, "param", "taskiq"))
    monkeypatch.setattr("tests.workers.receiver_in_use", chosen)
    return chosen
