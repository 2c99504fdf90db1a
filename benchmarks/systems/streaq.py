"""streaQ, as its documentation says: uvloop, and coredis in its optimized mode."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from benchmarks import work
from benchmarks.system import System
from benchmarks.work import meter, settings

# coredis looks when it is imported.
os.environ["COREDIS_OPTIMIZED"] = "true"
from streaq import Worker

Sessions = async_sessionmaker[AsyncSession]


@asynccontextmanager
async def open_sessions() -> AsyncGenerator[Sessions]:
    engine = work.async_engine()
    yield async_sessionmaker(engine, expire_on_commit=False)
    await engine.dispose()


worker = Worker(
    redis_url=settings.redis,
    concurrency=settings.concurrency,
    lifespan=open_sessions,
    anyio_kwargs={"use_uvloop": True},
)
task = worker.task(ttl=timedelta(days=1) if settings.results else 0)

noop = task(work.noop)
sleep = task(work.sleep)
stamp = task(work.stamp)


@task
async def crud(number: int) -> int:
    async with worker.context() as session:
        await work.update(session, number)
        await session.commit()
    meter.tick()
    return number


TASKS: dict[str, Any] = {"noop": noop, "sleep": sleep, "stamp": stamp, "crud": crud}


# A result that is waited for holds one of coredis's 64 connections, and needs another.
waiting = asyncio.Semaphore(32)


class Streaq(System):
    stores = "result for a day"
    acknowledges = "with the result, in one transaction; run again 60 s after the worker's death"
    settings = "uvloop, coredis optimized, concurrency 100, ttl a day"

    def worker(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.systems.streaq"]

    async def open(self) -> None:
        await worker.__aenter__()

    async def close(self) -> None:
        await worker.__aexit__(None, None, None)

    async def send(self, task: str, argument: int, delay: float = 0.0) -> Any:
        call = TASKS[task].enqueue(argument)
        return await (call.start(delay=timedelta(seconds=delay)) if delay else call)

    async def send_bulk(self, task: str, arguments: Sequence[int]) -> list[Any]:
        calls = [TASKS[task].enqueue(argument) for argument in arguments]
        await worker.enqueue_many(calls)
        return calls

    async def wait(self, sent: Any) -> Any:
        async with waiting:
            return (await sent.result()).result


SYSTEM = Streaq()

if __name__ == "__main__":
    # Its command would log every task.
    worker.run_sync()
