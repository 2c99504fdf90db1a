"""arq, as its documentation says, on uvloop."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job
from arq.worker import run_worker
from sqlalchemy.ext.asyncio import async_sessionmaker

from benchmarks import work
from benchmarks.system import System
from benchmarks.work import meter, settings

Context = dict[str, Any]


async def noop(_: Context, number: int) -> int:
    return await work.noop(number)


async def sleep(_: Context, number: int) -> int:
    return await work.sleep(number)


async def stamp(_: Context, due_ns: int) -> int:
    return await work.stamp(due_ns)


async def crud(context: Context, number: int) -> int:
    async with context["sessions"]() as session:
        await work.update(session, number)
        await session.commit()
    meter.tick()
    return number


async def open_engine(context: Context) -> None:
    context["engine"] = work.async_engine()
    context["sessions"] = async_sessionmaker(context["engine"], expire_on_commit=False)


async def close_engine(context: Context) -> None:
    await context["engine"].dispose()


class WorkerSettings:
    functions = (noop, sleep, stamp, crud)
    on_startup = open_engine
    on_shutdown = close_engine
    redis_settings = RedisSettings.from_dsn(settings.redis)
    max_jobs = settings.concurrency
    # With the default, five times max_jobs, it starts 1,000 jobs a second at most: it polls every half second.
    queue_read_limit = 10_000
    keep_result = 86_400 if settings.results else 0


class Arq(System):
    stores = "result for a day"
    acknowledges = "with the result, in one transaction; run again when its lock expires, 310 s after the start"
    settings = "uvloop, hiredis, max_jobs 100, queue_read_limit 10,000, keep_result a day"

    _redis: ArqRedis

    def worker(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.systems.arq"]

    async def open(self) -> None:
        self._redis = await create_pool(WorkerSettings.redis_settings)

    async def close(self) -> None:
        await self._redis.aclose()

    async def send(self, task: str, argument: int, delay: float = 0.0) -> Job | None:
        return await self._redis.enqueue_job(task, argument, _defer_by=delay or None)

    async def wait(self, sent: Any) -> Any:
        return await sent.result()


SYSTEM = Arq()

if __name__ == "__main__":
    # arq's command takes the loop that is set.
    asyncio.set_event_loop(uvloop.new_event_loop())
    run_worker(WorkerSettings)
