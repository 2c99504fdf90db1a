"""Chords: what follows when all of a group have ended."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import pytest
from taskiq import Context, TaskiqDepends

from celeriq import BoundTask, ChordError, Ignore, RedisBroker, TaskRevokedError, chain, chord, group, injected, signals
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

        @broker.task(name="total")
        async def total(values: list[Any]) -> Any:
            return sum(values)

        @broker.task(name="fail")
        async def fail(text: Any) -> None:
            raise ValueError(text)

        @broker.task(name="gated")
        async def gated(value: Any) -> Any:
            await self.gate.wait()
            return value

        @broker.task(name="note")
        async def note(*what: Any) -> Any:
            self.noted.append(what)
            return what

        @broker.task(name="told")
        async def told(request: Any, exc: BaseException, traceback: str) -> None:
            self.noted.append((request.id, repr(exc)))

        self.add, self.total, self.fail, self.gated, self.note, self.told = add, total, fail, gated, note, told


@pytest.fixture
def broker(make_broker: MakeBroker) -> RedisBroker:
    return make_broker()


@pytest.fixture
def tasks(broker: RedisBroker) -> Tasks:
    return Tasks(broker)


async def count_of(broker: RedisBroker, body: Any) -> dict[bytes, bytes]:
    """What is known of the parts that have ended."""
    client: Any = broker._client  # not typed in redis-py
    counted: dict[bytes, bytes] = await client.hgetall(broker.keys.chord(body.parent.id))
    return counted


async def test_the_body_gets_the_values_in_the_order_of_the_header(broker: RedisBroker, tasks: Tasks) -> None:
    """CAN-10, CAN-11."""
    async with running(broker):
        body = await chord([tasks.gated.s(1), tasks.add.s(2), tasks.add.s("3", "")], tasks.note.s("own")).delay()
        await body.parent.results[1].get(20)
        await body.parent.results[2].get(20)
        assert await count_of(broker, body) == {b"1": b"2", b"2": b'"3"'}
        tasks.gate.set()
        assert await body.get(20) == [[1, 2, "3"], "own"]
        assert await body.parent.get(20) == [1, 2, "3"]
        assert await count_of(broker, body) == {}


async def test_parts_may_end_further_apart_than_results_are_kept(make_broker: MakeBroker) -> None:
    """A month is the limit, whatever `result_expires` says."""
    broker = make_broker(result_expires=0.1)
    tasks = Tasks(broker)
    async with running(broker):
        body = await chord([tasks.add.s(1), tasks.gated.s(2)], tasks.note.s()).delay()
        await wait_for(lambda: count_of(broker, body))
        assert 29 * 86_400 < await broker._client.ttl(broker.keys.chord(body.parent.id)) <= 30 * 86_400
        record = broker.keys.record(body.parent.results[0].id)
        await wait_for(lambda: is_gone(broker, record))
        tasks.gate.set()
        await wait_for(lambda: tasks.noted == [([1, 2],)])


async def is_gone(broker: RedisBroker, key: str) -> bool:
    return not await broker._client.exists(key)


async def test_a_group_with_something_behind_it_is_a_chord(broker: RedisBroker, tasks: Tasks) -> None:
    """CAN-07, CAN-08, CAN-15."""
    async with running(broker):
        two = group(tasks.add.s(1), tasks.add.s(2))
        assert await (await (two | tasks.total.s()).delay()).get(20) == 3
        assert await (await (two | tasks.total.s() | tasks.add.s(10) | tasks.add.s(100)).delay()).get(20) == 113
        assert await (await (group(tasks.add.s(5)) | tasks.total.s()).delay()).get(20) == 5
        assert await (await chain(group(tasks.add.s(5)), tasks.add.s(1)).delay()).get(20) == 6
        pairs = chain(two, group(tasks.total.s(), tasks.add.s([9])), tasks.note.s())
        assert await (await pairs.delay()).get(20) == [[3, [1, 2, 9]]]


async def test_a_chord_in_a_chain(broker: RedisBroker, tasks: Tasks) -> None:
    async with running(broker):
        made = tasks.add.s(1) | group(tasks.add.s(10), tasks.add.s(20)) | tasks.total.s() | tasks.add.s(100)
        last = await made.apply_async(link=tasks.note.s("linked"))
        assert await last.get(20) == 132
        total = last.parent
        assert await total.get(20) == 32
        assert await total.parent.get(20) == [11, 21]
        assert await total.parent.parent.get(20) == 1
        await wait_for(lambda: tasks.noted == [(132, "linked")])


async def test_chains_and_chords_are_one_part_of_a_header(broker: RedisBroker, tasks: Tasks) -> None:
    """CAN-17, CAN-18."""
    async with running(broker):
        inner = chord([tasks.add.s(1), tasks.add.s(2)], tasks.total.s())
        made = chord(
            [tasks.add.s(1) | tasks.add.s(10), inner, inner | tasks.add.s(100), tasks.add.s(4)], tasks.note.s()
        )
        assert await (await made.delay()).get(20) == [[11, 3, 103, 4]]


async def test_what_follows_may_be_a_group_or_a_chain(broker: RedisBroker, tasks: Tasks) -> None:
    async with running(broker):
        header = [tasks.add.s(1), tasks.add.s(2)]
        beside = await chord(header, group(tasks.total.s(), tasks.note.s())).delay()
        assert await beside.get(20) == [3, [[1, 2]]]
        assert await (await chord(header, tasks.total.s() | tasks.add.s(1)).delay()).get(20) == 4


async def test_a_header_of_nothing_sends_the_body_at_once(broker: RedisBroker, tasks: Tasks) -> None:
    """CAN-13."""
    async with running(broker):
        assert await (await chord([], tasks.total.s()).delay()).get(20) == 0
        assert await (await (tasks.add.s(1) | chord([], tasks.total.s()) | tasks.add.s(1)).delay()).get(20) == 1
        assert await (await chord([chord([], tasks.total.s()), tasks.add.s(1)], tasks.note.s()).delay()).get(20) == [
            [0, 1]
        ]


async def test_an_immutable_body_takes_no_values(broker: RedisBroker, tasks: Tasks) -> None:
    async with running(broker):
        assert await (await chord([tasks.add.s(1)], tasks.note.si("alone")).delay()).get(20) == ["alone"]


async def test_a_body_has_a_queue_a_priority_and_a_delay_of_its_own(broker: RedisBroker, tasks: Tasks) -> None:
    loop = asyncio.get_running_loop()
    broker._queues = frozenset({"default", "mail"})
    async with running(broker):
        begun = loop.time()
        body = tasks.total.s().set(queue="mail", priority=9, countdown=0.3)
        assert await (await chord([tasks.add.s(1)], body).delay()).get(20) == 1
        assert loop.time() >= begun + 0.29
    assert await broker._client.exists(broker.keys.queue("mail", 9))


async def test_a_part_that_fails_fails_the_body_when_all_have_ended(broker: RedisBroker, tasks: Tasks) -> None:
    """CERR-08, CERR-09, CERR-10: the first in the header's order is named, and the body's callbacks are told once."""
    async with running(broker):
        header = [tasks.gated.s(1), tasks.fail.s("second"), tasks.fail.s("third")]
        body = await chord(header, tasks.note.s()).apply_async(link_error=tasks.told.s())
        parts = body.parent.results
        with pytest.raises(ValueError, match=r"second|third"):
            await body.get(20)
        await wait_for(parts[2].ready)
        assert await body.state() == "PENDING"
        tasks.gate.set()
        with pytest.raises(ChordError) as raised:
            await body.get(20, follow_parents=False)
        why = f"Dependency {parts[1].id} raised ValueError('second')"
        assert str(raised.value) == why
        with pytest.raises(ValueError, match="second"):
            await body.get(20)
        assert await body.parent.results[0].get(20) == 1
        await wait_for(lambda: tasks.noted == [(body.id, repr(ChordError(why)))])
        assert await count_of(broker, body) == {}


async def test_callbacks_of_a_chord_come_to_those_of_its_body(broker: RedisBroker, tasks: Tasks) -> None:
    async with running(broker):
        body = tasks.total.s().set(link=tasks.note.s("own"), link_error=tasks.note.si("own error"))
        more: Any = {"link": tasks.note.s("more"), "link_error": tasks.note.si("more errors")}
        assert (await chord([tasks.add.s(1)], body).apply_async(task_id="chosen", **more)).id == "chosen"
        await wait_for(lambda: sorted(tasks.noted) == [(1, "more"), (1, "own")])
        tasks.noted.clear()
        await chord([tasks.fail.s(1)], body).apply_async(**more)
        await wait_for(lambda: sorted(tasks.noted) == [("more errors",), ("own error",)])
        beside = group(tasks.note.s(), tasks.note.s())
        tasks.noted.clear()
        await chord([tasks.fail.s(1)], beside).apply_async(link_error=tasks.note.si("each"))
        await wait_for(lambda: tasks.noted == [("each",), ("each",)])


async def test_what_is_behind_a_body_fails_with_it(broker: RedisBroker, tasks: Tasks) -> None:
    """CERR-13."""
    async with running(broker):
        last = await (group(tasks.fail.s(1), tasks.add.s(1)) | tasks.total.s() | tasks.add.s(1)).delay()
        for step in (last.parent, last):
            with pytest.raises(ChordError, match="Dependency"):
                await step.get(20, follow_parents=False)
        beside = await chord([tasks.fail.s(1)], group(tasks.note.s(), tasks.note.s())).delay()
        for each in beside:
            with pytest.raises(ChordError, match="Dependency"):
                await each.get(20, follow_parents=False)
        assert tasks.noted == []


async def test_a_failed_chord_in_a_header_fails_the_outer_one(broker: RedisBroker, tasks: Tasks) -> None:
    """In Celery the outer body waits for ever."""
    async with running(broker):
        inner = chord([tasks.fail.s("deep")], tasks.total.s())
        body = await chord([inner, tasks.add.s(1)], tasks.total.s()).apply_async(link_error=tasks.told.s())
        with pytest.raises(ChordError, match="raised ChordError"):
            await body.get(20, follow_parents=False)
        await wait_for(lambda: len(tasks.noted) == 1)


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_chain_in_a_header_fails_wherever_it_does(broker: RedisBroker, tasks: Tasks, position: int) -> None:
    """CAN-17."""
    async with running(broker):
        steps: list[Any] = [tasks.add.si(1), tasks.add.si(2), tasks.add.si(3)]
        steps[position] = tasks.fail.si("step")
        body = await chord([chain(*steps), tasks.add.s(1)], tasks.total.s()).delay()
        with pytest.raises(ChordError, match="raised ValueError"):
            await body.get(20, follow_parents=False)


async def test_a_body_that_cannot_run_is_not_retried(broker: RedisBroker, tasks: Tasks) -> None:
    begun: list[Any] = []

    @broker.task(autoretry_for=(Exception,), default_retry_delay=0)
    async def again(values: list[Any]) -> None:
        begun.append(values)

    async with running(broker):
        body = await chord([tasks.fail.s(1)], again.s()).delay()
        with pytest.raises(ChordError):
            await body.get(20, follow_parents=False)
    assert begun == []


async def test_a_part_that_was_called_off_counts_as_failed(broker: RedisBroker, tasks: Tasks) -> None:
    """CERR-11, LIM-16."""
    async with running(broker):
        part = tasks.note.s().set(countdown=0.3)
        body = await chord([tasks.add.s(1), part], tasks.total.s()).delay()
        await body.parent.results[1].revoke()
        with pytest.raises(TaskRevokedError):
            await body.get(20)
        with pytest.raises(ChordError, match="TaskRevokedError"):
            await body.get(20, follow_parents=False)
    assert tasks.noted == []


async def test_a_part_that_is_retried_counts_when_it_has_ended(broker: RedisBroker, tasks: Tasks) -> None:
    """RETRY-20."""
    runs: list[int] = []

    @broker.task(autoretry_for=(ConnectionError,), default_retry_delay=0)
    async def flaky(x: int) -> int:
        runs.append(x)
        if len(runs) < 3:
            raise ConnectionError
        return x

    async with running(broker):
        assert await (await chord([flaky.s(1), tasks.add.s(2)], tasks.total.s()).delay()).get(20) == 3
    assert len(runs) == 3


async def test_a_part_without_a_result_counts_as_failed(broker: RedisBroker, tasks: Tasks) -> None:
    """EXE-04: in Celery such a chord never ends."""

    @broker.task
    async def ignores() -> None:
        raise Ignore("nothing to tell")

    async with running(broker):
        body = await chord([tasks.add.s(1), ignores.s()], tasks.total.s()).delay()
        with pytest.raises(ChordError, match="raised Ignore"):
            await body.get(20, follow_parents=False)


async def test_a_part_that_nobody_knows_counts_as_failed(make_broker: MakeBroker) -> None:
    """ST-20, CERR-19: in Celery such a chord never ends."""
    client, broker = make_broker(), make_broker(lease=0.3, unknown_grace=0.3)
    tasks, there = Tasks(client), Tasks(broker)

    @client.task(name="unknown")
    async def unknown() -> None: ...

    async with running(broker):
        body = await chord([tasks.add.s(1), unknown.s()], tasks.total.s()).apply_async(link_error=there.told.s())
        with pytest.raises(ChordError, match="raised NotRegistered"):
            await body.get(20, follow_parents=False)


async def test_values_that_are_not_stored_are_counted(broker: RedisBroker, tasks: Tasks) -> None:
    """ST-14."""
    async with running(broker):
        header = [tasks.add.s(number).set(ignore_result=True) for number in (1, 2)]
        body = await chord(header, tasks.total.s()).delay()
        assert await body.get(20) == 3
        assert [await each.exists() for each in body.parent] == [False, False]


async def test_a_part_that_taskiq_requeues_keeps_its_place(broker: RedisBroker, tasks: Tasks) -> None:
    runs: list[int] = []

    @broker.task(name="again")
    async def again(context: Annotated[Context, TaskiqDepends()] = injected) -> int:
        runs.append(1)
        if len(runs) == 1:
            await context.requeue()
        return 5

    async with running(broker):
        assert await (await chord([again.s(), tasks.add.s(1)], tasks.total.s()).delay()).get(20) == 6
    assert len(runs) == 2


async def test_a_settlement_that_is_asked_for_twice_counts_once(
    broker: RedisBroker, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CAN-11."""
    async with running(broker):
        settle = broker._scripts.settle

        async def lose_the_answer(*, keys: Any, args: Any) -> Any:
            await settle(keys=keys, args=args)
            return await settle(keys=keys, args=args)

        monkeypatch.setattr(broker._scripts, "settle", lose_the_answer)
        body = await chord([tasks.add.s(number) for number in range(20)], tasks.note.s()).delay()
        await wait_for(lambda: tasks.noted)
        await wait_for(body.ready)
        assert tasks.noted == [(list(range(20)),)]
        assert await count_of(broker, body) == {}


