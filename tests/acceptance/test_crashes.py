"""Workers that are killed, stopped, blocked or poisoned: real processes under the stock `taskiq worker`."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

import psutil
import pytest
from redis.asyncio import Redis

from celeriq import RedisBroker
from celeriq.embedded import Services
from celeriq.redis.keys import Keys
from tests import databases
from tests.acceptance.conftest import Start
from tests.engine import TABLES
from tests.processes import Process
from tests.waiting import wait_for

WORKER = ("taskiq", "worker", "tests.engine:broker", "--workers", "1")
LEASE = 1.0
pytestmark = pytest.mark.proof(of="engine")
TOO_LATE = ("runs elsewhere by now: it is given up", "another worker has taken it over; nothing is written")


@pytest.fixture
async def sender(
    services: Services, database_url: str, namespace: str, environment: dict[str, str]
) -> AsyncGenerator[RedisBroker]:
    await databases.execute(database_url, *TABLES)
    environment["LEASE"] = str(LEASE)
    broker = RedisBroker(services.redis_url, namespace=namespace)
    await broker.startup()
    yield broker
    await broker.shutdown()


async def send(sender: RedisBroker, task: str, *args: Any) -> str:
    @sender.task(name=task)
    async def named(*_: object) -> None: ...

    sent = await sender.find_task(task).kicker().kiq(*args)  # type: ignore[union-attr]
    return sent.task_id


async def started(database_url: str) -> Counter[str]:
    return Counter(await databases.column_of(database_url, "select id from started"))


async def finished(database_url: str) -> Counter[str]:
    return Counter(await databases.column_of(database_url, "select id from finished"))


async def state(sender: RedisBroker, task_id: str) -> str:
    found: Any = await sender.result_backend.find(task_id)  # type: ignore[attr-defined]
    return found.status if found else "PENDING"


def child(worker: Process) -> psutil.Process:
    """The process that runs tasks, below the one that was started."""
    [process] = psutil.Process(worker.pid).children()
    return process


async def test_a_killed_workers_message_runs_elsewhere_though_its_queue_is_idle(
    sender: RedisBroker, start: Start, database_url: str
) -> None:
    """Taskiq looks for it only after another message has come (W3)."""
    first = start(WORKER)
    await send(sender, "run", "a", 3600)
    await wait_for(lambda: started(database_url), within=60)
    first.kill()
    start(WORKER)
    await wait_for(lambda: ran_twice(database_url), within=60)


async def ran_twice(database_url: str) -> bool:
    return (await started(database_url))["a"] == 2


async def test_a_loop_that_is_blocked_for_longer_than_the_lease_keeps_its_message(
    sender: RedisBroker, start: Start, database_url: str
) -> None:
    for _ in range(2):
        start(WORKER)
    task_id = await send(sender, "block", "a", 4 * LEASE)
    await wait_for(lambda: finished(database_url), within=60)
    await wait_for(lambda: ended(sender, task_id))
    assert await started(database_url) == {"a": 1}


async def ended(sender: RedisBroker, task_id: str) -> bool:
    return await state(sender, task_id) in {"SUCCESS", "FAILURE"}


async def test_a_call_that_holds_the_interpreter_may_run_twice_and_settles_once(
    sender: RedisBroker, start: Start, database_url: str, redis: Redis, namespace: str
) -> None:
    for _ in range(2):
        start(WORKER)
    task_id = await send(sender, "hold_gil", "a", 24)
    await wait_for(lambda: ended(sender, task_id), within=100)
    assert await state(sender, task_id) == "SUCCESS"
    assert 1 <= (await started(database_url))["a"] <= 2
    await wait_for(lambda: is_empty(redis, namespace))


async def is_empty(redis: Redis, namespace: str) -> bool:
    return await redis.xlen(Keys(namespace).queue("default")) == 0


async def test_the_late_settlement_of_a_stopped_worker_writes_nothing(
    sender: RedisBroker, start: Start, database_url: str
) -> None:
    first = start(WORKER)
    task_id = await send(sender, "run", "a", 3 * LEASE)
    await wait_for(lambda: started(database_url), within=60)
    stopped = child(first)
    os.kill(stopped.pid, signal.SIGSTOP)
    start(WORKER)
    await wait_for(lambda: ended(sender, task_id), within=60)
    results: Any = sender.result_backend
    record = await results.find(task_id)
    os.kill(stopped.pid, signal.SIGCONT)
    await wait_for(lambda: any(told in first.output() for told in TOO_LATE), within=30)
    assert await results.find(task_id) == record
    assert await started(database_url) == {"a": 2}


async def test_a_poison_message_among_innocents_becomes_a_dead_letter_alone(
    sender: RedisBroker, start: Start, database_url: str, redis: Redis, namespace: str
) -> None:
    worker = start(WORKER)
    await wait_for(lambda: "Listening started" in worker.output(), within=60)
    innocents = {await send(sender, "run", f"innocent {number}", 0.5): f"innocent {number}" for number in range(50)}
    task_id = await send(sender, "poison", "poison")
    innocents |= {await send(sender, "run", f"later {number}", 0.5): f"later {number}" for number in range(50)}
    await wait_for(lambda: ended(sender, task_id), within=110)
    assert await state(sender, task_id) == "FAILURE"
    await wait_for(lambda: is_empty(redis, namespace), within=60)
    assert set(await finished(database_url)) == set(innocents.values())
    letters: Any = await redis.xrange(Keys(namespace).dead("default"))
    [(_, letter)] = letters
    assert b'"task":"poison"' in letter[b"data"]
    assert letter[b"reason"] == b"3 workers died while they ran it"
