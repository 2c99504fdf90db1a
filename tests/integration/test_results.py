"""States and results: kept, final, and told to whoever waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from redis.asyncio import Redis
from taskiq import TaskiqResult
from taskiq.depends.progress_tracker import TaskProgress

from celeriq import CurrentTask, Record, RedisResults, UnsupportedOptionError, injected
from celeriq.embedded import Services, Valkey
from celeriq.record import encode, success
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running


@pytest.fixture
async def results(services: Services, namespace: str) -> AsyncGenerator[RedisResults[Any]]:
    results: RedisResults[Any] = RedisResults(services.redis_url, namespace=namespace)
    yield results
    await results.shutdown()


async def test_an_id_that_nobody_knows_has_no_record(results: RedisResults[Any]) -> None:
    """PENDING is no record at all (ST-02)."""
    assert await results.find("unknown") is None
    assert not await results.is_result_ready("unknown")


async def test_success_is_final(results: RedisResults[Any]) -> None:
    """ST-07: whatever is written later is dropped."""
    await results.set_result("t", TaskiqResult(is_err=False, return_value=1, execution_time=0))
    await results.set_result("t", TaskiqResult(is_err=True, return_value=None, execution_time=0, error=ValueError()))
    await results.store(Record(status="PROGRESS", task_id="t"))
    assert (await results.get_result("t")).return_value == 1


async def test_a_failure_can_be_overwritten(results: RedisResults[Any]) -> None:
    """ST-07: a task that is delivered again may still succeed."""
    await results.set_result("t", TaskiqResult(is_err=True, return_value=None, execution_time=0, error=ValueError()))
    await results.set_result("t", TaskiqResult(is_err=False, return_value=1, execution_time=0))
    assert (await results.get_result("t")).return_value == 1


async def test_a_state_may_be_stored_only_if_there_is_none(results: RedisResults[Any]) -> None:
    for status in ("PENDING", "AGAIN"):
        await results.store(Record(status=status, task_id="t"), only_if_absent=True)
    found = await results.find("t")
    assert found is not None
    assert found.status == "PENDING"


async def test_every_state_is_told_in_its_order(make_broker: MakeBroker, results: RedisResults[Any]) -> None:
    broker = make_broker()
    go = asyncio.Event()

    @broker.task
    async def counting(task: CurrentTask = injected) -> str:
        await go.wait()
        for number in range(20):
            await task.update_state("PROGRESS", {"current": number})
        return task.id

    async with running(broker):
        sent = await counting.kiq()
        await results.store(Record(status="PENDING", task_id=sent.task_id))
        seen: list[Record] = []
        async with aclosing(results.follow(sent.task_id)) as changes:
            async for change in changes:
                seen.append(change)
                go.set()
    assert [change.status for change in seen] == ["PENDING", *20 * ["PROGRESS"], "SUCCESS"]
    assert [change.result["current"] for change in seen[1:-1]] == list(range(20))
    assert seen[-1].result == sent.task_id


async def test_taskiqs_own_progress_is_the_same_record(results: RedisResults[Any]) -> None:

    await results.set_progress("t", TaskProgress(state="PROGRESS", meta={"current": 1}))
    found = await results.find("t")
    assert found is not None
    assert (found.status, found.result) == ("PROGRESS", {"current": 1})
    told = await results.get_progress("t")
    assert told is not None
    assert told.meta == {"current": 1}


@pytest.mark.parametrize("option", ["keep_results", "result_ex_time", "result_px_time", "serializer", "prefix_str"])
def test_an_inherited_option_is_refused_with_its_reason(services: Services, option: str) -> None:
    inherited: dict[str, Any] = {option: 1}
    with pytest.raises(UnsupportedOptionError, match=f"refuses '{option}': "):
        RedisResults(services.redis_url, **inherited)


async def test_whoever_waits_is_told_at_once(make_broker: MakeBroker) -> None:
    """Taskiq looks five times a second (W37)."""
    broker = make_broker()
    go = asyncio.Event()

    @broker.task
    async def waits() -> str:
        await go.wait()
        return "told"

    async with running(broker):
        results: Any = broker.result_backend
        sent = await waits.kiq()
        waiting = [asyncio.create_task(results.wait(sent.task_id, timeout=20)) for _ in range(50)]
        go.set()
        records = await asyncio.gather(*waiting)
    assert {record.result for record in records} == {"told"}


async def test_waiting_ends_after_its_time(results: RedisResults[Any]) -> None:
    """PENDING is waited for without end unless somebody says how long (RES-01)."""
    with pytest.raises(TimeoutError):
        await results.wait("unknown", timeout=0.1)
    assert not results._watch._watchers


async def test_many_who_follow_do_not_keep_others_from_sending(make_broker: MakeBroker, redis: Redis) -> None:
    broker = make_broker()

    @broker.task
    async def nothing() -> None:
        return None

    await broker.startup()
    results: Any = broker.result_backend
    waiting = [asyncio.create_task(results.wait(f"task {number}", timeout=60)) for number in range(300)]
    await wait_for(lambda: [event.is_set() for event in results._watch._confirmed.values()] == 300 * [True])
    await nothing.kiq()
    subscribers: Any = await redis.client_list(_type="pubsub")
    assert len([one for one in subscribers if one["sub"] == "300"]) == 1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    await broker.shutdown()


async def test_what_was_missed_while_redis_was_away_is_looked_up(valkey: Valkey) -> None:
    results: RedisResults[Any] = RedisResults(valkey.url)
    await results.store(Record(status="PROGRESS", task_id="t"))
    waiting = asyncio.create_task(results.wait("t", timeout=20))
    # It has subscribed, looked, and waits to be told.
    await wait_for(lambda: any(told._getters for watching in results._watch._watchers.values() for told in watching))  # type: ignore[attr-defined]
    async with Redis.from_url(valkey.url) as client:
        # Not published: as if it had been told while the connection was broken.
        await client.set(results.keys.record("t"), encode(success("t", "done", 0)))
    await asyncio.to_thread(valkey.stop)
    await asyncio.to_thread(valkey.start)
    assert (await waiting).result == "done"
    await results.shutdown()


async def test_whoever_gives_up_at_any_moment_may_wait_again(make_broker: MakeBroker) -> None:
    """W23: before Python 3.12 a cancellation may get lost on its way through redis-py."""
    for number in range(60):
        results: Any = make_broker().result_backend
        with pytest.raises(TimeoutError):
            await results.wait("t", timeout=number / 20_000)
        waiting = asyncio.create_task(results.wait("t", timeout=20))
        await results.store(Record(status="SUCCESS", task_id="t", result=number))
        assert (await waiting).result == number
        await results.forget("t")
        await results.shutdown()


async def test_whoever_gives_up_while_redis_is_away_is_told_that_the_time_is_over(valkey: Valkey) -> None:
    """And not that nobody could unsubscribe."""
    results: RedisResults[Any] = RedisResults(valkey.url)
    waiting = asyncio.create_task(results.wait("t", timeout=1))
    await wait_for(lambda: any(told._getters for watching in results._watch._watchers.values() for told in watching))  # type: ignore[attr-defined]
    await asyncio.to_thread(valkey.stop)
    with pytest.raises(TimeoutError):
        await waiting
    assert not results._watch._watchers
    await results.shutdown()
