"""Redis away, replies lost: whose message is it then?"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from redis.asyncio import Redis

from celeriq import RedisBroker
from celeriq.embedded import Valkey
from tests.conftest import Figure
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

LEASE = 0.6
AWAY = 30.0 if os.environ.get("PROVE") else 3 * LEASE


@pytest.mark.proof(of="engine")
async def test_redis_away_for_longer_than_a_lease_costs_nobody_its_messages(
    valkey: Valkey, figure: Figure, receiver: str
) -> None:
    """Leases that expire would all have expired; the first worker back would take everything."""
    brokers = [RedisBroker(valkey.url, lease=LEASE) for _ in range(2)]
    runs: list[str] = []
    finish = asyncio.Event()
    for broker in brokers:

        @broker.task(name="long")
        async def long(name: str) -> str:
            runs.append(name)
            await finish.wait()
            return name

    async with running(brokers[0]), running(brokers[1]):
        long_task: Any = brokers[0].find_task("long")
        sent = [await long_task.kiq(name) for name in ("a", "b", "c", "d")]
        await wait_for(lambda: len(runs) == 4)
        valkey.kill()
        loop = asyncio.get_running_loop()
        back = loop.time() + AWAY
        await wait_for(lambda: loop.time() > back, within=AWAY + 20)
        await asyncio.to_thread(valkey.start)
        await wait_for(lambda: all(broker.worker and broker.worker.lapses for broker in brokers))
        three_leases = loop.time() + 3 * LEASE
        await wait_for(lambda: loop.time() > three_leases)
        finish.set()
        for task in sent:
            await task.wait_result(check_interval=0.01, timeout=20)
    assert sorted(runs) == ["a", "b", "c", "d"]
    figure(f"Redis away for {AWAY:g} s, {receiver}'s receiver, lease {LEASE} s: nobody's messages were taken")


async def test_a_message_whose_reply_was_lost_on_the_wire_runs(make_broker: MakeBroker, redis: Redis) -> None:
    """No later read returns it: it is pending for a worker that lives and does not know it."""
    broker = make_broker(lease=LEASE)

    @broker.task
    async def lost() -> str:
        return "found"

    async with running(broker):
        sent = await send_and_take(broker, redis)
        result = await sent.wait_result(check_interval=0.01, timeout=20)
        assert result.return_value == "found"


async def send_and_take(broker: RedisBroker, redis: Redis) -> Any:
    """The message is taken in the worker's name by somebody else: for the worker, the reply never came."""
    queue = broker.keys.queue("unread")
    await broker.queues._create_group(queue)
    sent = await broker.find_task(next(iter(broker.local_task_registry))).kicker().with_labels(queue="unread").kiq()  # type: ignore[union-attr]
    taken: Any = await redis.xreadgroup("celeriq", broker.queues.worker, {queue: ">"}, count=1)
    assert taken
    broker._queues = frozenset({"default", "unread"})
    return sent
