from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from celeriq import (
    AsyncResult,
    BoundTask,
    TaskRevokedError,
    TaskSession,
    UnsupportedOptionError,
    injected,
)
from celeriq.middleware import Revocation, standard
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 20


async def test_what_was_revoked_before_it_began_never_does(make_broker: MakeBroker) -> None:
    """LIM-12, LIM-13: REVOKED at once, whether it waits, is delayed, or nobody ever sent it."""
    broker = make_broker()
    ran: list[int] = []

    @broker.task
    async def work(number: int) -> int:
        ran.append(number)
        return number

    waiting, delayed = await work.delay(1), await work.apply_async((2,), countdown=0.3)
    unknown: AsyncResult[Any] = AsyncResult("never sent", broker=broker)
    await broker.revoke([waiting.id, delayed.id, "never sent"])
    for sent in (waiting, delayed, unknown):
        assert await sent.state() == "REVOKED"
        with pytest.raises(TaskRevokedError, match="revoked"):
            await sent.get(timeout=WAIT)
    other = await work.apply_async((3,), countdown=0.4)
    async with running(broker):
        assert await other.get(timeout=WAIT) == 3
    assert ran == [3]


async def test_workers_that_sleep_are_told(make_broker: MakeBroker) -> None:
    broker, sender = make_broker(), make_broker()
    ran: list[str] = []

    @broker.task(name="work")
    async def work(what: str) -> str:
        ran.append(what)
        return what

    async with running(broker):
        assert await (await work.delay("first")).get(timeout=WAIT) == "first"
        await sender.revoke("mine")
        await wait_for(lambda: broker.queues.revocations._revoked)
        sent = await sender.send_task("work", ("revoked",), task_id="mine")
        assert await (await work.delay("last")).get(timeout=WAIT) == "last"
        assert await sent.state() == "REVOKED"
    assert ran == ["first", "last"]


async def test_a_running_task_goes_on_unless_it_is_terminated(make_broker: MakeBroker, open_sessions: Any) -> None:
    """LIM-13, LIM-14: what it has written is rolled back, and the later steps of its chain are revoked, too."""
    broker = make_broker().with_sessions(open_sessions)
    begun, go_on = asyncio.Event(), asyncio.Event()

    @broker.task
    async def prepare(session: TaskSession = injected) -> None:
        await session.execute(text("create table kept (number int)"))

    @broker.task
    async def work(session: TaskSession = injected) -> str:
        await session.execute(text("insert into kept values (1)"))
        begun.set()
        await go_on.wait()
        return "done"

    @broker.task
    async def later(*_: str) -> int:
        raise AssertionError

    @broker.task
    async def count(session: TaskSession = injected) -> int:
        return int((await session.execute(text("select count(*) from kept"))).scalar_one())

    async with running(broker):
        await (await prepare.delay()).get(timeout=WAIT)
        last = await (work.s() | later.s()).apply_async()
        assert last is not None
        assert last.parent is not None
        await begun.wait()
        await last.parent.revoke(terminate=True)
        for step in (last.parent, last):
            with pytest.raises(TaskRevokedError, match="terminated"):
                await step.get(timeout=WAIT)
            assert await step.state() == "REVOKED"
        assert await (await count.delay()).get(timeout=WAIT) == 0
        begun.clear()
        sent = await work.delay()
        await begun.wait()
        await sent.revoke()
        go_on.set()
        await wait_for(sent.successful)
        assert await (await count.delay()).get(timeout=WAIT) == 1


async def test_a_task_that_waits_for_its_retry_is_revoked(make_broker: MakeBroker) -> None:
    """RETRY-21."""
    broker = make_broker()
    runs: list[int] = []

    @broker.task(bind=True)
    async def flaky(self: BoundTask) -> None:
        runs.append(self.request.retries)
        raise self.retry(countdown=0.3)

    async with running(broker):
        sent = await flaky.delay()
        await wait_for(lambda: is_in(sent, "RETRY"))
        await sent.revoke()
        assert await sent.state() == "REVOKED"
        await wait_for(lambda: nothing_is_delayed(broker))
        assert await sent.state() == "REVOKED"
    assert runs == [0]


async def is_in(sent: AsyncResult[Any], state: str) -> bool:
    return await sent.state() == state


async def nothing_is_delayed(broker: Any) -> bool:
    delayed = await broker._client.zcard(broker.keys.delayed("default"))
    return not delayed and not await broker._client.xlen(broker.keys.queue("default"))


async def test_what_has_a_header_is_revoked(make_broker: MakeBroker) -> None:
    """LIM-17."""
    broker = make_broker()
    ran: list[str] = []

    @broker.task
    async def work(tenant: str) -> str:
        ran.append(tenant)
        return tenant

    for tenant in ("one", "two"):
        await work.apply_async((tenant,), headers={"tenant": tenant, "more": [1]})
    await broker.revoke_by_headers({"tenant": "one"})
    async with running(broker):
        assert await (await work.delay("none")).get(timeout=WAIT) == "none"
    assert ran == ["two", "none"]


async def test_without_the_middleware_nothing_is_revoked(make_broker: MakeBroker) -> None:
    broker, other = make_broker(middlewares=[m for m in standard() if not isinstance(m, Revocation)]), make_broker()

    @broker.task
    async def work() -> int:
        return 1

    with pytest.raises(UnsupportedOptionError, match="to revoke a task the middleware Revocation is needed"):
        await broker.revoke("id")
    sent = await work.delay()
    await other.revoke(sent.id, terminate=True)
    async with running(broker):
        await wait_for(sent.successful)
