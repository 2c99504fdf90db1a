from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, cast

import pytest
from sqlalchemy import text

from celeriq import (
    AsyncResult,
    BoundTask,
    MaxRetriesExceededError,
    RedisBroker,
    Retry,
    RetryPolicy,
    Snooze,
    TaskDefinitionError,
    TaskSession,
    injected,
)
from celeriq.attempt import Attempt
from celeriq.middleware import Middleware, Retries, standard
from celeriq.outcome import Retrying
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 20


async def test_a_bound_task_runs_again_until_it_succeeds(make_broker: MakeBroker) -> None:
    """RETRY-01: the same id, and one retry more each time."""
    broker = make_broker()
    seen: list[tuple[str, int]] = []

    @broker.task(bind=True, max_retries=5)
    async def flaky(self: BoundTask, wanted: int) -> str:
        seen.append((self.id, self.request.retries))
        if self.request.retries < wanted:
            raise self.retry(countdown=0)
        return "done"

    async with running(broker):
        sent = await flaky.delay(2)
        assert await sent.get(timeout=WAIT) == "done"
    assert seen == [(sent.id, 0), (sent.id, 1), (sent.id, 2)]


async def test_without_raise_a_retry_is_one_all_the_same(make_broker: MakeBroker) -> None:
    """Celery's users often leave `raise` out."""
    broker = make_broker()

    @broker.task(bind=True)
    async def forgetful(self: BoundTask) -> int:
        if not self.request.retries:
            self.retry(countdown=0)
        return self.request.retries

    async with running(broker):
        assert await (await forgetful.delay()).get(timeout=WAIT) == 1


async def test_one_retry_too_many(make_broker: MakeBroker) -> None:
    """RETRY-04, RETRY-05: the exception that was given, or one that tells; the task may catch it."""
    broker = make_broker()

    @broker.task(bind=True, max_retries=1)
    async def hopeless(self: BoundTask, how: str) -> str:
        try:
            raise self.retry(exc=ValueError("mine") if how == "given" else None, countdown=0)
        except MaxRetriesExceededError:
            if how == "caught":
                return "caught"
            raise

    async with running(broker):
        assert await (await hopeless.delay("caught")).get(timeout=WAIT) == "caught"
        with pytest.raises(ValueError, match="mine"):
            await (await hopeless.delay("given")).get(timeout=WAIT)
        sent = await hopeless.delay("none")
        with pytest.raises(MaxRetriesExceededError, match=rf"Can't retry .*hopeless\[{sent.id}\] args:\('none',\)"):
            await sent.get(timeout=WAIT)


async def test_while_a_task_waits_for_its_retry_its_state_tells_why(make_broker: MakeBroker) -> None:
    """RETRY-07: the exception and its traceback, but no end."""
    broker = make_broker()

    @broker.task(bind=True)
    async def flaky(self: BoundTask, with_reason: bool) -> None:
        raise self.retry(exc=KeyError("why") if with_reason else None, countdown=3600)

    async with running(broker):
        why, plain = await flaky.delay(True), await flaky.delay(False)
        for sent in (why, plain):
            async for record in broker.result_backend.follow(sent.id):  # type: ignore[attr-defined]
                assert record.status == "RETRY"
                break
        assert isinstance(await why.info(), KeyError)
        assert "KeyError: 'why'" in str(await why.traceback())
        assert (await plain.info(), await plain.date_done(), await plain.ready()) == (None, None, False)


async def test_what_a_retry_carries_over_and_what_it_changes(make_broker: MakeBroker) -> None:
    """RETRY-08, RETRY-13: all of the message but what the retry says."""
    broker = make_broker(queues=["default", "other"])
    seen: list[Any] = []

    @broker.task(bind=True)
    async def told(self: BoundTask, /, *args: int, **kwargs: int) -> None:
        call = self.request
        where = call.delivery_info["routing_key"], call.delivery_info["priority"]
        seen.append((call.id, call.root_id, call.parent_id, dict(call.headers), call.shadow, where, args, kwargs))
        if call.retries == 0:
            raise self.retry(countdown=0)
        if call.retries == 1:
            raise self.retry(args=(7,), kwargs={"two": 8}, queue="other", priority=3, countdown=0)

    async with running(broker):
        sent = await told.apply_async(
            (1,), {"two": 2}, headers={"tenant": 5}, shadow="other", root_id="root", parent_id="parent", priority=6
        )
        await sent.get(timeout=WAIT)
    same = (sent.id, "root", "parent", {"tenant": 5}, "other")
    assert seen == [
        (*same, ("default", 6), (1,), {"two": 2}),
        (*same, ("default", 6), (1,), {"two": 2}),
        (*same, ("other", 3), (7,), {"two": 8}),
    ]


