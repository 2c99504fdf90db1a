"""What is stored of a task, and who is told how it ends."""

from __future__ import annotations

import asyncio
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from celeriq import (
    AsyncResult,
    BoundTask,
    Ignore,
    RedisBroker,
    Reject,
    TaskDefinitionError,
    TaskRevokedError,
)
from celeriq.middleware import EarlyEnds, Expiry, Handlers, Results, TrackStarted, standard
from celeriq.redis.keys import GROUP
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 20


class Telling(BoundTask):
    """Tells of everything that it is told."""

    told: list[Any]

    def __init__(self) -> None:
        self.told = []

    async def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self.told.append(("before_start", args, kwargs))

    async def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self.told.append(("on_success", retval))

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: str) -> None:
        self.told.append(("on_failure", repr(exc), einfo.splitlines()[-1]))

    def on_retry(self, exc: BaseException | None, task_id: str, args: Any, kwargs: Any, einfo: str) -> None:
        self.told.append(("on_retry", repr(exc)))

    async def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.told.append(("after_return", status, repr(retval)))


class Patient(BoundTask):
    max_retries = 7
    autoretry_for = (OSError,)
    made = 0

    def __init__(self) -> None:
        type(self).made += 1


async def test_handlers_are_told_in_order_and_when_the_state_is_stored(make_broker: MakeBroker) -> None:
    """EXE-01, EXE-02, EXE-03: after a retry there is no `after_return`."""
    broker = make_broker()
    states: list[str] = []

    class Looking(Telling):
        async def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            states.append(await AsyncResult(task_id, broker=broker).state())
            await super().on_success(retval, task_id, args, kwargs)

    @broker.task(base=Looking, bind=True, max_retries=1)
    async def told(self: Telling, how: str) -> str:
        self.told.append("body")
        if how == "retry" and not self.request.retries:
            raise self.retry(exc=OSError(), countdown=0)
        if how == "fail":
            raise ValueError(how)
        return how

    task: Looking = told.definition.instance
    async with running(broker):
        everything: dict[str, list[Any]] = {
            "fine": [("on_success", "fine"), ("after_return", "SUCCESS", "'fine'")],
            "fail": [
                ("on_failure", "ValueError('fail')", "ValueError: fail"),
                ("after_return", "FAILURE", "ValueError('fail')"),
            ],
            "retry": [
                ("on_retry", "OSError()"),
                ("before_start", ("retry",), {}),
                "body",
                ("on_success", "retry"),
                ("after_return", "SUCCESS", "'retry'"),
            ],
        }
        for how, expected in everything.items():
            task.told.clear()
            await (await told.delay(how)).get(timeout=WAIT, propagate=False)
            await wait_for(lambda: len(task.told) == len(expected) + 2)  # noqa: B023 - awaited here
            assert task.told == [("before_start", (how,), {}), "body", *expected]
    assert states == ["SUCCESS", "SUCCESS"]


async def test_a_handler_that_raises_changes_nothing_and_one_before_the_body_fails_it(make_broker: MakeBroker) -> None:
    """EXE-07, EXE-08."""
    broker = make_broker()

    class Broken(Telling):
        async def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
            raise RuntimeError("broken")

    class BrokenEarly(Telling):
        async def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
            raise RuntimeError("too early")

    @broker.task(base=Broken)
    async def fine() -> int:
        return 1

    @broker.task(base=BrokenEarly, autoretry_for=(Exception,))
    async def never() -> int:
        raise AssertionError

    async with running(broker):
        assert await (await fine.delay()).get(timeout=WAIT) == 1
        await wait_for(lambda: ("after_return", "SUCCESS", "1") in fine.definition.instance.told)
        with pytest.raises(RuntimeError, match="too early"):
            await (await never.delay()).get(timeout=WAIT)