async def test_a_large_header(broker: RedisBroker, tasks: Tasks) -> None:
    async with running(broker, slots=100):
        body = await chord((tasks.add.s(number) for number in range(100)), tasks.total.s()).delay()
        assert await body.get(20) == sum(range(100))


async def test_what_a_part_and_a_body_know(broker: RedisBroker) -> None:
    """EXE-14, CAN-26: the body's parent is a part."""

    @broker.task(bind=True)
    async def place(self: BoundTask, *_: Any) -> list[Any]:
        request = self.request
        return [request.id, request.parent_id, request.group, request.group_index, (request.chord or {}).get("task")]

    async with running(broker):
        body = await chord([place.s()], place.si()).delay()
        told = await body.get(20)
        part = body.parent.results[0].id
        assert told == [body.id, part, None, None, None]
        assert await body.parent.get(20) == [[part, None, body.parent.id, 0, place.task_name]]


async def test_whoever_is_told_of_what_is_sent_is_told_of_the_body_once(broker: RedisBroker, tasks: Tasks) -> None:
    """SIG-01."""
    published: list[str] = []

    @broker.task(bind=True)
    async def marked(self: BoundTask, *_: Any) -> Any:
        return self.request.headers.get("mark")

    @signals.before_task_publish.connect
    async def mark(headers: dict[str, Any], sender: Any, **_: Any) -> None:
        published.append(sender)
        headers["mark"] = len(published)

    name = marked.task_name
    try:
        async with running(broker):
            header: list[Any] = [tasks.add.s(1) | tasks.add.s(1), tasks.add.s(2)]
            assert await (await chord(header, marked.s()).delay()).get(20) == 3
            assert published == ["add", "add", name, "add"]
            published.clear()
            behind = tasks.add.s(1) | group(tasks.add.s(1), tasks.add.s(2)) | marked.s()
            assert await (await behind.delay()).get(20) == 4
            assert published == ["add", "add", "add", name]
    finally:
        signals.before_task_publish.disconnect(mark)


