"""What a result keeps, and how it travels."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from celeriq import AsyncResult, BoundTask, EncodeError, WorkerLostError, chain, result_from_tuple
from celeriq.middleware import Results
from celeriq.record import ExtendedRecord
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 20


async def test_what_has_ended_is_not_asked_for_again(make_broker: MakeBroker) -> None:
    """RES-05: the handle keeps what it saw, until it forgets."""
    broker = make_broker()

    @broker.task
    async def work() -> str:
        return "kept"

    async with running(broker):
        sent = await work.delay()
        await sent.get(timeout=WAIT)
        await AsyncResult(sent.id, broker=broker).forget()
        assert (await sent.state(), await sent.get(), await sent.exists()) == ("SUCCESS", "kept", True)
        assert await AsyncResult(sent.id, broker=broker).state() == "PENDING"
        await sent.forget()
        assert await sent.state() == "PENDING"


async def test_a_handle_may_be_kept_elsewhere_as_plain_data(make_broker: MakeBroker) -> None:
    """RES-09."""
    broker = make_broker()

    @broker.task
    async def add(x: int, y: int) -> int:
        return x + y

    async with running(broker):
        last = await chain(add.s(1, 2), add.s(10)).apply_async()
        assert last is not None
        kept = json.loads(json.dumps(last.as_tuple()))
        again = result_from_tuple(kept, broker)
        assert again.parent is not None
        assert [await each.get(timeout=WAIT) for each in (again, again.parent)] == [13, 3]


async def test_the_call_may_be_stored_beside_its_result(make_broker: MakeBroker) -> None:
    """ST-06."""
    broker = make_broker().with_middlewares(Results(extended=True))

    @broker.task(name="work", bind=True, max_retries=1)
    async def work(self: BoundTask, x: int, *, more: str) -> int:
        if not self.request.retries:
            raise self.retry(countdown=0)
        return x

    async with running(broker):
        sent = await work.delay(1, more="m")
        await sent.get(timeout=WAIT)
        stored = await sent.snapshot()
    assert isinstance(stored, ExtendedRecord)
    known = (stored.name, stored.args, stored.kwargs, stored.retries, stored.queue)
    assert known == ("work", [1], {"more": "m"}, 1, "default")
    assert stored.worker


async def test_otherwise_it_is_not(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task
    async def work() -> None: ...

    async with running(broker):
        sent = await work.delay()
        await sent.get(timeout=WAIT)
        stored = await sent.snapshot()
    assert isinstance(stored, ExtendedRecord)
    assert (stored.name, stored.worker) == (None, None)


async def test_results_may_be_kept_for_ever_and_failures_shorter(make_broker: MakeBroker, redis: Any) -> None:
    """ST-19."""
    broker = make_broker(result_expires=None, result_failure_expires=500)

    @broker.task(bind=True)
    async def work(self: BoundTask, how: str) -> None:
        if how == "fail":
            raise ValueError(how)
        if how == "told":
            await self.update_state("PROGRESS")
            assert await redis.pttl(broker.keys.record(self.id)) == -1

    async with running(broker):
        sent = [await work.delay(how) for how in ("fine", "told", "fail")]
        for each in sent:
            await each.get(timeout=WAIT, propagate=False)
        kept = [await redis.pttl(broker.keys.record(each.id)) for each in sent]
        await broker.revoke("unheard-of")
        assert await redis.pttl(broker.keys.record("unheard-of")) == -1
    assert kept[:2] == [-1, -1]
    assert 400_000 < kept[2] <= 500_000


async def test_a_body_that_exits_has_failed_and_the_worker_goes_on(make_broker: MakeBroker) -> None:
    """EXE-10."""
    broker = make_broker()
    told: list[str] = []

    class Telling(BoundTask):
        async def on_failure(self, *_: Any) -> None:
            told.append("on_failure")

    @broker.task(base=Telling)
    async def work(leave: bool) -> None:
        if leave:
            raise SystemExit(3)

    async with running(broker):
        with pytest.raises(WorkerLostError, match=r"ended as if it were a program: SystemExit\(3\)"):
            await (await work.delay(leave=True)).get(timeout=WAIT)
        await (await work.delay(leave=False)).get(timeout=WAIT)
    assert told == []


async def test_a_number_that_json_lacks_is_refused_at_the_call_and_fails_the_task(make_broker: MakeBroker) -> None:
    """It would arrive as null."""
    broker = make_broker()

    @broker.task(bind=True)
    async def work(self: BoundTask, how: Any) -> float:
        if how == "tells":
            await self.update_state("PROGRESS", {"loss": math.inf})
        return math.nan

    with pytest.raises(Exception, match="which has no nan: give None or text in its place"):
        await work.delay([math.nan])
    async with running(broker):
        for how, lost in (("tells", "inf"), ("returns", "nan")):
            with pytest.raises(EncodeError, match=f"JSON, which has no {lost}"):
                await (await work.delay(how)).get(timeout=WAIT)


async def test_a_task_knows_what_may_be_shown_of_its_arguments(make_broker: MakeBroker) -> None:
    """SEC-07."""
    broker = make_broker()
    shown: list[tuple[str, str]] = []

    @broker.task(bind=True)
    async def work(self: BoundTask, password: str, *, more: int = 0) -> None:
        shown.append((self.request.argsrepr, self.request.kwargsrepr))

    async with running(broker):
        await work.delay("secret", more=1)
        await work.apply_async(("secret",), {"more": 1}, argsrepr="(***)", kwargsrepr="{}")
        await wait_for(lambda: len(shown) == 2)
    assert sorted(shown) == [("('secret',)", "{'more': 1}"), ("(***)", "{}")]


async def test_an_expected_error_is_told_of_quietly(
    make_broker: MakeBroker, caplog: pytest.LogCaptureFixture, receiver: str
) -> None:
    """DEF-12: by our receiver; Taskiq's writes what it writes."""
    broker = make_broker()

    @broker.task(name="work", throws=(LookupError,))
    async def work(surprise: bool) -> None:
        raise ValueError("nobody knew") if surprise else KeyError("as usual")

    caplog.set_level("INFO", logger="celeriq.receiver")
    async with running(broker):
        for surprise, kind in ((False, KeyError), (True, ValueError)):
            with pytest.raises(kind):
                await (await work.delay(surprise=surprise)).get(timeout=WAIT)
    lines = [line for line in caplog.records if line.getMessage().startswith("task work[")]
    told = [(line.levelname, line.exc_info is not None) for line in lines]
    assert told == ([] if receiver == "taskiq" else [("INFO", False), ("ERROR", True)])
