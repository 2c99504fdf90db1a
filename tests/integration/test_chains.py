"""What follows a task: links, and chains of steps."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest
from taskiq import Context, TaskiqDepends

from celeriq import BoundTask, RedisBroker, chain, injected
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running


class Tasks:
    def __init__(self, broker: RedisBroker) -> None:
        self.noted: list[Any] = []

        @broker.task(name="add")
        async def add(x: int, y: int) -> int:
            return x + y

        @broker.task(name="fail")
        async def fail(x: int) -> int:
            raise ValueError(f"not {x}")

        @broker.task(name="note")
        async def note(*what: Any) -> None:
            self.noted.append(what)

        self.add, self.fail, self.note = add, fail, note


@pytest.fixture
def broker(make_broker: MakeBroker) -> RedisBroker:
    return make_broker()


@pytest.fixture
def tasks(broker: RedisBroker) -> Tasks:
    return Tasks(broker)


async def value(sent: Any) -> Any:
    return (await sent.wait_result(timeout=20)).return_value


async def state(broker: RedisBroker, sent: Any) -> str | None:
    found: Any = await broker.result_backend.find(sent.id)  # type: ignore[attr-defined]
    return found.status if found else None


async def test_each_step_gets_the_result_of_the_one_before(broker: RedisBroker, tasks: Tasks) -> None:
    """CAN-02, CAN-03."""
    async with running(broker):
        last = await (tasks.add.s(1, 2) | tasks.add.s(4) | tasks.add.s(y=8)).apply_async()
        assert await value(last) == 15
        assert last is not None
        assert await value(last.parent) == 7
        assert last.parent is not None
        assert await value(last.parent.parent) == 3


async def test_an_immutable_step_takes_nothing(broker: RedisBroker, tasks: Tasks) -> None:
    async with running(broker):
        assert await value(await chain(tasks.add.s(1, 2), tasks.add.si(10, 20)).delay()) == 30


async def test_arguments_at_the_call_come_first(broker: RedisBroker, tasks: Tasks) -> None:
    """CAN-02, CAN-04: those of a chain are its first step's."""
    async with running(broker):
        assert await value(await tasks.add.s(2).delay(40)) == 42
        assert await value(await (tasks.add.s(2) | tasks.add.s(1)).delay(40)) == 43


async def test_a_chain_of_nothing_is_nothing() -> None:
    """CAN-03."""
    assert await chain().apply_async() is None


async def test_chains_join(broker: RedisBroker, tasks: Tasks) -> None:
    async with running(broker):
        first, second = tasks.add.s(1, 1) | tasks.add.s(1), chain(tasks.add.s(1), tasks.add.s(1))
        assert len((first | second).steps) == len(chain(first, second).steps) == 4
        assert await value(await (first | second).delay()) == 5


async def test_all_later_steps_of_a_failed_one_fail_with_it(broker: RedisBroker, tasks: Tasks) -> None:
    """CERR-07: none of them is sent."""
    async with running(broker):
        last = await (tasks.add.s(1, 2) | tasks.fail.s() | tasks.note.s() | tasks.note.s()).apply_async()
        assert last is not None
        result = await last.wait_result(timeout=20)
        assert repr(result.error) == "ValueError('not 3')"
        assert [await state(broker, step) for step in (last, last.parent, last.parent.parent)] == 3 * ["FAILURE"]
        assert await value(last.parent.parent.parent) == 3
    assert tasks.noted == []


async def test_a_link_is_sent_with_the_result_on_success_alone(broker: RedisBroker, tasks: Tasks) -> None:
    """CALL-16; but here the parent's result is there before anything of the link's runs."""
    async with running(broker):
        await tasks.add.apply_async((1, 2), link=[tasks.note.s("linked"), tasks.note.si("alone")])
        await wait_for(lambda: len(tasks.noted) == 2)
        assert sorted(tasks.noted, key=repr) == [("alone",), (3, "linked")]
        await (await tasks.fail.apply_async((1,), link=tasks.note.s("never"))).wait_result(timeout=20)
        assert len(tasks.noted) == 2


async def test_a_link_of_a_chain_follows_its_last_step(broker: RedisBroker, tasks: Tasks) -> None:
    """CAN-04."""
    async with running(broker):
        await (tasks.add.s(1, 2) | tasks.add.s(4)).apply_async(link=tasks.note.s())
        await wait_for(lambda: tasks.noted)
        assert tasks.noted == [(7,)]


