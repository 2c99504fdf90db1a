from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celeriq import (
    BoundTask,
    Ignore,
    MaxRetriesExceededError,
    RedisBroker,
    Reject,
    Retry,
    RetryPolicy,
    Snooze,
    TaskDefinitionError,
)
from celeriq.middleware import Retries
from celeriq.middleware.retries import RetryOptions, changed_call
from celeriq.options import Options
from celeriq.outcome import Failed, Outcome, Retrying
from tests.unit.attempts import attempt

LOOKUP_FAMILY: list[type[Exception]] = [Exception, LookupError, KeyError, IndexError, OSError, ConnectionError]

# How fast the machine is decides nothing.
steadily = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
exception_classes = st.sampled_from(LOOKUP_FAMILY)
limits = st.none() | st.integers(0, 60)


def after(error: BaseException, options: RetryOptions, retries: int = 0) -> Outcome:
    """What becomes of an attempt that raised."""
    tried = attempt(retries=retries)
    tried.options = Options(options)
    return Retries(random.Random(1)).decide(tried, error) or Failed(error)


def executions(options: RetryOptions) -> int:
    """How often a task runs that always raises `KeyError`."""
    for retries in count():
        if isinstance(after(KeyError(), options, retries), Failed):
            return retries + 1
    raise AssertionError


@steadily
@given(st.integers(0, 200))
def test_a_task_runs_once_more_than_it_may_be_retried(max_retries: int) -> None:
    """RETRY-02."""
    assert executions(RetryOptions(autoretry_for=(LookupError,), max_retries=max_retries)) == max_retries + 1


def test_a_task_runs_four_times_by_default() -> None:
    assert executions(RetryOptions(autoretry_for=(Exception,))) == 4


def test_max_retries_of_0_never_runs_a_task_again() -> None:
    error = KeyError()
    assert after(error, RetryOptions(autoretry_for=(Exception,), max_retries=0)) == Failed(error)


@steadily
@given(st.integers(0, 10**12))
def test_max_retries_of_none_is_without_end(retries: int) -> None:
    error = KeyError()
    options = RetryOptions(autoretry_for=(KeyError,), max_retries=None, default_retry_delay=7)
    assert after(error, options, retries) == Retrying(error, 7)


@steadily
@given(st.integers(0, 10), st.integers(1, 10**6))
def test_a_message_that_was_retried_too_often_is_not_retried_again(max_retries: int, beyond: int) -> None:
    """The limit may have been lowered while the message was waiting."""
    error = KeyError()
    options = RetryOptions(autoretry_for=(KeyError,), max_retries=max_retries)
    assert after(error, options, max_retries + beyond) == Failed(error)


@steadily
@given(exception_classes, st.lists(exception_classes), limits, st.integers(0, 60), st.floats(0, 1e6))
def test_an_error_is_retried_if_it_is_an_instance_of_a_listed_class_and_the_limit_allows(
    raised: type[Exception], listed: list[type[Exception]], max_retries: int | None, retries: int, delay: float
) -> None:
    """RETRY-14: subclasses match, base classes do not."""
    error = raised("on purpose")
    options = RetryOptions(autoretry_for=tuple(listed), max_retries=max_retries, default_retry_delay=delay)

    outcome = after(error, options, retries)

    matches = any(issubclass(raised, one) for one in listed)
    if matches and (max_retries is None or retries < max_retries):
        assert outcome == Retrying(error, delay)
    else:
        assert outcome == Failed(error)


def test_nothing_is_retried_by_default() -> None:
    error = ConnectionError()
    assert after(error, RetryOptions()) == Failed(error)


