from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from celeriq import (
    AsyncResult,
    BoundTask,
    DuplicateCallError,
    RedisBroker,
    SendError,
    TaskDefinitionError,
    chain,
    group,
)
from celeriq.errors import TaskRevokedError
from celeriq.middleware import UniqueTasks, standard
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 60


def waiting(broker: RedisBroker) -> Any:
    return broker._client.xlen(broker.keys.queue("default"))


async def holders(broker: RedisBroker) -> dict[str, str]:
    """Keys that are taken, and the ids that have them."""
    beginning = broker.keys.unique("")
    names = [key.decode() async for key in broker._client.scan_iter(match=f"{beginning}*")]
    client: Any = broker._client
    taken = {name.removeprefix(beginning): await client.get(name) for name in names}
    # One may have run out meanwhile.
    return {name: task_id.decode() for name, task_id in taken.items() if task_id is not None}


async def test_the_first_call_stands_for_those_after_it_until_it_has_ended(make_broker: MakeBroker) -> None:
    broker = make_broker()
    ran: list[int] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    @broker.task(unique="skip")
    async def work(number: int, again: bool = False) -> int:
        ran.append(number)
        begun.set()
        await go_on.wait()
        return number

    first = await work.delay(1)
    calls = [work.kiq(1), work.delay(1, again=False), work.apply_async((1,), countdown=60)]
    for call in (*calls, broker.send_task(work.task_name, (1,))):
        assert (await call).id == first.id
    other = await work.delay(2)
    assert [sent.id for sent in await work.kiq_many([(1,), (2,), (2,)])] == [first.id, other.id, other.id]
    async with running(broker):
        await begun.wait()
        assert (await work.delay(1)).id == first.id
        go_on.set()
        assert await first.get(timeout=WAIT) == 1
        assert await other.get(timeout=WAIT) == 2
        again = await work.delay(1)
        assert again.id != first.id
        assert await again.get(timeout=WAIT) == 1
    assert sorted(ran) == [1, 1, 2]
    assert await holders(broker) == {}


async def test_a_chain_of_one_is_that_call(make_broker: MakeBroker) -> None:
    """Its handle is of the call that stands for it."""
    broker = make_broker()

    @broker.task(unique="skip")
    async def index(number: int) -> None: ...

    first = await index.delay(7)
    assert (await chain(index.s(7)).apply_async()).id == first.id
    assert (await chain(group(index.s(7))).apply_async()).id == first.id


