"""The outbox: what a transaction sends is sent if, and only if, it is committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from sqlalchemy import Table, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import celeriq.tables
from celeriq import RedisBroker, TablesMissingError, TaskSession, chain, chord, group, injected
from celeriq.embedded import Services, Valkey
from tests import databases
from tests.integration.conftest import MakeBroker, MakeBrokerAt
from tests.waiting import wait_for
from tests.workers import running


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """The application's own, which the broker knows nothing of."""
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def broker(make_broker: MakeBroker, open_sessions: Any) -> AsyncGenerator[RedisBroker]:
    """As in an API."""
    broker = make_broker().with_sessions(open_sessions)
    await broker.startup()
    yield broker
    await broker.shutdown()


def noting(broker: RedisBroker) -> Any:
    @broker.task(name="note")
    async def note(number: int = 0) -> int:
        return number

    return note


async def sent(broker: RedisBroker, queue: str = "default") -> list[int]:
    """The arguments of what is in the queue, in its order."""
    entries: Any = await broker._client.xrange(broker.keys.queue(queue))
    return [msgspec.json.decode(fields[b"data"])["args"][0] for _, fields in entries]


async def waiting(url: str) -> int:
    return int(await databases.value_of(url, "select count(*) from celeriq_outbox"))


async def test_a_call_is_sent_when_its_transaction_is_committed(
    broker: RedisBroker, engine: AsyncEngine, database_url: str
) -> None:
    note = noting(broker)
    async with AsyncSession(engine) as session:
        result = await note.apply_async((1,), session=session)
        await note.delay_on_commit(session, 2)
        await session.flush()
        assert await waiting(database_url) == 0  # for everybody else
        assert await sent(broker) == []
        await session.commit()
    await wait_for(lambda: sent(broker))
    assert await sent(broker) == [1, 2]
    await wait_for(lambda: _is_empty(database_url))
    assert result.id


async def _is_empty(url: str) -> bool:
    return not await waiting(url)


async def test_a_call_of_a_transaction_that_is_rolled_back_is_never_sent(
    broker: RedisBroker, engine: AsyncEngine, database_url: str
) -> None:
    note = noting(broker)
    async with AsyncSession(engine) as session:
        await note.apply_async((1,), session=session)
        await session.rollback()
        # The next one is sent, and it alone.
        await note.apply_async((2,), session=session)
        await session.commit()
    await wait_for(lambda: sent(broker))
    assert await sent(broker) == [2]


async def test_a_savepoint_owns_its_calls(broker: RedisBroker, engine: AsyncEngine) -> None:
    note = noting(broker)
    async with AsyncSession(engine) as session, session.begin():
        await note.apply_async((1,), session=session)
        savepoint = await session.begin_nested()
        await note.apply_async((2,), session=session)
        await savepoint.rollback()
        async with session.begin_nested():
            await note.apply_async((3,), session=session)
        # Its release told of a commit, which was none.
        assert await sent(broker) == []
    await wait_for(lambda: sent(broker))
    assert await sent(broker) == [1, 3]


async def test_a_joined_transaction_is_not_committed_by_its_session(
    make_broker: MakeBroker, open_sessions: Any, engine: AsyncEngine
) -> None:
    """As in tests that roll everything back; a worker finds what nobody rang for."""
    broker = make_broker().with_sessions(open_sessions)
    note = noting(broker)
    async with running(broker):
        results: list[Any] = []
        for number, ends in enumerate(("rollback", "commit")):
            async with engine.connect() as connection, connection.begin() as outer:
                async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
                    results.append(await note.apply_async((number,), session=session))
                    await session.commit()
                assert await results[-1].state() == "PENDING"
                await getattr(outer, ends)()
        assert await results[-1].get(timeout=10) == 1
        history = await broker._client.xlen(broker.keys.history)
        assert history == 1


async def test_many_calls_and_all_kinds_join_a_transaction(
    broker: RedisBroker, engine: AsyncEngine, database_url: str
) -> None:
    note = noting(broker)
    async with AsyncSession(engine) as session:
        await note.kiq_many([(number,) for number in range(3)], session=session)
        await note.s(3).apply_async(session=session)
        await chain(note.s(4), note.s()).apply_async(session=session)
        await group(note.s(5), note.s(6)).apply_async(session=session)
        await chord([note.s(7), note.s(8)], note.s()).apply_async(session=session)
        assert await sent(broker) == []
        await session.commit()
    await wait_for(lambda: _is_empty(database_url))
    assert await sent(broker) == list(range(9))


