"""ST-01: the sets and the order of Celery's states."""

from __future__ import annotations

from celeriq import states
from celeriq.states import EXCEPTION, PROPAGATE, READY, UNREADY, precedence


def test_the_sets_are_those_of_celery() -> None:
    assert {"SUCCESS", "FAILURE", "REVOKED"} == READY
    assert {"FAILURE", "REVOKED"} == PROPAGATE
    assert {"FAILURE", "REVOKED", "RETRY"} == EXCEPTION
    assert {"PENDING", "RECEIVED", "STARTED", "REJECTED", "RETRY"} == UNREADY
    assert not READY & UNREADY


def test_the_order_is_that_of_celery_with_states_of_ones_own_behind_failure() -> None:
    told = ["PENDING", "RETRY", "REJECTED", "RECEIVED", "STARTED", "REVOKED", "PROGRESS", "FAILURE", "SUCCESS"]
    assert sorted(told, key=precedence, reverse=True) == told
    assert precedence("PROGRESS") == precedence("ANY OTHER")


def test_every_state_is_a_word_of_its_own() -> None:
    named = {name: value for name, value in vars(states).items() if isinstance(value, str) and name.isupper()}
    assert all(name == value for name, value in named.items())
