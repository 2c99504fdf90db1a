"""Messages under a storm of kills and restarts: compared as sets with what the sender got acknowledged.

Small in `make test`; `make prove ONLY=engine` runs the same at full size (PROVE=1).
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError
from taskiq.exceptions import SendTaskError

from celeriq import RedisBroker
from celeriq.embedded import Services, Valkey
from celeriq.redis.keys import Keys
from tests import databases
from tests.acceptance.conftest import Start
from tests.acceptance.observing import TABLES, Command, finished, listens, started
from tests.conftest import Figure
from tests.waiting import wait_for

FULL = bool(os.environ.get("PROVE"))
MESSAGES = 50_000 if FULL else 600
WORKERS = 3 if FULL else 2
KILLS = 30 if FULL else 4
ROLLS = 10 if FULL else 4
SECONDS = 0.02
PATIENCE = 1200 if FULL else 100

pytestmark = [pytest.mark.proof(of="engine"), pytest.mark.timeout(1500 if FULL else 150)]

DEPLOYED = 5000 if FULL else 100
Sender = Callable[..., Awaitable[bool]]


@pytest.fixture
async def sender(services: Services, database_url: str, namespace: str) -> AsyncGenerator[Sender]:
    await databases.execute(database_url, *TABLES)
    async with sending_to(services.redis_url, namespace) as send:
        yield send


@asynccontextmanager
async def sending_to(url: str, namespace: str) -> AsyncGenerator[Sender]:
    broker = RedisBroker(url, namespace=namespace)

    @broker.task(name="run")
    async def run(name: str, seconds: float) -> None: ...

    @broker.task(name="new")
    async def new(name: str) -> None: ...

    async def send(name: str, task: str = "run") -> bool:
        """Whether the queue has acknowledged it."""
        try:
            await (new.kiq(name) if task == "new" else run.kiq(name, SECONDS))
        except SendTaskError:
            return False
        return True

    yield send
    await broker.shutdown()


async def send_all(send: Sender, count: int, letter: str = "m") -> set[str]:
    """Sends that many, some at a time; answers with those that were acknowledged."""
    acknowledged: set[str] = set()
    for first in range(0, count, 50):
        names = [f"{letter}{number}" for number in range(first, min(first + 50, count))]
        sent = await asyncio.gather(*(send(name) for name in names))
        acknowledged |= {name for name, ok in zip(names, sent, strict=True) if ok}
    return acknowledged


async def drained(redis: Redis, namespace: str) -> bool:
    keys = Keys(namespace)
    return await redis.xlen(keys.queue("default")) == 0 and await redis.zcard(keys.delayed("default")) == 0


async def passed(database_url: str, share: float) -> bool:
    return len(await finished(database_url)) >= share * MESSAGES


async def test_workers_killed_again_and_again_lose_nothing(
    sender: Sender,
    start: Start,
    worker: Command,
    kind: str,
    redis: Redis,
    database_url: str,
    namespace: str,
    figure: Figure,
) -> None:
    workers = [start(worker, LEASE="1") for _ in range(WORKERS)]
    sending = asyncio.create_task(send_all(sender, MESSAGES))
    for kill in range(KILLS):
        share = (kill + 1) / (KILLS + 1)
        await wait_for(partial(passed, database_url, share), within=PATIENCE)
        workers[kill % WORKERS].kill()
        workers[kill % WORKERS] = start(worker, LEASE="1")
    acknowledged = await sending
    await wait_for(lambda: drained(redis, namespace), within=PATIENCE)
    runs = await started(database_url)
    twice = sum(count - 1 for count in runs.values())
    figure(f"{kind} worker, {MESSAGES} messages, {KILLS} kills -9: none lost, {twice} started twice")
    assert set(await finished(database_url)) == acknowledged
    assert twice <= KILLS * 100
    assert not await redis.exists(Keys(namespace).dead("default"))


async def test_rolling_restarts_lose_nothing_run_nothing_twice_and_count_no_crash(
    sender: Sender,
    start: Start,
    worker: Command,
    kind: str,
    redis: Redis,
    database_url: str,
    namespace: str,
    figure: Figure,
) -> None:
    workers = [start(worker, LEASE="5") for _ in range(2)]
    sending = asyncio.create_task(send_all(sender, MESSAGES))
    for roll in range(ROLLS):
        share = (roll + 1) / (ROLLS + 1)
        await wait_for(partial(passed, database_url, share), within=PATIENCE)
        # Before it listens, Taskiq has no handler, and SIGTERM ends it the hard way.
        await wait_for(partial(listens, workers[roll % 2]), within=60)
        assert await asyncio.to_thread(workers[roll % 2].stop) == 0
        workers[roll % 2] = start(worker, LEASE="5")
    acknowledged = await sending
    await wait_for(lambda: drained(redis, namespace), within=PATIENCE)
    assert await finished(database_url) == Counter(acknowledged)
    assert await started(database_url) == Counter(acknowledged)
    assert await redis.hlen(Keys(namespace).crashes) == 0
    figure(f"{kind} worker, {MESSAGES} messages, {ROLLS} rolling restarts: each ran once, no crash counted")


async def test_a_redis_that_is_killed_and_restarted_loses_no_acknowledged_message(
    valkey: Valkey, start: Start, worker: Command, kind: str, database_url: str, namespace: str, figure: Figure
) -> None:
    """With `appendfsync always` what is acknowledged is on the disk."""
    await databases.execute(database_url, *TABLES)
    for _ in range(WORKERS):
        start(worker, LEASE="2", BROKER_URL=valkey.url)
    kills = max(1, KILLS // 4)
    async with sending_to(valkey.url, namespace) as send:
        sending = asyncio.create_task(send_all(send, MESSAGES))
        for kill in range(kills):
            share = (kill + 1) / (kills + 1)
            await wait_for(partial(passed, database_url, share), within=PATIENCE)
            valkey.kill()
            await asyncio.to_thread(valkey.start)
        acknowledged = await sending
        async with Redis.from_url(valkey.url) as redis:
            await wait_for(lambda: drained_if_there(redis, namespace), within=PATIENCE)
    ran = await finished(database_url)
    lost, unacknowledged = acknowledged - set(ran), set(ran) - acknowledged
    figure(
        f"{kind} worker, {MESSAGES} messages, Redis killed {kills} times: {len(lost)} of {len(acknowledged)} acknowledged lost"
    )
    assert not lost
    assert len(unacknowledged) <= kills * 50


async def drained_if_there(redis: Redis, namespace: str) -> bool:
    try:
        return await drained(redis, namespace)
    except RedisError:
        return False


async def test_in_a_deploy_a_task_that_only_new_workers_know_waits_for_them(
    services: Services,
    start: Start,
    worker: Command,
    kind: str,
    redis: Redis,
    database_url: str,
    namespace: str,
    figure: Figure,
) -> None:
    """Old workers take its messages first; they are rolled over one by one, under load."""
    await databases.execute(database_url, *TABLES)
    workers = [start(worker, LEASE="2", RELEASE="1") for _ in range(2)]
    for old in workers:
        await wait_for(partial(listens, old), within=60)
    async with sending_to(services.redis_url, namespace) as send:
        acknowledged = await send_all(send, DEPLOYED) | await send_all(partial(send, task="new"), DEPLOYED, "n")
    await wait_for(lambda: redis.exists(Keys(namespace).parked_as("new")))
    for number in range(2):
        assert await asyncio.to_thread(workers[number].stop) == 0
        workers[number] = start(worker, LEASE="2", RELEASE="2")
    await wait_for(lambda: drained(redis, namespace), within=PATIENCE)
    assert await finished(database_url) == Counter(acknowledged)
    assert not await redis.exists(Keys(namespace).dead("default"), Keys(namespace).crashes)
    figure(f"{kind} worker, {2 * DEPLOYED} messages in a deploy, half unknown to the old release: each ran once")