async def test_what_is_said_of_a_chain_replaces_nothing_that_its_steps_say(broker: RedisBroker, tasks: Tasks) -> None:
    """CAN-04: the id is the last one's, and callbacks are added to those of the steps."""
    async with running(broker):
        steps = tasks.add.s(1, 2) | tasks.add.s(4).set(link=tasks.note.s("own"))
        last = await steps.apply_async(task_id="chosen", link=[tasks.note.s("more"), tasks.note.s("most")])
        assert last.id == "chosen"
        assert last.parent.id != "chosen"
        await wait_for(lambda: len(tasks.noted) == 3)
        assert sorted(tasks.noted) == [(7, "more"), (7, "most"), (7, "own")]
        tasks.noted.clear()
        failing = tasks.fail.s(1).on_error(tasks.note.si("own")) | tasks.add.s(1)
        failed = await failing.apply_async(link_error=tasks.note.si("more"))
        await wait_for(lambda: len(tasks.noted) == 2)
        assert (sorted(tasks.noted), await state(broker, failed)) == ([("more",), ("own",)], "FAILURE")


async def test_a_link_may_be_a_chain(broker: RedisBroker, tasks: Tasks) -> None:
    async with running(broker):
        await tasks.add.apply_async((1, 2), link=tasks.add.s(10) | tasks.note.s("last"))
        await wait_for(lambda: tasks.noted == [(13, "last")])


async def test_a_requeued_step_keeps_what_follows(broker: RedisBroker, tasks: Tasks) -> None:
    """Taskiq writes the message anew, and knows nothing of chains."""
    runs: list[int] = []

    @broker.task(name="again")
    async def again(context: Annotated[Context, TaskiqDepends()] = injected) -> int:
        runs.append(1)
        if len(runs) == 1:
            await context.requeue()
        return 1

    async with running(broker):
        assert await value(await (again.s() | tasks.add.s(1)).apply_async(link=tasks.note.s())) == 2
        await wait_for(lambda: tasks.noted == [(2,)])
    assert len(runs) == 2


async def test_a_requeued_call_is_the_same_call(broker: RedisBroker, tasks: Tasks) -> None:
    """With all that it was sent with, but for the moment."""
    seen: list[tuple[Any, ...]] = []

    @broker.task(name="again", bind=True)
    async def again(self: BoundTask, given: int, context: Annotated[Context, TaskiqDepends()] = injected) -> int:
        request = self.request
        timelimit, root, parent = request.timelimit, request.root_id, request.parent_id
        seen.append((given, request.headers, request.shadow, request.expires, timelimit, root, parent))
        if len(seen) == 1:
            await context.requeue()
        raise ValueError(given)

    async with running(broker):
        said: Any = {"headers": {"mine": 1}, "shadow": "other", "expires": 600, "time_limit": 50, "countdown": 0.05}
        await again.apply_async((7,), root_id="root", parent_id="parent", link_error=tasks.note.si("told"), **said)
        await wait_for(lambda: tasks.noted == [("told",)])
    assert seen[0] == seen[1]
    assert seen[0][4:] == ((50, None), "root", "parent")


async def test_steps_have_queues_priorities_and_delays_of_their_own(broker: RedisBroker, tasks: Tasks) -> None:
    loop = asyncio.get_running_loop()
    broker._queues = frozenset({"default", "mail"})
    async with running(broker):
        begun = loop.time()
        await (tasks.add.s(1, 2) | tasks.note.s().set(queue="mail", priority=9, countdown=0.3)).apply_async(priority=3)
        await wait_for(lambda: tasks.noted)
        assert loop.time() >= begun + 0.29
    assert await broker._client.exists(broker.keys.queue("mail", 9))


async def test_a_step_that_is_retried_keeps_what_follows(broker: RedisBroker, tasks: Tasks) -> None:
    """RETRY-08."""
    runs: list[int] = []

    @broker.task(autoretry_for=(ConnectionError,), default_retry_delay=0)
    async def flaky(x: int) -> int:
        runs.append(x)
        if len(runs) < 3:
            raise ConnectionError
        return x

    async with running(broker):
        assert await value(await (flaky.s(1) | tasks.add.s(1)).apply_async(link=tasks.note.s())) == 2
        await wait_for(lambda: tasks.noted == [(2,)])


async def test_a_step_whose_result_is_too_large_for_the_next_fails_before_its_commit(make_broker: MakeBroker) -> None:
    broker = make_broker(max_payload=2000)
    tasks = Tasks(broker)

    @broker.task
    async def large() -> str:
        return 1750 * "x"

    async with running(broker):
        assert await value(await large.kiq()) == 1750 * "x"
        last = await (large.s() | tasks.note.s("and more" * 20)).apply_async()
        result = await last.wait_result(timeout=20)
        assert "the limit is 2000" in str(result.error)


async def test_a_step_whose_arguments_will_not_fit_is_refused_at_the_call(tasks: Tasks) -> None:
    with pytest.raises(TypeError, match="task 'add': too many positional arguments"):
        await (tasks.add.s(1, 2) | tasks.add.s(1, 2)).apply_async()
