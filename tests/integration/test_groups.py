"""Groups: calls beside each other, and what their results tell."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from celeriq import (
    AsyncResult,
    BoundTask,
    GroupResult,
    RedisBroker,
    ResultTimeoutError,
    SendError,
    TaskRevokedError,
    chain,
    group,
    result_from_tuple,
)
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running


class Tasks:
    def __init__(self, broker: RedisBroker) -> None:
        self.gate = asyncio.Event()
        self.noted: list[Any] = []

        @broker.task(name="add")
        async def add(x: Any, y: Any = 0) -> Any:
            return x + y

        @broker.task(name="fail")
        async def fail(text: Any) -> None:
            raise ValueError(text)

        @broker.task(name="gated")
        async def gated(value: Any) -> Any:
            await self.gate.wait()
            return value

        @broker.task(name="note")
        async def note(*what: Any) -> None:
            self.noted.append(what)

        self.add, self.fail, self.gated, self.note = add, fail, gated, note


@pytest.fixture
def broker(make_broker: MakeBroker) -> RedisBroker:
    return make_broker()


@pytest.fixture
def tasks(broker: RedisBroker) -> Tasks:
    return Tasks(broker)


async def test_values_come_in_the_order_of_the_calls(broker: RedisBroker, tasks: Tasks) -> None:
    """CAN-05, RES-12."""
    async with running(broker):
        sent = await group(tasks.gated.s("slow"), tasks.add.s("fa", "st")).apply_async()
        assert len(sent) == 2
        assert await sent[1].get(20) == "fast"
        assert await sent.waiting()
        tasks.gate.set()
        assert await sent.get(20) == await sent.join(20) == ["slow", "fast"]
        assert [await sent.ready(), await sent.successful(), await sent.failed()] == [True, True, False]


async def test_each_call_gets_what_the_group_gets(broker: RedisBroker, tasks: Tasks) -> None:
    """CAN-05."""
    async with running(broker):
        sent = await group(tasks.add.s(y) for y in ("b", "c")).delay("a")
        assert await sent.get(20) == ["ab", "ac"]


async def test_groups_in_a_group_are_one_and_those_at_the_end_of_a_chain_stay(
    broker: RedisBroker, tasks: Tasks
) -> None:
    """CAN-06."""
    async with running(broker):
        flat = await group(tasks.add.s(1), group(tasks.add.s(2), group(tasks.add.s(3)))).delay()
        nested = await group(tasks.add.s(1), chain(tasks.add.s(2), group(tasks.add.s(10), tasks.add.s(20)))).delay()
        assert await flat.get(20) == [1, 2, 3]
        assert await nested.get(20) == [1, [12, 22]]


async def test_a_group_behind_a_task_gets_its_value(broker: RedisBroker, tasks: Tasks) -> None:
    """CAN-09, CAN-08: of one call it is that call."""
    async with running(broker):
        last = await (tasks.add.s(1) | group(tasks.add.s(10), tasks.add.s(20))).delay()
        assert await last.get(20) == [11, 21]
        assert await last.parent.get(20) == 1
        assert await (await (tasks.add.s(1) | group(tasks.add.s(10)) | tasks.add.s(5)).delay()).get(20) == 16


async def test_a_group_behind_a_step_that_fails_fails_with_it(broker: RedisBroker, tasks: Tasks) -> None:
    """CERR-07."""
    async with running(broker):
        last = await (tasks.fail.s("no") | group(tasks.note.s(), tasks.note.s()) | tasks.note.s()).delay()
        with pytest.raises(ValueError, match="no"):
            await last.get(20)
        assert await last.state() == "FAILURE"
        assert [await each.state() for each in last.parent] == 2 * ["FAILURE"]
    assert tasks.noted == []


async def test_the_first_failure_is_told_before_the_others_end(broker: RedisBroker, tasks: Tasks) -> None:
    """RES-12, RES-11: what has failed is not completed."""
    async with running(broker):
        sent = await group(tasks.gated.s(1), tasks.fail.s("early"), tasks.add.s(3)).delay()
        with pytest.raises(ValueError, match="early"):
            await sent.get(20)
        assert not await sent.ready()
        assert await sent.failed()
        tasks.gate.set()
        values = await sent.get(20, propagate=False)
        assert [values[0], repr(values[1]), values[2]] == [1, "ValueError('early')", 3]
        assert await sent.completed_count() == 2
        assert not await sent.successful()


async def test_one_timeout_is_for_all_and_0_looks_once(broker: RedisBroker, tasks: Tasks) -> None:
    """RES-13."""
    async with running(broker):
        sent = await group(tasks.gated.s(1), tasks.gated.s(2)).delay()
        for seconds in (0.1, 0):
            with pytest.raises(ResultTimeoutError, match="has not ended"):
                await sent.get(seconds)
        tasks.gate.set()
        await wait_for(sent.ready)
        assert await sent.get(0) == [1, 2]


async def test_a_timeout_that_a_member_raised_is_its_own(broker: RedisBroker, tasks: Tasks) -> None:
    @broker.task
    async def late() -> None:
        raise TimeoutError("of its own")

    async with running(broker):
        with pytest.raises(TimeoutError, match="of its own"):
            await (await group(late.s(), tasks.add.s(1)).delay()).get(20)


async def test_a_group_of_nothing_has_no_values(tasks: Tasks) -> None:
    """CAN-05."""
    sent = await group().apply_async()
    assert sent
    assert await sent.get() == []


async def test_options_are_each_ones_and_links_are_refused(broker: RedisBroker, tasks: Tasks) -> None:
    """CAN-05, CAN-24."""
    calls = group(tasks.add.s(1), tasks.add.s(2))
    for option in ("link", "link_error"):
        given: Any = {option: tasks.note.s()}
        with pytest.raises(TypeError, match=f"a group takes no {option}"):
            await calls.apply_async(**given)
    sent = await calls.apply_async(queue="elsewhere", task_id="own", countdown=3600)
    assert sent.id == "own"
    assert await broker._client.zcard(broker.keys.delayed("elsewhere")) == 2


async def test_an_error_callback_is_told_of_each_that_fails(broker: RedisBroker, tasks: Tasks) -> None:
    """CERR-14."""
    async with running(broker):
        sent = await group(tasks.fail.s(1), tasks.add.s(2), tasks.fail.s(3)).on_error(tasks.note.si("told")).delay()
        await sent.get(20, propagate=False)
        await wait_for(lambda: len(tasks.noted) == 2)


async def test_what_is_to_be_told_of_a_chain_is_told_of_the_calls_of_its_group(
    broker: RedisBroker, tasks: Tasks
) -> None:
    async with running(broker):
        sent = await chain(tasks.add.s(1), group(tasks.fail.s(), tasks.fail.s())).apply_async(
            link_error=tasks.note.si("told")
        )
        await sent.get(20, propagate=False)
        await wait_for(lambda: len(tasks.noted) == 2)


async def test_what_was_not_sent_is_told_by_its_position(broker: RedisBroker, tasks: Tasks) -> None:
    too_large = tasks.add.s("x" * broker.max_payload)
    with pytest.raises(SendError, match="2 of 2 calls of 'add' were not sent") as raised:
        await group(tasks.add.s(1), too_large).delay()
    assert raised.value.unsent == (0, 1)


async def test_a_member_knows_its_group(broker: RedisBroker) -> None:
    """EXE-14."""

    @broker.task(bind=True)
    async def place(self: BoundTask) -> list[Any]:
        return [self.request.group, self.request.group_index, self.request.chord, self.request.root_id]

    async with running(broker):
        sent = await group(place.s(), place.s()).delay()
        assert await sent.get(20) == [[sent.id, index, None, each.id] for index, each in enumerate(sent)]


async def test_a_saved_group_is_found_again_until_it_is_deleted(broker: RedisBroker, tasks: Tasks) -> None:
    """RES-14, RES-09."""
    async with running(broker):
        sent = await (tasks.add.s(1) | group(tasks.add.s(10), tasks.add.s(20))).delay()
        assert await GroupResult.restore(sent.id, broker) is None
        await sent.save()
        assert 0 < await broker._client.ttl(broker.keys.group(sent.id)) <= 86_400
        found = await GroupResult.restore(sent.id, broker)
        assert found is not None
        assert found.as_tuple() == sent.as_tuple()
        assert await found.get(20) == [11, 21]
        assert await result_from_tuple(sent.as_tuple(), broker).get(20) == [11, 21]
        await found.delete()
        assert await GroupResult.restore(sent.id, broker) is None


async def test_a_group_is_called_off_and_forgotten_as_a_whole(broker: RedisBroker, tasks: Tasks) -> None:
    """LIM-15, ST-21."""
    sent = await group(chain(tasks.add.s(1), tasks.add.s(2)), tasks.add.s(3)).apply_async(countdown=3600)
    await sent.revoke()
    assert [await each.state() for each in sent] == 2 * ["REVOKED"]  # type: ignore[union-attr]
    with pytest.raises(TaskRevokedError):
        await sent.get(20)
    await sent.forget()
    assert [await AsyncResult(each.id, broker=broker).exists() for each in sent] == [False, False]


async def test_what_came_of_a_task_is_collected(broker: RedisBroker, tasks: Tasks) -> None:
    """RES-08."""

    @broker.task
    async def branch(depth: int) -> int:
        if depth:
            await group(branch.s(depth - 1), branch.s(0)).delay()
        return depth

    async with running(broker):
        sent = await branch.delay(2)
        assert [value async for _, value in sent.collect()] == [2, 1, 0, 0, 0]


async def test_no_task_waits_for_a_group(broker: RedisBroker, tasks: Tasks) -> None:
    """RES-04."""

    @broker.task
    async def waits() -> None:
        await (await group(tasks.add.s(1)).delay()).get()

    async with running(broker):
        with pytest.raises(RuntimeError, match="Never call"):
            await (await waits.delay()).get(20)
