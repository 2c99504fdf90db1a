"""What a running worker does when the wire is cut, or Redis refuses: nothing is lost, and it goes on."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from celeriq import RedisBroker
from celeriq.embedded import Valkey
from tests.conftest import Figure
from tests.integration.conftest import MakeBrokerAt
from tests.waiting import wait_for
from tests.wire import cut_wire
from tests.workers import running

LEASE = 0.6
MESSAGES = 1000 if os.environ.get("PROVE") else 100
CUTS = 30 if os.environ.get("PROVE") else 5


def counting(broker: RedisBroker, seconds: float = 0.0) -> tuple[Any, Counter[int]]:
    runs: Counter[int] = Counter()

    @broker.task(name="count")
    async def count(number: int) -> int:
        runs[number] += 1
        await asyncio.sleep(seconds)
        return number

    return count, runs


def every_third_that_brings_messages() -> Callable[[bytes], bool]:
    numbers = itertools.count()
    return lambda reply: b'"task":"count"' in reply and next(numbers) % 3 == 0


@pytest.mark.proof(of="engine")
async def test_messages_whose_reply_was_cut_on_the_wire_run_once(
    make_broker_at: MakeBrokerAt, valkey: Valkey, short_folder: Path, figure: Figure, receiver: str, namespace: str
) -> None:
    """They are pending for a living worker that does not know them, and no later read brings them."""
    sender = make_broker_at(valkey.url, namespace=namespace)
    count, _ = counting(sender)
    await count.kiq_many([(number,) for number in range(MESSAGES)])
    socket = Path(valkey.url.removeprefix("unix://"))
    async with cut_wire(socket, short_folder, every_third_that_brings_messages(), CUTS) as (wire, address):
        broker = make_broker_at(address, namespace=namespace, lease=LEASE)
        _, runs = counting(broker, seconds=0.01)
        async with running(broker, slots=4):
            await wait_for(lambda: len(runs) == MESSAGES, within=100)
            await wait_for(lambda: is_drained(sender))
        assert wire.cuts_left == 0
    assert set(runs.values()) == {1}
    assert not await sender._client.exists(sender.keys.crashes)
    figure(f"Wire, {receiver}'s receiver: {CUTS} replies to a fetch cut, {MESSAGES} messages ran once each")


async def is_drained(broker: RedisBroker) -> bool:
    return not await broker._client.xlen(broker.keys.queue("default"))


@pytest.mark.parametrize(
    ("refuse", "accept"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "requirepass", "secret"), ("CONFIG", "SET", "requirepass", "")),
        (("SCRIPT", "FLUSH"), ("PING",)),
    ],
    ids=["out of memory", "read-only replica", "wrong password", "scripts flushed"],
)
async def test_a_refusal_of_redis_is_waited_out(
    make_broker_at: MakeBrokerAt, valkey: Valkey, namespace: str, refuse: tuple[str, ...], accept: tuple[str, ...]
) -> None:
    """What runs goes on and is settled once Redis accepts again; what waits runs then."""
    broker = make_broker_at(valkey.url, namespace=namespace, lease=60)
    count, runs = counting(broker, seconds=0.3)
    async with Redis.from_url(valkey.url) as connected:
        admin: Any = connected
        await admin.ping()
        async with running(broker, slots=2):
            sent = await count.kiq_many([(number,) for number in range(6)])
            await wait_for(lambda: len(runs) == 2)
            await admin.execute_command(*refuse)
            # Connections that are open stay what they were; new ones have to say the password.
            await admin.client_kill_filter(_type="normal", skipme=True)
            until = asyncio.get_running_loop().time() + 1.0
            await wait_for(lambda: asyncio.get_running_loop().time() > until)
            await admin.execute_command(*accept)
            results = [await task.wait_result(timeout=30) for task in sent]
            assert [result.return_value for result in results] == list(range(6))
            await wait_for(lambda: is_drained(broker))
    assert set(runs.values()) == {1}


@pytest.mark.proof(of="engine")
@pytest.mark.timeout(120)
async def test_a_redis_that_restarts_takes_no_running_task_with_it(
    make_broker_at: MakeBrokerAt, valkey: Valkey, namespace: str, figure: Figure, receiver: str
) -> None:
    """Killed, away for longer than a lease, and back: 30 s at full size."""
    away = 30.0 if os.environ.get("PROVE") else 1.5
    broker = make_broker_at(valkey.url, namespace=namespace, lease=LEASE)
    count, runs = counting(broker, seconds=0.5)
    loop = asyncio.get_running_loop()
    async with running(broker, slots=10):
        sent = await count.kiq_many([(number,) for number in range(30)])
        await wait_for(lambda: len(runs) >= 10)
        valkey.kill()
        until = loop.time() + away
        await wait_for(lambda: loop.time() > until, within=away + 10)
        await asyncio.to_thread(valkey.start)
        results = [await task.wait_result(timeout=60) for task in sent]
    assert [result.return_value for result in results] == list(range(30))
    assert set(runs.values()) == {1}
    figure(f"Redis killed and back after {away:g} s, {receiver}'s receiver: 30 tasks ran once each")
