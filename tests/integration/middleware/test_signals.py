from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from celeriq import AsyncResult, BoundTask, Ignore, NotRegistered, Reject, signals
from celeriq.middleware import Signals, standard
from celeriq.signals import Signal
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 20


@contextmanager
def hearing(*heard: Signal) -> Generator[list[tuple[str, dict[str, Any]]]]:
    """What is told by these signals, in order."""
    told: list[tuple[str, dict[str, Any]]] = []

    async def hear(sender: object, signal: Signal, **about: Any) -> None:
        told.append((signal.name, {"sender": sender, **about}))

    with ExitStack() as stack:
        for signal in heard:
            signal.connect(hear)
            stack.callback(signal.disconnect, hear)
        yield told


ABOUT_TASKS = [
    signals.task_prerun,
    signals.task_success,
    signals.task_failure,
    signals.task_retry,
    signals.task_revoked,
    signals.task_postrun,
]


class Telling(BoundTask):
    heard: list[Any]

    async def on_success(self, *_: Any) -> None:
        self.heard.append(("on_success", {}))

    async def after_return(self, *_: Any) -> None:
        self.heard.append(("after_return", {}))


async def test_signals_are_told_in_the_order_of_celerys(make_broker: MakeBroker) -> None:
    """EXE-01, SIG-03 to SIG-07: also after a retry, an Ignore or a Reject."""
    broker = make_broker()
    states: list[str] = []

    @broker.task(bind=True, base=Telling, name="work", max_retries=1)
    async def work(self: BoundTask, how: str) -> str:
        if how == "retry" and not self.request.retries:
            raise self.retry(countdown=0)
        for error in (Ignore(), Reject("no"), ValueError("why")):
            if how == type(error).__name__:
                raise error
        return how

    @signals.task_prerun.connect
    async def look(sender: Any, task_id: str, **_: Any) -> None:
        states.append(await AsyncResult(task_id, broker=broker).state())

    with hearing(*ABOUT_TASKS) as told:
        work.definition.instance.heard = told
        async with running(broker):
            for how, expected in {
                "fine": ["task_prerun", "on_success", "task_success", "after_return", "task_postrun"],
                "ValueError": ["task_prerun", "task_failure", "after_return", "task_postrun"],
                "Ignore": ["task_prerun", "task_postrun"],
                "Reject": ["task_prerun", "task_failure", "task_postrun"],
                "retry": [
                    *["task_prerun", "task_retry", "task_postrun"],
                    *["task_prerun", "on_success", "task_success", "after_return", "task_postrun"],
                ],
            }.items():
                told.clear()
                sent = await work.delay(how)
                await wait_for(lambda: len(told) == len(expected))  # noqa: B023 - awaited here
                assert [name for name, _ in told] == expected
                _, about = told[-1]
                assert (about["sender"].name, about["task_id"], about["args"]) == ("work", sent.id, (how,))
            assert (told[-1][1]["state"], told[-1][1]["retval"]) == ("SUCCESS", "retry")
            told.clear()
            await broker.revoke("mine")
            await work.apply_async(("fine",), task_id="mine")
            await wait_for(lambda: told)
            assert [name for name, _ in told] == ["task_revoked"]
            assert (told[0][1]["request"].id, told[0][1]["expired"]) == ("mine", False)
    signals.task_prerun.disconnect(look)
    assert states == [*5 * ["PENDING"], "RETRY"]


async def test_who_sends_is_told_and_may_add_headers(make_broker: MakeBroker) -> None:
    """SIG-01: as tracing does."""
    broker = make_broker()

    @broker.task(bind=True, name="work")
    async def work(self: BoundTask, number: int) -> Any:
        return self.request.headers

    @signals.before_task_publish.connect(sender="work")
    def trace(headers: dict[str, Any], body: Any, **_: Any) -> None:
        headers["trace"] = body[0][0]

    with hearing(signals.after_task_publish) as told:
        async with running(broker):
            sent = [
                await work.delay(1),
                *await work.kiq_many([(2,)]),
                await work.apply_async((3,), headers={"mine": 1}),
            ]
            headers = [await one.get(timeout=WAIT) for one in sent]
    signals.before_task_publish.disconnect(trace)
    assert headers == [{"trace": 1}, {"trace": 2}, {"mine": 1, "trace": 3}]
    assert [about["headers"]["id"] for _, about in told] == [one.id for one in sent]
    assert [about["headers"]["trace"] for _, about in told] == [1, 2, 3]


