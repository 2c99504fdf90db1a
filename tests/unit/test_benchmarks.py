"""The benchmarks' plan and arithmetic, and that the README says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main, plan
from benchmarks.floors import FLOORS, OURS, Floor, over, value
from benchmarks.plan import ENTRANTS, GROWTH, LONG, WORKLOADS, Entrant, unit
from benchmarks.report import KEPT, Rounds, headline, into_readme

ROOT = Path(__file__).parent.parent.parent
BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.parametrize("entrant", ENTRANTS, ids=lambda entrant: entrant.name)
def test_every_entrant_has_its_module_and_pinned_requirements(entrant: Entrant) -> None:
    assert (BENCHMARKS / "systems" / f"{entrant.module}.py").exists()
    assert "--hash=sha256:" in (BENCHMARKS / "requirements" / f"{entrant.environment}.txt").read_text()
    assert (BENCHMARKS / "requirements" / f"{entrant.environment}.in").exists()


def test_names_are_told_apart_by_commas() -> None:
    assert not [entrant.name for entrant in ENTRANTS if "," in entrant.name]


def test_a_whole_run_measures_each_entrant_and_each_workload() -> None:
    chosen = plan(short=False, only=set(), systems=set())
    assert {entrant.name for _, entrant in chosen} == {entrant.name for entrant in ENTRANTS}
    assert {workload.name for workload, _ in chosen} == {workload.name for workload in [*WORKLOADS, *GROWTH]}


def test_a_short_run_has_four_peers_side_by_side() -> None:
    chosen = plan(short=True, only=set(), systems=set())
    names = dict.fromkeys(entrant.name for _, entrant in chosen)
    peers = [name for name in names if not name.startswith(("celeriq", "ceiling")) and "NullPool" not in name]
    assert peers == ["taskiq tuned", "arq", "pgqueuer", "celery prefork"]
    assert {workload.name for workload, _ in chosen} == {
        "noop",
        "crud",
        "send_concurrent",
        "send_bulk",
        "outbox",
        "pickup",
    }


def test_only_picks_workloads_of_all_systems() -> None:
    chosen = plan(short=False, only={"crud"}, systems=set())
    assert {workload.name for workload, _ in chosen} == {"crud"}
    assert "celery kept loop + pool" in {entrant.name for _, entrant in chosen}


@pytest.mark.parametrize("option", ["--only=crude", "--systems=cellery"])
def test_an_unknown_name_is_refused_with_those_that_there_are(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", option])
    with pytest.raises(SystemExit):
        main()
    complaint = capsys.readouterr().err
    assert "unknown" in complaint
    assert "there are" in complaint


def test_a_summary_has_median_spread_and_unit() -> None:
    rounds = Rounds()
    for number in (10.0, 30.0, 20.0):
        rounds.add(OURS, {"noop": number})
    assert rounds.summary() == {"noop": {OURS: {"median": 20.0, "min": 10.0, "max": 30.0, "unit": "tasks/s"}}}


@pytest.mark.parametrize(
    ("workload", "expected"),
    [("pickup_p99_ms", "ms"), ("cpu_us_per_noop", "µs"), ("memory_mib", "MiB"), ("send_bulk", "messages/s")],
)
def test_a_figure_has_its_unit(workload: str, expected: str) -> None:
    assert unit(workload) == expected


def test_a_floor_is_a_ratio_of_medians_with_the_spread_of_the_rounds() -> None:
    floor = Floor("", over("noop", "arq", "saq"), 2)
    values = {"noop": {OURS: [8.0, 9.0, 6.0], "arq": [2.0, 2.0, 2.0], "saq": [4.0, 3.0, 3.0]}}
    assert floor.measured(values) == (8 / 3, 2.0, 3.0)
    assert floor.holds(8 / 3)


def test_a_floor_of_what_was_not_measured_is_none() -> None:
    assert Floor("", over("noop", "arq"), 2).measured({"noop": {OURS: [1.0]}}) is None
    assert Floor("", value("idle_cpu_percent"), 2).measured({}) is None


def test_floors_name_what_there_is() -> None:
    measured = {each.name for each in [*WORKLOADS, *GROWTH, *LONG]}
    entrants = {entrant.name for entrant in ENTRANTS}
    asked: set[tuple[str, str]] = set()

    def read(workload: str, system: str) -> float:
        asked.add((workload, system))
        return 1.0

    for floor in FLOORS:
        floor.ratio(read)
    assert {system for _, system in asked} <= entrants
    kinds = ("_ms", "_mib", "_percent", "cpu_us_per_noop", "redis_bytes_per_noop")
    assert {workload for workload, _ in asked if not workload.endswith(kinds)} <= measured


def test_the_readme_has_the_figures_of_the_kept_results() -> None:
    summary = json.loads((KEPT / "latest.json").read_text())
    readme = (ROOT / "README.md").read_text()
    assert into_readme(readme, headline(summary)) == readme
    assert summary["noop"][OURS]["median"] > 0
