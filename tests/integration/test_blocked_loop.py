from __future__ import annotations

import logging
import threading
from pathlib import Path
from time import monotonic

import pytest

from celeriq.redis.worker import Worker
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 20
LOGGER = "celeriq.loop_watch"


def blocked(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """What is said of the task; on a busy machine others may be slow as well."""
    said = [one.getMessage() for one in list(caplog.records) if one.name == LOGGER and one.levelno == level]
    return [one for one in said if "mail.send" in one]


async def test_a_task_that_blocks_the_loop_is_named_with_the_line(
    make_broker: MakeBroker, caplog: pytest.LogCaptureFixture
) -> None:
    broker = make_broker(blocked_warning=0.2)
    caplog.set_level(logging.INFO, LOGGER)

    @broker.task(name="mail.send")
    async def send() -> None:
        deadline = monotonic() + WAIT
        while not any(one.name == LOGGER and "mail.send" in str(one.args) for one in caplog.handler.records):
            assert monotonic() < deadline

    async with running(broker):
        sent = await send.delay()
        await sent.get(timeout=WAIT)
        await wait_for(lambda: blocked(caplog, logging.INFO))
    (warning,) = blocked(caplog)
    assert f"by task mail.send[{sent.id}] at {Path(__file__)}:" in warning
    assert "test_a_task_that_blocks_the_loop_is_named_with_the_line.<locals>.send" in warning
    assert watches() == []


def watches() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "celeriq-loop-watch"]


@pytest.mark.parametrize("never", [None, 0])
async def test_nobody_looks_when_it_is_turned_off(make_broker: MakeBroker, never: float | None) -> None:
    broker = make_broker(blocked_warning=never)
    async with running(broker):
        assert isinstance(broker.worker, Worker)
        assert watches() == []
