"""Through a real PgBouncer in transaction mode: each transaction may be another server connection's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import ARRAY, JSON, Integer, Uuid, bindparam, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from celeriq import PoolAdvice, TaskSession, injected
from celeriq.embedded import Services
from tests import databases
from tests.conftest import Figure
from tests.integration.conftest import MakeBroker
from tests.pgbouncer import NoPgBouncerError, PgBouncer
from tests.workers import running

SERVER_CONNECTIONS = 3
AT_A_TIME = 20
ROUNDS = 50 if os.environ.get("PROVE") else 5
TABLES = (
    "create type mood as enum ('glad', 'sad')",
    "create table written (id uuid, step int, mood mood, said jsonb, pid int default pg_backend_pid())",
)
INSERT = text("insert into written (id, step, mood, said) values (:id, :step, cast(:mood as mood), :said)").bindparams(
    bindparam("id", type_=Uuid()), bindparam("said", type_=JSON())
)
OWN = text("select step, mood, said, pid from written where id = :id order by step").bindparams(
    bindparam("id", type_=Uuid())
)
SUM = text("select sum(one) from unnest(:numbers) one").bindparams(bindparam("numbers", type_=ARRAY(Integer())))


@pytest.fixture
def pgbouncer(services: Services, tmp_path: Path, short_folder: Path) -> Iterator[PgBouncer]:
    try:
        server = PgBouncer(tmp_path, short_folder, services.database_url, size=SERVER_CONNECTIONS)
    except NoPgBouncerError as error:
        pytest.skip(str(error))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def open_through(
    pgbouncer: PgBouncer, database_url: str
) -> Callable[[PoolAdvice], AbstractAsyncContextManager[Any]]:
    await databases.execute(database_url, *TABLES)
    url = pgbouncer.url_of(database_url)

    @asynccontextmanager
    async def open_sessions(pool: PoolAdvice) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
        engine = create_async_engine(url, **pool.engine_options(url))
        yield async_sessionmaker(engine)
        await engine.dispose()

    return open_sessions


async def write_and_read(session: AsyncSession, number: UUID, steps: int) -> set[int]:
    """Statements of every kind that SQLAlchemy prepares; the processes of the server that have run them."""
    for step in range(steps):
        await session.execute(INSERT, {"id": number, "step": step, "mood": "glad", "said": {"step": [step]}})
        await asyncio.sleep(0)
    many = [{"id": number, "step": steps + step, "mood": "sad", "said": {"step": [steps + step]}} for step in range(3)]
    await session.execute(INSERT, many)
    assert await session.scalar(SUM, {"numbers": list(range(steps))}) == sum(range(steps))
    rows = [row async for row in await session.stream(OWN, {"id": number})]
    assert [(step, mood, said) for step, mood, said, _ in rows] == [
        (step, "glad" if step < steps else "sad", {"step": [step]}) for step in range(steps + 3)
    ]
    return {pid for *_, pid in rows} | {await session.scalar(text("select pg_backend_pid()"))}


@pytest.mark.proof(of="transaction")
async def test_twenty_tasks_share_three_connections_and_nothing_collides(
    make_broker: MakeBroker, open_through: Any, database_url: str, figure: Figure, receiver: str
) -> None:
    broker = make_broker(concurrency=AT_A_TIME).with_sessions(open_through, PoolAdvice(pgbouncer=True, size=AT_A_TIME))

    @broker.task
    async def work(number: str, steps: int, *, fail: bool, session: TaskSession = injected) -> list[int]:
        pids = await write_and_read(session, UUID(number), steps)
        assert await session.scalar(text("select count(*) from pg_prepared_statements")) == 0
        if fail:
            raise ValueError("on purpose")
        return sorted(pids)

    servers: set[int] = set()
    succeeded: list[UUID] = []
    async with running(broker, slots=AT_A_TIME):
        for _ in range(ROUNDS):
            numbers = [uuid4() for _ in range(AT_A_TIME)]
            sent = [await work.delay(str(one), 1 + index % 7, fail=index % 4 == 0) for index, one in enumerate(numbers)]
            for index, (number, one) in enumerate(zip(numbers, sent, strict=True)):
                result = await one.wait_result(timeout=60)
                if index % 4 == 0:
                    assert str(result.error) == "on purpose"
                    continue
                assert result.error is None
                assert len(result.return_value) == 1, "a transaction has gone over several connections"
                servers |= set(result.return_value)
                succeeded.append(number)
    found = await databases.column_of(database_url, "select distinct id from written")
    assert sorted(UUID(str(one)) for one in found) == sorted(succeeded)
    assert 1 < len(servers) <= SERVER_CONNECTIONS
    figure(
        f"Behind PgBouncer, {receiver}'s receiver: {ROUNDS * AT_A_TIME} tasks, {AT_A_TIME} at a time, on "
        f"{len(servers)} server connections; no prepared statement collides, state and rows agree each time"
    )


async def test_without_the_mode_it_does_not_work(open_through: Any) -> None:
    """What is refused, and what the test above would see."""
    async with open_through(PoolAdvice(size=AT_A_TIME)) as sessions:
        with pytest.raises(Exception, match="unsupported startup parameter"):
            await write(sessions)
    async with open_through(PoolAdvice(size=AT_A_TIME, idle_in_transaction=None)) as sessions:
        failed = await asyncio.gather(*(write(sessions) for _ in range(AT_A_TIME)), return_exceptions=True)
        assert any("prepared statement" in str(one) for one in failed)


async def write(sessions: async_sessionmaker[AsyncSession]) -> None:
    for _ in range(5):
        async with sessions.begin() as session:
            await write_and_read(session, uuid4(), 2)


async def test_what_pgbouncer_keeps_is_as_large_as_the_work_and_not_added_up(
    make_broker: MakeBroker, open_through: Any
) -> None:
    received: list[PoolAdvice] = []

    def noted(pool: PoolAdvice) -> AbstractAsyncContextManager[Any]:
        received.append(pool)
        return open_through(pool)  # type: ignore[no-any-return]

    async with running(make_broker(concurrency=1000).with_sessions(noted, PoolAdvice(pgbouncer=True))) as broker:
        assert await broker.pools() == {}
    assert [pool.size for pool in received] == [1000]


async def test_a_worker_that_meets_it_by_surprise_says_what_to_say(
    make_broker: MakeBroker, open_through: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(make_broker().with_sessions(open_through)):
        assert "behind PgBouncer say PoolAdvice(pgbouncer=True)" in caplog.text
