"""The scripts behind the lease, one by one."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from celeriq import RedisBroker
from celeriq.embedded import Valkey
from celeriq.redis.keys import GROUP, Keys
from celeriq.redis.lease import Lease, patient_client
from celeriq.redis.queues import RELEASED, release_keys
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for


@pytest.fixture
async def broker(make_broker: MakeBroker) -> RedisBroker:
    """A broker with ten messages that a worker named `dead` holds."""
    broker = make_broker()

    @broker.task
    async def any_task(number: int) -> None: ...

    for number in range(10):
        await any_task.kiq(number)
    stream = broker.keys.queue("default")
    await broker.queues.declare()
    await broker._client.xreadgroup(GROUP, "dead", {stream: ">"}, count=10)
    await broker._client.hset(broker.keys.beats, "dead", "7")
    broker.queues.worker = "living"
    return broker


async def holders(broker: RedisBroker) -> dict[str, int]:
    summary: Any = await broker._client.xpending(broker.keys.queue("default"), GROUP)
    return {one["name"].decode(): one["pending"] for one in summary["consumers"]}


async def give_up(broker: RedisBroker, beat: str) -> int:
    keys = [*release_keys(broker.keys), broker.keys.queue("default")]
    return int(await broker._scripts.release(keys=keys, args=[GROUP, "dead", beat]))


async def test_a_worker_that_has_beaten_since_is_not_given_up(broker: RedisBroker) -> None:
    assert await give_up(broker, "6") == -1
    assert await holders(broker) == {"dead": 10}
    assert await broker._client.hlen(broker.keys.crashes) == 0
    await broker.shutdown()


async def test_a_dead_worker_is_handed_back_whole_and_signed_off(broker: RedisBroker) -> None:
    assert await give_up(broker, "7") == 10
    assert await holders(broker) == {RELEASED: 10}
    assert await broker._client.hgetall(broker.keys.beats) == {}
    consumers: Any = await broker._client.xinfo_consumers(broker.keys.queue("default"), GROUP)
    assert [one["name"] for one in consumers] == [RELEASED.encode()]
    await broker.shutdown()


async def test_of_many_suspects_one_runs_at_a_time_and_innocents_beside_it(broker: RedisBroker) -> None:
    await give_up(broker, "7")
    # Only three of them ran when it died.
    crashes = await broker._client.hkeys(broker.keys.crashes)
    await broker._client.hdel(broker.keys.crashes, *crashes[3:])
    broker.queues._most = 20
    first = await broker.queues.take()
    assert sorted(delivery.crashes for delivery in first) == [*7 * [0], 1]
    assert await broker.queues.take() == []
    for delivery in first:
        broker.queues.held.pop(delivery.place)
    assert [delivery.crashes for delivery in await broker.queues.take()] == [1]
    await broker.shutdown()


async def test_however_many_suspects_there_are_they_hide_nobody(broker: RedisBroker) -> None:
    task: Any = next(iter(broker.local_task_registry.values()))
    await task.kiq_many([(number,) for number in range(10, 250)])
    stream = broker.keys.queue("default")
    await broker._client.xreadgroup(GROUP, "dead", {stream: ">"}, count=240)
    await give_up(broker, "7")
    last: Any = await broker._client.xrevrange(stream, count=1)
    await broker._client.hdel(broker.keys.crashes, f"{stream}/{last[0][0].decode()}")
    broker.queues._most = 20
    assert sorted(delivery.crashes for delivery in await broker.queues.take()) == [0, 1]
    await broker.shutdown()


async def test_the_next_crash_counts_against_the_suspects_alone(broker: RedisBroker) -> None:
    await give_up(broker, "7")
    crashes = await broker._client.hkeys(broker.keys.crashes)
    await broker._client.hdel(broker.keys.crashes, *crashes[1:])
    broker.queues.worker = "dead"
    broker.queues._most = 20
    assert len(await broker.queues.take()) == 10
    await broker._client.hset(broker.keys.beats, "dead", "8")
    await give_up(broker, "8")
    assert await broker._client.hgetall(broker.keys.crashes) == {crashes[0]: b"2"}
    await broker.shutdown()


async def test_what_was_handed_back_runs_before_what_is_new(broker: RedisBroker) -> None:
    """It has waited its turn once."""
    task: Any = next(iter(broker.local_task_registry.values()))
    await task.kiq(99)
    await give_up(broker, "7")
    await broker._client.delete(broker.keys.crashes)
    broker.queues._most = 10
    taken = [bytes(delivery) for delivery in await broker.queues.take()]
    assert not [message for message in taken if b'"args":[99]' in message]
    await broker.shutdown()


async def test_a_connection_that_breaks_again_and_again_never_shows_a_death(valkey: Valkey) -> None:
    """What was seen before the break proves nothing: the silence may have been ours."""
    keys, given_up = Keys(), []
    async with Redis.from_url(valkey.url) as admin:
        await admin.hset(keys.beats, "silent", "7")
        lease = Lease(
            lambda: patient_client(valkey.url), keys, 2, lambda _: set(), lambda *dead: given_up.append(dead[1:])
        )
        lease.begin("observer")
        lease.start()
        loop = asyncio.get_running_loop()
        until = loop.time() + 4
        while loop.time() < until:
            await admin.client_kill_filter(_type="normal", skipme=True)
            beat = await admin.hget(keys.beats, "observer")
            await wait_for(partial(has_beaten, admin, keys, beat))
        assert given_up == []
        await wait_for(lambda: given_up)
        assert given_up[0] == ("silent", "7")
        await asyncio.to_thread(lease.stop)


async def has_beaten(admin: Redis, keys: Keys, since: Any) -> bool:
    return bool(await admin.hget(keys.beats, "observer") != since)
