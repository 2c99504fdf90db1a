from __future__ import annotations

from typing import Any

import pytest

from celeriq import WorkerLostError
from celeriq.middleware import WorkerLoss
from celeriq.middleware.retries import RetryOptions
from celeriq.middleware.worker_loss import WorkerLossOptions
from celeriq.options import read_options
from celeriq.outcome import Failed, Outcome, Retrying
from tests.unit.attempts import attempt


@pytest.mark.parametrize(
    ("says", "retries", "expected"),
    [
        ({}, 0, None),
        ({"reject_on_worker_lost": False}, 0, Failed),
        ({"retry_on_worker_lost": True, "default_retry_delay": 5}, 0, Retrying),
        ({"retry_on_worker_lost": True, "max_retries": 2}, 2, Failed),
        ({"retry_on_worker_lost": True, "max_retries": None}, 99, Retrying),
    ],
)
def test_a_task_says_what_the_death_of_its_worker_means(
    says: dict[str, Any], retries: int, expected: type[Outcome] | None
) -> None:
    """ACK-05, RETRY-22."""
    lost = attempt(retries=retries)
    lost.delivery.crashes = 1
    lost.options = read_options("work", says, (WorkerLossOptions, RetryOptions))
    outcome = WorkerLoss().before(lost)
    assert type(outcome) is (type(None) if expected is None else expected)
    if isinstance(outcome, Failed | Retrying):
        assert isinstance(outcome.error, WorkerLostError)
    if isinstance(outcome, Retrying):
        assert outcome.delay == says.get("default_retry_delay", 180)


def test_what_no_worker_died_of_runs() -> None:
    fresh = attempt()
    fresh.delivery.crashes = 0
    fresh.options = read_options("work", {"reject_on_worker_lost": False}, (WorkerLossOptions, RetryOptions))
    assert WorkerLoss().before(fresh) is None
