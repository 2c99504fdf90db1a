from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from celeriq.errors import TaskDefinitionError, UnknownOptionError
from celeriq.options import KNOWN, TaskOptions, read_options


def test_the_defaults_are_those_of_celery() -> None:
    """DEF-07, RETRY-02, RETRY-03; but messages are acknowledged late."""
    assert read_options("mail.send", {}) == TaskOptions(
        queue=None,
        priority=None,
        autoretry_for=(),
        max_retries=3,
        default_retry_delay=180,
        acks_late=True,
        schedule=(),
        labels={},
    )


def test_every_option_can_be_given() -> None:
    everything: dict[str, Any] = {
        "queue": "mail",
        "priority": 3,
        "autoretry_for": (ConnectionError, TimeoutError),
        "max_retries": 5,
        "default_retry_delay": 0.5,
        "acks_late": False,
        "schedule": [{"cron": "0 3 * * *"}],
        "labels": {"timeout": 5},
    }
    assert everything.keys() == KNOWN
    assert dataclasses.asdict(read_options("mail.send", everything)) == everything


def test_options_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TaskOptions().max_retries = 4  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


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


@pytest.mark.parametrize("given", ["0 3 * * *", {"cron": "0 3 * * *"}, ["0 3 * * *"], None], ids=repr)
def test_a_schedule_that_is_no_list_of_entries_is_refused(given: Any) -> None:
    with pytest.raises(TaskDefinitionError, match=r"schedule is .* write schedule=\[\{\"cron\": \"0 3 \* \* \*\"\}\]"):
        read_options("mail.send", {"schedule": given})


@pytest.mark.parametrize("given", [5, "timeout", ["timeout"], {5: "timeout"}, None], ids=repr)
def test_labels_that_are_no_names_and_values_are_refused(given: Any) -> None:
    with pytest.raises(TaskDefinitionError, match=r"labels is .* write labels=\{\"timeout\": 5\}"):
        read_options("mail.send", {"labels": given})


@pytest.mark.parametrize("option", sorted(KNOWN))
def test_a_refusal_names_the_task_and_is_a_definition_error(option: str) -> None:
    with pytest.raises(TaskDefinitionError, match=f"task 'mail.send': {option}"):
        read_options("mail.send", {option: object()})
