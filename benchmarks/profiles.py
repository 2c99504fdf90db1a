"""Where a worker's time goes: `python -m benchmarks.profiles` samples no-ops, and writes `results/profiles`."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks import report
from benchmarks.__main__ import clean, servers
from benchmarks.environments import ROOT, environment
from benchmarks.plan import ENTRANTS, Entrant
from benchmarks.settings import Settings

PROFILED = ("celeriq", "celeriq (taskiq worker)", "taskiq tuned")
SECONDS, RATE, MOST = 3, 400, 40
MEASURE = "from benchmarks.drive import measure; import asyncio, uvloop; uvloop.run(measure({!r}, 'drain:noop', {}))"


def sample(entrant: Entrant, settings: Settings) -> list[str]:
    """Stacks as py-spy counts them, `frame;frame;frame count`, of the process that runs the tasks."""
    with TemporaryDirectory(prefix="celeriq-bench-") as folder:
        settings = replace(settings, folder=folder, variant=entrant.variant)
        clean(settings)
        python = environment(entrant.environment)
        driver = subprocess.Popen(
            [str(python), "-c", MEASURE.format(entrant.module, entrant.speed * 8)],
            cwd=ROOT,
            env={**settings.environment(), "PYTHONPATH": str(ROOT)},
        )
        try:
            _wait_for(Path(folder) / "ticks")
            worker = max(psutil.Process(driver.pid).children(recursive=True), key=lambda one: one.cpu_times().user)
            stacks = Path(folder) / "stacks"
            spy = [str(environment("celeriq").with_name("py-spy")), "record", "-p", str(worker.pid), "--nonblocking"]
            options = ["-r", str(RATE), "-d", str(SECONDS), "-f", "raw", "-o", str(stacks)]
            subprocess.run([*spy, *options], check=True, capture_output=True)
            return stacks.read_text().splitlines()
        finally:
            driver.wait()


def _wait_for(ticks: Path) -> None:
    deadline = time.monotonic() + 60
    while not (ticks.exists() and ticks.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)


def told(stacks: list[str]) -> str:
    """The functions in which most samples were taken, and those below which they were."""
    own: Counter[str] = Counter()
    below: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        if "_bootstrap (threading.py)" not in frames:  # the lease's thread, which waits
            own[frames[-1]] += int(count)
            below.update({frame: int(count) for frame in set(frames)})
    total = sum(own.values())
    lines: list[str] = []
    for title, counted in (("in the function itself", own), ("in it and below", below)):
        lines += [f"## {title}", "", "```"]
        lines += [f"{count / total:6.1%}  {frame}" for frame, count in counted.most_common(MOST)]
        lines += ["```", ""]
    return "\n".join(lines)


def main() -> int:
    folder = report.KEPT / "profiles"
    folder.mkdir(parents=True, exist_ok=True)
    with servers() as (redis, database):
        settings = Settings(redis=redis, database=database, folder="")
        for entrant in (each for each in ENTRANTS if each.name in PROFILED):
            path = folder / f"noop-{re.sub(r'[^a-z]+', '-', entrant.name).strip('-')}.md"
            path.write_text(f"# A no-op, {entrant.name}\n\n{told(sample(entrant, settings))}")
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
