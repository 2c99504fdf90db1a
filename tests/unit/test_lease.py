"""When a worker is dead, by an observer's own clock."""

from __future__ import annotations

from celeriq.redis.lease import Observed


def test_a_worker_whose_beat_changes_lives() -> None:
    observed = Observed(5)
    assert [observed.silent({"w": str(beat)}, float(beat)) for beat in range(100)] == 100 * [[]]


def test_a_worker_whose_beat_stands_still_for_a_whole_lease_is_dead() -> None:
    observed = Observed(5)
    seen = [observed.silent({"w": "7"}, now) for now in (100.0, 103.0, 105.0, 105.1)]
    assert seen == [[], [], [], [("w", "7")]]


def test_a_lease_begins_when_the_observer_first_looks() -> None:
    """A worker that started after the death waits a whole lease before it says so."""
    observed = Observed(5)
    assert observed.silent({"dead": "7"}, 1000.0) == []


def test_what_was_seen_on_a_broken_connection_proves_nothing() -> None:
    """Redis away for a minute: nobody could beat, and nobody is dead."""
    observed = Observed(5)
    observed.silent({"w": "7"}, 0.0)
    observed.forget()
    assert observed.silent({"w": "7"}, 60.0) == []
    assert observed.silent({"w": "8"}, 62.0) == []


def test_any_other_beat_is_a_new_one() -> None:
    """A Redis that was restored from an older copy counts from there."""
    observed = Observed(5)
    observed.silent({"w": "900"}, 0.0)
    assert observed.silent({"w": "20"}, 6.0) == []


def test_a_worker_that_signed_off_is_forgotten() -> None:
    observed = Observed(5)
    observed.silent({"w": "7"}, 0.0)
    assert observed.silent({}, 4.0) == []
    assert observed.silent({"w": "7"}, 8.0) == []
