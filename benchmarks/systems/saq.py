"""saq, as its documentation says, on uvloop."""

from __future__ import annotations

import math
import sys
import time
from contextlib import suppress
from typing import Any

import uvloop
from redis.asyncio import Redis
from saq import Job, Worker
from saq.queue.redis import RedisQueue
from sqlalchemy.ext.asyncio import async_sessionmaker

from benchmarks import work
from benchmarks.system import System
from benchmarks.work import meter, settings

Context = dict[str, Any]

# Every slot blocks on a connection of its own, without end: redis-py 8 allows 100 connections and 5 s by default.
queue = RedisQueue(Redis.from_url(settings.redis, socket_timeout=None, max_connections=settings.concurrency + 50))


async def noop(_: Context, *, number: int) -> int:
    return await work.noop(number)


async def sleep(_: Context, *, number: int) -> int:
    return await work.sleep(number)


async def stamp(_: Context, *, number: int) -> int:
    return await work.stamp(number)


async def crud(context: Context, *, number: int) -> int:
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


class Saq(System):
    stores = "the job with state and result for a day"
    acknowledges = "with the result, in one transaction; after the worker's death swept each minute, by default aborted"
    settings = "uvloop, hiredis, concurrency 100, ttl a day, 150 connections without a timeout"

    def worker(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.systems.saq"]

    async def open(self) -> None:
        await queue.connect()

    async def close(self) -> None:
        await queue.disconnect()

    async def send(self, task: str, argument: int, delay: float = 0.0) -> Job | None:
        # Whole seconds, and not too early.
        scheduled = math.ceil(time.time() + delay) if delay else 0
        return await queue.enqueue(task, number=argument, ttl=86_400 if settings.results else -1, scheduled=scheduled)

    async def wait(self, sent: Any) -> Any:
        # A job that completes between its look and its subscription is not heard of.
        while not sent.completed:
            with suppress(TimeoutError):
                await sent.refresh(until_complete=1)
        return sent.result


SYSTEM = Saq()


async def main() -> None:
    worker = Worker(
        queue,
        [noop, sleep, stamp, crud],
        concurrency=settings.concurrency,
        startup=open_engine,
        shutdown=close_engine,
    )
    await queue.connect()
    try:
        await worker.start()
    finally:
        await queue.disconnect()


if __name__ == "__main__":
    uvloop.run(main())
