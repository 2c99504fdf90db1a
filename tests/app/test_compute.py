from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator
from time import sleep

import pytest

from celeriq import TimeLimitExceeded, WorkerLostError
from tasks.compute import Compute


def pid() -> int:
    return os.getpid()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
async def compute() -> AsyncGenerator[Compute]:
    compute = Compute()
    yield compute
    await compute.close()


async def test_work_runs_in_another_process(compute: Compute) -> None:
    assert await compute(pid) != os.getpid()


async def test_a_process_that_dies_fails_its_call_and_is_replaced(compute: Compute) -> None:
    with pytest.raises(WorkerLostError):
        await compute(die)
    assert await compute(pid) != os.getpid()


async def test_what_takes_too_long_is_ended(compute: Compute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGEST_STEP_SECONDS", "0.2")
    with pytest.raises(TimeLimitExceeded):
        await compute(sleep, 60)
    monkeypatch.delenv("INGEST_STEP_SECONDS")
    assert await compute(pid) != os.getpid()


async def test_an_error_is_raised_where_the_work_was_asked_for(compute: Compute) -> None:
    with pytest.raises(ZeroDivisionError):
        await compute(divmod, 1, 0)


async def test_a_closed_pool_starts_again(compute: Compute) -> None:
    first = await compute(pid)
    await compute.close()
    assert await compute(pid) != first
