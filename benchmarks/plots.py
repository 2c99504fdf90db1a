"""Bars and lines of a run: `python -m benchmarks.plots FOLDER`, in an environment of its own."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "celeriq"  # the same figures give the same file
from matplotlib import pyplot as plt  # noqa: E402

OURS, CEILING, PEER = "#2f6f4f", "#c9c9c9", "#7d8fb3"
BARS = {
    "noop": "No-ops per second, results stored",
    "crud": "CRUD tasks per second, 20 at a time",
    "send_concurrent": "Messages sent per second, 50 at once",
    "pickup_ms": "From the call to the task's first line, median ms",
    "cpu_us_per_noop": "Worker's CPU per no-op, µs",
}
LINES = {"backlog": "No-ops per second by backlog", "workers": "No-ops per second by worker processes"}

Summary = dict[str, dict[str, dict[str, Any]]]


def bars(title: str, systems: dict[str, dict[str, Any]], path: Path) -> None:
    rows = sorted(systems.items(), key=lambda item: item[1]["median"])
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(rows) + 0.9), layout="constrained")
    medians = [found["median"] for _, found in rows]
    spread = [
        [found["median"] - found["min"] for _, found in rows],
        [found["max"] - found["median"] for _, found in rows],
    ]
    colours = [CEILING if "ceiling" in name else OURS if "celeriq" in name else PEER for name, _ in rows]
    drawn = axes.barh([name for name, _ in rows], medians, xerr=spread, color=colours, ecolor="#555555")
    axes.bar_label(drawn, [f"{median:,.0f}" if median >= 100 else f"{median:.2g}" for median in medians], padding=6)  # noqa: PLR2004
    axes.margins(x=0.12)
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def lines(title: str, prefix: str, summary: Summary, path: Path) -> None:
    found: dict[str, list[tuple[int, float]]] = {}
    for workload, systems in summary.items():
        if size := re.fullmatch(rf"{prefix}_(\d+)", workload):
            for system, values in systems.items():
                found.setdefault(system, []).append((int(size[1]), values["median"]))
    if not found:
        return
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for system, points in found.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=system)
    if prefix == "backlog":
        axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    folder = Path(sys.argv[1])
    summary: Summary = json.loads((folder / "latest.json").read_text())
    for workload, title in BARS.items():
        if workload in summary:
            bars(title, summary[workload], folder / f"{workload}.svg")
    for prefix, title in LINES.items():
        lines(title, prefix, summary, folder / f"{prefix}.svg")


if __name__ == "__main__":
    main()
