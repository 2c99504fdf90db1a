from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from celeriq import AsyncResult, BoundTask, RedisBroker, TaskDefinitionError
from celeriq.attempt import Attempt
from celeriq.middleware import ConcurrencyLimits, RateLimits, standard
from celeriq.middleware.rate_limits import LATE, per_second
from celeriq.redis.keys import GROUP
from celeriq.redis.queues import release_keys
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 60


def most_within(moments: list[float], seconds: float) -> int:
    return max(sum(begin <= moment < begin + seconds for moment in moments) for begin in moments)


async def finished(sent: list[AsyncResult[Any]]) -> list[Any]:
    return await asyncio.gather(*(one.get(timeout=WAIT) for one in sent))


async def test_tasks_start_no_faster_than_their_rate(make_broker: MakeBroker) -> None:
    """LIM-06: evenly spaced, in two workers together; other tasks pass those that wait."""
    one, two = make_broker(), make_broker()
    starts: list[float] = []
    passed: list[float] = []

    for broker in (one, two):

        @broker.task(name="slow", rate_limit="50/s")
        async def slow(number: int) -> int:
            starts.append(time.monotonic())
            return number

        @broker.task(name="fast")
        async def fast() -> None:
            passed.append(time.monotonic())

    sent = await slow.kiq_many([(number,) for number in range(60)])
    async with running(one, slots=5), running(two, slots=5):
        await (await fast.delay()).get(timeout=WAIT)
        assert await finished(sent) == list(range(60))
    assert passed[0] < max(starts)
    allowed = 50 * (0.5 + LATE) + 2
    assert most_within(starts, 0.5) <= allowed
    assert max(starts) - min(starts) >= 59 / 50 - 2 * LATE


async def test_a_rate_is_shared_by_calls_of_one_key(make_broker: MakeBroker) -> None:
    broker = make_broker()
    starts: dict[str, list[float]] = {"a": [], "b": []}

    @broker.task(rate_limit=20, rate_limit_key="{customer}")
    async def mail(number: int, customer: str = "a") -> None:
        starts[customer].append(time.monotonic())

    calls: list[Any] = [(number, customer) for number in range(8) for customer in ("a", "b")]
    async with running(broker):
        await finished(await mail.kiq_many(calls))
    for moments in starts.values():
        assert max(moments) - min(moments) >= 7 / 20 - 2 * LATE
    assert min(starts["b"]) < max(starts["a"])


async def test_a_retry_needs_a_moment_of_its_own(make_broker: MakeBroker) -> None:
    broker = make_broker()
    starts: list[float] = []

    @broker.task(rate_limit="4/s", bind=True, max_retries=3)
    async def flaky(self: BoundTask) -> None:
        starts.append(time.monotonic())
        if self.request.retries < 3:
            raise self.retry(countdown=0)

    async with running(broker):
        await (await flaky.delay()).get(timeout=WAIT)
    assert max(starts) - min(starts) >= 3 / 4 - 3 * LATE


async def test_who_comes_late_to_its_moment_starts_as_soon_as_the_rate_allows(make_broker: MakeBroker) -> None:
    """However many moments others have reserved behind it: else a backlog would keep all of them from starting."""
    broker, every = make_broker(), 1.0
    assert await broker.reserve("late", every, None, LATE) is None
    moments = [await broker.reserve("late", every, None, LATE) for _ in range(20)]

    async def starts() -> bool:
        return await broker.reserve("late", every, moments[0], LATE) is None

    await wait_for(starts, within=10)
    assert not await starts(), "one moment, two starts"


async def test_a_rate_forgets_no_crash(make_broker: MakeBroker) -> None:
    """A suspect waits where it is: a poisonous message that was sent again would kill for ever."""
    broker = make_broker()
    crashes: list[int] = []

    @broker.task(name="suspect", rate_limit=2)
    async def suspect() -> None:
        crashes.append(Attempt.current().delivery.crashes)

    sent = [await suspect.delay() for _ in range(2)]
    stream = broker.keys.queue("default")
    await broker.queues.declare()
    await broker._client.xreadgroup(GROUP, "dead", {stream: ">"}, count=2)
    await broker._client.hset(broker.keys.beats, "dead", "7")
    await broker._scripts.release(keys=[*release_keys(broker.keys), stream], args=[GROUP, "dead", "7"])
    async with running(broker):
        await finished(sent)
    assert crashes == [1, 1]