async def test_a_retry_at_a_moment(make_broker: MakeBroker) -> None:
    broker = make_broker()
    ran: list[float] = []

    @broker.task(bind=True)
    async def later(self: BoundTask) -> None:
        ran.append(time.time())
        if not self.request.retries:
            raise self.retry(eta=datetime.now(UTC) + timedelta(seconds=0.5))

    async with running(broker):
        await (await later.delay()).get(timeout=WAIT)
    assert ran[1] - ran[0] >= 0.49


async def test_retries_without_a_bound_task(make_broker: MakeBroker) -> None:
    """`raise Retry(...)` and `raise Snooze(...)`, from anywhere in the body."""
    broker = make_broker()
    runs: list[str] = []

    @broker.task(max_retries=1)
    async def twice(how: str) -> int:
        runs.append(how)
        if runs.count(how) < 3 and how == "snooze":
            raise Snooze(0)
        if runs.count(how) < 2 and how == "retry":
            raise Retry(countdown=0)
        return runs.count(how)

    async with running(broker):
        assert await (await twice.delay("retry")).get(timeout=WAIT) == 2
        assert await (await twice.delay("snooze")).get(timeout=WAIT) == 3


async def test_exceptions_that_are_retried_automatically(make_broker: MakeBroker) -> None:
    """RETRY-14: with the policy of each, and at last the exception itself."""
    broker = make_broker()
    runs: list[str] = []

    @broker.task(
        autoretry_for=(LookupError,),
        dont_autoretry_for=(KeyError,),
        default_retry_delay=0,
        max_retries=1,
        retry_policies={IndexError: RetryPolicy(max_retries=2, delay=0)},
    )
    async def failing(what: str) -> None:
        runs.append(what)
        raise {"lookup": LookupError, "key": KeyError, "index": IndexError, "os": OSError}[what](what)

    async with running(broker):
        for what in ("lookup", "key", "index", "os"):
            assert repr(await (await failing.delay(what)).get(timeout=WAIT, propagate=False)).endswith(
                f"Error('{what}')"
            )
    assert [runs.count(what) for what in ("lookup", "key", "index", "os")] == [2, 1, 3, 1]


class Careless(Middleware):
    """Somebody's own, which does not check what it says."""

    says: ClassVar[dict[str, Retrying]] = {
        "no number": Retrying(None, cast("float", "30")),
        "never": Retrying(None, math.inf),
        "no moment": Retrying(None, 0.0, at=math.nan),
        "no field": Retrying(None, 0.0, changes={"countdown": 5}),
        "no priority": Retrying(None, 0.0, changes={"priority": 10}),
        "undecodable": Retrying(None, 0.0, changes={"shadow": 5}),
    }

    def decide(self, attempt: Attempt, error: BaseException) -> Retrying | None:
        return self.says.get(str(error))


BAD_RETRIES: dict[str, Callable[[BoundTask], BaseException]] = {
    "text": lambda self: self.retry(countdown=cast("float", "30")),
    "not a number": lambda self: self.retry(countdown=math.nan),
    "infinite": lambda _: Retry(countdown=math.inf),
    "a snooze": lambda _: Snooze(cast("float", None)),
    "priority": lambda self: self.retry(priority=10),
    "queue": lambda self: self.retry(queue=7),
    "no queue": lambda self: self.retry(queue=""),
    "headers": lambda self: self.retry(headers=7),
}


async def test_a_retry_that_cannot_be_sent_fails_its_own_task_alone(make_broker: MakeBroker) -> None:
    """Those that end beside it share its round trip."""
    broker = make_broker(middlewares=[*standard(), Careless()])
    hows = [*BAD_RETRIES, *(said for said in Careless.says if said != "no moment")]
    begun: list[str] = []
    end = asyncio.Event()

    @broker.task(bind=True)
    async def ends(self: BoundTask, how: str) -> str:
        begun.append(how)
        await end.wait()
        if how in Careless.says:
            raise LookupError(how)
        if how in BAD_RETRIES:
            raise BAD_RETRIES[how](self)
        return how

    async with running(broker):
        bad = [await ends.delay(how) for how in hows]
        good = [await ends.delay(how) for how in ("one", "two")]
        await wait_for(lambda: len(begun) == len(bad) + len(good))
        end.set()
        assert [await sent.get(timeout=WAIT) for sent in good] == ["one", "two"]
        for how, sent in zip(hows, bad, strict=True):
            await sent.get(timeout=WAIT, propagate=False)
            assert (how, await sent.state()) == (how, "FAILURE")


