"""Several queues, priorities, routes, pause; and an idle worker that wakes in time."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from celeriq import RedisBroker, Route, UnsupportedOptionError
from celeriq.redis.queues import WITHOUT_ROOM
from tests.conftest import Figure
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running


def noting(broker: RedisBroker, runs: list[Any], **options: Any) -> Any:
    async def note(what: Any) -> None:
        runs.append(what)

    declare: Any = broker.task
    return declare(name="note", **options)(note)


async def test_the_highest_priority_runs_first_whatever_came_first(make_broker: MakeBroker) -> None:
    """0 is the highest; what is in one step runs in the order of sending (RT-06, ACK-14)."""
    broker, runs = make_broker(), list[Any]()
    note = noting(broker, runs)
    for priority in (9, 5, 0, 4, 7, 1):
        await note.apply_async((priority,), priority=priority)
    async with running(broker, slots=1):
        await wait_for(lambda: len(runs) == 6)
    assert runs == [0, 1, 5, 4, 7, 9]


async def test_a_retry_and_a_delay_keep_their_priority(make_broker: MakeBroker) -> None:
    """RT-07."""
    broker, runs = make_broker(), list[str]()

    @broker.task(name="flaky", priority=9, autoretry_for=(ValueError,), default_retry_delay=0)
    async def flaky(what: str) -> None:
        runs.append(what)
        if runs.count(what) == 1:
            raise ValueError

    await flaky.kiq("retried")
    async with running(broker, slots=1):
        await wait_for(lambda: runs == ["retried", "retried"])
        await broker.pause("default")
        await flaky.apply_async(("delayed",), countdown=0.05)
        await flaky.apply_async(("urgent",), priority=0, countdown=0.1)
        await broker.resume("default")
        await wait_for(lambda: runs.count("delayed") == runs.count("urgent") == 2)


async def test_no_queue_waits_for_another_of_the_same_priority(make_broker: MakeBroker) -> None:
    broker, runs = make_broker(queues=["a", "b", "c"]), list[str]()
    note = noting(broker, runs)
    for queue in "abc":
        for _ in range(20):
            await note.apply_async((queue,), queue=queue)
    async with running(broker, slots=1):
        await wait_for(lambda: len(runs) == 60)
    assert all(runs[:30].count(queue) >= 8 for queue in "abc")


async def test_a_worker_reads_the_queues_it_is_told_to_and_no_others(make_broker: MakeBroker) -> None:
    """RT-05."""
    mail, everything, runs = make_broker(queues=["mail"]), make_broker(), list[str]()
    note = noting(mail, runs, queue="mail")
    noting(everything, runs, queue="mail")
    await note.kicker().with_labels(queue="other").kiq("other")
    await note.kiq("mail")
    async with running(mail):
        await wait_for(lambda: runs == ["mail"])
    async with running(everything):
        assert everything._reads() == {"default", "mail"}
    assert runs == ["mail"]


async def test_call_task_route_and_default_decide_in_this_order(make_broker: MakeBroker) -> None:
    """RT-02: each for queue and priority by itself."""
    broker = make_broker(routes={"*": Route(queue="routed", priority=6)}, default_queue="fallback")
    plain, own = noting(broker, []), broker.task(name="own", queue="own")(lambda _: None)
    await plain.kiq(1)
    await own.kiq(1)
    await own.apply_async((1,), queue="called", priority=9)
    depths = {
        (queue, step): await broker._client.xlen(broker.keys.queue(queue, step))
        for queue in ("fallback", "routed", "own", "called")
        for step in (0, 6, 9)
    }
    assert {place for place, depth in depths.items() if depth} == {("routed", 6), ("own", 6), ("called", 9)}
    assert broker._reads() == {"fallback", "routed", "own"}
    await broker.shutdown()


async def test_a_paused_queue_keeps_its_messages_until_it_is_resumed(make_broker: MakeBroker) -> None:
    broker, runs = make_broker(queues=["a", "b"]), list[str]()
    note = noting(broker, runs)
    await broker.pause("a")
    assert await broker.paused() == {"a"}
    async with running(broker):
        await note.apply_async(("a",), queue="a")
        await note.apply_async(("delayed",), queue="a", countdown=0.01)
        await note.apply_async(("b",), queue="b")
        await wait_for(lambda: runs == ["b"])
        await note.apply_async(("b",), queue="b")
        await wait_for(lambda: runs == ["b", "b"])
        await broker.resume("a")
        await wait_for(lambda: sorted(runs) == ["a", "b", "b", "delayed"])
    assert await broker.paused() == set()


async def test_an_idle_worker_notices_at_once_what_no_read_tells_it(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue resumed, a message handed back, a delay shorter than its sleep: it is woken."""
    monkeypatch.setattr("celeriq.redis.queues.LONGEST", 3600.0)
    monkeypatch.setattr("celeriq.redis.sleep.LONGEST", 3600.0)
    broker, other, runs = make_broker(lease=60), make_broker(lease=60), list[str]()
    note = noting(broker, runs)
    noting(other, runs)
    await take_one(other, note)
    async with running(broker):
        await note.kiq("first")
        await wait_for(lambda: runs == ["first"])
        await note.apply_async(("delayed",), countdown=0.05)
        await wait_for(lambda: runs[1:] == ["delayed"])
        await broker.pause("default")
        await note.kiq("paused")
        await broker.resume("default")
        await wait_for(lambda: runs[2:] == ["paused"])
        await other.queues.hand_back_all()
        await wait_for(lambda: runs[3:] == ["handed back"])
    await other.shutdown()


