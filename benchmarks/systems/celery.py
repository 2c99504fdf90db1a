"""Celery with Redis for both ends, in each of its pools; for `crud`, also in the ways that async code is run in it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from asgiref.sync import async_to_sync
from celery import Celery, signals
from celery.result import AsyncResult, ResultSet
from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import async_sessionmaker

from benchmarks import work
from benchmarks.system import BlockingSystem, program
from benchmarks.work import meter, settings

POOL = settings.variant if settings.variant in {"threads", "gevent"} else "prefork"
AT_ONCE = settings.processes if POOL == "prefork" else settings.concurrency

app = Celery("benchmarks", broker=settings.redis, backend=settings.redis)
app.conf.update(
    result_expires=86_400,
    task_ignore_result=not settings.results,
    # Else each greenlet connects anew for its one result; and redis-py's pool refuses the 101st connection.
    result_backend_thread_safe=True,
    redis_max_connections=500,
)


class Rows:
    """Opened in the process that uses it: connections do not survive a fork."""

    def open(self, **_: object) -> None:
        # One process of prefork runs one task at a time.
        self._sessions = work.sessions_now(1 if POOL == "prefork" else settings.concurrency)

    def update(self, number: int) -> None:
        with self._sessions.begin() as session:
            work.update_now(session, number)


class AsyncRows(Rows):
    """With a connection for each call, as each call has a loop of its own."""

    def open(self, **_: object) -> None:
        self._async_sessions = async_sessionmaker(work.async_engine(poolclass=NullPool))

    async def _update(self, number: int) -> None:
        async with self._async_sessions.begin() as session:
            await work.update(session, number)

    def update(self, number: int) -> None:
        asyncio.run(self._update(number))


class BridgedRows(AsyncRows):
    def update(self, number: int) -> None:
        async_to_sync(self._update)(number)


class KeptLoopRows(AsyncRows):
    def open(self, **_: object) -> None:
        self._loop = asyncio.new_event_loop()
        self._async_sessions = async_sessionmaker(work.async_engine(pool_size=1, max_overflow=0))

    def update(self, number: int) -> None:
        self._loop.run_until_complete(self._update(number))


WAYS = {"nullpool-run": AsyncRows, "nullpool-async-to-sync": BridgedRows, "kept-loop": KeptLoopRows}
rows = WAYS.get(settings.variant, Rows)()
(signals.worker_process_init if POOL == "prefork" else signals.worker_init).connect(rows.open)

noop = app.task(name="noop")(work.noop_now)
sleep = app.task(name="sleep")(work.sleep_now)
stamp = app.task(name="stamp")(work.stamp_now)


@app.task(name="crud")
def crud(number: int) -> int:
    rows.update(number)
    meter.tick()
    return number


TASKS: dict[str, Any] = {"noop": noop, "sleep": sleep, "stamp": stamp, "crud": crud}


class CelerySystem(BlockingSystem):
    stores = "state and result for a day"
    acknowledges = "before the task: what runs when the worker dies is lost"
    settings = f"pool {POOL}; one result backend for all threads; no gossip, mingle, heartbeat"

    def worker(self) -> list[str]:
        options = ["--pool", POOL, "--concurrency", str(AT_ONCE), "--loglevel", "WARNING"]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return [program("celery"), "--app", "benchmarks.systems.celery:app", "worker", *options, *quiet]

    async def close(self) -> None:
        app.close()

    def send_now(self, task: str, argument: int, delay: float = 0.0) -> AsyncResult:
        return TASKS[task].apply_async((argument,), countdown=delay or None)

    def wait_now(self, sent: AsyncResult) -> Any:
        return sent.get()

    async def wait_all(self, sent: Sequence[AsyncResult]) -> list[Any]:
        return ResultSet(sent, app=app).join_native()


SYSTEM = CelerySystem()
