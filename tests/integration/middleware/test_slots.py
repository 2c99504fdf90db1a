"""The slots of a concurrency limit: whatever becomes of who has one, the next in line gets it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from celeriq import AsyncResult, RedisBroker, TaskRevokedError, WorkerLostError
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 60


class Work:
    """What runs now, and the most that ever did; all of it goes on when the test says so."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.may_end = asyncio.Event()

    async def run(self, key: str = "") -> None:
        self.now[key] += 1
        self.most[key] = max(self.most[key], self.now[key])
        try:
            await self.may_end.wait()
            # Whoever may run beside this one begins meanwhile.
            await asyncio.sleep(0.005)
        finally:
            self.now[key] -= 1


async def ended(sent: list[AsyncResult[Any]]) -> list[Any]:
    return list(await asyncio.gather(*(one.get(timeout=WAIT, propagate=False) for one in sent)))


async def in_line(broker: RedisBroker, kind: str) -> int:
    client: Any = broker._client
    return int(await client.llen(broker.keys.line(kind)))


async def nothing_is_left(broker: RedisBroker) -> bool:
    keys = [key async for key in broker._client.scan_iter(match=f"{{{broker.keys.namespace}}}:*")]
    return not [key for key in keys if any(part in key for part in (b":slots", b":running:", b":line:"))]


async def test_what_is_called_off_in_line_gives_its_slot_to_the_next(make_broker: MakeBroker) -> None:
    """It gets one when its turn comes, and ends before it asks for it."""
    broker, work = make_broker(), Work()

    @broker.task(name="work", concurrency_limit=1)
    async def one(number: int) -> int:
        await work.run()
        return number

    async with running(broker):
        sent = [await one.delay(0)]
        await wait_for(lambda: work.now[""])
        sent += [await one.delay(number) for number in (1, 2)]
        await wait_for(lambda: two_in_line(broker))
        await broker.revoke(sent[1].task_id)
        work.may_end.set()
        first, called_off, last = await ended(sent)
        assert (first, last) == (0, 2)
        assert isinstance(called_off, TaskRevokedError)
        await wait_for(lambda: nothing_is_left(broker))


async def test_a_message_that_was_deleted_in_line_gets_no_slot(make_broker: MakeBroker) -> None:
    broker, work = make_broker(), Work()

    @broker.task(name="work", concurrency_limit=1)
    async def one(number: int) -> int:
        await work.run()
        return number

    async with running(broker):
        await one.delay(0)
        await wait_for(lambda: work.now[""])
        client: Any = broker._client
        await one.delay(1)
        await wait_for(lambda: in_line(broker, "work"))
        last = await one.delay(2)
        await wait_for(lambda: two_in_line(broker))
        _, stream, entry = (await client.lindex(broker.keys.line("work"), 0)).split(b"\n")
        await client.xdel(stream, entry)
        work.may_end.set()
        assert await last.get(timeout=WAIT) == 2
        await wait_for(lambda: nothing_is_left(broker))


async def two_in_line(broker: RedisBroker) -> bool:
    return await in_line(broker, "work") == 2


async def test_a_dead_letter_gives_its_slot_to_the_next(make_broker: MakeBroker) -> None:
    dying, living = make_broker(lease=0.5), make_broker(lease=0.5, max_crashes=1)
    work = Work()

    @dying.task(name="work", concurrency_limit=1)
    async def never(number: int) -> None:
        await work.run()

    @living.task(name="work", concurrency_limit=1)
    async def one(number: int) -> int:
        return number

    async with running(dying, patience=0.1):
        sent = [await never.delay(0)]
        await wait_for(lambda: work.now[""])
        sent += [await never.delay(number) for number in (1, 2)]
        await wait_for(lambda: two_in_line(dying))
        # Nobody hears of it any more: as if it had been killed.
        assert dying.worker is not None
        await asyncio.to_thread(dying.worker._lease.stop)
        async with running(living):
            killed, *others = await ended(sent)
            assert isinstance(killed, WorkerLostError)
            assert others == [1, 2]
            await wait_for(lambda: nothing_is_left(living))


@pytest.mark.parametrize("keys", [("a", "a"), ("a", "b")])
async def test_calls_of_one_id_have_a_slot_each(make_broker: MakeBroker, keys: tuple[str, str]) -> None:
    broker, work = make_broker(), Work()

    @broker.task(name="work", concurrency_limit=1, concurrency_limit_key="{key}")
    async def one(key: str) -> None:
        await work.run(key)

    async with running(broker):
        for key in keys:
            await one.apply_async((key,), task_id="order-5")
        await wait_for(lambda: work.now[keys[0]])
        if keys[0] == keys[1]:
            await wait_for(lambda: in_line(broker, "work:a"))
        else:
            await wait_for(lambda: work.now["b"])
        work.may_end.set()
        await wait_for(lambda: nothing_is_left(broker))
        await wait_for(lambda: not work.now.total())
    assert work.most == dict.fromkeys(keys, 1)


@pytest.mark.parametrize(("before", "after", "most"), [(1, 3, 3), (3, 1, 1), (2, None, 2)])
async def test_after_a_deploy_the_new_limit_holds_for_those_in_line(
    make_broker: MakeBroker, before: int, after: int | None, most: int
) -> None:
    """Those that had a slot keep it; without a limit nobody asks for one, and all come back one after the other."""
    old, new = make_broker(), make_broker()
    first, then = Work(), Work()

    @old.task(name="work", concurrency_limit=before)
    async def until_it_stops(number: int) -> None:
        await first.run()

    @new.task(name="work", concurrency_limit=after)
    async def work(number: int) -> int:
        if number >= before:
            await then.run()
        return number

    sent = await until_it_stops.kiq_many([(number,) for number in range(before)])
    async with running(old, patience=0.1):
        await wait_for(lambda: first.now[""] == before)
        sent += await until_it_stops.kiq_many([(number,) for number in range(before, 7)])
        await wait_for(lambda: all_in_line(old, 7 - before))
    async with running(new):
        await wait_for(lambda: then.now[""] == most)
        then.may_end.set()
        assert await ended(sent) == list(range(7))
        await wait_for(lambda: nothing_is_left(new))
    assert then.most[""] == most


async def all_in_line(broker: RedisBroker, count: int) -> bool:
    return await in_line(broker, "work") == count


async def test_who_gets_a_slot_comes_before_what_is_new(make_broker: MakeBroker) -> None:
    """It has waited its turn once; behind a backlog its slot would be idle."""
    broker, work, busy = make_broker(), Work(), Work()
    began: list[str] = []

    @broker.task(name="work", concurrency_limit=1)
    async def one(name: str) -> None:
        began.append(name)
        await work.run()

    @broker.task
    async def other(name: str) -> None:
        began.append(name)
        await busy.run()

    sent = [await one.delay("first"), await one.delay("in line")]
    sent += [await other.delay(name) for name in ("busy", "new", "newer")]
    async with running(broker, slots=2):
        await wait_for(lambda: began == ["first", "busy"])
        work.may_end.set()
        await wait_for(lambda: len(began) > 2)
        busy.may_end.set()
        await ended(sent)
    assert began == ["first", "busy", "in line", "new", "newer"]