async def test_a_call_whose_place_was_taken_before_keeps_its_id(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task(unique="replace")
    async def index(number: int) -> None: ...

    await index.apply_async((7,), task_id="own")
    await index.delay(7)
    assert (await index.apply_async((7,), task_id="own")).id == "own"


async def test_a_second_call_is_refused_by_name_key_and_id(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task(name="sync", unique="raise", unique_key="{customer}")
    async def sync(number: int, customer: str = "a") -> None: ...

    first = await sync.delay(1)
    with pytest.raises(DuplicateCallError, match=f"'sync' with the key 'sync:a' .* as {first.id!r}") as refused:
        await sync.delay(2)
    assert refused.value.first == first.id
    with pytest.raises(SendError, match=r"2 of 3 calls of 'sync' were not sent: .*waits or runs") as unsent:
        await sync.kiq_many([(3,), (4, "b"), (5, "a")])
    assert unsent.value.unsent == (0, 2)
    assert await waiting(broker) == 2

    @broker.task(unique="skip", unique_key=lambda number: 1 / number)
    async def divide(number: int) -> None: ...

    with pytest.raises(SendError, match=r"1 of 2 calls .*division by zero"):
        await divide.kiq_many([(1,), (0,)])


async def test_a_later_call_takes_the_place_of_one_that_waits(make_broker: MakeBroker) -> None:
    """What runs goes on, but is not tried again; what waits never begins, also when the last one has ended long ago."""
    broker = make_broker()
    ran: list[int] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    @broker.task(name="index", unique="replace", unique_key="all", bind=True)
    async def index(self: BoundTask, number: int) -> int:
        ran.append(number)
        begun.set()
        await go_on.wait()
        if number == 1:
            raise self.retry(countdown=0)
        return number

    async with running(broker):
        runs = await index.delay(1)
        await begun.wait()
        replaced = [runs, await index.apply_async((2,), countdown=0.1), await index.apply_async((3,), countdown=0.8)]
        last = await index.apply_async((4,), countdown=0.3)
        go_on.set()
        assert await last.get(timeout=WAIT) == 4
        assert await nobody_has_a_key(broker)
        for one in replaced:
            with pytest.raises(TaskRevokedError, match="replaced"):
                await one.get(timeout=WAIT)
    assert ran == [1, 4]


async def test_the_place_of_what_the_period_has_passed_by_is_not_taken_back(make_broker: MakeBroker) -> None:
    broker = make_broker()
    ran: list[int] = []

    @broker.task(name="index", unique="replace", unique_key="all", unique_period=0.2)
    async def index(number: int) -> int:
        ran.append(number)
        return number

    first = await index.delay(1)
    await wait_for(lambda: nobody_has_a_key(broker))
    second = await index.apply_async((2,), countdown=0.3)
    async with running(broker):
        assert await second.get(timeout=WAIT) == 2
        with pytest.raises(TaskRevokedError, match="replaced"):
            await first.get(timeout=WAIT)
    assert ran == [2]


async def nobody_has_a_key(broker: RedisBroker) -> bool:
    return not await holders(broker)


async def test_two_callers_at_once_are_one(make_broker: MakeBroker) -> None:
    """Whoever Redis hears first is the one, whichever process it is in; two workers run it once."""
    one, two = make_broker(), make_broker()
    ran: list[int] = []
    go_on = asyncio.Event()

    for broker in (one, two):

        @broker.task(name="work", unique="skip")
        async def work(number: int) -> int:
            ran.append(number)
            await go_on.wait()
            return number

    async def call(broker: RedisBroker) -> str:
        task = broker.find_task("work")
        assert task is not None
        return str((await task.kiq(7)).task_id)

    async with running(one), running(two):
        ids = await asyncio.gather(*(call(broker) for broker in (one, two) * 20))
        assert len(set(ids)) == 1
        go_on.set()
        assert await AsyncResult[int](ids[0], broker=one).get(timeout=WAIT) == 7
    assert ran == [7]


async def test_a_retry_keeps_the_key_for_longer_than_it_waits(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task(unique="skip", unique_period=0.3, bind=True)
    async def flaky(self: BoundTask) -> int:
        if self.request.retries < 2:
            raise self.retry(countdown=0.5)
        return self.request.retries

    async with running(broker):
        first = await flaky.delay()
        seen: set[str] = set()

        async def called_again_until_it_has_ended() -> bool:
            seen.add((await flaky.delay()).id)
            return await first.ready()

        await wait_for(called_again_until_it_has_ended)
        assert await first.get(timeout=WAIT) == 2
    assert first.id in seen
    assert len(seen) <= 2  # and the one that was called when it had just ended


async def test_a_delayed_call_has_its_key_until_it_is_due_and_for_the_period(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task(name="work", unique="skip", unique_period=5)
    async def work(number: int) -> None: ...

    await work.apply_async((1,), countdown=100)
    await work.apply_async((2,), eta=datetime.now(UTC) + timedelta(seconds=100))
    await work.apply_async((3,), expires=2)
    left = sorted([await broker._client.pttl(broker.keys.unique(kind)) for kind in await holders(broker)])
    assert 1_000 < left[0] <= 2_000
    assert 100_000 < left[1] <= left[2] <= 105_000


async def test_what_has_begun_keeps_its_key_when_it_would_have_expired(make_broker: MakeBroker) -> None:
    broker = make_broker()
    begun, go_on = asyncio.Event(), asyncio.Event()

    @broker.task(name="work", unique="raise", expires=0.5)
    async def work() -> int:
        begun.set()
        await go_on.wait()
        return 1

    async with running(broker):
        sent = await work.delay()
        await begun.wait()
        assert await broker._client.pttl(*map(broker.keys.unique, await holders(broker))) > 80_000_000
        go_on.set()
        assert await sent.get(timeout=WAIT) == 1


async def test_what_fails_or_expires_or_is_unknown_gives_its_key_back(make_broker: MakeBroker) -> None:
    broker, other_release = make_broker(), make_broker(lease=0.3, unknown_grace=0.3)

    @broker.task(name="work", unique="skip")
    async def work(number: int) -> None:
        if number == 1:
            raise KeyError(number)

    @broker.task(name="new", unique="skip")
    async def new() -> None: ...

    unknown = await new.delay()
    async with running(other_release):
        await wait_for(unknown.failed)
    sent = [await work.delay(1), await work.apply_async((2,), expires=0.001)]
    async with running(broker):
        for one in sent:
            await wait_for(one.ready)
        await wait_for(lambda: nobody_has_a_key(broker))


async def test_a_call_that_was_revoked_stands_for_no_other(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task(unique="skip")
    async def work() -> int:
        return 1

    first = await work.apply_async(countdown=60)
    await first.revoke()
    second = await work.delay()
    assert second.id != first.id
    async with running(broker):
        assert await second.get(timeout=WAIT) == 1


async def test_until_the_period_is_over_an_ended_call_stands_for_others(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task(name="work", unique="skip", unique_until="period", unique_period=0.5)
    async def work() -> int:
        return 1

    async with running(broker):
        first = await work.delay()
        assert await first.get(timeout=WAIT) == 1
        assert (await work.delay()).id == first.id
        await wait_for(lambda: nobody_has_a_key(broker))
        assert (await work.delay()).id != first.id


async def test_the_key_is_that_of_the_arguments_as_they_arrive(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task(unique="skip", unique_key="{order}/{when}")
    async def work(order: UUID, when: datetime) -> None: ...

    when = datetime(2026, 1, 2, tzinfo=UTC)
    first = await work.delay(UUID(int=1), when)
    by_text: Any = ("00000000-0000-0000-0000-000000000001", "2026-01-02T00:00:00Z")
    assert (await work.delay(*by_text)).id == first.id
    none: Any = object()
    with pytest.raises(SendError, match="was not sent: cannot be stored as JSON"):
        await work.delay(UUID(int=1), none)


async def test_a_later_step_takes_its_key_when_it_begins(make_broker: MakeBroker) -> None:
    """Its arguments are not known before. A duplicate is called off, and what follows it, too."""
    broker = make_broker()
    ran: list[int] = []

    @broker.task
    async def number() -> int:
        return 5

    @broker.task(name="work", unique="skip")
    async def work(number: int) -> int:
        ran.append(number)
        return number

    @broker.task(name="strict", unique="raise")
    async def strict(number: int) -> int:
        return number

    first, other = await work.apply_async((5,), countdown=60), await strict.apply_async((5,), countdown=60)
    async with running(broker):
        last = await (number.s() | work.s() | work.s()).apply_async()
        assert last is not None
        assert last.parent is not None
        for step in (last.parent, last):
            with pytest.raises(TaskRevokedError, match="duplicate"):
                await step.get(timeout=WAIT)
        refused = await (number.s() | strict.s()).apply_async()
        assert refused is not None
        with pytest.raises(DuplicateCallError, match=f"as {other.id!r}"):
            await refused.get(timeout=WAIT)
        assert sorted((await holders(broker)).values()) == sorted([first.id, other.id])
        await first.revoke()
        again = await (number.s() | work.s()).apply_async()
        assert again is not None
        assert await again.get(timeout=WAIT) == 5
    assert ran == [5]


async def test_a_call_that_bears_others_is_never_skipped_silently(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task(unique="skip")
    async def work() -> int:
        return 1

    @broker.task
    async def later(number: int) -> int:
        return number

    await work.apply_async(countdown=60)
    with pytest.raises(DuplicateCallError):
        await (work.s() | later.s()).apply_async()
    with pytest.raises(DuplicateCallError):
        await work.apply_async(link=later.s())


async def test_a_call_that_could_not_be_sent_leaves_no_key(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one whose answer was lost is sent once."""
    broker = make_broker()

    @broker.task(unique="raise")
    async def work() -> None: ...

    claim, asked = broker._scripts.claim, 0

    async def away(**_: Any) -> Any:
        raise RedisConnectionError

    async def answer_lost(**given: Any) -> Any:
        nonlocal asked
        asked += 1
        answer = await claim(**given)
        if asked == 1:
            raise RedisConnectionError
        return answer

    monkeypatch.setattr(broker._scripts, "claim", away)
    with pytest.raises(SendError, match="Redis did not take it"):
        await work.delay()
    assert await holders(broker) == {}
    monkeypatch.setattr(broker._scripts, "claim", answer_lost)
    sent = await work.delay()
    assert (asked, await waiting(broker), list((await holders(broker)).values())) == (2, 1, [sent.id])


async def test_a_call_whose_answer_was_lost_runs_once_though_it_has_ended(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is free by then, so that it tells nothing."""
    broker = make_broker()
    ran: list[int] = []

    @broker.task(unique="skip")
    async def work(number: int) -> int:
        ran.append(number)
        return number

    claim = broker._scripts.claim
    lost: list[str] = []

    async def answer_lost(**given: Any) -> Any:
        answer = await claim(**given)
        if not lost:
            lost.append(answer.decode())
            assert await AsyncResult[int](lost[0], broker=broker).get(timeout=WAIT) == 1
            raise RedisConnectionError
        return answer

    monkeypatch.setattr(broker._scripts, "claim", answer_lost)
    async with running(broker):
        sent = await work.delay(1)
        assert sent.id == lost[0]
        assert await (await work.apply_async((2,), task_id=sent.id)).get(timeout=WAIT) == 1
        other = await work.delay(3)
        assert await other.get(timeout=WAIT) == 3
        await wait_for(lambda: len(ran) == 3)
    assert ran == [1, 2, 3]


async def test_who_dies_with_a_key_keeps_it_until_another_has_run_its_message(make_broker: MakeBroker) -> None:
    dying, living = make_broker(lease=0.5), make_broker(lease=0.5)
    go_on = asyncio.Event()

    @dying.task(name="work", unique="skip")
    async def never() -> None:
        await asyncio.Event().wait()

    @living.task(name="work", unique="skip")
    async def work() -> int:
        await go_on.wait()
        return 1

    first = await work.delay()
    async with running(dying, patience=0.1):
        await wait_for(lambda: dying.attempts.running)
        # Nobody hears of it any more: as if it had been killed.
        assert dying.worker is not None
        await asyncio.to_thread(dying.worker._lease.stop)
        async with running(living):
            await wait_for(lambda: living.attempts.running)
            assert (await work.delay()).id == first.id
            go_on.set()
            assert await first.get(timeout=WAIT) == 1
            await wait_for(lambda: nobody_has_a_key(living))


async def test_what_is_lost_for_good_has_its_key_no_longer_than_the_period(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task(unique="raise", unique_period=0.3)
    async def work() -> None: ...

    await work.delay()
    await broker._client.delete(broker.keys.queue("default"))
    with pytest.raises(DuplicateCallError):
        await work.delay()
    await wait_for(lambda: nobody_has_a_key(broker))
    await work.delay()
    assert await waiting(broker) == 1


async def test_without_the_middleware_calls_are_not_compared(make_broker: MakeBroker) -> None:
    broker = make_broker(middlewares=[one for one in standard() if not isinstance(one, UniqueTasks)])
    given: Any = {"unique": "skip"}
    with pytest.raises(TaskDefinitionError, match="unknown option 'unique'; UniqueTasks reads it"):
        broker.task(**given)

    @broker.task
    async def work() -> int:
        return 1

    sent = [await work.delay(), await work.delay()]
    async with running(broker):
        assert [await one.get(timeout=WAIT) for one in sent] == [1, 1]
    assert len({one.id for one in sent}) == 2


async def test_a_task_without_the_option_asks_for_no_key(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_broker()

    @broker.task
    async def work() -> int:
        return 1

    async def claim(**_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(broker._scripts, "claim", claim)
    async with running(broker):
        assert await (await work.delay()).get(timeout=WAIT) == 1


async def nothing(number: int) -> None: ...


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"unique": True},
            'unique is True; it must say what becomes of a second call: write "skip", "replace" or "raise"',
        ),
        ({"unique_key": "{number}"}, "unique_key without unique does nothing: leave it out"),
        ({"unique": "skip", "unique_key": "{numbr}"}, "'numbr' is no argument; known are number"),
        ({"unique": "skip", "unique_period": 0}, "unique_period is 0; it must be seconds, more than 0"),
        ({"unique": "skip", "unique_until": "ever"}, "unique_until is 'ever'; it must say when a key is free again"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_import(options: dict[str, Any], says: str) -> None:
    declare: Any = RedisBroker("redis://localhost:1").task
    with pytest.raises(TaskDefinitionError, match=f"task 'mail.send': .*{says}"):
        declare(name="mail.send", **options)(nothing)