async def test_a_base_class_says_options_and_is_made_once(make_broker: MakeBroker) -> None:
    """DEF-01, DEF-06, RETRY-14: what the task says wins."""
    broker = make_broker()

    @broker.task(base=Patient, bind=True, max_retries=2)
    async def counting(self: Patient) -> int:
        return id(self)

    options, made = counting.definition.options, Patient.made
    assert (options.get("max_retries"), options.get("autoretry_for")) == (2, (OSError,))
    async with running(broker):
        assert len({await (await counting.delay()).get(timeout=WAIT) for _ in range(5)}) == 1
    assert Patient.made - made == 1


async def test_started_is_told_before_the_body_if_it_is_asked_for(make_broker: MakeBroker) -> None:
    """ST-03."""
    broker = make_broker()

    @broker.task(bind=True, track_started=True)
    async def look(self: BoundTask) -> Any:
        record = await AsyncResult(self.id, broker=broker).snapshot()
        return [record.status, record.result]

    @broker.task(bind=True)
    async def look_anyway(self: BoundTask) -> str:
        return await AsyncResult(self.id, broker=broker).state()

    async with running(broker):
        assert await (await look.delay()).get(timeout=WAIT) == [
            "STARTED",
            {"pid": os.getpid(), "hostname": socket.gethostname()},
        ]
        assert await (await look_anyway.delay()).get(timeout=WAIT) == "PENDING"


async def test_an_ignored_result_is_not_stored_and_not_waited_for(make_broker: MakeBroker) -> None:
    """ST-14, CALL-14."""
    broker = make_broker()
    ran: list[str] = []

    @broker.task(ignore_result=True)
    async def quiet(how: str) -> str:
        ran.append(how)
        if how == "fail":
            raise ValueError
        return how

    @broker.task(ignore_result=True, store_errors_even_if_ignored=True, bind=True, track_started=True)
    async def complaining(self: BoundTask, how: str) -> str:
        ran.append(how)
        assert not await AsyncResult(self.id, broker=broker).exists()
        if how == "fails too":
            raise ValueError
        return how

    @broker.task
    async def loud(how: str) -> str:
        ran.append(how)
        return how

    async with running(broker):
        sent = [await quiet.delay("fail"), await quiet.delay("fine"), await complaining.delay("works")]
        sent.append(await loud.apply_async(("shut up",), ignore_result=True))
        assert [await one.get() for one in sent] == [None] * 4
        failed = await complaining.delay("fails too")
        stored = await quiet.apply_async(("stored",), ignore_result=False)
        assert await stored.get(timeout=WAIT) == "stored"
        await wait_for(lambda: len(ran) == 6)
        await wait_for(lambda: AsyncResult(failed.id, broker=broker).failed())
    assert [await one.state() for one in sent] == ["PENDING"] * 4


async def test_without_its_middleware_every_result_is_stored(make_broker: MakeBroker) -> None:
    broker = make_broker(middlewares=[one for one in standard() if not isinstance(one, Results)])
    with pytest.raises(TaskDefinitionError, match="unknown option 'ignore_result'; Results reads it"):
        broker.task(ignore_result=True)

    @broker.task
    async def plain() -> int:
        return 1

    with pytest.raises(TypeError, match="unknown option 'ignore_result' of a call"):
        await plain.apply_async(ignore_result=True)
    async with running(broker):
        assert await (await plain.delay()).get(timeout=WAIT) == 1


async def test_what_expires_before_it_runs_is_revoked(make_broker: MakeBroker) -> None:
    """CALL-06, LIM-11, RES-06: in seconds or as a moment, of the call or of the task."""
    broker = make_broker()
    ran: list[int] = []

    @broker.task(expires=3600)
    async def late(number: int) -> int:
        ran.append(number)
        return number

    past = datetime.now(UTC) - timedelta(seconds=1)
    sent = [
        await late.apply_async((1,), expires=past),
        await late.apply_async((2,), expires=past.replace(tzinfo=None)),
        await late.apply_async((3,), expires=0.01, countdown=0.2),
    ]
    in_time = await late.delay(4)
    async with running(broker):
        assert await in_time.get(timeout=WAIT) == 4
        for one in sent:
            with pytest.raises(TaskRevokedError, match="expired"):
                await one.get(timeout=WAIT)
            assert (await one.state(), await one.ready(), await one.failed()) == ("REVOKED", True, False)
            assert await one.traceback() is None
    assert ran == [4]


