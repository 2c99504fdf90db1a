from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest

from celeriq import AsyncResult, BoundTask, Ignore, RedisBroker, Reject, Snooze, TaskDefinitionError, chord
from celeriq.middleware import CircuitBreaker, standard
from celeriq.redis.circuits import FORGET_FAILURES
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 60


class Service:
    """What a task needs: it fails as long as it is broken."""

    def __init__(self, *, broken: bool = True) -> None:
        self.broken = broken
        self.calls: list[float] = []

    def call(self) -> str:
        self.calls.append(time.monotonic())
        if self.broken:
            raise ConnectionError("broken")
        return "done"


async def state(broker: RedisBroker, kind: str = "mail") -> dict[str, str]:
    client: Any = broker._client
    fields = await client.hgetall(broker.keys.circuit(kind))
    return {name.decode(): value.decode() for name, value in fields.items()}


async def is_open(broker: RedisBroker, kind: str = "mail") -> bool:
    """The circuit is told when the task is settled, and everybody can see that by then."""
    return "until" in await state(broker, kind)


async def counts(broker: RedisBroker, failures: str | None) -> bool:
    return (await state(broker)).get("failures") == failures


async def values(sent: list[AsyncResult[Any]]) -> list[Any]:
    return [await one.get(timeout=WAIT, propagate=False) for one in sent]


async def test_failures_in_a_row_open_it_and_one_success_closes_it(make_broker: MakeBroker) -> None:
    """In two workers together. What waits uses up no retry and no slot: another task passes it in the only one."""
    one, two = make_broker(), make_broker()
    service = Service()

    for broker in (one, two):

        @broker.task(name="mail", circuit_failures=3, circuit_period=0.6)
        async def mail(number: int) -> str:
            return service.call()

        @broker.task(name="other")
        async def other() -> int:
            return 1

    async with running(one, slots=1), running(two, slots=1):
        for number in range(3):
            [raised] = await values([await mail.delay(number)])
            assert isinstance(raised, ConnectionError)
        await wait_for(lambda: is_open(one))
        sent = await mail.kiq_many([(number,) for number in range(10)])
        assert await (await other.delay()).get(timeout=WAIT) == 1
        assert await counts(one, "3")
        assert len(service.calls) == 3
        opened = service.calls[-1]
        # The probe fails, and nobody else is tried with it.
        await wait_for(lambda: len(service.calls) == 4)
        assert service.calls[3] - opened > 0.5
        service.broken = False
        told = await values(sent)
    assert service.calls[4] - service.calls[3] > 0.5
    assert sorted(map(type, told), key=repr) == [ConnectionError] + [str] * 9
    assert await state(one) == {}


async def test_a_success_between_them_begins_the_count_anew(make_broker: MakeBroker) -> None:
    broker = make_broker()
    service = Service()

    @broker.task(name="mail", circuit_failures=2)
    async def mail(broken: bool) -> str:
        service.broken = broken
        return service.call()

    async with running(broker):
        for _ in range(2):
            await values([await mail.delay(True)])
            await wait_for(lambda: counts(broker, "1"))
            await values([await mail.delay(False)])
            await wait_for(lambda: counts(broker, None))
    assert len(service.calls) == 4


async def test_only_what_it_is_for_opens_it(make_broker: MakeBroker) -> None:
    """Neither other exceptions nor what a task says of itself; an attempt that is retried counts as well."""
    broker = make_broker()
    raised: dict[str, BaseException] = {
        "other": KeyError("no"),
        "ignore": Ignore(),
        "reject": Reject("no"),
        "snooze": Snooze(0),
    }
    told: set[str] = set()

    @broker.task(name="mail", circuit_failures=1, circuit_for=(OSError,), autoretry_for=(OSError,), max_retries=1)
    async def mail(what: str) -> str:
        if what == "retried":
            raise ConnectionError
        if what in told:
            return what
        told.add(what)
        raise raised[what]

    async with running(broker):
        for what in raised:
            await mail.delay(what)
        await wait_for(lambda: told == set(raised))
        await wait_for(lambda: nothing_runs(broker))
        assert await state(broker) == {}
        await mail.delay("retried")
        await wait_for(lambda: is_open(broker))


