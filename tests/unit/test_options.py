from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celeriq import RetryPolicy
from celeriq.call_options import KNOWN_OPTIONS
from celeriq.errors import TaskDefinitionError, UnknownOptionError
from celeriq.hooks import kinds_of, readers
from celeriq.keywords import CallKeywords, TaskKeywords
from celeriq.middleware import STANDARD, standard
from celeriq.middleware.expiry import ExpiryOptions
from celeriq.middleware.results import ResultOptions
from celeriq.middleware.retries import RetryOptions
from celeriq.middleware.track_started import StartedOptions
from celeriq.options import DeclaredOptions, Options, TaskOptions, names_of
from celeriq.options import read_options as read

KINDS: list[type[DeclaredOptions]] = [TaskOptions, *kinds_of(standard())]
KNOWN = {name for kind in KINDS for name in names_of(kind)}


def read_options(task_name: str, given: dict[str, Any]) -> Options:
    return read(task_name, given, KINDS)


def test_the_defaults_are_those_of_celery() -> None:
    """DEF-07, RETRY-02, RETRY-03; but messages are acknowledged late."""
    options = read_options("mail.send", {})
    assert options == Options(*(kind() for kind in KINDS))
    assert options.as_dict() == {
        "queue": None,
        "priority": None,
        "bind": False,
        "base": None,
        "aliases": (),
        "acks_late": True,
        "throws": (),
        "typing": True,
        "schedule": (),
        "labels": {},
        "reject_on_worker_lost": True,
        "retry_on_worker_lost": False,
        "expires": None,
        "pool": None,
        "track_started": False,
        "concurrency_limit": None,
        "concurrency_limit_key": None,
        "unique": None,
        "unique_key": None,
        "unique_period": 86_400,
        "unique_until": "end",
        "circuit_failures": None,
        "circuit_for": (),
        "circuit_period": 60,
        "circuit_key": None,
        "rate_limit": None,
        "rate_limit_key": None,
        "soft_time_limit": None,
        "time_limit": None,
        "once": False,
        "acks_on_failure": True,
        "acks_on_timeout": True,
        "autoretry_for": (),
        "dont_autoretry_for": (),
        "max_retries": 3,
        "default_retry_delay": 180,
        "retry_kwargs": {},
        "retry_backoff": False,
        "retry_backoff_max": 600,
        "retry_jitter": True,
        "retry_policies": {},
        "ignore_result": False,
        "store_errors_even_if_ignored": False,
    }


def test_every_option_can_be_given() -> None:
    everything: dict[str, Any] = {
        "queue": "mail",
        "priority": 3,
        "bind": True,
        "base": dict,
        "aliases": ["post.send"],
        "acks_late": False,
        "throws": (LookupError,),
        "typing": False,
        "schedule": [{"cron": "0 3 * * *"}],
        "labels": {"timeout": 5},
        "reject_on_worker_lost": False,
        "retry_on_worker_lost": True,
        "expires": 60,
        "pool": "process",
        "track_started": True,
        "concurrency_limit": 5,
        "concurrency_limit_key": "{user}",
        "unique": "skip",
        "unique_key": "{user}",
        "unique_period": 5,
        "unique_until": "period",
        "circuit_failures": 5,
        "circuit_for": (OSError,),
        "circuit_period": 5,
        "circuit_key": "{host}",
        "rate_limit": "10/s",
        "rate_limit_key": str,
        "soft_time_limit": 5,
        "time_limit": 10.5,
        "once": True,
        "acks_on_failure": False,
        "acks_on_timeout": False,
        "autoretry_for": (ConnectionError, TimeoutError),
        "dont_autoretry_for": (TimeoutError,),
        "max_retries": 5,
        "default_retry_delay": 0.5,
        "retry_kwargs": {"countdown": 5},
        "retry_backoff": 2,
        "retry_backoff_max": 60,
        "retry_jitter": False,
        "retry_policies": {OSError: RetryPolicy(delay=1)},
        "ignore_result": True,
        "store_errors_even_if_ignored": True,
    }
    assert everything.keys() == KNOWN
    assert read_options("mail.send", everything).as_dict() == everything


def test_options_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TaskOptions().queue = "mail"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


def test_an_option_belongs_to_the_middleware_that_declares_it() -> None:
    options = read_options("mail.send", {"max_retries": 7, "ignore_result": True})
    assert options[RetryOptions].max_retries == 7
    assert options[ResultOptions] == ResultOptions(ignore_result=True)
    assert (options[StartedOptions], options[ExpiryOptions]) == (StartedOptions(), ExpiryOptions())


def test_no_two_middlewares_declare_the_same_option() -> None:
    assert len(KNOWN) == sum(len(names_of(kind)) for kind in KINDS)


@pytest.mark.parametrize(("option", "reader"), sorted(readers(STANDARD).items()))
def test_without_its_middleware_an_option_is_unknown_and_the_remedy_is_told(option: str, reader: str) -> None:
    with pytest.raises(UnknownOptionError, match=f"unknown option '{option}'; {reader} reads it.*with_middlewares"):
        read("mail.send", {option: 1}, [TaskOptions], readers(STANDARD))