async def test_a_retry_keeps_the_moment_at_which_it_expires(make_broker: MakeBroker) -> None:
    """RETRY-21."""
    broker = make_broker()

    @broker.task(bind=True)
    async def again(self: BoundTask) -> str:
        assert self.request.expires is not None
        raise self.retry(eta=self.request.expires + timedelta(seconds=0.01))

    async with running(broker):
        sent = await again.apply_async(expires=0.3)
        with pytest.raises(TaskRevokedError, match="expired"):
            await sent.get(timeout=WAIT)


async def test_without_its_middleware_nothing_expires() -> None:
    broker = RedisBroker("redis://localhost:1", middlewares=[one for one in standard() if not isinstance(one, Expiry)])
    with pytest.raises(TaskDefinitionError, match="unknown option 'expires'; Expiry reads it"):
        broker.task(expires=5)


async def test_a_task_may_end_without_a_result_or_refuse_its_message(make_broker: MakeBroker) -> None:
    """EXE-04, EXE-05."""
    broker = make_broker()
    runs: list[str] = []

    @broker.task(base=Telling, autoretry_for=(Exception,))
    async def picky(how: str) -> str:
        runs.append(how)
        if how == "ignore":
            raise Ignore
        if how == "reject":
            raise Reject("because")
        if how == "requeue" and runs.count(how) < 3:
            raise Reject("not now", requeue=True)
        return how

    async with running(broker):
        ignored = await picky.delay("ignore")
        rejected = await picky.delay("reject")
        assert await (await picky.delay("requeue")).get(timeout=WAIT) == "requeue"
        assert repr(await rejected.get(timeout=WAIT, propagate=False)) == "Reject('because', False)"
        await wait_for(lambda: nothing_waits(broker))
        assert await ignored.state() == "PENDING"
    letters = [letter async for letter in broker.dead_letters().look()]
    assert [letter.reason for letter in letters] == ["rejected: because"]
    assert (runs.count("ignore"), runs.count("requeue")) == (1, 3)
    assert not [told for told in picky.definition.instance.told if told[0] == "on_failure"], "as in Celery"


async def nothing_waits(broker: RedisBroker) -> bool:
    return not await broker._client.xlen(broker.keys.queue("default"))


async def test_without_the_middlewares_exceptions_are_failures_and_handlers_are_not_called(
    make_broker: MakeBroker,
) -> None:
    left = [one for one in standard() if not isinstance(one, EarlyEnds | Handlers | TrackStarted)]
    broker = make_broker(middlewares=left)

    @broker.task(base=Telling)
    async def ignoring() -> None:
        raise Ignore

    async with running(broker):
        assert isinstance(await (await ignoring.delay()).get(timeout=WAIT, propagate=False), Ignore)
    assert ignoring.definition.instance.told == []


async def test_who_has_lost_its_message_tells_no_handler(make_broker: MakeBroker) -> None:
    """Nothing was stored: whoever has the message now tells what becomes of it."""
    broker = make_broker()
    given_away = asyncio.Event()

    @broker.task(base=Telling)
    async def slow() -> int:
        await given_away.wait()
        return 1

    async with running(broker):
        sent = await slow.delay()
        await wait_for(lambda: broker.attempts.running)
        [attempt] = broker.attempts.running.values()
        delivery = attempt.delivery
        await broker._client.xclaim(delivery.stream, GROUP, "another", 0, [delivery.entry_id])
        given_away.set()
        await wait_for(lambda: attempt.settled)
        await wait_for(lambda: not broker.attempts.running)
    assert [told[0] for told in slow.definition.instance.told] == ["before_start"]
    assert await sent.state() == "PENDING"