async def test_who_wants_to_know_of_what_is_sent_hears_of_later_steps(make_broker: MakeBroker) -> None:
    """SIG-01, EXE-11: by the worker that sends them, before the result of the step before is stored."""
    broker = make_broker()
    told: list[Any] = []

    @broker.task
    async def first() -> int:
        return 5

    @broker.task(name="second", bind=True)
    async def second(self: BoundTask, value: int) -> Any:
        return [value, self.request.headers]

    @signals.before_task_publish.connect(sender="second")
    async def trace(headers: dict[str, Any], **_: Any) -> None:
        told.append(await AsyncResult(headers["parent_id"], broker=broker).state())
        headers["trace"] = 1

    try:
        async with running(broker):
            last = await (first.s() | second.s()).apply_async()
            assert last is not None
            assert await last.get(timeout=WAIT) == [5, {"trace": 1}]
    finally:
        signals.before_task_publish.disconnect(trace)
    assert told == ["PENDING"]


async def test_a_receiver_that_raises_changes_nothing(
    make_broker: MakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """EXE-09."""
    broker = make_broker()

    @broker.task
    async def work() -> int:
        return 1

    def broken(**_: Any) -> None:
        raise RuntimeError("broken")

    for signal in (signals.task_prerun, signals.task_success, signals.before_task_publish):
        signal.connect(broken)
    try:
        async with running(broker):
            assert await (await work.delay()).get(timeout=WAIT) == 1
            await wait_for(lambda: caplog.text.count("RuntimeError: broken") == 3)
    finally:
        for signal in (signals.task_prerun, signals.task_success, signals.before_task_publish):
            signal.disconnect(broken)


async def test_a_worker_tells_what_it_has_taken(make_broker: MakeBroker) -> None:
    """SIG-02."""
    broker = make_broker()

    @broker.task(name="work")
    async def work() -> None: ...

    with hearing(signals.task_received, signals.task_prerun) as told:
        async with running(broker):
            sent = await work.delay()
            await sent.get(timeout=WAIT)
    assert [name for name, _ in told] == ["task_received", "task_prerun"]
    request = told[0][1]["request"]
    assert (request.id, request.name) == (sent.id, "work")


async def test_a_worker_tells_what_it_cannot_run(make_broker: MakeBroker, redis: Redis) -> None:
    """SIG-08: a task that it does not know, and what is no message."""
    broker = make_broker()
    with hearing(signals.task_unknown, signals.task_rejected) as told:
        async with running(broker):
            sent = await make_broker().send_task("nobody.knows")
            await wait_for(lambda: told)
            await redis.xadd(broker.keys.queue("default"), {"data": b"no message"})
            await wait_for(lambda: len(told) == 2)
    (first, unknown), (second, rejected) = told
    assert (first, unknown["name"], unknown["id"]) == ("task_unknown", "nobody.knows", sent.id)
    assert isinstance(unknown["exc"], NotRegistered)
    assert (second, rejected["message"]) == ("task_rejected", b"no message")


async def test_a_worker_tells_of_its_life(make_broker: MakeBroker) -> None:
    """SIG-10, SIG-11: each process is a worker."""
    life = [
        signals.worker_process_init,
        signals.worker_init,
        signals.worker_ready,
        signals.worker_process_shutdown,
        signals.worker_shutdown,
    ]
    with hearing(*life) as told:
        async with running(make_broker()):
            pass
    assert [name for name, _ in told] == [signal.name for signal in life]


async def test_without_the_middleware_nobody_is_told_of_tasks(make_broker: MakeBroker) -> None:
    broker = make_broker(middlewares=[one for one in standard() if not isinstance(one, Signals)])

    @broker.task
    async def work() -> int:
        return 1

    with hearing(*ABOUT_TASKS, signals.before_task_publish) as told:
        async with running(broker):
            await (await work.delay()).get(timeout=WAIT)
    assert told == []


async def test_who_wants_to_know_of_one_sender_hears_of_it_alone() -> None:
    signal, heard = Signal("test"), list[object]()

    @signal.connect(sender="mine", dispatch_uid="once")
    @signal.connect(sender="mine", dispatch_uid="once")
    def hear(sender: object, **_: Any) -> None:
        heard.append(sender)

    await signal.send("mine")
    await signal.send("other")
    assert heard == ["mine"]
    assert signal.disconnect(dispatch_uid="once")
    assert not signal.disconnect(hear)
    assert not signal
    await asyncio.sleep(0)
