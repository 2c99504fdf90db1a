"""What the rounds gave: medians and spread, as JSON, as a table, as plots."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import environments
from benchmarks.floors import FLOORS, KEEPING, OURS, STOCK, STORING, Floor
from benchmarks.plan import ENTRANTS, unit

NAMED = ("celery", "taskiq", "taskiq-redis", "arq", "saq", "streaq", "dramatiq", "huey", "procrastinate", "pgqueuer")
HEADLINE = {
    "noop": "tasks that do nothing, results stored",
    "crud": "tasks that select a row, change it and commit",
    "send_concurrent": "messages, sent by 50 at once",
}
BEGIN = "<!-- figures: benchmarks/results/latest.json -->\n"
END = "<!-- end -->"
BENEATH = ("redis", "hiredis", "uvloop", "sqlalchemy", "asyncpg", "psycopg", "coredis", "gevent", "orjson")


Summary = dict[str, dict[str, dict[str, float | str]]]
KEPT = environments.HERE / "results"
"""Where a whole run's results are, in the repository."""


class Rounds:
    """Values by workload and system, one for each round."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, list[float]]] = {}

    def add(self, system: str, figures: dict[str, float]) -> None:
        for workload, value in figures.items():
            self.values.setdefault(workload, {}).setdefault(system, []).append(value)

    def summary(self) -> Summary:
        """`{workload: {system: {"median", "min", "max", "unit"}}}`."""
        return {
            workload: {
                system: {
                    "median": statistics.median(values),
                    "min": min(values),
                    "max": max(values),
                    "unit": unit(workload),
                }
                for system, values in systems.items()
            }
            for workload, systems in self.values.items()
        }


def write(rounds: Rounds, folder: Path, names: Sequence[str]) -> None:
    """All that a run leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.json").write_text(json.dumps(rounds.summary(), indent=1) + "\n")
    (folder / "rounds.json").write_text(json.dumps(rounds.values, indent=1) + "\n")
    (folder / "table.md").write_text(table(rounds, names))
    if folder == KEPT:
        readme = environments.ROOT / "README.md"
        readme.write_text(into_readme(readme.read_text(), headline(rounds.summary())))
    plots = [str(environments.environment("report")), "-m", "benchmarks.plots", str(folder)]
    subprocess.run(plots, cwd=environments.ROOT, check=True)


def table(rounds: Rounds, names: Sequence[str]) -> str:
    """Markdown: each workload, the floors, what each system does for its figure, versions."""
    summary = rounds.summary()
    lines = ["# Results", "", f"{_machine()} Median of the rounds, lowest and highest in brackets.", ""]
    for workload, systems in summary.items():
        lines += [f"## {workload}", "", f"| system | {unit(workload)} | |", "|---|--:|---|"]
        lines += [
            f"| {system} | {_number(found['median'])} | {_number(found['min'])} – {_number(found['max'])} |"
            for system, found in sorted(systems.items(), key=lambda item: -float(item[1]["median"]))
        ]
        lines.append("")
    lines += ["## Floors", "", "| floor | wanted | measured | spread | |", "|---|--:|--:|--:|---|"]
    lines += [line for floor in FLOORS if (line := _floor(floor, rounds))]
    lines += [
        "",
        "## What each does for its figure",
        "",
        "| system | stores | acknowledges | settings |",
        "|---|---|---|---|",
    ]
    for entrant in ENTRANTS:
        if any(entrant.name in systems for systems in summary.values()):
            about = environments.describe(entrant.environment, entrant.module, entrant.variant)
            lines.append(f"| {entrant.name} | {about['stores']} | {about['acknowledges']} | {about['settings']} |")
    lines += ["", "## Versions", "", "| environment | versions |", "|---|---|"]
    for name in names:
        found = environments.versions(name)
        told = ", ".join(f"{each} {found[each]}" for each in (*NAMED, *BENEATH) if each in found)
        lines.append(f"| {name} | {told} |")
    return "\n".join(lines) + "\n"


def headline(summary: Summary) -> str:
    """The table of the README."""
    lines = [
        "| per second | celeriq | under `taskiq worker` | best peer |",
        "|---|--:|--:|--:|",
    ]
    for workload, told in HEADLINE.items():
        systems = summary[workload]
        wanted = STORING if workload == "noop" else KEEPING
        peers = {name: found["median"] for name, found in systems.items() if name in wanted}
        best = max(peers, key=lambda name: float(peers[name]))
        ours, stock = (float(systems[name]["median"]) for name in (OURS, STOCK))
        ratio = ours / float(peers[best])
        lines.append(f"| {told} | {ours:,.0f} | {stock:,.0f} | {best} {_number(peers[best])} (× {ratio:.1f}) |")
    return "\n".join(lines) + "\n"


def into_readme(readme: str, table: str) -> str:
    """The README with the table between its marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    return before + begin + table + end + after


def _floor(floor: Floor, rounds: Rounds) -> str:
    measured = floor.measured(rounds.values)
    if measured is None:
        return ""
    ratio, lowest, highest = measured
    sign = "≥" if floor.at_least else "≤"
    held = "held" if floor.holds(ratio) else "**missed**"
    return f"| {floor.text} | {sign} {floor.goal:g} | {ratio:.3g} | {lowest:.3g} – {highest:.3g} | {held} |"


def _number(value: float | str) -> str:
    number = float(value)
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"  # noqa: PLR2004


def _machine() -> str:
    cores = len(Path("/proc/cpuinfo").read_text().split("processor\t")) - 1 if Path("/proc/cpuinfo").exists() else 0
    return f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {cores} cores."
