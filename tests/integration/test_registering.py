"""What a task is called, and what is said of it elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypedDict, cast
from uuid import UUID
from weakref import WeakSet

import pytest
from pydantic import BaseModel

from celeriq import (
    BoundTask,
    DuplicateTaskNameWarning,
    EncodeError,
    QueueNotFound,
    RedisBroker,
    Route,
    TaskDefinitionError,
    shared,
    shared_task,
)
from celeriq.errors import UnsupportedOptionError
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 20


async def test_a_message_of_an_old_name_runs_the_task(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task(name="mail.send", aliases=["post.send"])
    async def send(to: str) -> str:
        return f"to {to}"

    async with running(broker):
        sent = await make_broker().send_task("post.send", ["you"])
        assert await sent.get(timeout=WAIT) == "to you"


def test_of_two_tasks_of_one_name_the_first_stays(make_broker: MakeBroker) -> None:
    """DEF-04."""
    broker = make_broker()

    async def other() -> None: ...

    @broker.task(name="send")
    async def first() -> None: ...

    with pytest.warns(DuplicateTaskNameWarning, match=r"a task 'send' already, so that .*other is none"):
        second = broker.task(name="send")(other)
    assert second is first
    assert broker.find_task("send") is first


async def nothing() -> None: ...


def retries_of(broker: RedisBroker, name: str, **says: Any) -> Any:
    register: Any = broker.task(name=name, **says)
    return register(nothing).definition.options.get("max_retries")


def test_what_a_task_does_not_say_is_said_for_all(make_broker: MakeBroker) -> None:
    broker = make_broker(task_defaults={"max_retries": 5, "track_started": True})
    assert retries_of(broker, "silent") == 5
    assert retries_of(broker, "says", max_retries=1) == 1


def test_an_override_wins_over_the_task_and_a_name_over_patterns(make_broker: MakeBroker) -> None:
    """DEF-08."""
    overrides = {
        "mail.send": {"max_retries": 9},
        "*": {"max_retries": 7, "default_retry_delay": 1},
        "mail.*": {"max_retries": 8},
    }
    broker = make_broker(task_defaults={"max_retries": 5}, overrides=overrides)
    assert [retries_of(broker, name, max_retries=1) for name in ("other", "mail.read", "mail.send")] == [7, 8, 9]
    task: Any = broker.find_task("mail.send")
    assert task.definition.options.get("default_retry_delay") == 1


def test_what_is_said_elsewhere_is_checked_as_well(make_broker: MakeBroker) -> None:
    with pytest.raises(TaskDefinitionError, match=r"unknown option 'max_retires'; did you mean 'max_retries'"):
        retries_of(make_broker(overrides={"mail.*": {"max_retires": 1}}), "mail.send")
    with pytest.raises(UnsupportedOptionError, match=r"overrides\['mail'\] is 5; write overrides="):
        make_broker(overrides={"mail": 5})
    with pytest.raises(
        UnsupportedOptionError, match=r"task_defaults says 'queue', which routes may say: default_queue="
    ):
        make_broker(task_defaults={"queue": "mail"})


async def test_a_queue_that_nobody_named_may_be_refused(make_broker: MakeBroker) -> None:
    """RT-04."""
    broker = make_broker(queues=["named"], routes={"routed": Route(queue="elsewhere")}, create_missing_queues=False)
    broker.task(name="work", queue="of_a_task")(nothing)
    broker.task(name="routed")(nothing)
    for queue in ("named", "default", "of_a_task", "elsewhere"):
        await broker.send_task("work", queue=queue)
    with pytest.raises(
        QueueNotFound, match=r"task 'work': there is no queue 'mial': name it with RedisBroker\(queues="
    ):
        await broker.send_task("work", queue="mial")


async def test_who_sends_where_nobody_listens_is_told_once(
    make_broker: MakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker = make_broker()
    task = broker.task(name="work")(nothing)

    def warned() -> list[str]:
        return [told.getMessage() for told in caplog.records if "has listened" in told.getMessage()]

    for _ in range(2):
        await task.delay()
    await task.kiq_many([(), ()])
    await wait_for(warned)
    assert warned() == [
        "no worker has listened on queue 'default' yet: its messages wait until one does (`celeriq worker -Q default`)"
    ]
    async with running(broker):
        pass
    again = make_broker()
    await again.send_task("work")
    await again.shutdown()
    assert len(warned()) == 1
    unique = broker.task(name="unique", unique="skip", queue="mial")(nothing)
    for _ in range(2):
        await unique.delay()
    assert len(warned()) == 2


async def test_unchecked_arguments_fail_where_they_run(make_broker: MakeBroker) -> None:
    """DEF-09: typing=False leaves the check to the worker."""
    broker = make_broker(max_crashes=0)
    checked = broker.task(name="checked")(nothing)
    unchecked = broker.task(name="unchecked", typing=False)(nothing)
    call: Any = checked
    with pytest.raises(TypeError, match="too many positional arguments"):
        await call.delay(1)
    call = unchecked
    assert (await call.delay(1)).id


def test_in_a_program_that_is_run_as_a_file_a_name_stands_for_the_module(make_broker: MakeBroker) -> None:
    """DEF-03."""

    async def send() -> None: ...

    send.__module__ = "__main__"
    assert make_broker(main="shop").task(send).task_name == "shop.send"


# -- shared tasks ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that are shared here are shared with brokers of this test alone."""
    monkeypatch.setattr(shared, "_shared", [])
    monkeypatch.setattr(shared, "_brokers", WeakSet[Any]())
    monkeypatch.setattr(shared, "_last", [])


