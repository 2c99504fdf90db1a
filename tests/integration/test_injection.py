"""Dependency injection under Taskiq's stock receiver."""

from __future__ import annotations

import asyncio
from typing import Annotated

from taskiq import Context, TaskiqDepends

from celeriq import CurrentTask, injected
from tests.integration.conftest import MakeBroker
from tests.workers import running


async def slowly() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def seen_context(
    _: Annotated[None, TaskiqDepends(slowly)] = injected, context: Annotated[Context, TaskiqDepends()] = injected
) -> str:
    return context.message.task_id


async def test_no_task_sees_the_context_of_another(make_broker: MakeBroker) -> None:
    """Taskiq writes every running task into one shared dict, and a dependency without cache reads it late (W17)."""
    broker = make_broker()

    @broker.task
    async def who(
        task: CurrentTask = injected, seen: Annotated[str, TaskiqDepends(seen_context, use_cache=False)] = injected
    ) -> list[str]:
        return [task.id, seen]

    async with running(broker):
        for sent in [await who.kiq() for _ in range(20)]:
            result = await sent.wait_result(check_interval=0.01, timeout=20)
            assert result.return_value == [sent.task_id, sent.task_id]


async def test_an_override_of_a_dependency_is_used(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task
    async def who(seen: Annotated[str, TaskiqDepends(seen_context, use_cache=False)] = injected) -> str:
        return seen

    broker.dependency_overrides[seen_context] = lambda: "overridden"
    async with running(broker):
        result = await (await who.kiq()).wait_result(check_interval=0.01, timeout=20)
        assert result.return_value == "overridden"
