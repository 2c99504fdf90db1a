"""Whose message it is when answers are lost, workers are given up, and nobody reads the same queues."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from celeriq import BoundTask, CurrentTask, RedisBroker, injected
from celeriq.attempt import Delivery
from celeriq.embedded import Valkey
from celeriq.redis.keys import GROUP
from tests.integration.conftest import MakeBroker, MakeBrokerAt
from tests.waiting import wait_for
from tests.wire import cut_wire
from tests.workers import running

SETTLED = b"*1\r\n:1\r\n"
"""How the settlement of one attempt is answered."""


@pytest.mark.parametrize("acks_late", [True, False])
async def test_a_settlement_whose_answer_was_lost_is_one(
    make_broker_at: MakeBrokerAt,
    valkey: Valkey,
    short_folder: Path,
    namespace: str,
    caplog: pytest.LogCaptureFixture,
    *,
    acks_late: bool,
) -> None:
    """The message is gone, and nobody else can have had it: the task runs, and who wants to know of its end is told."""
    told: list[str] = []

    class Base(BoundTask):
        def on_success(self, retval: Any, *_: Any) -> None:
            told.append(retval)

    socket = Path(valkey.url.removeprefix("unix://"))
    async with cut_wire(socket, short_folder, lambda reply: reply == SETTLED, 0) as (wire, address):
        broker = make_broker_at(address, namespace=namespace, lease=60)

        @broker.task(acks_late=acks_late, base=Base)
        async def once(name: str) -> str:
            return name

        async with running(broker):
            # A connection that was used before is made anew by itself.
            assert (await (await once.kiq("first")).wait_result(timeout=20)).return_value == "first"
            await wait_for(lambda: told == ["first"])
            wire.cuts_left = 1
            assert (await (await once.kiq("second")).wait_result(timeout=5)).return_value == "second"
            await wait_for(lambda: told == ["first", "second"], within=5)
    assert not wire.cuts_left
    assert "taken it over" not in caplog.text


async def test_what_others_may_have_settled_is_not_ours(make_broker: MakeBroker, redis: Redis) -> None:
    """A worker that could not prove that it lives takes no settlement for its own."""
    broker = make_broker(lease=60)
    started, go_on = asyncio.Event(), asyncio.Event()
    told: list[str] = []

    class Base(BoundTask):
        def on_success(self, *_: Any) -> None:
            told.append(self.id)

    @broker.task(base=Base)
    async def zombie() -> None:
        started.set()
        await go_on.wait()

    async with running(broker):
        await zombie.kiq()
        await started.wait()
        stream = broker.keys.queue("default")
        [entry] = await redis.xpending_range(stream, GROUP, "-", "+", 1)
        await redis.xack(stream, GROUP, entry["message_id"])
        await redis.xdel(stream, entry["message_id"])
        assert broker.worker is not None
        broker.worker._lease.lapses += 1
        go_on.set()
        await wait_for(lambda: not broker.attempts.running)
    assert not told


def lose_the_first_answer(monkeypatch: pytest.MonkeyPatch, broker: RedisBroker) -> None:
    settle: Any = broker._scripts.settle
    lost: list[int] = []

    async def losing(**asked: Any) -> Any:
        answer = await settle(**asked)
        if not lost:
            lost.append(1)
            raise RedisConnectionError("the answer was lost")
        return answer

    monkeypatch.setattr(broker._scripts, "settle", losing)


async def test_an_early_acknowledgement_whose_answer_was_lost_is_one(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_broker()
    runs: list[int] = []

    @broker.task(acks_late=False, autoretry_for=(ValueError,), default_retry_delay=0)
    async def early() -> int:
        runs.append(1)
        if len(runs) == 1:
            raise ValueError
        return len(runs)

    lose_the_first_answer(monkeypatch, broker)
    async with running(broker):
        assert (await (await early.kiq()).wait_result(timeout=20)).return_value == 2


async def test_a_worker_that_was_given_up_tells_no_progress(make_broker: MakeBroker, redis: Redis) -> None:
    broker = make_broker(lease=60)
    started, go_on, told = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @broker.task
    async def zombie(task: CurrentTask = injected) -> None:
        started.set()
        await go_on.wait()
        await task.update_state("PROGRESS", {"current": 1})
        told.set()

    async with running(broker):
        sent = await zombie.kiq()
        await started.wait()
        stream = broker.keys.queue("default")
        [entry] = await redis.xpending_range(stream, GROUP, "-", "+", 1)
        await redis.xclaim(stream, GROUP, "another", 0, [entry["message_id"]])
        go_on.set()
        await told.wait()
        assert await redis.get(broker.keys.record(sent.id)) is None


async def test_only_the_delivery_that_is_held_can_be_forgotten(make_broker: MakeBroker) -> None:
    """A given-up attempt may end after its message was delivered here again."""
    queues = make_broker().queues
    first, second = Delivery(b"message"), Delivery(b"message")
    for delivery in (first, second):
        delivery.stream, delivery.entry_id = "stream", b"1-1"
    queues.held[second.place] = second
    assert not queues.holds(first)
    queues.forget(first)
    assert queues.holds(second)


async def test_what_a_failed_look_at_revocations_had_taken_runs(make_broker: MakeBroker, redis: Redis) -> None:
    """The messages are here by then, and nobody was given them."""
    broker = make_broker(lease=0.6)

    @broker.task
    async def work() -> str:
        return "done"

    sent = await work.kiq()
    await redis.set(broker.keys.revoked, "no sorted set")
    async with running(broker):
        await wait_for(lambda: holders(redis, broker.keys.queue("default")))
        await redis.delete(broker.keys.revoked)
        assert (await sent.wait_result(timeout=10)).return_value == "done"


async def holders(redis: Redis, stream: str) -> list[bytes]:
    summary: Any = await redis.xpending(stream, GROUP)
    return [one["name"] for one in summary["consumers"] or ()]


async def test_a_worker_of_other_queues_hands_back_what_a_dead_one_held(make_broker: MakeBroker, redis: Redis) -> None:
    """And honours that it was told to stop: it has not crashed."""
    mail, other = make_broker(queues=["mail"], lease=60), make_broker(queues=["default"], lease=0.5)

    @mail.task(queue="mail")
    async def send() -> None: ...

    await send.kiq()
    mail.queues.worker = "dead"
    assert await mail.queues.take()
    await redis.hset(mail.keys.beats, "dead", "7")
    await redis.sadd(mail.keys.leaving, "dead")
    # A queue that somebody has deleted keeps nobody from being looked after.
    await redis.sadd(mail.keys.queues, "deleted")
    async with running(other):
        await wait_for(lambda: is_released(redis, mail.keys.queue("mail")))
    assert not await redis.exists(mail.keys.crashes, mail.keys.leaving)


async def is_released(redis: Redis, stream: str) -> bool:
    return await holders(redis, stream) == [b"released"]


async def test_a_full_memory_makes_no_loop_without_a_pause(
    make_broker_at: MakeBrokerAt, valkey: Valkey, namespace: str
) -> None:
    """A delayed message is due, and cannot be moved."""
    broker = make_broker_at(valkey.url, namespace=namespace, lease=60)

    @broker.task
    async def due() -> str:
        return "done"

    async with Redis.from_url(valkey.url) as admin, running(broker):
        sent = await due.apply_async(countdown=0.2)
        await admin.config_set("maxmemory", 1)
        before = await scripts_run(admin)
        until = asyncio.get_running_loop().time() + 1.2
        await wait_for(lambda: asyncio.get_running_loop().time() > until)
        assert await scripts_run(admin) - before < 150
        await admin.config_set("maxmemory", 0)
        assert (await sent.wait_result(timeout=20)).return_value == "done"


async def scripts_run(redis: Redis) -> int:
    statistics: Any = await redis.info("commandstats")
    return int(statistics.get("cmdstat_evalsha", {"calls": 0})["calls"])
