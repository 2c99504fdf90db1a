"""A connection that is held while its task waits for something else is named with the line."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import pytest
from sqlalchemy import text
from taskiq import TaskiqDepends

from celeriq import RedisBroker, TaskSession, injected
from celeriq.held_connections import HeldConnections
from celeriq.redis.worker import Worker
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

LIMIT = 0.2
ONE = text("select 1")
Told = Callable[[], list[str]]


class MailServer:
    """Somebody else, who answers when the test says so."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()

    async def ask(self) -> None:
        await self.answers.wait()

    async def letters(self) -> AsyncIterator[int]:
        await self.answers.wait()
        yield 1


@pytest.fixture
async def mail() -> MailServer:
    return MailServer()


@pytest.fixture
def broker(make_broker: MakeBroker, open_sessions: Any) -> RedisBroker:
    return make_broker(held_session_warning=LIMIT).with_sessions(open_sessions)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    return lambda: [one.getMessage() for one in caplog.records if one.name == "celeriq.held_connections"]


def line_of(function: Callable[..., Any], code: str) -> str:
    """Where `code` stands in this file."""
    lines, first = inspect.getsourcelines(function)
    (number,) = [first + index for index, line in enumerate(lines) if code in line]
    return f"{Path(__file__)}:{number} in "


async def waiting(session: TaskSession, mail: MailServer) -> None:
    await session.execute(ONE)
    await asyncio.wait({asyncio.ensure_future(mail.ask())})


async def iterating(session: TaskSession, mail: MailServer) -> None:
    await session.execute(ONE)
    async for _ in mail.letters():
        pass


async def in_a_task_group(session: TaskSession, mail: MailServer) -> None:
    await session.execute(ONE)
    async with asyncio.TaskGroup() as group:
        group.create_task(mail.ask())


Body = Callable[[TaskSession, MailServer], Awaitable[None]]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (waiting, "await asyncio.wait("),
        (iterating, "async for"),
        (in_a_task_group, "async with asyncio.TaskGroup"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"soft_time_limit": 60, "time_limit": 60}])
async def test_the_line_that_waits_is_named_once(
    broker: RedisBroker, mail: MailServer, told: Told, body: Body, code: str, options: Any
) -> None:
    async def send(session: TaskSession = injected) -> None:
        await body(session, mail)

    task: Any = cast("Any", broker.task)("mail.send", **options)(send)

    async with running(broker):
        sent = await task.delay()
        await wait_for(told)
        await looks(broker, 8)
        mail.answers.set()
        await sent.get(timeout=20)
    (warning,) = told()
    assert warning.startswith(f"task mail.send[{sent.id}] has held a connection to the database for 0.")
    place = line_of(MailServer.letters, "await self.answers") if body is iterating else line_of(body, code)
    assert f"while it waits at {place}" in warning


async def looks(broker: RedisBroker, count: int) -> None:
    """The watch looks so many times more."""
    assert isinstance(broker.worker, Worker)
    held = broker.worker._held
    assert held is not None
    for _ in range(count):
        await wait_for(partial(has_looked, held, held._looked))


def has_looked(held: HeldConnections, since: float) -> bool:
    return held._looked != since


async def test_who_waits_for_the_database_is_not_named(broker: RedisBroker, told: Told) -> None:
    @broker.task
    async def ask(session: TaskSession = injected) -> None:
        await session.execute(text("select pg_sleep(0.6)"))
        async with asyncio.timeout(10):
            await asyncio.wait_for(session.execute(text("select pg_sleep(0.6)")), 10)

    async with running(broker):
        await (await ask.delay()).get(timeout=20)
    assert told() == []


async def test_who_waits_without_a_connection_is_not_named(broker: RedisBroker, mail: MailServer, told: Told) -> None:
    """Before the first statement, and after a commit."""

    @broker.task
    async def send(session: TaskSession = injected) -> None:
        await asyncio.wait({asyncio.ensure_future(mail.ask())}, timeout=3 * LIMIT)
        await session.execute(ONE)
        await session.commit()
        await mail.ask()

    async with running(broker):
        sent = await send.delay()
        await looks(broker, 20)
        mail.answers.set()
        await sent.get(timeout=20)
    assert told() == []


async def test_a_session_of_the_tasks_own_and_a_dependency_are_seen_as_well(
    broker: RedisBroker, mail: MailServer, told: Told
) -> None:
    async def address(session: TaskSession = injected) -> str:
        await session.execute(ONE)
        await mail.ask()
        return "ada@example.org"

    async def send(address: str = injected) -> None:
        pass

    send.__annotations__["address"] = Annotated[str, TaskiqDepends(address)]
    by_dependency = broker.task(name="by_dependency")(send)

    @broker.task(name="by_itself")
    async def by_itself() -> None:
        async with broker.sessions.begin() as session:
            await session.execute(ONE)
            await mail.ask()

    async with running(broker):
        sent = [await by_dependency.delay(), await by_itself.delay()]
        await wait_for(lambda: len(told()) == 2)
        mail.answers.set()
        for one in sent:
            await one.get(timeout=20)
    assert {warning.partition("[")[0] for warning in told()} == {"task by_dependency", "task by_itself"}
    assert all(line_of(MailServer.ask, "await self.answers") in warning for warning in told())


async def test_who_looks_is_gone_with_the_worker(make_broker: MakeBroker, open_sessions: Any) -> None:
    """An engine may live longer than the worker, and serve the next one."""
    engines: list[Any] = []

    @asynccontextmanager
    async def noted(pool: Any) -> AsyncGenerator[Any]:
        async with open_sessions(pool) as sessions:
            engines.append(sessions.kw["bind"].sync_engine)
            yield sessions

    async with running(make_broker(held_session_warning=LIMIT).with_sessions(noted)):
        assert len(engines[-1].pool.dispatch.checkout) == 1
    assert len(engines[-1].pool.dispatch.checkout) == 0
    async with running(make_broker(held_session_warning=None).with_sessions(noted)):
        assert len(engines[-1].pool.dispatch.checkout) == 0