async def test_a_countdown_and_an_eta_are_kept(
    make_broker: MakeBroker, open_sessions: Any, engine: AsyncEngine
) -> None:
    broker = make_broker().with_sessions(open_sessions)
    note = noting(broker)
    async with running(broker):
        async with AsyncSession(engine) as session:
            late = await note.apply_async((1,), countdown=3600, session=session)
            soon = await note.apply_async((2,), countdown=0.1, session=session)
            await session.commit()
        assert await soon.get(timeout=10) == 2
        assert await late.state() == "PENDING"
        assert await broker._client.zcard(broker.keys.delayed("default")) == 1


async def test_what_a_task_sends_goes_with_its_transaction(
    make_broker: MakeBroker, open_sessions: Any, database_url: str
) -> None:
    broker = make_broker().with_sessions(open_sessions)
    note = noting(broker)

    @broker.task
    async def parent(fails: bool, session: TaskSession = injected) -> str:
        result = await note.apply_async((1,), session=session)
        if fails:
            raise LookupError(result.id)
        return str(result.id)

    async with running(broker):
        failed = await (await parent.kiq(True)).get(propagate=False, timeout=10)
        assert isinstance(failed, LookupError)
        child = await (await parent.kiq(False)).get(timeout=10)
        await wait_for(lambda: broker.result_backend.is_result_ready(child))
        assert not await broker.result_backend.is_result_ready(failed.args[0])


# -- who sends ---------------------------------------------------------------------------------------------------------


async def test_a_script_sends_what_it_has_committed_before_it_ends(
    make_broker: MakeBroker, open_sessions: Any, database_url: str
) -> None:
    script = make_broker().with_sessions(open_sessions)
    note = noting(script)
    await script.startup()
    async with script.sessions() as session:
        await note.apply_async((1,), session=session)
        await session.commit()
    await script.shutdown()
    assert await waiting(database_url) == 0
    assert await sent(make_broker()) == [1]


async def test_the_order_in_a_transaction_holds_whoever_sends(
    make_broker: MakeBroker, open_sessions: Any, engine: AsyncEngine, database_url: str
) -> None:
    brokers = [make_broker().with_sessions(open_sessions) for _ in range(4)]
    note = noting(brokers[0])
    async with AsyncSession(engine) as session:
        await note.kiq_many([(number,) for number in range(1700)], session=session)
        await session.commit()
    async with AsyncSession(engine) as session:
        await note.kiq_many([(-number,) for number in range(1, 300)], session=session)
        await session.commit()
    # All of them at the same moment.
    for broker in brokers:
        await broker.startup()
        broker._outbox._bell.set()
    await wait_for(lambda: _is_empty(database_url))
    numbers = await sent(brokers[0])
    assert [number for number in numbers if number >= 0] == list(range(1700))
    assert [number for number in numbers if number < 0] == list(range(-1, -300, -1))