async def test_no_more_run_at_a_time_than_the_limit_of_their_key(make_broker: MakeBroker) -> None:
    """In two workers together; none of their slots is held by those that wait, and nothing is left at the end."""
    one, two = make_broker(), make_broker()
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    passed = asyncio.Event()

    for broker in (one, two):

        @broker.task(name="work", concurrency_limit=3, concurrency_limit_key=lambda number: number % 2, bind=True)
        async def work(self: BoundTask, number: int) -> int:
            key = str(number % 2)
            now[key] += 1
            most[key] = max(most[key], now[key])
            await passed.wait()
            await asyncio.sleep(0.005)
            now[key] -= 1
            if number == 5 and not self.request.retries:
                raise self.retry(countdown=0)
            if number == 7:
                raise KeyError(number)
            return number

        @broker.task(name="other")
        async def other() -> int:
            passed.set()
            return 1

    sent = await work.kiq_many([(number,) for number in range(40)])
    async with running(one, slots=5), running(two, slots=5):
        assert await (await other.delay()).get(timeout=WAIT) == 1
        values = [await one.get(timeout=WAIT, propagate=False) for one in sent]
    assert [value for value in values if isinstance(value, int)] == [n for n in range(40) if n != 7]
    assert most == {"0": 3, "1": 3}
    await nothing_is_left(one)


async def nothing_is_left(broker: RedisBroker) -> None:
    kinds = [key async for key in broker._client.scan_iter(match=f"{{{broker.keys.namespace}}}:*")]
    assert not [key for key in kinds if b":slots" in key or b":running:" in key or b":line:" in key]


async def test_who_waits_in_line_runs_when_the_worker_of_another_dies(make_broker: MakeBroker) -> None:
    """Its message runs elsewhere and keeps its slot; what waits comes after it."""
    lease = 0.5
    dying, living = make_broker(lease=lease), make_broker(lease=lease)
    ran: list[int] = []
    go_on = asyncio.Event()

    @dying.task(name="work", concurrency_limit=1)
    async def never(number: int) -> None:
        await asyncio.Event().wait()

    @living.task(name="work", concurrency_limit=1)
    async def work(number: int) -> int:
        ran.append(number)
        await go_on.wait()
        return number

    sent = await work.kiq_many([(number,) for number in range(3)])
    async with running(dying):
        await wait_for(lambda: dying._client.llen(dying.keys.line("work")))
        # Nobody hears of it any more: as if it had been killed.
        assert dying.worker is not None
        await asyncio.to_thread(dying.worker._lease.stop)
        async with running(living):
            await wait_for(lambda: ran)
            assert len(ran) == 1
            go_on.set()
            assert await finished(sent) == [0, 1, 2]
            await wait_for(lambda: nobody_has_a_slot(living))
    assert sorted(ran) == [0, 1, 2]


async def nobody_has_a_slot(broker: RedisBroker) -> bool:
    return not await broker._client.exists(broker.keys.slots)


async def test_rate_and_concurrency_together(make_broker: MakeBroker) -> None:
    broker = make_broker()
    starts: list[float] = []
    now, most = 0, 0

    @broker.task(rate_limit=100, concurrency_limit=4)
    async def work(number: int) -> int:
        nonlocal now, most
        starts.append(time.monotonic())
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return number

    sent = await work.kiq_many([(number,) for number in range(60)])
    async with running(broker, slots=50):
        assert await finished(sent) == list(range(60))
    assert most <= 4
    assert most_within(starts, 0.2) <= 100 * (0.2 + LATE) + 2
    await nothing_is_left(broker)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("10/s", 10.0), ("30/m", 0.5), ("36/h", 0.01), (5, 5.0), (0.5, 0.5), ("7", 7.0), (0, 0.0)],
)
def test_a_rate_is_written_as_in_celery(given: Any, expected: float) -> None:
    assert per_second(given) == expected


async def nothing(number: int) -> None: ...


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rate_limit": "10/d"}, "rate_limit is '10/d'; it must be a number per second, or text"),
        ({"rate_limit": -1}, "rate_limit is -1"),
        ({"rate_limit_key": "{number}"}, "rate_limit_key without rate_limit does nothing"),
        ({"rate_limit": 1, "rate_limit_key": "{numbr}"}, "'numbr' is no argument; known are number"),
        ({"rate_limit": 1, "rate_limit_key": 5}, "rate_limit_key is 5; it must be a text"),
        ({"concurrency_limit": 0}, "concurrency_limit is 0; it must be a number, 1 or more"),
        ({"concurrency_limit_key": "{number}"}, "concurrency_limit_key without concurrency_limit does"),
        ({"concurrency_limit": 1, "acks_late": False}, "with acks_late=False nobody knows when it has ended"),
    ],
)
def test_limits_that_make_no_sense_are_refused_at_import(options: dict[str, Any], says: str) -> None:
    declare: Any = RedisBroker("redis://localhost:1").task
    with pytest.raises(TaskDefinitionError, match=f"task 'mail.send': .*{says}"):
        declare(name="mail.send", **options)(nothing)


@pytest.mark.parametrize(("left", "option"), [(RateLimits, "rate_limit"), (ConcurrencyLimits, "concurrency_limit")])
async def test_without_the_middleware_there_is_no_limit(left: type[Any], option: str) -> None:
    broker = RedisBroker("redis://localhost:1", middlewares=[one for one in standard() if not isinstance(one, left)])
    given: Any = {option: 1}
    with pytest.raises(TaskDefinitionError, match=f"unknown option '{option}'; {left.__name__} reads it"):
        broker.task(**given)
