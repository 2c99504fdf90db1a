from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from celeriq import (
    RedisBroker,
    SoftTimeLimitExceeded,
    TaskDefinitionError,
    TaskSession,
    TimeLimitExceeded,
    injected,
)
from celeriq.middleware import TimeLimits, standard
from tests.integration.conftest import MakeBroker
from tests.process_tasks import hang
from tests.workers import running

WAIT = 20
SHORT = 0.05


async def test_a_body_may_catch_its_soft_limit_and_return(make_broker: MakeBroker) -> None:
    """LIM-01: uncaught it is a failure, and one that can be retried automatically (RETRY-19)."""
    broker = make_broker()
    runs: list[str] = []

    @broker.task(soft_time_limit=SHORT, autoretry_for=(SoftTimeLimitExceeded,), max_retries=1, default_retry_delay=0)
    async def slow(how: str) -> str:
        runs.append(how)
        try:
            await asyncio.sleep(WAIT)
        except SoftTimeLimitExceeded:
            if how == "caught":
                return "cleaned up"
            raise
        raise AssertionError

    async with running(broker):
        assert await (await slow.delay("caught")).get(timeout=WAIT) == "cleaned up"
        with pytest.raises(SoftTimeLimitExceeded):
            await (await slow.delay("not")).get(timeout=WAIT)
    assert runs == ["caught", "not", "not"]


async def test_a_body_is_ended_by_its_hard_limit(make_broker: MakeBroker) -> None:
    """LIM-02: there is no retry, and the worker goes on."""
    broker = make_broker()
    seen: list[str] = []

    @broker.task(time_limit=SHORT, autoretry_for=(Exception,))
    async def stubborn() -> None:
        try:
            await asyncio.sleep(WAIT)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    @broker.task
    async def other() -> int:
        return 1

    async with running(broker):
        with pytest.raises(TimeLimitExceeded, match=r"0\.05"):
            await (await stubborn.delay()).get(timeout=WAIT)
        assert await (await other.delay()).get(timeout=WAIT) == 1
    assert seen == ["cancelled"]


async def test_a_call_has_limits_of_its_own(make_broker: MakeBroker) -> None:
    """LIM-03: call before task before all tasks."""
    broker = make_broker().with_middlewares(TimeLimits(time_limit=SHORT))

    @broker.task(time_limit=WAIT)
    async def slow(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @broker.task
    async def plain() -> None:
        await asyncio.sleep(WAIT)

    async with running(broker):
        assert await (await slow.delay(2 * SHORT)).get(timeout=WAIT) == 2 * SHORT
        for sent in (
            await slow.apply_async((WAIT,), time_limit=SHORT),
            await slow.apply_async((WAIT,), soft_time_limit=SHORT),
            await plain.delay(),
        ):
            error = await sent.get(timeout=WAIT, propagate=False)
            assert isinstance(error, TimeLimitExceeded | SoftTimeLimitExceeded)
    with pytest.raises(TaskDefinitionError, match=r"the call of task .*soft_time_limit=30 comes after time_limit=20"):
        await slow.apply_async((1,), soft_time_limit=30)
    with pytest.raises(TaskDefinitionError, match="time_limit is 0; it must be seconds, more than 0"):
        await slow.apply_async((1,), time_limit=0)


async def test_a_query_is_interrupted_and_the_session_works_again(make_broker: MakeBroker, open_sessions: Any) -> None:
    broker = make_broker().with_sessions(open_sessions)

    @broker.task(soft_time_limit=0.2)
    async def query(session: TaskSession = injected) -> int:
        await session.execute(text("create table if not exists kept (number int)"))
        await session.commit()
        try:
            await session.execute(text("select pg_sleep(30)"))
        except SoftTimeLimitExceeded:
            await session.rollback()
        await session.execute(text("insert into kept values (1)"))
        return int((await session.execute(text("select count(*) from kept"))).scalar_one())

    @broker.task
    async def count(session: TaskSession = injected) -> int:
        return int((await session.execute(text("select count(*) from kept"))).scalar_one())

    async with running(broker):
        assert await (await query.delay()).get(timeout=WAIT) == 1
        assert await (await count.delay()).get(timeout=WAIT) == 1


async def nothing() -> None: ...


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"soft_time_limit": 10, "time_limit": 5}, "soft_time_limit=10 comes after time_limit=5"),
        ({"time_limit": -1}, "time_limit is -1; it must be seconds, more than 0"),
        ({"soft_time_limit": "5"}, "soft_time_limit is '5'; it must be seconds"),
    ],
)
def test_limits_that_make_no_sense_are_refused_at_import(options: dict[str, Any], says: str) -> None:
    declare: Any = RedisBroker("redis://localhost:1").task
    with pytest.raises(TaskDefinitionError, match=f"task 'mail.send': {says}"):
        declare(name="mail.send", **options)(nothing)


def test_a_task_in_a_thread_has_no_limits() -> None:
    broker = RedisBroker("redis://localhost:1")
    with pytest.raises(TaskDefinitionError, match=r"time_limit=5 cannot end a thread, .*: write `async def`, or pool="):

        @broker.task(time_limit=5)
        def send() -> None: ...


async def test_without_the_middleware_there_are_no_limits(make_broker: MakeBroker) -> None:
    broker = make_broker(middlewares=[one for one in standard() if not isinstance(one, TimeLimits)])
    with pytest.raises(TaskDefinitionError, match="unknown option 'time_limit'; TimeLimits reads it"):
        broker.task(time_limit=5)


async def test_a_call_cannot_limit_a_thread_either(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task(name="plain")
    def plain() -> None: ...

    apart = broker.task(name="apart", pool="process")(hang)

    with pytest.raises(TaskDefinitionError, match="the call of task 'plain': time_limit=5 cannot end a thread"):
        await plain.apply_async(time_limit=5)
    with pytest.raises(TaskDefinitionError, match=r"soft_time_limit=0\.5 cannot end a thread"):
        await (plain.si() | apart.si("")).apply_async(soft_time_limit=0.5)
    assert (await apart.apply_async(("",), time_limit=5)).id
    assert (await plain.apply_async(time_limit=None)).id
