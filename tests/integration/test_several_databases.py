"""Several databases in one task: a transaction on each, and the main one commits last."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from celeriq import (
    PoolAdvice,
    RedisBroker,
    SessionsMissingError,
    TaskDefinitionError,
    TaskSession,
    injected,
    task_session,
)
from celeriq.embedded import Services
from tests import databases
from tests.integration.conftest import MakeBroker
from tests.workers import running

Open = Callable[[PoolAdvice], AbstractAsyncContextManager[Any]]
ReportSession = Annotated[AsyncSession, task_session("reports")]
TABLES = (
    "create table parent (id int primary key)",
    "create table effect (id int references parent deferrable initially deferred)",
    "insert into parent values (1)",
)
WRITE = text("insert into effect values (:id)")


def opening(url: str) -> Open:
    @asynccontextmanager
    async def open_sessions(pool: PoolAdvice) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
        engine = create_async_engine(url, **pool.engine_options(url))
        yield async_sessionmaker(engine)
        await engine.dispose()

    return open_sessions


@pytest.fixture
async def reports_url(services: Services) -> AsyncIterator[str]:
    async with databases.copy_of(services.database_url, databases.TEMPLATE) as url:
        yield url


@pytest.fixture
async def broker(make_broker: MakeBroker, database_url: str, reports_url: str) -> RedisBroker:
    for url in (database_url, reports_url):
        await databases.execute(url, *TABLES)
    return make_broker().with_sessions(reports=opening(reports_url), main=opening(database_url))


async def rows(url: str) -> int:
    return int(await databases.value_of(url, "select count(*) from effect"))


async def test_a_task_writes_to_both_or_to_none(broker: RedisBroker, database_url: str, reports_url: str) -> None:
    @broker.task
    async def write(session: TaskSession = injected, reports: ReportSession = injected, *, fail: bool) -> bool:
        await session.execute(WRITE, {"id": 1})
        await reports.execute(WRITE, {"id": 1})
        if fail:
            raise ValueError("on purpose")
        return session is reports

    async with running(broker):
        assert (await (await write.delay(fail=True)).wait_result(timeout=20)).is_err
        assert (await rows(database_url), await rows(reports_url)) == (0, 0)
        assert await (await write.delay(fail=False)).get(timeout=20) is False
        assert (await rows(database_url), await rows(reports_url)) == (1, 1)


@pytest.mark.parametrize(
    ("in_main", "in_reports", "kept"),
    [
        # Nothing is lost when another one cannot commit: the main one has not done so yet.
        (1, 99, (0, 0)),
        # What a retry writes again, in the other one.
        (99, 1, (0, 1)),
    ],
)
@pytest.mark.parametrize("main_first", [True, False])
async def test_the_main_one_commits_last_and_decides(
    broker: RedisBroker,
    database_url: str,
    reports_url: str,
    in_main: int,
    in_reports: int,
    kept: tuple[int, int],
    main_first: bool,
) -> None:
    async def write(session: TaskSession, reports: AsyncSession) -> None:
        await session.execute(WRITE, {"id": in_main})
        await reports.execute(WRITE, {"id": in_reports})

    @broker.task(name="main_first")
    async def begin_with_main(session: TaskSession = injected, reports: ReportSession = injected) -> None:
        await write(session, reports)

    @broker.task(name="main_last")
    async def begin_with_reports(reports: ReportSession = injected, session: TaskSession = injected) -> None:
        await write(session, reports)

    async with running(broker):
        sent = await (begin_with_main if main_first else begin_with_reports).delay()
        result = await sent.wait_result(timeout=20)
        assert "violates foreign key" in str(result.error)
        assert (await rows(database_url), await rows(reports_url)) == kept


async def test_a_task_may_ask_for_another_one_alone(broker: RedisBroker, reports_url: str) -> None:
    @broker.task
    async def report(reports: ReportSession = injected) -> None:
        await reports.execute(WRITE, {"id": 1})

    async with running(broker):
        await (await report.delay()).get(timeout=20)
        assert await rows(reports_url) == 1


async def test_sessions_are_had_by_name_as_well(broker: RedisBroker, database_url: str, reports_url: str) -> None:
    async with broker:
        async with broker.sessions.begin() as session, broker.sessions_of("reports").begin() as reports:
            await reports.execute(WRITE, {"id": 1})
            assert await session.scalar(text("select current_database()")) in database_url
        assert (await rows(database_url), await rows(reports_url)) == (0, 1)
        with pytest.raises(SessionsMissingError, match=r"with_sessions\(archive=open_sessions\)"):
            broker.sessions_of("archive")
    with pytest.raises(SessionsMissingError, match="start the broker that has the database 'reports'"):
        broker.sessions_of("reports")


async def test_without_a_main_one_it_is_the_first(make_broker: MakeBroker, database_url: str, reports_url: str) -> None:
    broker = make_broker().with_sessions(shop=opening(database_url), reports=opening(reports_url))
    async with broker, broker.sessions() as session:
        assert await session.scalar(text("select current_database()")) in database_url


async def test_each_has_a_pool_of_its_own(make_broker: MakeBroker, database_url: str, reports_url: str) -> None:
    broker = make_broker().with_sessions(opening(database_url), PoolAdvice(size=5))
    broker.with_sessions(reports=opening(reports_url), pool=PoolAdvice(size=2))
    async with running(broker):
        (pools,) = (await broker.pools()).values()
        assert sorted(pools.values()) == [2, 6]


async def test_the_pools_of_one_server_are_one_sum(
    make_broker: MakeBroker, database_url: str, reports_url: str
) -> None:
    broker = make_broker().with_sessions(opening(database_url), PoolAdvice(size=150), reports=opening(reports_url))
    async with running(broker):
        (pools,) = (await broker.pools()).values()
        assert sum(pools.values()) <= 197
        assert len(set(pools.values())) == 1


async def test_a_def_task_cannot_have_one(broker: RedisBroker) -> None:
    with pytest.raises(TaskDefinitionError, match="write `async def`"):

        @broker.task
        def report(reports: ReportSession = injected) -> None: ...
