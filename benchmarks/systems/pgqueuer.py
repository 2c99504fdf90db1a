"""PgQueuer on asyncpg, as its documentation says: a connection for the worker, a pool for senders."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import uvloop
from pgqueuer import PgQueuer, run
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.models import Context, Job
from pgqueuer.queries import Queries
from sqlalchemy.ext.asyncio import async_sessionmaker

from benchmarks import work
from benchmarks.system import System
from benchmarks.work import meter, settings

BATCH = settings.concurrency // 2


@asynccontextmanager
async def open_worker() -> AsyncGenerator[PgQueuer]:
    connection = await asyncpg.connect(settings.libpq)
    engine = work.async_engine()
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    worker = PgQueuer.from_asyncpg_connection(connection, resources={"sessions": sessions})

    @worker.entrypoint("noop")
    async def noop(job: Job) -> None:
        await work.noop(int(job.payload or b""))

    @worker.entrypoint("sleep")
    async def sleep(job: Job) -> None:
        await work.sleep(int(job.payload or b""))

    @worker.entrypoint("stamp")
    async def stamp(job: Job) -> None:
        await work.stamp(int(job.payload or b""))

    @worker.entrypoint("crud", accepts_context=True)
    async def crud(job: Job, context: Context) -> None:
        async with context.resources["sessions"]() as session:
            await work.update(session, int(job.payload or b""))
            await session.commit()
        meter.tick()

    yield worker
    await engine.dispose()
    await connection.close()


class Pgqueuer(System):
    stores = "log rows of each state, no result"
    acknowledges = "after the task, in batches; picked again 30 s after the worker's last heartbeat"
    settings = "uvloop, max_concurrent_tasks 100, batch_size 50, its autovacuum settings"

    def worker(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.systems.pgqueuer"]

    async def open(self) -> None:
        self._pool: Any = await asyncpg.create_pool(settings.libpq)
        self._queries = Queries(AsyncpgPoolDriver(self._pool))
        await self._queries.install()
        await self._queries.optimize_autovacuum()

    async def close(self) -> None:
        await self._pool.close()

    async def send(self, task: str, argument: int, delay: float = 0.0) -> Any:
        after = timedelta(seconds=delay) if delay else None
        (sent,) = await self._queries.enqueue(task, str(argument).encode(), execute_after=after)
        return sent

    async def send_bulk(self, task: str, arguments: Sequence[int]) -> list[Any]:
        payloads: list[bytes | None] = [str(argument).encode() for argument in arguments]
        return await self._queries.enqueue([task] * len(payloads), payloads, [0] * len(payloads))


SYSTEM = Pgqueuer()

if __name__ == "__main__":
    # What `pgq run` does, which ends in an error with Typer 0.29.
    uvloop.run(run(open_worker, batch_size=BATCH, max_concurrent_tasks=settings.concurrency))
