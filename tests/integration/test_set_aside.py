"""Messages that cannot run here or now: parked, postponed, dead, and sent again."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from taskiq import TaskiqMessage, TaskiqMiddleware

from celeriq import BoundTask, NotRegistered, RedisBroker, chord
from celeriq.envelope import VERSION, of_message
from celeriq.redis.history_entry import HistoryEntry
from celeriq.redis.keys import Keys
from celeriq.redis.settlement import Keeping
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running


async def parked(broker: RedisBroker) -> set[str]:
    return {name.decode() for name in await broker._client.smembers(broker.keys.parked)}  # type: ignore[union-attr]


async def letters(broker: RedisBroker) -> list[Any]:
    return [letter async for letter in broker.dead_letters().look()]


def knowing(broker: RedisBroker, name: str = "new") -> Any:
    async def task(*_: object) -> str:
        return "ran"

    return broker.find_task(name) or broker.task(name=name)(task)


async def test_a_task_that_only_new_workers_know_waits_for_them(make_broker: MakeBroker) -> None:
    """In a rolling deploy an old worker is the first to get its message (W20, ST-20)."""
    old, new = make_broker(lease=0.5), make_broker(lease=0.5)
    sent = [await knowing(new).kiq(number) for number in range(20)]
    async with running(old):
        await wait_for(lambda: parked(old))
        assert await parked(old) == {"new"}
        await wait_for(lambda: not old.queues.held)
        async with running(new):
            results = [await task.wait_result(timeout=20) for task in sent]
            assert [result.return_value for result in results] == 20 * ["ran"]
            await wait_for(lambda: nothing_is_parked(new))
    assert await letters(new) == []
    assert not await new._client.hlen(new.keys.crashes)


async def test_thousands_of_parked_messages_are_taken_back_at_once(make_broker: MakeBroker) -> None:
    """Also those that lie behind others, of a queue that this worker does not read."""
    lease = 60.0
    old, new = make_broker(lease=lease, queues=["default", "other"]), make_broker(lease=lease, queues=["default"])
    task = knowing(new)
    for queue in ("other", "default"):
        await new.send_many([of_message(await call(task, queue, number)) for number in range(600)])
    async with running(old):
        await wait_for(lambda: has_parked(old, 1200))
    async with running(new):
        await wait_for(lambda: has_parked(new, 600), within=lease / 2)
        await wait_for(lambda: is_drained(new))


async def test_who_knows_a_parked_message_takes_it_before_those_who_do_not(make_broker: MakeBroker) -> None:
    """However many old workers wait beside the new one: handed to all, each of them would park it again."""
    lease = 60.0
    new, *old = (make_broker(lease=lease) for _ in range(6))
    sent = [await knowing(new).kiq(number) for number in range(50)]
    async with AsyncExitStack() as stack:
        for broker in old:
            await stack.enter_async_context(running(broker))
        await wait_for(lambda: has_parked(new, len(sent)))
        await stack.enter_async_context(running(new))
        await asyncio.gather(*(task.wait_result(timeout=lease / 2) for task in sent))


async def call(task: Any, queue: str, number: int) -> TaskiqMessage:
    message: TaskiqMessage = (await task.kicker().with_labels(queue=queue).envelope((number,), {})).message()
    return message


async def has_parked(broker: RedisBroker, count: int) -> bool:
    return bool(await broker._client.zcard(broker.keys.parked_as("new")) == count)


async def is_drained(broker: RedisBroker) -> bool:
    return not await broker._client.xlen(broker.keys.queue("default"))


async def nothing_is_parked(broker: RedisBroker) -> bool:
    return not await parked(broker) and not await broker._client.exists(broker.keys.parked_as("new"))


async def test_a_parked_message_survives_the_stop_and_the_death_of_workers(make_broker: MakeBroker) -> None:
    old, new = make_broker(lease=0.5), make_broker(lease=0.5)
    sent = await knowing(new).kiq()
    async with running(old):
        await wait_for(lambda: parked(old))
    async with running(make_broker(lease=0.5)) as another:
        lease_over = asyncio.get_running_loop().time() + 1
        await wait_for(lambda: asyncio.get_running_loop().time() > lease_over)
        assert await parked(another) == {"new"}
    async with running(new):
        assert (await sent.wait_result(timeout=20)).return_value == "ran"


async def test_what_nobody_knows_for_too_long_fails_and_is_a_dead_letter(make_broker: MakeBroker) -> None:
    broker, sender = make_broker(lease=0.3, unknown_grace=0.5), make_broker()
    sent = await knowing(sender, "typo").kiq(1)
    async with running(broker):
        result = await sent.wait_result(timeout=20)
    assert isinstance(result.error, NotRegistered)
    assert str(result.error) == "unknown task 'typo': no worker registered it in time"
    [letter] = await letters(broker)
    assert (letter.envelope.task, letter.envelope.args) == ("typo", [1])
    await sender.shutdown()


async def test_a_newer_envelope_waits_for_a_newer_worker(make_broker: MakeBroker) -> None:
    broker = make_broker(lease=0.3, unknown_grace=1)
    knowing(broker)
    newer = b'{"v":%d,"id":"n","task":"new","args":[],"kwargs":{},"labels":{}}' % (VERSION + 1)
    await broker._client.xadd(broker.keys.queue("default"), {"data": newer})
    async with running(broker):
        await wait_for(lambda: parked(broker))
        assert await parked(broker) == {f"(envelope {VERSION + 1})"}
        [letter] = await wait_for(lambda: letters(broker))
    assert letter.message == newer
    assert letter.envelope is None
    with pytest.raises(ValueError, match="cannot be read, so no worker could: purge it"):
        await broker.dead_letters().replay(letter.id)


async def test_arguments_that_do_not_fit_go_once_to_another_release(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celeriq.outcome.POSTPONED_FOR", 0.3)
    old, new = make_broker(), make_broker()
    runs: list[int] = []

    @old.task(name="add")
    async def old_add(x: int) -> None:
        runs.append(x)

    @new.task(name="add")
    async def new_add(x: int, y: int) -> int:
        return x + y

    sent = await new_add.kiq(1, 2)
    async with running(old):
        await wait_for(lambda: postponed(old))
    async with running(new):
        assert (await sent.wait_result(timeout=20)).return_value == 3
    again = await new_add.kiq(1, 2)
    async with running(old):
        result = await again.wait_result(timeout=20)
    assert isinstance(result.error, TypeError)
    [letter] = await letters(old)
    assert "its arguments do not fit: " in letter.reason
    assert runs == []


async def postponed(broker: RedisBroker) -> int:
    return int(await broker._client.zcard(broker.keys.delayed("default")))


async def test_a_type_error_of_the_body_is_an_ordinary_failure(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task
    async def wrong(x: Any) -> Any:
        return x + 1

    async with running(broker):
        assert isinstance((await (await wrong.kiq("a")).wait_result(timeout=20)).error, TypeError)
    assert await letters(broker) == []


class Refusing(TaskiqMiddleware):
    def __init__(self, times: int) -> None:
        self.times = times
        self.asked = 0

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self.asked += 1
        if self.asked <= self.times:
            raise RuntimeError("not now")
        return message


async def test_a_hook_that_raises_before_the_task_is_asked_again_and_not_for_ever(make_broker: MakeBroker) -> None:
    """Under Taskiq the message is lost to sight (W15)."""
    broker = make_broker(max_crashes=2)
    task, hook = knowing(broker), Refusing(times=3)
    broker.add_middlewares(hook)
    async with running(broker):
        assert (await (await task.kiq()).wait_result(timeout=20)).error.args == ("not now",)
        [letter] = await letters(broker)
        assert letter.reason == "a middleware raised before the task began: RuntimeError('not now')"
        assert hook.asked == 2
        assert (await (await task.kiq()).wait_result(timeout=20)).return_value == "ran"


async def test_who_wants_to_know_is_told_of_a_task_that_never_began(make_broker: MakeBroker) -> None:
    broker = make_broker(max_crashes=1)
    told: list[str] = []

    class Base(BoundTask):
        def on_failure(self, exc: BaseException, *_: Any) -> None:
            told.append(repr(exc))

    @broker.task(base=Base)
    async def work() -> None: ...

    @broker.task
    async def alarm(task_id: str) -> None:
        told.append(task_id)

    broker.add_middlewares(Refusing(times=1))
    async with running(broker):
        sent = await work.apply_async(link_error=alarm.s())
        await wait_for(lambda: len(told) == 2)
    assert sorted(told) == sorted(["RuntimeError('not now')", sent.id])


async def dead_ones(make_broker: MakeBroker, count: int) -> RedisBroker:
    """A broker with dead letters of a task that it knows by now."""
    broker, sender = make_broker(lease=0.3, unknown_grace=0.3), make_broker()
    sent = [await knowing(sender).kiq(number) for number in range(count)]
    async with running(broker):
        for task in sent:
            await task.wait_result(timeout=20)
    await sender.shutdown()
    knowing(broker)
    return broker


async def test_a_replayed_part_is_no_part_any_more(make_broker: MakeBroker) -> None:
    """Its chord has ended with it, and is not counted anew."""
    broker = make_broker()
    runs: list[bool] = []

    @broker.task(name="part", acks_on_failure=False)
    async def part(*, fails: bool) -> int:
        runs.append(fails)
        if runs.count(True) == 1 and fails:
            raise ValueError
        return 1

    @broker.task
    async def body(values: list[int]) -> None: ...

    async with running(broker):
        whole = await chord([part.s(fails=True), part.s(fails=False)], body.s()).delay()
        await whole.get(timeout=20, propagate=False, follow_parents=False)
        [letter] = await letters(broker)
        assert await broker.dead_letters().replay(letter.id)
        await wait_for(whole.parent.results[0].successful)
        assert not await broker._client.exists(broker.keys.chord(whole.parent.id))


async def test_a_dead_letter_is_looked_at_edited_replayed_and_purged(make_broker: MakeBroker) -> None:
    broker = await dead_ones(make_broker, 3)
    dead = broker.dead_letters()
    first, second, third = await letters(broker)
    assert await dead.count() == 3
    assert [letter.envelope.args for letter in (first, second, third)] == [[0], [1], [2]]
    assert first.died.tzinfo is not None
    assert await dead.replay(first.id, args=["edited"], kwargs={})
    assert not await dead.replay(first.id)
    assert not await dead.replay("1-1")
    entries: Any = await broker._client.xrange(broker.keys.queue("default"))
    [(_, fields)] = entries
    assert b'"args":["edited"]' in fields[b"data"]
    assert first.envelope.id.encode() in fields[b"data"]
    assert await dead.purge(second.id) == 1
    assert await dead.purge() == 1
    assert await dead.count() == 0
    async with running(broker):
        # ST-07: its FAILURE is overwritten.
        await wait_for(lambda: succeeded(broker, first.envelope.id))


async def succeeded(broker: RedisBroker, task_id: str) -> bool:
    found: Any = await broker.result_backend.find(task_id)  # type: ignore[attr-defined]
    return bool(found.status == "SUCCESS")


async def test_dead_letters_are_bounded_by_number_and_age(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_broker(lease=0.3)
    knowing(broker)
    monkeypatch.setattr(broker.settlement, "_keeping", lambda: Keeping(records=1000, failures=1000, dead_letters=5))
    async with running(broker):
        for number in range(8):
            await broker._client.xadd(broker.keys.queue("default"), {"data": b"garbage %d" % number})
        await wait_for(lambda: has_buried(broker, b"garbage 7"))
        assert [letter.message for letter in await letters(broker)] == [b"garbage %d" % n for n in range(3, 8)]
        monkeypatch.setattr(broker.settlement, "_keeping", lambda: Keeping(records=1000, failures=1000, unfinished=1))
        await broker._client.xadd(broker.keys.queue("default"), {"data": b"garbage 8"})
        await wait_for(lambda: has_buried(broker, b"garbage 8"))
        assert [letter.message for letter in await letters(broker)] == [b"garbage 8"]


async def has_buried(broker: RedisBroker, message: bytes) -> bool:
    return message in [letter.message for letter in await letters(broker)]


async def test_the_history_gets_every_end_and_a_share_of_the_plain_successes(make_broker: MakeBroker) -> None:
    broker = make_broker(history_share=0.5)

    @broker.task
    async def task(number: int) -> None:
        if number < 0:
            raise ValueError("negative")

    async with running(broker):
        for number in (*range(60), -1):
            await (await task.kiq(number)).wait_result(timeout=20)
    told: Any = await broker._client.xrange(Keys(broker.keys.namespace).history)
    assert 10 <= len(told) - 1 <= 50
    last = msgspec.json.decode(told[-1][1][b"data"], type=HistoryEntry)
    assert (last.state, last.error, last.queue) == ("FAILURE", "ValueError('negative')", "default")