async def test_what_was_sent_and_not_deleted_is_sent_once(
    broker: RedisBroker, engine: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that sends dies, or the database does, between the two."""
    note = noting(broker)
    commit, failures = AsyncSession.commit, iter(range(2))

    def sessions() -> AsyncSession:
        session = AsyncSession(engine)

        async def fail() -> None:
            if await broker._client.xlen(broker.keys.queue("default")) and next(failures, None) is not None:
                raise OperationalError("commit", {}, OSError("the connection is gone"))

        @asynccontextmanager
        async def begin() -> AsyncGenerator[AsyncSession]:
            yield session
            await fail()
            await commit(session)

        monkeypatch.setattr(session, "begin", begin)
        return session

    monkeypatch.setattr(broker._outbox, "_sessions", sessions)
    async with AsyncSession(engine) as session:
        await note.kiq_many([(1,), (2,)], session=session)
        await note.apply_async((3,), countdown=100, session=session)
        await session.commit()
    await wait_for(lambda: _is_empty(database_url))
    assert next(failures, None) is None
    assert await sent(broker) == [1, 2]
    assert await broker._client.zcard(broker.keys.delayed("default")) == 1
    assert await broker._client.zcard(broker.keys.sent) == 0


async def test_what_cannot_be_sent_is_kept_and_the_others_go_on(
    broker: RedisBroker, engine: AsyncEngine, database_url: str
) -> None:
    note = noting(broker)
    await broker._client.set(broker.keys.queue("taken"), "something else")
    async with AsyncSession(engine) as session:
        for number, queue in enumerate(("default", "taken", "default")):
            await note.apply_async((number,), queue=queue, session=session)
        await session.commit()
    await wait_for(lambda: _is_sent(broker, 2))
    assert await sent(broker) == [0, 2]
    errors = await databases.column_of(database_url, "select error from celeriq_outbox")
    assert len(errors) == 1
    assert "WRONGTYPE" in errors[0]


async def _is_sent(broker: RedisBroker, count: int) -> bool:
    return len(await sent(broker)) == count


async def test_what_is_no_message_is_kept_too(broker: RedisBroker, engine: AsyncEngine, database_url: str) -> None:
    note = noting(broker)
    async with AsyncSession(engine) as session:
        await note.kiq_many([(1,), (2,)], session=session)
        await session.execute(text("update celeriq_outbox set message = 'broken' where message like '%\"args\":[1]%'"))
        await session.commit()
    await wait_for(lambda: sent(broker))
    assert await sent(broker) == [2]
    assert await databases.column_of(database_url, "select message from celeriq_outbox") == ["broken"]


async def test_a_redis_that_is_away_delays_what_is_committed(
    make_broker_at: MakeBrokerAt, open_sessions: Any, engine: AsyncEngine, valkey: Valkey, database_url: str
) -> None:
    broker = make_broker_at(valkey.url).with_sessions(open_sessions)
    note = noting(broker)
    await broker.startup()
    await asyncio.to_thread(valkey.stop)
    async with AsyncSession(engine) as session:
        await note.apply_async((1,), session=session)
        await session.commit()
    assert await waiting(database_url) == 1
    await asyncio.to_thread(valkey.start)
    await wait_for(lambda: _is_empty(database_url))
    assert await sent(broker) == [1]
    await broker.shutdown()


# -- bad input ---------------------------------------------------------------------------------------------------------


class Base(DeclarativeBase):
    """An application's."""


class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)


async def test_a_session_of_several_databases_must_say_which_one(broker: RedisBroker, engine: AsyncEngine) -> None:
    note = noting(broker)
    sessions = async_sessionmaker(binds={Thing: engine})
    async with sessions() as session:
        with pytest.raises(TablesMissingError, match=r"celeriq\.tables\.outbox: engine"):
            await note.apply_async((1,), session=session)
    table: Table = celeriq.tables.outbox
    async with async_sessionmaker(binds={Thing: engine, table: engine})() as session:
        await note.apply_async((1,), session=session)
        await session.commit()
    await wait_for(lambda: sent(broker))


async def test_a_database_without_the_tables_says_how_to_make_them(
    broker: RedisBroker, services: Services, engine: AsyncEngine
) -> None:
    note = noting(broker)
    async with databases.copy_of(services.database_url, "template1") as url:
        other = create_async_engine(url)
        async with AsyncSession(other) as session:
            with pytest.raises(TablesMissingError, match=r"celeriq.schema.upgrade\(op, version=1\)"):
                await note.delay_on_commit(session, 1)
        await other.dispose()


async def test_arguments_are_checked_where_they_are_given(broker: RedisBroker, engine: AsyncEngine) -> None:
    note = noting(broker)
    async with AsyncSession(engine) as session:
        with pytest.raises(TypeError, match="note"):
            await note.apply_async((1, 2, 3), session=session)
        with pytest.raises(TypeError, match="note"):
            await note.delay_on_commit(session, other=1)
    assert await sent(broker) == []


async def test_who_sends_survives_whatever_is_raised(
    broker: RedisBroker, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver's own errors reach it, too, and without it nothing that is committed here would be sent at once."""
    note, send_some, failures = noting(broker), broker._outbox._send_some, iter(range(1))

    async def fail_first() -> int:
        if next(failures, None) is not None:
            raise RuntimeError("nobody has thought of this")
        return await send_some()

    monkeypatch.setattr(broker._outbox, "_send_some", fail_first)
    async with AsyncSession(engine) as session:
        await note.apply_async((1,), session=session)
        await session.commit()
    await wait_for(lambda: sent(broker))