async def test_whatever_becomes_of_its_message_a_body_that_failed_counts(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task(name="kept", circuit_failures=1, acks_on_failure=False)
    async def kept() -> None:
        raise ConnectionError

    @broker.task(name="again", circuit_failures=1, time_limit=0.05, acks_on_timeout=False)
    async def again() -> None:
        await asyncio.sleep(60)

    async with running(broker):
        await kept.delay()
        await again.delay()
        await wait_for(lambda: is_open(broker, "kept"))
        await wait_for(lambda: is_open(broker, "again"))


async def test_what_did_not_run_does_not_count(make_broker: MakeBroker) -> None:
    """A duplicate, a body of a chord that broke, arguments that do not fit, and what a task says of itself."""
    broker = make_broker()

    class Base(BoundTask):
        def before_start(self, *_: Any) -> None:
            raise LookupError

    @broker.task(name="mail", circuit_failures=1)
    async def mail(given: int = 0) -> None:
        raise Reject

    @broker.task(name="refused", circuit_failures=1, base=Base)
    async def refused() -> None: ...

    @broker.task
    async def fail() -> None:
        raise ValueError

    async with running(broker):
        handles = [
            await mail.delay(),
            await mail.delay(cast("int", "x")),
            await chord([fail.s()], mail.si()).delay(),
            await refused.delay(),
        ]
        for sent in handles:
            await sent.get(timeout=WAIT, propagate=False)
        await wait_for(lambda: nothing_runs(broker))
    assert await state(broker) == {}
    assert await state(broker, "refused") == {}


async def nothing_runs(broker: RedisBroker) -> bool:
    return not broker.attempts.running and not await broker._client.xlen(broker.keys.queue("default"))


async def test_each_key_has_a_circuit_of_its_own(make_broker: MakeBroker) -> None:
    broker = make_broker()
    services = {"a": Service(), "b": Service(broken=False)}

    @broker.task(name="mail", circuit_failures=1, circuit_period=60, circuit_key="{host}")
    async def mail(host: str) -> str:
        return services[host].call()

    async with running(broker):
        await values([await mail.delay("a")])
        await wait_for(lambda: is_open(broker, "mail:a"))
        waits = await mail.delay("a")
        assert await values([await mail.delay("b")]) == ["done"]
        await wait_for(lambda: broker._client.zcard(broker.keys.delayed("default")))
        assert not await waits.ready()
    assert len(services["a"].calls) == 1


async def test_a_probe_that_says_nothing_leaves_its_turn_to_the_next(make_broker: MakeBroker) -> None:
    broker = make_broker()
    outcomes: list[BaseException | None] = [ConnectionError(), KeyError(), None]

    @broker.task(name="mail", circuit_failures=1, circuit_for=(OSError,), circuit_period=0.3)
    async def mail() -> int:
        if outcome := outcomes.pop(0):
            raise outcome
        return 1

    async with running(broker):
        told = await values([await mail.delay()])
        await wait_for(lambda: is_open(broker))
        told += await values([await mail.delay(), await mail.delay()])
    assert {type(one) for one in told} == {ConnectionError, KeyError, int}
    assert await state(broker) == {}


async def test_the_place_of_a_probe_that_is_lost_is_taken_after_the_period(make_broker: MakeBroker) -> None:
    broker = make_broker()
    service = Service(broken=False)

    @broker.task(name="mail", circuit_failures=1, circuit_period=0.5)
    async def mail() -> str:
        return service.call()

    lost, waits = await mail.s().envelope(), await mail.s().envelope()
    await broker.report_to_circuit("mail", lost, succeeded=False, failures=1, period=0.001)

    async def lets_it_pass() -> bool:
        return await broker.circuit_open_until("mail", lost, 0.5) is None

    await wait_for(lets_it_pass)
    # The same again, as after the death of its worker; others ask again soon, for it may end at any moment.
    assert await lets_it_pass()
    before, moment = time.time(), await broker.circuit_open_until("mail", waits, 0.5)
    assert moment is not None
    assert before < moment <= time.time() + 0.051
    sent = await mail.delay()
    async with running(broker):
        assert await sent.get(timeout=WAIT) == "done"
    assert await state(broker) == {}


async def test_what_began_before_it_was_opened_neither_opens_nor_closes_it(make_broker: MakeBroker) -> None:
    broker = make_broker()
    go_on = asyncio.Event()

    @broker.task(name="mail", circuit_failures=1, circuit_period=60)
    async def mail(broken: bool) -> str:
        if broken:
            raise ConnectionError
        await go_on.wait()
        return "done"

    async with running(broker):
        slow = await mail.delay(False)
        await wait_for(lambda: broker.attempts.running)
        await values([await mail.delay(True)])
        await wait_for(lambda: is_open(broker))
        before = await state(broker)
        go_on.set()
        assert await slow.get(timeout=WAIT) == "done"
    assert await state(broker) == before
    assert 0 < await broker._client.pttl(broker.keys.circuit("mail")) <= 60_000 + FORGET_FAILURES


async def test_a_task_without_the_option_asks_no_circuit(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_broker()

    @broker.task
    async def work() -> int:
        return 1

    async def asked(**_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(broker._scripts, "let_pass", asked)
    monkeypatch.setattr(broker._scripts, "report", asked)
    async with running(broker):
        assert await (await work.delay()).get(timeout=WAIT) == 1


async def test_without_the_middleware_there_is_no_circuit(make_broker: MakeBroker) -> None:
    broker = make_broker(middlewares=[one for one in standard() if not isinstance(one, CircuitBreaker)])
    given: Any = {"circuit_failures": 1}
    with pytest.raises(TaskDefinitionError, match="unknown option 'circuit_failures'; CircuitBreaker reads it"):
        broker.task(**given)
    service = Service()

    @broker.task
    async def mail() -> str:
        return service.call()

    async with running(broker):
        for _ in range(3):
            await values([await mail.delay()])
    assert len(service.calls) == 3


async def nothing(number: int) -> None: ...


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"circuit_failures": 0}, "circuit_failures is 0; it must be a number, 1 or more"),
        ({"circuit_failures": 1, "circuit_for": OSError}, r"write circuit_for=\(ConnectionError, TimeoutError\)"),
        ({"circuit_failures": 1, "circuit_period": 0}, "circuit_period is 0; it must be seconds, more than 0"),
        ({"circuit_key": "{number}"}, "circuit_key without circuit_failures does nothing: leave it out"),
        ({"circuit_failures": 1, "circuit_key": "{numbr}"}, "'numbr' is no argument; known are number"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_import(options: dict[str, Any], says: str) -> None:
    declare: Any = RedisBroker("redis://localhost:1").task
    with pytest.raises(TaskDefinitionError, match=f"task 'mail.send': .*{says}"):
        declare(name="mail.send", **options)(nothing)
