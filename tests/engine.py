"""An obedient application for crash tests: its tasks do what their arguments say, and write down that they ran.

`taskiq worker tests.engine:broker`, with DB_URL, BROKER_URL, BROKER_NAMESPACE and LEASE in the environment.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from celeriq import PoolAdvice, RedisBroker, TaskSession, injected

TABLES = (
    "create table started (id text, at timestamptz default clock_timestamp())",
    "create table finished (id text)",
)


@asynccontextmanager
async def open_sessions(pool: PoolAdvice) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
    engine = create_async_engine(os.environ["DB_URL"], **pool.engine_options())
    yield async_sessionmaker(engine)
    await engine.dispose()


broker = RedisBroker(
    os.environ["BROKER_URL"],
    namespace=os.environ.get("BROKER_NAMESPACE", "tests"),
    lease=float(os.environ.get("LEASE", "30")),
).with_sessions(open_sessions)


async def note_start(name: str) -> None:
    """In a transaction of its own: what started stays known, however it ends."""
    async with broker.sessions.begin() as session:
        await session.execute(text("insert into started (id) values (:id)"), {"id": name})


@broker.task(name="run")
async def run(name: str, seconds: float = 0.0, session: TaskSession = injected) -> str:
    await note_start(name)
    await asyncio.sleep(seconds)
    await session.execute(text("insert into finished values (:id)"), {"id": name})
    return name


@broker.task(name="block")
async def block(name: str, seconds: float, session: TaskSession = injected) -> str:
    """Block the event loop, as a careless call does."""
    await note_start(name)
    time.sleep(seconds)  # noqa: ASYNC251 - on purpose
    await session.execute(text("insert into finished values (:id)"), {"id": name})
    return name


@broker.task(name="hold_gil")
async def hold_gil(name: str, letters: int, session: TaskSession = injected) -> str:
    """Hold the interpreter itself, as a regular expression does that never ends."""
    await note_start(name)
    re.match(r"(a?)*$", "a" * letters + "b")
    await session.execute(text("insert into finished values (:id)"), {"id": name})
    return name


@broker.task(name="poison")
async def poison(name: str) -> None:
    await note_start(name)
    os.kill(os.getpid(), signal.SIGKILL)