@pytest.mark.parametrize("ending", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_a_process_or_a_coroutine_is_no_reason_to_retry(ending: type[BaseException]) -> None:
    error = ending()
    assert after(error, RetryOptions(autoretry_for=(Exception,), max_retries=None)) == Failed(error)


@pytest.mark.parametrize("said", [Ignore(), Reject("no"), Reject("no", requeue=True)], ids=repr)
def test_what_says_by_itself_how_a_task_ends_is_not_retried(said: Exception) -> None:
    """RETRY-14."""
    assert after(said, RetryOptions(autoretry_for=(Exception,))) == Failed(said)


def test_an_exception_may_be_left_out_of_those_that_are_retried() -> None:
    options = RetryOptions(autoretry_for=(LookupError,), dont_autoretry_for=(KeyError,))
    assert isinstance(after(IndexError(), options), Retrying)
    assert isinstance(after(KeyError(), options), Failed)


# -- how long ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factor", "seconds"),
    [
        (True, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]),
        (5, [5, 10, 20, 40, 80, 160, 320, 600]),
        (0.5, [1, 2, 4]),
        (2.9, [2, 4, 8]),
        (3600, [600, 600]),
    ],
)
def test_the_backoff_doubles_up_to_its_cap(factor: float, seconds: list[int]) -> None:
    """RETRY-16, RETRY-17: fractions are cut off, and less than 1 is 1."""
    options = RetryOptions(
        autoretry_for=(OSError,), retry_backoff=factor, retry_jitter=False, max_retries=None, default_retry_delay=9
    )
    delays = [after(OSError(), options, retries) for retries in range(len(seconds))]
    assert [delay.delay for delay in delays if isinstance(delay, Retrying)] == seconds


def test_a_backoff_after_ever_so_many_retries_is_the_cap() -> None:
    options = RetryOptions(autoretry_for=(OSError,), retry_backoff=True, retry_jitter=False, max_retries=None)
    outcome = after(OSError(), options, 10**9)
    assert isinstance(outcome, Retrying)
    assert outcome.delay == 600


@steadily
@given(st.integers(0, 30), st.integers(1, 50), st.integers(1, 1000))
def test_jitter_draws_a_whole_number_of_seconds_from_0_to_the_backoff(retries: int, factor: int, cap: int) -> None:
    """RETRY-18."""
    asked: list[int] = []
    policy = RetryPolicy(backoff=factor, backoff_max=cap)

    def highest(below: int) -> int:
        asked.append(below)
        return below - 1

    assert policy.seconds(retries, lambda _: 0) == 0
    assert policy.seconds(retries, highest) == min(cap, factor * 2**retries)
    assert asked == [min(cap, factor * 2**retries) + 1]


def test_without_a_backoff_automatic_retries_wait_as_long_as_others() -> None:
    """RETRY-15."""
    outcome = after(OSError(), RetryOptions(autoretry_for=(OSError,)))
    assert isinstance(outcome, Retrying)
    assert outcome.delay == 180


def test_retry_kwargs_hold_for_automatic_retries_alone() -> None:
    options = RetryOptions(autoretry_for=(OSError,), retry_kwargs={"countdown": 5, "max_retries": 1})
    error = OSError()
    assert after(error, options) == Retrying(error, 5)
    assert after(error, options, 1) == Failed(error)
    assert after(Retry(), options, 1) == Retrying(None, 180)


def test_a_policy_holds_for_its_exceptions_and_the_first_that_fits() -> None:
    options = RetryOptions(
        autoretry_for=(Exception,),
        retry_policies={KeyError: RetryPolicy(max_retries=1, delay=5), LookupError: RetryPolicy(delay=7)},
    )
    for error, delay in ((KeyError(), 5.0), (IndexError(), 7.0), (OSError(), 180.0)):
        assert after(error, options) == Retrying(error, delay)
    assert isinstance(after(KeyError(), options, 1), Failed)


@pytest.mark.parametrize("wrong", [{"max_retries": -1}, {"delay": -1}, {"backoff": float("inf")}], ids=repr)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="it must be"):
        RetryPolicy(**wrong)


# -- asked for ---------------------------------------------------------------------------------------------------------