@pytest.mark.usefixtures("no_others")
async def test_a_shared_task_is_one_of_every_broker(make_broker: MakeBroker) -> None:
    """DEF-02: of those that there are, and of those that come later."""
    before = make_broker()

    @shared_task(name="add", max_retries=7)
    async def add(x: int, y: int) -> int:
        return x + y

    after = make_broker()
    for broker in (before, after):
        task: Any = broker.find_task("add")
        assert task.definition.options.get("max_retries") == 7
        assert cast("Any", add).on(broker) is task
    assert await add(1, 2) == 3
    async with running(after):
        assert await (await add.delay(3, 4)).get(timeout=WAIT) == 7


@pytest.mark.usefixtures("no_others")
async def test_a_shared_task_without_a_broker_says_so() -> None:
    @shared_task()
    async def add() -> None: ...

    with pytest.raises(RuntimeError, match=r"shared task '.*add' has no broker yet: import the application's"):
        await add.delay()
    assert not hasattr(add, "definition")
    with pytest.raises(TaskDefinitionError, match=r"is shared already: say @shared_task\(\) once"):
        shared_task()(add)


# -- what stands around a body -----------------------------------------------------------------------------------------


class Doubling(BoundTask):
    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * await self.run(*args, **kwargs)


class DoublingInThread(BoundTask):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * self.run(*args, **kwargs)


async def test_a_base_class_may_stand_around_the_body(make_broker: MakeBroker) -> None:
    """DEF-06: for bound tasks, for `def` tasks, and where the task is called directly."""
    broker = make_broker()

    @broker.task(base=Doubling, bind=True)
    async def ours(self: BoundTask, x: int) -> int:
        return x + len(self.name.rpartition(".")[2])

    @broker.task(base=DoublingInThread)
    def in_thread(x: int) -> int:
        return x

    assert await ours(1) == 2 * (1 + len("ours"))
    async with running(broker):
        assert await (await ours.delay(1)).get(timeout=WAIT) == 10
        assert await (await in_thread.delay(3)).get(timeout=WAIT) == 6


def test_what_stands_around_a_body_is_of_its_kind(make_broker: MakeBroker) -> None:
    with pytest.raises(
        TaskDefinitionError, match=r"Doubling.__call__ stands around its body, which is `def`: write `def"
    ):
        make_broker().task(name="work", base=Doubling)(in_a_thread)


def in_a_thread() -> None: ...


# -- arguments ---------------------------------------------------------------------------------------------------------


class Order(BaseModel):
    number: int


async def test_arguments_become_what_the_annotations_say(make_broker: MakeBroker) -> None:
    """DEF-11."""
    broker = make_broker()

    @broker.task
    async def ship(order: Order, at: datetime, *more: Decimal, fast: bool = False, **rest: UUID) -> list[str]:
        return [type(each).__name__ for each in (order, at, *more, fast, *rest.values())]

    an_id = UUID(int=5)
    async with running(broker):
        sent = await ship.delay(Order(number=1), datetime(2026, 1, 1, tzinfo=UTC), Decimal("0.1"), fast=True, one=an_id)
        assert await sent.get(timeout=WAIT) == ["Order", "datetime", "Decimal", "bool", "UUID"]


@dataclass
class Page:
    text: bytes


async def test_bytes_arrive_as_they_were_sent(make_broker: MakeBroker) -> None:
    """JSON has none of its own, whatever they are part of; and text that looks like them is text."""
    broker = make_broker()
    raw = bytes(range(248, 256)) + b"hello??"
    ran: list[Any] = []

    @broker.task
    async def keep(one: bytes, many: list[Page], *, named: dict[str, bytes | None], text: str | UUID) -> Page:
        ran.append((one, many, named, text))
        return Page(one)

    async with running(broker):
        sent = await keep.delay(raw, [Page(raw)], named={"a": raw, "b": None}, text="0" * 32)
        assert await sent.get(timeout=WAIT) == Page(raw)
    assert ran == [(raw, [Page(raw)], {"a": raw, "b": None}, "0" * 32)]


class Size(TypedDict):
    width: int


@dataclass
class Unfinished:
    of: Nobody  # type: ignore[name-defined]  # noqa: F821


async def test_an_annotation_that_cannot_be_read_changes_nothing(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task
    async def measure(size: Size, unfinished: Unfinished) -> Size:
        return size

    call: Any = measure
    async with running(broker):
        assert await (await call.delay({"width": 1}, {"of": 2})).get(timeout=WAIT) == {"width": 1}


async def test_an_argument_that_cannot_be_what_its_annotation_says_fails_the_task(make_broker: MakeBroker) -> None:
    """Its body does not run with something else."""
    broker = make_broker()
    ran: list[Any] = []

    @broker.task(name="ship")
    async def ship(order: Order) -> None:
        ran.append(order)

    call: Any = ship
    async with running(broker):
        with pytest.raises(TypeError, match=r"task 'ship': argument 'order'\['number'\]: .* integer.*, not 'four'"):
            await (await call.delay({"number": "four"})).get(timeout=WAIT)
    assert ran == []


async def test_an_object_may_say_how_it_is_sent(make_broker: MakeBroker) -> None:
    """SEC-02."""

    class Money:
        def __json__(self) -> dict[str, int]:
            return {"cents": 5}

    broker = make_broker()

    @broker.task
    async def echo(given: Any) -> Any:
        return given

    async with running(broker):
        assert await (await echo.delay([Money()])).get(timeout=WAIT) == [{"cents": 5}]


async def test_a_retry_that_cannot_be_sent_is_a_failure(make_broker: MakeBroker) -> None:
    """RETRY-11."""
    broker = make_broker()

    @broker.task(bind=True)
    async def work(self: BoundTask, given: Any = None) -> None:
        raise self.retry(args=(object(),))

    async with running(broker):
        with pytest.raises(EncodeError, match="objects of type object"):
            await (await work.delay()).get(timeout=WAIT)
