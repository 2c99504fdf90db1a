"""What becomes of messages whose task has failed, or whose worker died."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from celeriq import BoundTask, RedisBroker, TaskDefinitionError, TimeLimitExceeded
from celeriq.middleware import Acknowledgement, Retries, WorkerLoss, standard
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 20


async def dead(broker: RedisBroker) -> list[str]:
    return [letter.reason async for letter in broker.dead_letters().look()]


async def test_the_message_of_a_failure_may_be_kept(make_broker: MakeBroker) -> None:
    """ACK-03: as a dead letter, from where it can be sent again."""
    broker = make_broker()

    @broker.task(acks_on_failure=False)
    async def kept() -> None:
        raise ValueError("no")

    @broker.task
    async def dropped() -> None:
        raise ValueError("no")

    async with running(broker):
        for task in (kept, dropped):
            with pytest.raises(ValueError, match="no"):
                await (await task.delay()).get(timeout=WAIT)
        assert await dead(broker) == ["it failed, and its message is kept: acks_on_failure=False"]


async def test_what_takes_too_long_may_run_again(make_broker: MakeBroker) -> None:
    """ACK-03, ACK-10."""
    broker = make_broker()

    @broker.task(acks_on_timeout=False, time_limit=0.2, bind=True)
    async def slow(self: BoundTask) -> str:
        if not self.request.delivery_info["redelivered"]:
            await asyncio.Event().wait()
        return "at last"

    async with running(broker):
        assert await (await slow.delay()).get(timeout=WAIT) == "at last"


@pytest.mark.parametrize("option", ["acks_on_failure", "acks_on_timeout"])
def test_a_message_that_is_gone_cannot_be_kept(make_broker: MakeBroker, option: str) -> None:
    says: Any = {option: False, "acks_late": False}
    with pytest.raises(TaskDefinitionError, match="with acks_late=False its message is gone before it fails"):
        register(make_broker(), **says)


def register(broker: RedisBroker, **says: Any) -> None:
    task: Any = broker.task(name="work", **says)
    task(nothing)


async def nothing() -> None: ...


def test_a_retry_for_a_lost_worker_needs_retries(make_broker: MakeBroker) -> None:
    broker = make_broker(middlewares=[one for one in standard() if not isinstance(one, Retries)])
    with pytest.raises(TaskDefinitionError, match="needs the middleware Retries, which is not there: add it"):
        register(broker, retry_on_worker_lost=True)


@pytest.mark.parametrize("kind", [Acknowledgement, WorkerLoss])
def test_without_the_middleware_its_options_are_unknown(make_broker: MakeBroker, kind: type[Any]) -> None:
    broker = make_broker(middlewares=[one for one in standard() if not isinstance(one, kind)])
    option = "acks_on_failure" if kind is Acknowledgement else "reject_on_worker_lost"
    says: Any = {option: False}
    with pytest.raises(TaskDefinitionError, match=f"{option!r}; {kind.__name__} reads it"):
        register(broker, **says)


async def test_a_limit_without_the_option_is_a_failure(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task(time_limit=0.05)
    async def slow() -> None:
        await asyncio.Event().wait()

    async with running(broker):
        sent = await slow.delay()
        with pytest.raises(TimeLimitExceeded):
            await sent.get(timeout=WAIT)
        await wait_for(sent.failed)
        assert await dead(broker) == []
