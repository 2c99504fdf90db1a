from __future__ import annotations

import asyncio
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celeriq.options import TaskOptions
from celeriq.outcome import Failed, Retrying, after_error

LOOKUP_FAMILY: list[type[Exception]] = [Exception, LookupError, KeyError, IndexError, OSError, ConnectionError]

# How fast the machine is decides nothing.
steadily = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
exception_classes = st.sampled_from(LOOKUP_FAMILY)
limits = st.none() | st.integers(0, 60)


def executions(options: TaskOptions) -> int:
    """How often a task runs that always raises `KeyError`."""
    for retries in count():
        if isinstance(after_error(KeyError(), options, retries), Failed):
            return retries + 1
    raise AssertionError


@steadily
@given(st.integers(0, 200))
def test_a_task_runs_once_more_than_it_may_be_retried(max_retries: int) -> None:
    """RETRY-02."""
    assert executions(TaskOptions(autoretry_for=(LookupError,), max_retries=max_retries)) == max_retries + 1


def test_a_task_runs_four_times_by_default() -> None:
    assert executions(TaskOptions(autoretry_for=(Exception,))) == 4


def test_max_retries_of_0_never_runs_a_task_again() -> None:
    error = KeyError()
    assert after_error(error, TaskOptions(autoretry_for=(Exception,), max_retries=0), 0) == Failed(error)


@steadily
@given(st.integers(0, 10**12))
def test_max_retries_of_none_is_without_end(retries: int) -> None:
    error = KeyError()
    options = TaskOptions(autoretry_for=(KeyError,), max_retries=None, default_retry_delay=7)
    assert after_error(error, options, retries) == Retrying(error, 7)


@steadily
@given(st.integers(0, 10), st.integers(1, 10**6))
def test_a_message_that_was_retried_too_often_is_not_retried_again(max_retries: int, beyond: int) -> None:
    """The limit may have been lowered while the message was waiting."""
    error = KeyError()
    options = TaskOptions(autoretry_for=(KeyError,), max_retries=max_retries)
    assert after_error(error, options, max_retries + beyond) == Failed(error)


@steadily
@given(exception_classes, st.lists(exception_classes), limits, st.integers(0, 60), st.floats(0, 1e6))
def test_an_error_is_retried_if_it_is_an_instance_of_a_listed_class_and_the_limit_allows(
    raised: type[Exception], listed: list[type[Exception]], max_retries: int | None, retries: int, delay: float
) -> None:
    """RETRY-14: subclasses match, base classes do not."""
    error = raised("on purpose")
    options = TaskOptions(autoretry_for=tuple(listed), max_retries=max_retries, default_retry_delay=delay)

    outcome = after_error(error, options, retries)

    matches = any(issubclass(raised, one) for one in listed)
    if matches and (max_retries is None or retries < max_retries):
        assert outcome == Retrying(error, delay)
    else:
        assert outcome == Failed(error)


def test_nothing_is_retried_by_default() -> None:
    error = ConnectionError()
    assert after_error(error, TaskOptions(), 0) == Failed(error)


@pytest.mark.parametrize("ending", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_a_process_or_a_coroutine_is_no_reason_to_retry(ending: type[BaseException]) -> None:
    error = ending()
    assert after_error(error, TaskOptions(autoretry_for=(Exception,), max_retries=None), 0) == Failed(error)
