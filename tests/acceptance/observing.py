"""Sending to the obedient application of `tests.engine`, and seeing what became of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import psutil
from redis.asyncio import Redis

from celeriq import RedisBroker
from celeriq.redis.keys import Keys
from tests import databases
from tests.processes import Process

Command = tuple[str, ...]
TABLES = (
    "create table started (id text, at timestamptz default clock_timestamp())",
    "create table finished (id text)",
)


async def send(sender: RedisBroker, task: str, *args: Any) -> str:
    return (await sender.send_task(task, args)).id


async def started(database_url: str) -> Counter[str]:
    return Counter(await databases.column_of(database_url, "select id from started"))


async def finished(database_url: str) -> Counter[str]:
    return Counter(await databases.column_of(database_url, "select id from finished"))


async def state(sender: RedisBroker, task_id: str) -> str:
    found: Any = await sender.result_backend.find(task_id)  # type: ignore[attr-defined]
    return found.status if found else "PENDING"


def listens(worker: Process) -> bool:
    return "Listening started" in worker.output()


def child(worker: Process) -> psutil.Process:
    """The process that runs tasks, below the one that was started."""
    [process] = psutil.Process(worker.pid).children()
    return process


async def ended(sender: RedisBroker, task_id: str) -> bool:
    return await state(sender, task_id) in {"SUCCESS", "FAILURE"}


async def is_empty(redis: Redis, namespace: str) -> bool:
    return await redis.xlen(Keys(namespace).queue("default")) == 0
