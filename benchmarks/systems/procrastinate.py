"""procrastinate on psycopg's pool, as its documentation says, on uvloop."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import uvloop
from procrastinate import App, JobContext, PsycopgConnector
from sqlalchemy.ext.asyncio import async_sessionmaker

from benchmarks import work
from benchmarks.system import System
from benchmarks.work import meter, settings

app = App(connector=PsycopgConnector(conninfo=settings.libpq, min_size=4, max_size=20))

noop = app.task(name="noop")(work.noop)
sleep = app.task(name="sleep")(work.sleep)
stamp = app.task(name="stamp")(work.stamp)


@app.task(name="crud", pass_context=True)
async def crud(context: JobContext, number: int) -> int:
    async with context.additional_context["sessions"]() as session:
        await work.update(session, number)
        await session.commit()
    meter.tick()
    return number


PARAMETER = {"noop": "number", "sleep": "number", "stamp": "due_ns", "crud": "number"}


class Procrastinate(System):
    stores = "the job with its state and events, no result; nothing where others store no result"
    acknowledges = "after the task; a job of a dead worker stays `doing` until the user's own task retries the stalled"
    settings = "uvloop, concurrency 100, a pool of 20"

    def worker(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.systems.procrastinate"]

    async def open(self) -> None:
        await app.open_async()
        await app.schema_manager.apply_schema_async()

    async def close(self) -> None:
        await app.close_async()

    async def send(self, task: str, argument: int, delay: float = 0.0) -> int:
        deferrer = app.configure_task(task, schedule_in={"seconds": delay} if delay else None)
        return await deferrer.defer_async(**{PARAMETER[task]: argument})

    async def send_bulk(self, task: str, arguments: Sequence[int]) -> list[Any]:
        calls = [{PARAMETER[task]: argument} for argument in arguments]
        return await app.configure_task(task).batch_defer_async(*calls)


SYSTEM = Procrastinate()


async def main() -> None:
    engine = work.async_engine()
    async with app.open_async():
        await app.run_worker_async(
            concurrency=settings.concurrency,
            delete_jobs="never" if settings.results else "successful",
            additional_context={"sessions": async_sessionmaker(engine, expire_on_commit=False)},
        )
    await engine.dispose()


if __name__ == "__main__":
    uvloop.run(main())
