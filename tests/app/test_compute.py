from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from pebble import ProcessExpired

from tasks.compute import Compute


def pid() -> int:
    return os.getpid()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def compute() -> Iterator[Compute]:
    compute = Compute()
    yield compute
    compute.close()


async def test_work_runs_in_another_process(compute: Compute) -> None:
    assert await compute(pid) != os.getpid()


async def test_a_process_that_dies_fails_its_call_and_is_replaced(compute: Compute) -> None:
    with pytest.raises(ProcessExpired):
        await compute(die)
    assert await compute(pid) != os.getpid()


async def test_an_error_is_raised_where_the_work_was_asked_for(compute: Compute) -> None:
    with pytest.raises(ZeroDivisionError):
        await compute(divmod, 1, 0)


async def test_a_closed_pool_starts_again(compute: Compute) -> None:
    first = await compute(pid)
    compute.close()
    assert await compute(pid) != first
