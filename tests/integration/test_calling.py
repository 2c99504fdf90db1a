"""Calls, their options and what their callers hold (CALL-01 to CALL-19, RES-01 to RES-19)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pytest
from pydantic import BaseModel

from celeriq import (
    AsyncResult,
    BoundTask,
    EncodeError,
    RedisBroker,
    ResultTimeoutError,
    SendError,
    TaskRevokedError,
    TimeLimitExceeded,
    allow_join_result,
)
from celeriq.call_options import WITHOUT_MEANING
from celeriq.record import MOST_CHILDREN
from celeriq.redis.streams import MOST_SETTINGS
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 20


async def test_parent_and_root_are_those_that_sent_it(make_broker: MakeBroker) -> None:
    """CALL-12: also of links and of later steps."""
    broker = make_broker()
    family: dict[str, tuple[str | None, str | None]] = {}
    ids: dict[str, str] = {}

    @broker.task(bind=True)
    async def tell(self: BoundTask, name: str, *rest: Any) -> str:
        family[name], ids[name] = (self.request.root_id, self.request.parent_id), self.id
        if name == "first":
            await tell.delay("child")
            await (tell.s("step") | tell.si("last")).apply_async(link=tell.si("link"))
        return name

    async with running(broker):
        first = await tell.delay("first")
        await first.get(timeout=WAIT)
        children = await first.children()
        await wait_for(lambda: len(ids) == 5)
    root = ids["first"]
    assert family == {
        "first": (root, None),
        "child": (root, root),
        "step": (root, root),
        "last": (root, ids["step"]),
        "link": (root, ids["last"]),
    }
    assert [child.id for child in children] == [ids["child"], ids["step"]]


async def test_what_calls_say_is_read_once_for_each_that_says_the_same(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task
    async def work() -> None: ...

    def read(**said: Any) -> Any:
        return broker.settings_of(work.definition, said)

    options, hooks = read(time_limit=5, ignore_result=True)
    assert (options.get("time_limit"), options.get("ignore_result")) == (5, True)
    assert read(ignore_result=True, time_limit=5) == (options, hooks)
    assert read(ignore_result=True, time_limit=5)[0] is options
    assert read()[0] is work.definition.options
    assert read(of_a_newer_version=[1])[0] == work.definition.options
    for number in range(MOST_SETTINGS + 1):
        read(time_limit=number + 1)
    assert len(broker._settings) <= MOST_SETTINGS


async def test_a_task_may_send_more_than_its_record_can_tell_of(make_broker: MakeBroker) -> None:
    """What it has sent is no part of its return value, which has the limit."""
    broker = make_broker(max_payload=2000)
    sent = MOST_CHILDREN + 1

    @broker.task
    async def small(number: int) -> None: ...

    @broker.task
    async def send() -> str:
        await small.kiq_many([(number,) for number in range(sent)])
        return "all"

    async with running(broker, slots=100):
        handle = await send.delay()
        assert await handle.get(timeout=WAIT) == "all"
        assert len(await handle.children()) == MOST_CHILDREN


async def test_a_task_sees_what_its_call_said(make_broker: MakeBroker) -> None:
    """EXE-14."""
    broker = make_broker()
    moment = datetime(2020, 1, 1, tzinfo=UTC)

    @broker.task(bind=True, name="look")
    async def look(self: BoundTask, /, *args: int, **kwargs: int) -> list[Any]:
        call = self.request
        assert call.called_directly is False
        assert call.correlation_id == call.id == self.id
        assert call.hostname
        assert call.eta == moment
        return [call.task, call.args, dict(call.kwargs), call.retries, call.delivery_info, call.headers, call.shadow]

    async with running(broker):
        sent = await look.apply_async(
            (1, 2), {"three": 3}, eta=moment, headers={"a": [1]}, shadow="seen as", priority=3, task_id="mine"
        )
        assert sent.id == "mine"
        assert await sent.get(timeout=WAIT) == [
            "look",
            [1, 2],
            {"three": 3},
            0,
            {"exchange": "", "routing_key": "default", "priority": 3, "redelivered": False},
            {"a": [1]},
            "seen as",
        ]


async def test_a_task_is_called_by_its_name(make_broker: MakeBroker) -> None:
    """CALL-08: known here or not, with the options that it has here, and its arguments are not checked."""
    sender, worker = make_broker(), make_broker(queues=["default", "mail"])

    @worker.task(name="add")
    async def add(one: int, two: int = 0) -> int:
        return one + two

    @sender.task(name="where", queue="mail")
    async def where() -> str:
        raise NotImplementedError

    @worker.task(name="where", bind=True)
    async def really(self: BoundTask) -> str:
        return str(self.request.delivery_info["routing_key"])

    async with running(worker):
        assert await (await sender.send_task("add", (1,), {"two": 2})).get(timeout=WAIT) == 3
        assert await (await sender.send_task("where")).get(timeout=WAIT) == "mail"
        with pytest.raises(TypeError, match="unknown option 'max_retries' of a call"):
            await sender.send_task("add", (1,), **cast("Any", {"max_retries": 5}))


async def test_a_call_of_what_is_registered_elsewhere_takes_the_options_of_a_call(make_broker: MakeBroker) -> None:
    """CALL-02, CALL-08."""
    sender, worker = make_broker(), make_broker()

    @worker.task(name="work", bind=True)
    async def work(self: BoundTask, seconds: float = 0.0) -> list[float | None]:
        await asyncio.sleep(seconds)
        return list(self.request.timelimit or ())

    async with running(worker):
        limited = await sender.send_task("work", time_limit=50, soft_time_limit=40)
        assert sorted(await limited.get(timeout=WAIT)) == [40, 50]
        with pytest.raises(TimeLimitExceeded):
            await (await sender.send_task("work", (60,), time_limit=0.1)).get(timeout=WAIT)
        late = await sender.send_task("work", expires=datetime(2020, 1, 1, tzinfo=UTC))
        with pytest.raises(TaskRevokedError, match="expired"):
            await late.get(timeout=WAIT)
        ignored = await sender.send_task("work", ignore_result=True)
        assert await ignored.get(timeout=WAIT) is None
    with pytest.raises(TypeError, match="time_limit is -1"):
        await sender.send_task("work", time_limit=-1)


async def is_in_progress(sent: AsyncResult[Any]) -> bool:
    return await sent.state() == "PROGRESS"


async def test_what_a_caller_can_ask(make_broker: MakeBroker) -> None:
    """RES-01, RES-02, RES-05, RES-06, ST-02, ST-21."""
    broker = make_broker()
    go_on = asyncio.Event()

    @broker.task(bind=True)
    async def work(self: BoundTask, how: str) -> str:
        await self.update_state("PROGRESS", {"current": 1})
        await go_on.wait()
        if how == "fail":
            raise KeyError(how)
        return how

    async with running(broker):
        fine, bad = await work.delay("fine"), await work.delay("fail")
        with pytest.raises(ResultTimeoutError, match=rf"task {fine.id} has not ended within 0.01 s"):
            await fine.get(timeout=0.01)
        await wait_for(lambda: is_in_progress(fine))
        assert (await fine.info(), await fine.ready(), await fine.exists()) == ({"current": 1}, False, True)
        go_on.set()
        assert await fine.get(timeout=WAIT) == "fine"
        with pytest.raises(KeyError, match="fail"):
            await bad.get(timeout=WAIT)
        assert isinstance(await bad.get(timeout=WAIT, propagate=False), KeyError)
    assert (await fine.successful(), await fine.failed(), await fine.status()) == (True, False, "SUCCESS")
    assert (await bad.successful(), await bad.failed(), await bad.ready()) == (False, True, True)
    assert (await fine.result(), repr(await bad.info())) == ("fine", "KeyError('fail')")
    assert "KeyError: 'fail'" in str(await bad.traceback())
    done = await fine.date_done()
    assert done is not None
    assert done.tzinfo is not None
    again: AsyncResult[str] = AsyncResult(fine.id, broker=broker)
    assert await again.get() == "fine"
    await again.forget()
    assert (await again.state(), await again.exists(), await again.date_done()) == ("PENDING", False, None)
    with pytest.raises(TypeError, match=r"write AsyncResult\(task_id, broker=broker\)"):
        AsyncResult(fine.id)


async def test_a_task_does_not_wait_for_another_unless_it_says_so(make_broker: MakeBroker) -> None:
    """RES-04."""
    broker = make_broker()

    @broker.task
    async def one() -> int:
        return 1

    @broker.task(name="waiting")
    async def waiting(how: str) -> int:
        sent = await one.delay()
        if how == "allowed":
            with allow_join_result():
                return await sent.get(timeout=WAIT)
        return await sent.get(timeout=WAIT, disable_sync_subtasks=how != "said")

    async with running(broker):
        assert await (await waiting.delay("allowed")).get(timeout=WAIT) == 1
        assert await (await waiting.delay("said")).get(timeout=WAIT) == 1
        with pytest.raises(RuntimeError, match=r"task 'waiting' waits .*: Never call result.get\(\) within a task!"):
            await (await waiting.delay("not at all")).get(timeout=WAIT)


class Order(BaseModel):
    id: UUID
    due: datetime


@dataclass
class Receipt:
    order: Order
    total: Decimal


async def test_models_go_in_and_come_out_as_annotated(make_broker: MakeBroker) -> None:
    """DEF-11: what JSON cannot tell, the annotations do."""
    broker = make_broker()
    order = Order(id=UUID(int=5), due=datetime(2030, 1, 1, tzinfo=UTC))

    @broker.task
    async def pay(order: Order, total: Decimal, days: list[date]) -> Receipt:
        assert isinstance(order, Order)
        assert isinstance(total, Decimal)
        assert days == [date(2030, 1, 1)]
        return Receipt(order, total)

    @broker.task
    async def lie() -> int:
        return cast("int", "text")

    async with running(broker):
        sent = await pay.delay(order, Decimal("1.50"), [date(2030, 1, 1)])
        assert await sent.get(timeout=WAIT) == Receipt(order, Decimal("1.50"))
        value: Any = await (await lie.delay()).get(timeout=WAIT)
        assert value == "text"


@pytest.mark.parametrize("option", sorted(WITHOUT_MEANING))
async def test_options_of_celery_that_have_no_meaning_are_refused_with_the_remedy(option: str) -> None:
    broker = RedisBroker("redis://localhost:1")

    @broker.task
    async def plain() -> None: ...

    given: Any = {option: 1}
    with pytest.raises(TypeError, match=f"option '{option}' of a call: "):
        await plain.apply_async(**given)
    with pytest.raises(TypeError, match="unknown option 'countdwn' of a call; did you mean 'countdown'"):
        await plain.apply_async(countdwn=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def test_wrong_arguments_are_refused_where_they_are_given() -> None:
    """DEF-09, CALL-03."""
    broker = RedisBroker("redis://localhost:1")

    @broker.task(bind=True, name="add")
    async def add(self: BoundTask, one: int, two: int = 0) -> int:
        return one + two

    calls: list[Any] = [add.delay, add.kiq, add.apply_async]
    for wrong in calls:
        with pytest.raises(TypeError, match="the call of task 'add': missing a required argument: 'one'"):
            await wrong()
    with pytest.raises(TypeError, match="args of task 'add' are 5; they must be a tuple or a list"):
        await add.apply_async(5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises(TypeError, match="args of task 'add' are 'ab'; they must be a tuple or a list"):
        await add.apply_async("ab")
    with pytest.raises(TypeError, match="kwargs of task 'add' are 5; they must be a mapping"):
        await add.apply_async((), 5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    with pytest.raises((SendError, EncodeError), match="cannot be"):
        await add.apply_async((object(),))
