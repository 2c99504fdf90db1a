"""States and results: kept, final, and told to whoever waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from taskiq import TaskiqResult
from taskiq.depends.progress_tracker import TaskProgress

from celeriq import CurrentTask, Record, RedisResults, UnsupportedOptionError, injected
from celeriq.embedded import Services
from tests.integration.conftest import MakeBroker
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