async def test_a_part_may_end_with_a_group(broker: RedisBroker, tasks: Tasks) -> None:
    """CAN-06: the list of its values is one value of the header."""
    async with running(broker):
        two = group(tasks.add.s(10), tasks.add.s(20))
        deep = tasks.add.s(1) | group(tasks.add.s(1), tasks.add.s(1) | two)
        over = chord([tasks.add.s(1)], group(tasks.total.s(), tasks.note.s()))
        body = await chord([tasks.add.s(1) | two, tasks.add.s(5), deep, over], tasks.note.s()).delay()
        assert await body.get(20) == [[[11, 21], 5, [2, [12, 22]], [1, [[1]]]]]
        assert await body.parent.get(20) == [[11, 21], 5, [2, [12, 22]], [1, [[1]]]]
        for result in (body.parent, *body.parent):
            assert not await broker._client.exists(broker.keys.chord(result.id))


async def test_a_part_that_ends_with_a_group_fails_with_it(broker: RedisBroker, tasks: Tasks) -> None:
    async with running(broker):
        parts: list[Any] = [tasks.add.s(1) | group(tasks.add.s(1), tasks.fail.s()), tasks.add.s(1)]
        for header in (parts, [tasks.fail.s(1) | group(tasks.add.s(1), tasks.add.s(2))]):
            body = await chord(header, tasks.note.s()).delay()
            with pytest.raises(ChordError, match="raised ValueError"):
                await body.get(20, follow_parents=False)


async def test_a_part_must_have_an_end(tasks: Tasks) -> None:
    with pytest.raises(TypeError, match="ends with a group of nothing"):
        await chord([tasks.add.s(1) | group()], tasks.total.s()).delay()


async def test_the_number_of_values_is_checked_at_the_call(tasks: Tasks) -> None:
    with pytest.raises(TypeError, match="task 'total': too many positional arguments"):
        await chord([tasks.add.s(1)], tasks.total.s(1)).delay()
