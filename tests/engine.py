"""An obedient application for crash tests: its tasks do what their arguments say, and write down that they ran.

`taskiq worker tests.engine:broker`, with DB_URL, BROKER_URL, BROKER_NAMESPACE, LEASE and POOL_SIZE in the environment;
the task `limited` asks for RATE and AT_ONCE, too. HISTORY_LIMIT and GIVE_UP say what its recorders do.
`taskiq scheduler tests.engine:scheduler` sends what BEAT says.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from celeriq import PoolAdvice, RedisBroker, Scheduler, TaskSession, injected
from celeriq.redis import recorder

recorder.TAKE_OVER = recorder.GIVE_UP = float(os.environ.get("GIVE_UP", "60"))
recorder.LONGEST = min(recorder.LONGEST, recorder.GIVE_UP)


@asynccontextmanager
async def open_sessions(pool: PoolAdvice) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
    url = os.environ["DB_URL"]
    engine = create_async_engine(url, **pool.engine_options(url))
    yield async_sessionmaker(engine)
    await engine.dispose()


broker = RedisBroker(
    os.environ["BROKER_URL"],
    namespace=os.environ.get("BROKER_NAMESPACE", "tests"),
    lease=float(os.environ.get("LEASE", "30")),
    blocked_limit=float(os.environ.get("BLOCKED_LIMIT", "600")),
    record_history=True,
    history_limit=int(os.environ.get("HISTORY_LIMIT", "100000")),
).with_sessions(open_sessions, PoolAdvice(size=int(os.environ["POOL_SIZE"])) if os.environ.get("POOL_SIZE") else None)

scheduler = Scheduler(broker, beat_schedule=json.loads(os.environ.get("BEAT", "{}")))


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
async def block(name: str, seconds: float, rest: float, session: TaskSession = injected) -> str:
    """Block the event loop, as a careless call does, and go on."""
    await note_start(name)
    time.sleep(seconds)  # noqa: ASYNC251 - on purpose
    await asyncio.sleep(rest)
    await session.execute(text("insert into finished values (:id)"), {"id": name})
    return name


@broker.task(name="hold_gil")
async def hold_gil(name: str, seconds: float, session: TaskSession = injected) -> float:
    """Hold the interpreter itself, as a regular expression does that never ends; how long it did."""
    await note_start(name)
    begun = time.monotonic()
    match_against(18)
    # Each letter doubles it.
    match_against(19 + math.ceil(math.log2(seconds / (time.monotonic() - begun))))
    held = time.monotonic() - begun
    await session.execute(text("insert into finished values (:id)"), {"id": name})
    return held


def match_against(letters: int) -> None:
    re.match(r"(a+)+$", "a" * letters + "b")


@broker.task(
    name="limited",
    rate_limit=os.environ.get("RATE", "0"),
    concurrency_limit=int(os.environ.get("AT_ONCE", "1")),
    concurrency_limit_key="{key}",
)
async def limited(name: str, key: str, seconds: float) -> None:
    """Write down from when to when it ran, each at once: of a killed attempt the start is known."""
    start = "insert into runs (id, key, worker) values (:id, :key, :worker) returning run"
    async with broker.sessions.begin() as session:
        run = await session.scalar(text(start), {"id": name, "key": key, "worker": os.getpid()})
    await asyncio.sleep(seconds)
    async with broker.sessions.begin() as session:
        await session.execute(text("update runs set ended = clock_timestamp() where run = :run"), {"run": run})


@broker.task(name="in_process", pool="process")
def in_process(folder: str) -> int:
    """Note who runs it, and go on until it is told to end."""
    (Path(folder) / f"pid-{os.getpid()}").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    return os.getpid()


@broker.task(name="poison")
async def poison(name: str) -> None:
    await note_start(name)
    os.kill(os.getpid(), signal.SIGKILL)


if os.environ.get("RELEASE") == "2":

    @broker.task(name="new")
    async def new(name: str, session: TaskSession = injected) -> str:
        """What only the next release knows."""
        await note_start(name)
        await session.execute(text("insert into finished values (:id)"), {"id": name})
        return name
