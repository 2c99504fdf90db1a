"""The suite itself: what the scenarios show, what is recorded of Celery, and where celeriq differs on purpose."""

from __future__ import annotations

import json
import re

import pytest

from tests.conformance import rows
from tests.conformance.environment import REQUIREMENTS
from tests.conformance.page import PAGE, written
from tests.conformance.playing import broken
from tests.conformance.report import lines, unlike
from tests.conformance.rows import Difference, StaleDifferenceError, expected
from tests.conformance.scenario import SCENARIOS


@pytest.fixture(autouse=True)
def scenarios() -> None:
    rows.load_scenarios()


def test_every_scenario_is_recorded_and_nothing_else_is() -> None:
    assert rows.recorded().keys() == SCENARIOS.keys()


def test_nothing_is_recorded_that_broke() -> None:
    assert broken(rows.recorded()) == []


def test_every_scenario_shows_rows_that_there_are() -> None:
    known = rows.rows().keys()
    assert [one.name for one in SCENARIOS.values() if not one.rows or set(one.rows) - known] == []


def test_each_row_has_its_weight_and_title() -> None:
    for row in rows.rows().values():
        assert row.weight in {"H", "M", "L"}
        assert row.title


def test_rows_without_meaning_are_few_and_say_why() -> None:
    first = [row for row in rows.rows().values() if row.chapter in rows.FIRST]
    idle = [row for row in first if row.without_meaning]
    assert len(idle) <= 0.15 * len(first)


def test_celery_is_the_pinned_one() -> None:
    recorded = json.loads(rows.RECORDING.read_text())["versions"]["celery"]
    assert f"celery=={recorded} " in REQUIREMENTS.read_text()
    assert re.match(r"5\.7\.", recorded)


def test_each_difference_is_one_of_a_row_that_its_scenario_shows() -> None:
    for difference in rows.differences():
        assert difference.row in SCENARIOS[difference.scenario].rows
        assert difference.reason


def test_each_difference_is_from_what_celery_does() -> None:
    for name, observation in rows.recorded().items():
        expected(observation, [one for one in rows.differences() if one.scenario == name])


def difference(at: tuple[str, ...], celery: object, celeriq: object) -> Difference:
    return Difference("a.scenario", "DEF-01", at, celery, celeriq, "for a test")


def test_a_difference_changes_one_place() -> None:
    recorded = {"states": ["STARTED", "SUCCESS"], "value": 1}
    assert expected(recorded, [difference(("states", "0"), "STARTED", None)]) == {
        "states": [None, "SUCCESS"],
        "value": 1,
    }
    assert expected(recorded, [difference((), recorded, "refused")]) == "refused"
    assert recorded["value"] == 1


@pytest.mark.parametrize(
    ("at", "celery"), [(("states", "2"), "SUCCESS"), (("state",), 1), (("value", "x"), 1), (("value",), 2)]
)
def test_a_difference_from_what_celery_does_not_do_is_stale(at: tuple[str, ...], celery: object) -> None:
    with pytest.raises(StaleDifferenceError, match=r"a\.scenario"):
        expected({"states": ["STARTED", "SUCCESS"], "value": 1}, [difference(at, celery, None)])


def test_what_is_not_alike_is_named_as_in_the_differences() -> None:
    found = unlike({"a": [1, {"b": 2}], "c": 3}, {"a": [1, {"b": 4}], "c": [3]})
    assert list(found) == [("a/1/b", 2, 4), ("c", 3, [3])]


def test_the_report_counts_rows_by_weight() -> None:
    first, *others = lines(rows.recorded())
    assert re.fullmatch(r"H \d+/\d+ · M \d+/\d+ · L \d+/\d+ · differences \d+", first)
    assert len(others) == 5


def test_the_page_for_those_who_leave_celery_has_the_tables_of_today() -> None:
    """`python -m tests.conformance page` writes them."""
    assert PAGE.read_text() == written(PAGE.read_text())
