"""Who is told of a failure by the call itself."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest
from taskiq import TaskiqMessage, TaskiqMiddleware, TaskiqResult

from celeriq import AsyncResult, BoundTask, Ignore, TaskSession, UnsupportedOptionError, chain, injected
from celeriq.middleware import ErrorCallbacks, standard
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 20
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def test_a_callback_of_one_argument_is_sent_with_the_id_of_what_failed(make_broker: MakeBroker) -> None:
    """CERR-02, CERR-03: what failed is its parent, and an immutable one takes nothing."""
    broker = make_broker()
    told: list[Any] = []

    @broker.task
    async def fail() -> None:
        raise ValueError("no")

    @broker.task(bind=True)
    async def alarm(self: BoundTask, *given: Any, who: str = "") -> None:
        told.append((given, who, self.request.parent_id, self.request.root_id))

    async with running(broker):
        sent = await fail.apply_async(link_error=[alarm.s("more", who="first"), alarm.si("alone")])
        with pytest.raises(ValueError, match="no"):
            await sent.get(timeout=WAIT)
        await wait_for(lambda: len(told) == 2)
    ids = sent.id, sent.id
    assert (("alone",), "", *ids) in told
    assert ((sent.id, "more"), "first", *ids) in told


async def test_a_function_of_more_is_called_where_the_task_failed(make_broker: MakeBroker) -> None:
    """CERR-01, CERR-04: what it raises changes nothing, and the next one is called all the same."""
    broker = make_broker()
    told: list[Any] = []

    @broker.task
    async def fail() -> None:
        raise ValueError("no")

    @broker.task
    async def broken(request: Any, exc: Any, traceback: Any) -> None:
        told.append("broken")
        raise RuntimeError("an error callback")

    @broker.task
    def alarm(request: Any, exc: Any, traceback: Any, more: str) -> None:
        told.append((request.id, repr(exc), traceback.splitlines()[-1], more))

    async with running(broker):
        sent = await fail.apply_async(link_error=[broken.s(), alarm.s("more")])
        await wait_for(lambda: len(told) == 2)
        assert await sent.state() == "FAILURE"
    assert told == ["broken", (sent.id, "ValueError('no')", "ValueError: no", "more")]


async def test_a_failure_before_the_body_is_one_for_taskiqs_middlewares_and_the_log(
    make_broker: MakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    class Watching(TaskiqMiddleware):
        def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
            told.append(repr(exception))

        def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
            told.append(repr(result.error))

    class Base(BoundTask):
        def before_start(self, *_: Any) -> None:
            raise LookupError("not here")

    broker = make_broker(middlewares=[*standard(), Watching()])

    @broker.task(base=Base, autoretry_for=(LookupError,), default_retry_delay=0)
    async def work() -> None: ...

    async with running(broker):
        with pytest.raises(LookupError, match="not here"):
            await (await work.delay()).get(timeout=WAIT)
        await wait_for(lambda: len(told) == 2)
    assert told == 2 * ["LookupError('not here')"]
    assert "LookupError: not here" in caplog.text


async def test_what_a_callback_bears_is_not_counted(make_broker: MakeBroker) -> None:
    """CERR-02: whether it is sent or called is said by the arguments that it still takes."""
    broker = make_broker()
    told: list[Any] = []

    @broker.task
    async def fail() -> None:
        raise ValueError("no")

    @broker.task
    async def notify(failed: Any, channel: str, level: str = "error") -> None:
        told.append((failed, channel, level))

    @broker.task
    async def alone(channel: str, *, by: str = "mail") -> None:
        told.append((channel, by))

    async with running(broker):
        callbacks = [notify.s("ops", "low"), notify.s(channel="dev"), notify.si("nobody", "ops"), alone.si("x", by="y")]
        sent = await fail.apply_async(link_error=callbacks)
        await wait_for(lambda: len(told) == 4)
    expected = [(sent.id, "ops", "low"), (sent.id, "dev", "error"), ("nobody", "ops", "error"), ("x", "y")]
    assert sorted(told) == sorted(expected)


async def test_a_chain_is_sent_whatever_its_first_task_takes(make_broker: MakeBroker) -> None:
    broker = make_broker()
    told: list[Any] = []

    @broker.task
    async def fail() -> None:
        raise ValueError("no")

    @broker.task
    async def first(request: Any, exc: Any = None, traceback: Any = None) -> str:
        return f"{request if isinstance(request, str) else request.id}, {exc!r}"

    @broker.task
    async def last(text: str) -> None:
        told.append(text)

    async with running(broker):
        sent = await fail.apply_async(link_error=first.s() | last.s())
        await wait_for(lambda: told)
    assert told == [f"{sent.id}, None"]


async def test_a_def_callback_keeps_nobody_waiting(make_broker: MakeBroker) -> None:
    broker = make_broker()
    threads: list[bool] = []

    @broker.task
    async def fail() -> None:
        raise ValueError("no")

    @broker.task
    def alarm(request: Any, exc: Any, traceback: Any) -> None:
        threads.append(threading.current_thread() is threading.main_thread())

    async with running(broker):
        await fail.apply_async(link_error=[alarm.s(), chain(alarm.s())])
        await wait_for(lambda: len(threads) == 2)
    assert threads == [False, False]


async def test_only_failures_are_told_of_and_once(make_broker: MakeBroker) -> None:
    """CERR-05: not a success, not each retry, not what was called off or ends without a result."""
    broker = make_broker()
    told: list[str] = []

    @broker.task(bind=True, max_retries=1, default_retry_delay=0)
    async def work(self: BoundTask, how: str) -> None:
        if how == "ignore":
            raise Ignore
        if how in {"retry", "fail"} and (how == "fail" or not self.request.retries):
            raise self.retry(exc=ValueError(how))

    @broker.task
    async def alarm(task_id: str, *, how: str) -> None:
        told.append(how)

    async with running(broker):
        for how in ("succeed", "ignore", "retry"):
            await work.apply_async((how,), link_error=alarm.s(how=how))
        await work.apply_async(("succeed",), expires=LONG_AGO, link_error=alarm.s(how="expired"))
        await work.apply_async(("fail",), link_error=alarm.s(how="fail"))
        await wait_for(lambda: told)
        last = await alarm.delay("", how="last")
        await last.get(timeout=WAIT)
    assert told == ["fail", "last"]


async def test_of_a_chain_the_step_that_fails_tells(make_broker: MakeBroker) -> None:
    """CERR-07: the steps behind it fail with it, and nobody is told of those."""
    broker = make_broker()
    told: list[str] = []

    @broker.task
    async def step(number: int) -> int:
        if number == 2:
            raise ValueError(number)
        return number + 1

    @broker.task
    async def alarm(task_id: str) -> None:
        told.append(task_id)

    async with running(broker):
        last = await chain(step.s(1), step.s(), step.s()).on_error(alarm.s()).apply_async()
        assert last is not None
        assert last.parent is not None
        with pytest.raises(ValueError, match="2"):
            await last.get(timeout=WAIT)
        await wait_for(lambda: told)
    assert told == [last.parent.id]


async def test_a_callback_of_what_nobody_could_run_is_sent_too(make_broker: MakeBroker) -> None:
    """ACK-04: its workers died; a handler of the task is not asked, a callback of the call is."""
    broker = make_broker(max_crashes=0)
    told: list[Any] = []

    class Telling(BoundTask):
        async def on_failure(self, *_: Any) -> None:
            told.append("on_failure")

    @broker.task(base=Telling)
    async def work() -> None:
        told.append("ran")

    @broker.task
    async def alarm(request: Any, exc: Any, traceback: Any) -> None:
        told.append(type(exc).__name__)

    async with running(broker):
        sent = await work.apply_async(link_error=alarm.s())
        await wait_for(lambda: told)
        assert await AsyncResult(sent.id, broker=broker).state() == "FAILURE"
    assert told == ["WorkerLostError"]


async def test_a_called_one_into_which_something_is_injected_is_refused(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task
    async def work() -> None: ...

    @broker.task
    async def alarm(request: Any, exc: Any, traceback: Any, session: TaskSession = injected) -> None: ...

    with pytest.raises(
        TypeError, match=r"alarm' takes more than one argument.* let it take one, the id of what failed"
    ):
        await work.apply_async(link_error=alarm.s())
    with pytest.raises(TypeError, match="alarm' takes more than one argument"):
        await work.apply_async(link_error=alarm.si(1, 2, 3))


async def test_without_the_middleware_a_callback_is_refused(make_broker: MakeBroker) -> None:
    """Nobody would tell it."""
    broker = make_broker(middlewares=[one for one in standard() if not isinstance(one, ErrorCallbacks)])

    @broker.task
    async def work() -> None: ...

    with pytest.raises(UnsupportedOptionError, match="a link_error needs the middleware ErrorCallbacks"):
        await work.apply_async(link_error=work.si())
    with pytest.raises(UnsupportedOptionError, match="ErrorCallbacks"):
        await chain(work.s(), work.si()).on_error(work.si()).delay()


async def test_arguments_that_do_not_fit_are_refused(make_broker: MakeBroker) -> None:
    """DEF-09."""
    broker = make_broker()

    @broker.task
    async def work() -> None: ...

    @broker.task
    async def nothing() -> None: ...

    with pytest.raises(TypeError, match="too many positional arguments"):
        await work.apply_async(link_error=nothing.s())
    assert (await work.apply_async(link_error=nothing.si())).id


async def test_a_worker_without_the_middleware_tells_nobody(make_broker: MakeBroker) -> None:
    sender = make_broker()
    broker = make_broker(middlewares=[one for one in standard() if not isinstance(one, ErrorCallbacks)])
    told: list[str] = []

    @broker.task
    async def fail() -> None:
        raise ValueError("no")

    @broker.task
    async def alarm(task_id: str) -> None:
        told.append(task_id)

    @sender.task(name=alarm.task_name)
    async def told_elsewhere(task_id: str) -> None: ...

    async with running(broker):
        sent = await sender.send_task(fail.task_name, link_error=told_elsewhere.s())
        with pytest.raises(ValueError, match="no"):
            await sent.get(timeout=WAIT)
        await (await alarm.delay("last")).get(timeout=WAIT)
    assert told == ["last"]
