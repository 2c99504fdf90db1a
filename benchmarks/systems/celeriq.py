"""celeriq, with its own receiver (`celeriq worker`) or under Taskiq's (`taskiq worker`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from taskiq.result_backends.dummy import DummyResultBackend

from benchmarks import work
from benchmarks.system import System, program
from benchmarks.work import meter, settings
from celeriq import PoolAdvice, RedisBroker, TaskSession, injected, outbox, tables


@asynccontextmanager
async def open_sessions(_: PoolAdvice) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
    engine = work.async_engine()
    yield async_sessionmaker(engine, expire_on_commit=False)
    await engine.dispose()


broker = RedisBroker(
    settings.redis,
    concurrency=settings.concurrency,
    history_share=0.0 if settings.variant.endswith("without-history") else 1.0,
    # By the worker itself; by default a scheduler does it.
    record_history=settings.variant == "recording" or None,
).with_sessions(open_sessions)
if not settings.results:
    broker.with_result_backend(DummyResultBackend())

noop = broker.task(name="noop")(work.noop)
sleep = broker.task(name="sleep")(work.sleep)
stamp = broker.task(name="stamp")(work.stamp)


@broker.task(name="crud", once=settings.variant == "once")
async def crud(number: int, session: TaskSession = injected) -> int:
    await work.update(session, number)
    meter.tick()
    return number


TASKS = {"noop": noop, "sleep": sleep, "stamp": stamp, "crud": crud}


class Celeriq(System):
    stores = "state and result for a day, history entry"
    acknowledges = "after the result, in the same script"
    settings = "uvloop, hiredis, concurrency=100"

    def worker(self) -> list[str]:
        place, slots = "benchmarks.systems.celeriq:broker", str(settings.concurrency)
        if settings.variant.startswith("stock"):
            options = ["--workers", str(settings.processes), "--max-async-tasks", slots, "--log-level", "WARNING"]
            return [program("taskiq"), "worker", place, *options]
        return [program("celeriq"), "worker", place, "-w", str(settings.processes), "-c", slots]

    async def open(self) -> None:
        engine = work.async_engine()
        async with engine.begin() as connection:
            await connection.run_sync(tables.metadata.create_all)
        await engine.dispose()
        await broker.startup()

    async def close(self) -> None:
        await broker.shutdown()

    async def send(self, task: str, argument: int, delay: float = 0.0) -> Any:
        if delay:
            return await TASKS[task].apply_async((argument,), countdown=delay)
        return await TASKS[task].kiq(argument)

    async def send_bulk(self, task: str, arguments: Sequence[int]) -> list[Any]:
        return [*await TASKS[task].kiq_many([(argument,) for argument in arguments])]

    async def relay(self, count: int) -> float:
        async with broker.sessions() as session:
            await noop.kiq_many([(number,) for number in range(count)], session=session)
            began = time.perf_counter()
            await session.commit()
            while not await outbox.is_empty(session, broker.namespace):  # noqa: ASYNC110 - it is in the database
                await asyncio.sleep(0.005)
        return time.perf_counter() - began

    async def wait(self, sent: Any) -> Any:
        return (await sent.wait_result()).return_value


SYSTEM = Celeriq()