async def take_one(other: RedisBroker, note: Any) -> None:
    await note.kiq("handed back")
    other.queues.worker = "other"
    # Others know it by its beat.
    await other._client.hset(other.keys.beats, "other", "1")
    assert await other.queues.take()


async def test_a_worker_that_was_told_its_slots_fills_them_at_once(make_broker: MakeBroker) -> None:
    broker = make_broker(concurrency=5)

    @broker.task
    async def nothing(number: int) -> None: ...

    await nothing.kiq_many([(number,) for number in range(7)])
    broker.queues.worker = "worker"
    assert len(await broker.queues.take()) == 5
    assert len(await broker.queues.take()) == 1, "whoever asks has a slot"
    await broker.queues.hand_back_all()


@pytest.mark.parametrize(("next_due", "slept"), [(0.005, 0.005), (0.0, WITHOUT_ROOM)])
async def test_a_worker_sleeps_until_the_next_message_is_due(
    next_due: float, slept: float, make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However soon that is; only one that is due and stays, as memory is full, is given a moment."""
    broker = make_broker()
    asked: list[float] = []

    async def fetch(*_: Any) -> tuple[float, list[str], list[Any], int]:
        return next_due, [], [], 0

    async def read(_group: str, _worker: str, _streams: list[str], seconds: float) -> None:
        asked.append(seconds)

    monkeypatch.setattr(broker.queues, "_fetch", fetch)
    monkeypatch.setattr(broker.queues._sleep, "read", read)
    assert await broker.queues.take() == []
    assert asked == [slept]


def test_a_worker_has_at_least_one_slot() -> None:
    with pytest.raises(UnsupportedOptionError, match="concurrency is 0; it must be 1 or more"):
        RedisBroker("redis://localhost", concurrency=0)


DELAYED = 1000


@pytest.mark.proof(of="engine")
async def test_delayed_messages_are_precise(make_broker: MakeBroker, figure: Figure, receiver: str) -> None:
    """Sent to random milliseconds within four seconds; the lateness is printed, never asserted."""
    broker, late = make_broker(), list[float]()
    loop = asyncio.get_running_loop()

    @broker.task
    async def measure(due: float) -> None:
        late.append(loop.time() - due)

    async with running(broker):
        for _ in range(DELAYED):
            delay = random.uniform(1.0, 5.0)
            await measure.apply_async((loop.time() + delay,), countdown=delay)
        await wait_for(lambda: len(late) == DELAYED)
    late.sort()
    p50, p99 = late[DELAYED // 2], late[DELAYED * 99 // 100]
    lateness = f"lateness p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"
    figure(f"Delayed messages, {receiver}'s receiver: {DELAYED} messages, {lateness}")
    assert late[0] > -0.002
