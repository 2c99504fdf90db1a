"""Right calls: never run, read by type checkers. `wrong_calls.py.txt` has the wrong ones."""

from __future__ import annotations

from typing import Annotated, assert_type
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from taskiq import AsyncTaskiqTask, TaskiqDepends
from taskiq.result import TaskiqResult

from celeriq import AsyncResult, BoundTask, CurrentTask, RedisBroker, TaskSession, injected
from celeriq.definition import Definition

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


async def wait() -> None:
    sent = await receipt.kiq(UUID(int=1))
    result = await sent.wait_result(timeout=5)
    assert_type(result, TaskiqResult[dict[str, int]])
    assert_type(result.return_value, dict[str, int])
    assert_type(result.error, BaseException | None)
    assert_type((await (await in_a_thread.kiq(1)).wait_result()).return_value, float)
    assert_type(await sent.is_ready(), bool)


async def call(session: AsyncSession) -> None:
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
