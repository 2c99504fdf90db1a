"""Right calls: never run, read by type checkers. `wrong_calls.py.txt` has the wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, assert_type
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from taskiq import AsyncTaskiqTask, TaskiqDepends
from taskiq.result import TaskiqResult

from celeriq import (
    AsyncResult,
    BoundTask,
    CurrentTask,
    Ignore,
    Record,
    RedisBroker,
    Reject,
    Request,
    Retry,
    RetryPolicy,
    Snooze,
    TaskSession,
    chain,
    injected,
)
from celeriq.canvas import Chain
from celeriq.definition import Definition
from celeriq.signals import task_failure, task_success

broker = RedisBroker("redis://localhost:1")


def word() -> str:
    return "word"


@broker.task
async def plain(number: int) -> str:
    return str(number)


@broker.task(name="receipt", queue="mail", autoretry_for=(OSError,), max_retries=5, labels={"timeout": 5})
async def receipt(order: UUID, session: TaskSession = injected, *, copies: int = 1) -> dict[str, int]:
    assert_type(session, AsyncSession)
    return {str(order): copies}


@broker.task("everything")
async def everything(
    order: int,
    note: str | None = None,
    session: TaskSession = injected,
    task: CurrentTask = injected,
    greeting: Annotated[str, TaskiqDepends(word)] = injected,
) -> list[str]:
    assert_type(task, BoundTask)
    await task.update_state("PROGRESS", {"current": order, "total": 10})
    return [greeting, note or "", str(session)]


@broker.task()
def in_a_thread(number: int, greeting: Annotated[str, TaskiqDepends(word)] = injected) -> float:
    return number / len(greeting)


class Watched(BoundTask):
    max_retries = 1

    async def on_failure(
        self, exc: BaseException, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], einfo: str, /
    ) -> None: ...


def customer_of(number: int) -> str:
    return str(number)


@broker.task(
    bind=True,
    base=Watched,
    priority=3,
    acks_late=True,
    expires=60,
    time_limit=30,
    soft_time_limit=20.5,
    ignore_result=False,
    track_started=True,
    max_retries=None,
    retry_backoff=2,
    retry_policies={ConnectionError: RetryPolicy(max_retries=1)},
    rate_limit="10/s",
    rate_limit_key="{number}",
    concurrency_limit=1,
    concurrency_limit_key=customer_of,
)
async def bound(self: Watched, number: int) -> int:
    assert_type(self.request, Request)
    assert_type(self.request.retries, int)
    match number:
        case 0:
            raise self.retry(countdown=5, max_retries=2, exc=OSError(), args=(1,))
        case 1:
            raise self.retry(eta=datetime.now(UTC), queue="slow")
        case 2:
            raise Retry(countdown=5)
        case 3:
            raise Ignore
        case 4:
            raise Reject("not mine", requeue=True)
        case 5:
            raise Snooze(0.5)
        case _:
            return number


async def send() -> None:
    assert_type(await plain.kiq(1), AsyncResult[str])
    assert_type(await plain.kiq(number=1), AsyncResult[str])
    assert_type(await receipt.kiq(UUID(int=1)), AsyncResult[dict[str, int]])
    assert_type(await receipt.kiq(order=UUID(int=1), copies=2), AsyncResult[dict[str, int]])
    assert_type(await everything.kiq(1), AsyncResult[list[str]])
    assert_type(await everything.kiq(1, "a note"), AsyncResult[list[str]])
    assert_type(await everything.kiq(1, note=None), AsyncResult[list[str]])
    assert_type(await in_a_thread.kiq(1), AsyncResult[float])
    assert_type(await plain.kicker().with_labels(queue="slow").kiq(1), AsyncTaskiqTask[str])


async def send_as_celery_does() -> None:
    assert_type(await plain.delay(1), AsyncResult[str])
    assert_type(await bound.delay(1), AsyncResult[int])
    assert_type(await bound.delay(number=1), AsyncResult[int])
    assert_type(await in_a_thread.delay(1), AsyncResult[float])
    assert_type(await plain.apply_async((1,)), AsyncResult[str])
    assert_type(await plain.apply_async(kwargs={"number": 1}, countdown=5), AsyncResult[str])
    everything_that_a_call_says = await bound.apply_async(
        [1],
        {},
        queue="slow",
        priority=9,
        eta=datetime.now(UTC),
        expires=datetime.now(UTC),
        soft_time_limit=1,
        time_limit=None,
        ignore_result=True,
        task_id="order-5",
        headers={"tenant": 7},
        shadow="another name",
        link=[plain.s(), plain.s() | plain.si(2)],
        root_id="a",
        parent_id="b",
    )
    assert_type(everything_that_a_call_says, AsyncResult[int])
    assert_type(await broker.send_task("elsewhere", (1,), {"a": 2}, queue="slow", expires=5), AsyncResult[Any])
    assert_type(await plain.kiq_many([(1,), [2], {"number": 3}]), list[AsyncResult[Any]])


async def send_steps() -> None:
    assert_type(plain.s(1) | bound.s() | plain.si(2), Chain)
    assert_type(chain(plain.s(1).set(countdown=5, headers={}), chain(bound.s(), plain.s())), Chain)
    assert_type(await (plain.s(1) | bound.s()).apply_async(link=plain.s(), expires=5), Any)
    assert_type(await chain(plain.s(1)).delay(), Any)


async def look(sent: AsyncResult[int]) -> None:
    assert_type(await sent.get(), int)
    assert_type(await sent.get(timeout=5), int)
    assert_type(await sent.get(propagate=False), int | BaseException)
    assert_type(await sent.snapshot(), Record)
    assert_type(await sent.state(), str)
    assert_type(await sent.ready(), bool)
    assert_type(await (await bound.delay(1)).get(), int)
    assert_type(await (await receipt.delay(UUID(int=1))).get(), dict[str, int])
    assert_type(await AsyncResult[int]("id", broker=broker).get(), int)


@task_failure.connect
async def alarm(sender: object, exception: BaseException, **_: Any) -> None: ...


@task_success.connect(sender=plain)
def count(result: str, **_: Any) -> int:
    return len(result)


async def wait() -> None:
    sent = await receipt.kiq(UUID(int=1))
    result = await sent.wait_result(timeout=5)
    assert_type(result, TaskiqResult[dict[str, int]])
    assert_type(result.return_value, dict[str, int])
    assert_type(result.error, BaseException | None)
    assert_type((await (await in_a_thread.kiq(1)).wait_result()).return_value, float)
    assert_type(await sent.is_ready(), bool)


async def call(session: AsyncSession) -> None:
    await alarm("sender", OSError())
    assert_type(count("a"), int)
    assert_type(await bound(1), int)
    assert_type(await plain(1), str)
    assert_type(await receipt(UUID(int=1), session, copies=2), dict[str, int])
    assert_type(in_a_thread(1, "word"), float)


def declare() -> None:
    def task(number: int) -> list[int]:
        return [number]

    assert_type(broker.task(task)(1), list[int])
    assert_type(broker.task(max_retries=1)(task)(1), list[int])
    assert_type(broker.task("name")(task).task_name, str)
    assert_type(broker.task(name="name")(task).definition, Definition)
