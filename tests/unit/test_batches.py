"""Concurrent callers share round trips; a lone one waits for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from celeriq.redis.batches import Batches
from tests.waiting import wait_for


class Wire:
    """Answers each item with itself; a flush waits until it is let go."""

    def __init__(self) -> None:
        self.flushed: list[list[int]] = []
        self.open = asyncio.Event()

    async def flush(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.flushed.append(list(items))
        await self.open.wait()
        return [ValueError(item) if item < 0 else item for item in items]


async def on_its_way(wire: Wire, batches: Batches[int, int]) -> asyncio.Task[int]:
    """A 0 whose flush has begun."""
    first = asyncio.create_task(batches.put(0))
    await wait_for(lambda: bool(wire.flushed))
    return first


async def test_a_lone_item_is_flushed_in_its_callers_own_task() -> None:
    wire = Wire()
    wire.open.set()
    assert await Batches(wire.flush).put(1) == 1
    assert wire.flushed == [[1]]
    assert len(asyncio.all_tasks()) == 1


async def test_what_comes_in_one_turn_of_the_loop_shares_a_flush_in_its_order() -> None:
    wire = Wire()
    wire.open.set()
    batches = Batches(wire.flush)
    assert await asyncio.gather(*(batches.put(number) for number in range(4))) == list(range(4))
    assert wire.flushed == [[0, 1, 2, 3]]


async def test_what_comes_while_a_flush_is_on_its_way_makes_up_the_next() -> None:
    wire = Wire()
    batches = Batches(wire.flush, most=3)
    first = await on_its_way(wire, batches)
    callers = [asyncio.create_task(batches.put(number)) for number in range(1, 6)]
    await asyncio.sleep(0)
    assert wire.flushed == [[0]]
    wire.open.set()
    assert await asyncio.gather(first, *callers) == list(range(6))
    assert wire.flushed == [[0], [1, 2, 3], [4, 5]]


async def test_each_caller_gets_its_own_error() -> None:
    wire = Wire()
    wire.open.set()
    answers = await Batches(wire.flush).put_all([1, -2, 3])
    assert (answers[0], repr(answers[1]), answers[2]) == (1, "ValueError(-2)", 3)
    with pytest.raises(ValueError, match="-5"):
        await Batches(wire.flush).put(-5)


async def test_a_caller_that_was_cancelled_while_it_waited_is_left_out() -> None:
    wire = Wire()
    batches = Batches(wire.flush)
    first = await on_its_way(wire, batches)
    callers = [asyncio.create_task(batches.put(number)) for number in (1, 2)]
    await asyncio.sleep(0)
    callers[0].cancel()
    wire.open.set()
    assert [await first, await callers[1]] == [0, 2]
    assert wire.flushed == [[0], [2]]


async def test_the_first_of_a_batch_may_be_cancelled_alone() -> None:
    wire = Wire()
    wire.open.set()
    batches = Batches(wire.flush)
    callers = [asyncio.create_task(batches.put(number)) for number in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    assert await asyncio.gather(*callers[1:]) == [1, 2]
    assert wire.flushed == [[1, 2]]


async def test_a_lone_caller_that_is_cancelled_leaves_the_way_free() -> None:
    wire = Wire()
    batches = Batches(wire.flush)
    first = await on_its_way(wire, batches)
    following = asyncio.create_task(batches.put(1))
    await asyncio.sleep(0)
    first.cancel()
    wire.open.set()
    assert await following == 1
    assert await batches.put(7) == 7


async def test_a_flush_that_raises_fails_all_that_were_in_it_and_no_others() -> None:
    async def flush(items: Sequence[int]) -> Sequence[int | Exception]:
        if 1 in items:
            raise RuntimeError("broken")
        return list(items)

    batches = Batches(flush)
    answers = await batches.put_all([1, 2])
    assert [repr(answer) for answer in answers] == 2 * ["RuntimeError('broken')"]
    assert await batches.put(3) == 3