def test_a_call_may_say_what_a_middleware_allows_it_to() -> None:
    options = read_options("mail.send", {"ignore_result": True, "max_retries": 7})
    assert options.per_call == ["expires", "ignore_result", "soft_time_limit", "time_limit"]
    changed = options.changed_by_call({"ignore_result": False})
    assert (changed.get("ignore_result"), changed.get("max_retries")) == (False, 7)
    with pytest.raises(TypeError, match=r"unknown option 'max_retries' of a call; .* a call may say expires, ignore"):
        options.changed_by_call({"max_retries": 1})
    with pytest.raises(TaskDefinitionError, match="ignore_result is 5; it must be True or False"):
        options.changed_by_call({"ignore_result": 5})


@pytest.mark.parametrize(
    ("misspelled", "nearest"),
    [
        ("max_retires", "max_retries"),
        ("maxretries", "max_retries"),
        ("autoretry", "autoretry_for"),
        ("retry_delay", "default_retry_delay"),
        ("acks_lat", "acks_late"),
        ("queues", "queue"),
        ("scheduled", "schedule"),
        ("label", "labels"),
        ("ignore_results", "ignore_result"),
    ],
)
def test_an_unknown_option_names_the_nearest_right_one(misspelled: str, nearest: str) -> None:
    with pytest.raises(
        UnknownOptionError, match=f"task 'mail.send': unknown option '{misspelled}'; did you mean '{nearest}'"
    ):
        read_options("mail.send", {misspelled: 1})


def test_an_option_like_no_other_names_all_of_them() -> None:
    with pytest.raises(UnknownOptionError) as refused:
        read_options("mail.send", {"zzz": 1})
    assert f"known are {', '.join(sorted(KNOWN))}" in str(refused.value)


@settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text().filter(lambda name: name not in KNOWN))
def test_no_unknown_option_is_ever_accepted(option: str) -> None:
    with pytest.raises(UnknownOptionError):
        read_options("mail.send", {"max_retries": 1, option: 1})


@pytest.mark.parametrize(
    "given",
    [ValueError, [ValueError], (ValueError("an instance"),), ("ValueError",), (KeyboardInterrupt,), (int,), None],
    ids=repr,
)
def test_what_is_no_tuple_of_exception_classes_cannot_be_retried(given: Any) -> None:
    with pytest.raises(TaskDefinitionError, match=r"write autoretry_for=\(ConnectionError, TimeoutError\)"):
        read_options("mail.send", {"autoretry_for": given})


@pytest.mark.parametrize("given", [-1, "5", 1.5, True, float("inf")], ids=repr)
def test_max_retries_that_is_no_count_is_refused(given: Any) -> None:
    with pytest.raises(TaskDefinitionError, match=r"max_retries is .* must be 0 or more, or None for no limit"):
        read_options("mail.send", {"max_retries": given})


@pytest.mark.parametrize("given", [-0.1, "5", None, True, float("nan"), float("inf"), timedelta(seconds=5)], ids=repr)
def test_a_retry_delay_that_is_no_length_of_time_is_refused(given: Any) -> None:
    with pytest.raises(TaskDefinitionError, match=r"default_retry_delay is .* must be 0 or more"):
        read_options("mail.send", {"default_retry_delay": given})


@pytest.mark.parametrize("given", [5, "", b"mail", ["mail"]], ids=repr)
def test_a_queue_that_is_no_name_is_refused(given: Any) -> None:
    with pytest.raises(TaskDefinitionError, match=r"queue is .* must be the name of a queue"):
        read_options("mail.send", {"queue": given})


@pytest.mark.parametrize("given", ["no", 0, None], ids=repr)
def test_late_acknowledgement_is_yes_or_no(given: Any) -> None:
    with pytest.raises(TaskDefinitionError, match=r"acks_late is .* must be True or False"):
        read_options("mail.send", {"acks_late": given})


@pytest.mark.parametrize("given", ["0 3 * * *", ["0 3 * * *"], [[30]], True, None], ids=repr)
def test_what_is_no_schedule_is_refused(given: Any) -> None:
    with pytest.raises(TaskDefinitionError, match=r"schedule is .* write schedule=crontab\(hour=3, minute=0\)"):
        read_options("mail.send", {"schedule": given})


@pytest.mark.parametrize("given", [5, "timeout", ["timeout"], {5: "timeout"}, None], ids=repr)
def test_labels_that_are_no_names_and_values_are_refused(given: Any) -> None:
    with pytest.raises(TaskDefinitionError, match=r"labels is .* write labels=\{\"timeout\": 5\}"):
        read_options("mail.send", {"labels": given})


@pytest.mark.parametrize("option", sorted(KNOWN))
def test_a_refusal_names_the_task_and_is_a_definition_error(option: str) -> None:
    with pytest.raises(TaskDefinitionError, match=f"task 'mail.send': {option}"):
        read_options("mail.send", {option: object()})


def test_type_checkers_know_every_option() -> None:
    assert {*TaskKeywords.__annotations__, "bind"} == KNOWN
    per_call = Options(*(kind() for kind in KINDS)).per_call
    assert set(CallKeywords.__annotations__) == {*KNOWN_OPTIONS, *per_call}