async def test_what_cannot_be_said_of_one_attempt_keeps_no_other_from_ending(make_broker: MakeBroker) -> None:
    broker = make_broker(middlewares=[*standard(), Careless()])
    begun: list[str] = []
    end = asyncio.Event()

    @broker.task
    async def ends(how: str) -> str:
        begun.append(how)
        await end.wait()
        if how in Careless.says:
            raise LookupError(how)
        return how

    async with running(broker):
        sent = [await ends.delay(how) for how in ("no moment", "one", "two")]
        await wait_for(lambda: len(begun) == len(sent))
        end.set()
        assert [await one.get(timeout=WAIT) for one in sent[1:]] == ["one", "two"]


async def test_a_retry_may_leave_its_queue_to_the_call(make_broker: MakeBroker) -> None:
    """None says nothing, as of a call."""
    broker = make_broker()

    @broker.task(bind=True)
    async def again(self: BoundTask) -> int:
        if not self.request.retries:
            raise self.retry(countdown=0, queue=None, priority=None, headers=None, shadow=None)
        return self.request.retries

    async with running(broker):
        assert await (await again.delay()).get(timeout=WAIT) == 1


async def test_a_retry_rolls_back(make_broker: MakeBroker, open_sessions: Any) -> None:
    broker = make_broker().with_sessions(open_sessions)

    @broker.task(bind=True)
    async def write(self: BoundTask, session: TaskSession = injected) -> int:
        await session.execute(text("create table if not exists runs (number int)"))
        await session.execute(text("insert into runs values (1)"))
        if not self.request.retries:
            raise self.retry(countdown=0)
        return int((await session.execute(text("select count(*) from runs"))).scalar_one())

    async with running(broker):
        assert await (await write.delay()).get(timeout=WAIT) == 1


async def test_throw_false_is_refused_and_the_task_fails(make_broker: MakeBroker) -> None:
    """RETRY-10: two outcomes of one run cannot be settled once."""
    broker = make_broker()

    @broker.task(bind=True, name="two.outcomes")
    async def two_outcomes(self: BoundTask) -> str:
        self.retry(throw=False)
        return "one"

    async with running(broker):
        with pytest.raises(TypeError, match=r"task 'two.outcomes': retry\(throw=False\) would make two outcomes"):
            await (await two_outcomes.delay()).get(timeout=WAIT)


async def test_called_directly_a_task_asks_nobody_for_a_retry() -> None:
    """RETRY-12."""
    broker = RedisBroker("redis://localhost:1")

    @broker.task(bind=True)
    async def flaky(self: BoundTask, error: Exception | None) -> None:
        assert self.request.called_directly
        assert self.request.id is None
        raise self.retry(exc=error)

    with pytest.raises(KeyError):
        await flaky(KeyError())
    with pytest.raises(Retry, match="Task can be retried"):
        await flaky(None)


async def test_without_the_middleware_nothing_is_retried(make_broker: MakeBroker) -> None:
    """And all else is as it was."""
    broker = make_broker(middlewares=[one for one in standard() if not isinstance(one, Retries)])
    with pytest.raises(TaskDefinitionError, match="unknown option 'max_retries'; Retries reads it"):
        broker.task(max_retries=1)

    @broker.task(bind=True, track_started=True)
    async def flaky(self: BoundTask, how: str) -> str:
        assert await AsyncResult(self.id, broker=broker).state() == "STARTED"
        if how == "raised":
            raise Retry(countdown=0)
        if how == "asked":
            raise self.retry(countdown=0)
        return "fine"

    async with running(broker):
        raised, asked, fine = await asyncio.gather(*(flaky.delay(how) for how in ("raised", "asked", "fine")))
        assert isinstance(await raised.get(timeout=WAIT, propagate=False), Retry)
        with pytest.raises(TaskDefinitionError, match="needs the middleware Retries"):
            await asked.get(timeout=WAIT)
        assert await fine.get(timeout=WAIT) == "fine"
