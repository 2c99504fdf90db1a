"""What the machine gives without a queue's promises: no leases, no retries, no states, one shape of message.

`redis`: a stream, one asyncio task per message, result SET, XACK after the save, one pipeline per turn.
`asyncpg`: the statements of `crud`, prepared, without an ORM.  `session`: `crud` in a bare `AsyncSession`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

import asyncpg
import uvloop
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import async_sessionmaker

from benchmarks import work
from benchmarks.system import System
from benchmarks.work import meter, settings

STREAM, GROUP = "ceiling", "ceiling"
DAY = 86_400
TASKS: dict[str, Any] = {"noop": work.noop, "sleep": work.sleep, "stamp": work.stamp}


class RedisWorker:
    def __init__(self) -> None:
        # Reads block longer than answers may take.
        self._reading = Redis.from_url(settings.redis, socket_timeout=None)
        self._writing = Redis.from_url(settings.redis)
        self._running: set[asyncio.Task[None]] = set()
        self._ended: list[tuple[bytes, str, Any]] = []

    async def run(self) -> None:
        flushing: asyncio.Task[None] | None = None
        while True:
            free = settings.concurrency - len(self._running)
            if free:
                read: Any = await self._reading.xreadgroup(GROUP, "worker", {STREAM: ">"}, count=free, block=1000)
                for entry, fields in read[0][1] if read else ():
                    task = asyncio.create_task(self._run(entry, json.loads(fields[b"data"])))
                    self._running.add(task)
                    task.add_done_callback(self._running.discard)
            await asyncio.sleep(0)
            if self._ended and (flushing is None or flushing.done()):
                flushing = asyncio.create_task(self._flush())
            if not free and self._running:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    async def _run(self, entry: bytes, message: dict[str, Any]) -> None:
        value = await TASKS[message["task"]](message["argument"])
        self._ended.append((entry, message["id"], value))

    async def _flush(self) -> None:
        while self._ended:
            ended, self._ended = self._ended, []
            pipeline = self._writing.pipeline(transaction=False)
            for _, name, value in ended:
                if settings.results:
                    pipeline.set(name, json.dumps({"status": "SUCCESS", "result": value}), ex=DAY)
                    pipeline.publish(name, "")
            entries = [entry for entry, _, _ in ended]
            pipeline.xack(STREAM, GROUP, *entries)
            pipeline.xdel(STREAM, *entries)
            await pipeline.execute()


async def run_asyncpg() -> None:
    async def work_on(connection: asyncpg.Connection, first: int) -> None:
        number = first
        while True:
            number += 1
            async with connection.transaction():
                row = await connection.fetchrow("select id, number from items where id = $1", number % work.ROWS)
                await connection.execute("update items set number = $2 where id = $1", row["id"], row["number"] + 1)
            meter.tick()

    connections = [await asyncpg.connect(settings.libpq) for _ in range(settings.concurrency)]
    await asyncio.gather(*(work_on(each, 37 * number) for number, each in enumerate(connections)))


async def run_session() -> None:
    sessions = async_sessionmaker(work.async_engine(), expire_on_commit=False)

    async def work_on(first: int) -> None:
        number = first
        while True:
            number += 1
            async with sessions.begin() as session:
                await work.update(session, number)
            meter.tick()

    await asyncio.gather(*(work_on(37 * number) for number in range(settings.concurrency)))


class Ceiling(System):
    stores = "the result for a day" if settings.variant == "redis" else "nothing"
    acknowledges = "after the result" if settings.variant == "redis" else "nothing"
    settings = "uvloop, hiredis" if settings.variant == "redis" else "uvloop"

    def worker(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.systems.ceiling"]

    async def open(self) -> None:
        self._sent = 0
        self._redis = Redis.from_url(settings.redis)
        self._told = Redis.from_url(settings.redis, socket_timeout=None).pubsub(ignore_subscribe_messages=True)
        if settings.variant == "redis":
            await self._redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)

    async def close(self) -> None:
        await self._told.aclose()
        await self._redis.aclose()

    async def send(self, task: str, argument: int, delay: float = 0.0) -> str:
        if delay:
            raise NotImplementedError
        name, message = self._message(task, argument)
        await self._redis.xadd(STREAM, {"data": message})
        return name

    def _message(self, task: str, argument: int) -> tuple[str, str]:
        self._sent += 1
        name = f"result-{self._sent:032}"
        return name, json.dumps({"id": name, "task": task, "argument": argument})

    async def send_bulk(self, task: str, arguments: Sequence[int]) -> list[str]:
        if settings.variant != "redis":
            return []
        sent: list[str] = []
        for start in range(0, len(arguments), 500):
            pipeline = self._redis.pipeline(transaction=False)
            for argument in arguments[start : start + 500]:
                name, message = self._message(task, argument)
                pipeline.xadd(STREAM, {"data": message})
                sent.append(name)
            await pipeline.execute()
        return sent

    async def wait(self, sent: str) -> Any:
        """Subscribe, look, be told."""
        await self._told.subscribe(sent)
        while (stored := await self._redis.get(sent)) is None:
            await self._told.get_message(timeout=1)
        await self._told.unsubscribe(sent)
        return json.loads(stored)["result"]

    async def wait_all(self, sent: Sequence[str]) -> list[Any]:
        while None in (stored := await self._redis.mget(sent)):  # noqa: ASYNC110 - the ceiling has nothing to be told by
            await asyncio.sleep(0.005)
        return [json.loads(one)["result"] for one in stored]


SYSTEM = Ceiling()


async def main() -> None:
    runs = {"redis": lambda: RedisWorker().run(), "asyncpg": run_asyncpg, "session": run_session}
    running = asyncio.ensure_future(runs[settings.variant]())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        return


if __name__ == "__main__":
    uvloop.run(main())