def test_a_task_that_asks_for_a_retry_says_when() -> None:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    error = OSError()
    options = RetryOptions(default_retry_delay=9)
    assert after(Retry(exc=error), options) == Retrying(error, 9)
    assert after(Retry(countdown=0), options) == Retrying(None, 0)
    assert after(Retry(eta=moment), options) == Retrying(None, 9, at=moment.timestamp())
    assert after(Retry(eta=moment.replace(tzinfo=None)), options) == Retrying(None, 9, at=moment.timestamp())


def test_one_retry_too_many_fails_with_the_exception_that_was_given() -> None:
    """RETRY-04."""
    error = OSError()
    assert after(Retry(exc=error), RetryOptions(), 3) == Failed(error)
    assert after(Retry(exc=error, max_retries=4), RetryOptions(), 3) == Retrying(error, 180)


def test_one_retry_too_many_without_an_exception_says_what_happened() -> None:
    """RETRY-05."""
    outcome = after(Retry(), RetryOptions(max_retries=0))
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, MaxRetriesExceededError)
    assert str(outcome.error) == "Can't retry name[id] args:(1,) kwargs:{'two': 2}"
    assert (outcome.error.task_args, outcome.error.task_kwargs) == ((1,), {"two": 2})


def test_a_snooze_uses_up_no_retry() -> None:
    error = Snooze(5)
    assert after(error, RetryOptions(max_retries=0), 7) == Retrying(error, 5, counted=False)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (Retry(), "Retry"),
        (Retry(countdown=1, exc=KeyError("k")), "Retry in 1s: KeyError('k')"),
        (Retry(eta=datetime(2030, 1, 1)), "Retry at 2030-01-01 00:00:00"),  # noqa: DTZ001 - as Celery's users write
        (Retry("for a reason"), "for a reason"),
    ],
    ids=str,
)
def test_a_retry_says_when_and_why(said: Retry, text: str) -> None:
    """RETRY-06."""
    assert str(said) == text


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        (None, None, {}),
        ([5], None, {"args": [5], "kwargs": {"two": 2}}),
        ([5, 6], None, {"args": [5, 6], "kwargs": {}}),
        (None, {"two": 9}, {"kwargs": {"two": 9}}),
        (None, {"one": 9}, {"args": [], "kwargs": {"one": 9}}),
        (None, {"three": 9}, {"kwargs": {"three": 9}}),
        ([5], {"two": 6}, {"args": [5], "kwargs": {"two": 6}}),
    ],
)
def test_other_arguments_replace_those_of_the_call_that_they_contradict(
    args: list[int] | None, kwargs: dict[str, int] | None, expected: dict[str, Any]
) -> None:
    """RETRY-13."""
    broker = RedisBroker("redis://localhost:1")

    @broker.task(bind=True)
    async def add(self: BoundTask, one: int, two: int) -> None: ...

    assert changed_call(add.definition, ([1], {"two": 2}), args, kwargs) == expected


# -- where it is declared ----------------------------------------------------------------------------------------------


async def nothing() -> None: ...


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"retry_backoff": True}, "name the exceptions with autoretry_for"),
        ({"retry_kwargs": {"countdown": 1}}, "name the exceptions with autoretry_for"),
        ({"dont_autoretry_for": (OSError,)}, "name the exceptions with autoretry_for"),
        ({"autoretry_for": (OSError,), "retry_kwargs": {"delay": 1}}, "knows countdown and max_retries, not 'delay'"),
        ({"autoretry_for": (OSError,), "retry_kwargs": {"countdown": -1}}, "retry_kwargs: delay is -1"),
        ({"autoretry_for": (OSError,), "retry_backoff": True, "retry_kwargs": {"countdown": 1}}, "give one"),
        ({"retry_policies": {OSError: 5}}, "write retry_policies="),
    ],
)
def test_options_that_contradict_each_other_are_refused_at_import(options: dict[str, Any], says: str) -> None:
    declare: Any = RedisBroker("redis://localhost:1").task
    with pytest.raises(TaskDefinitionError, match=r"task 'mail.send': .*" + says):
        declare(name="mail.send", **options)(nothing)
