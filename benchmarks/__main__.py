"""`make bench`: every system does the same work in turn, three rounds, on one PostgreSQL and one Valkey.

`make bench SHORT=1` takes fewer systems and workloads, `ONLY=noop,crud` picks workloads; neither replaces the results
that are kept in `benchmarks/results`, they are written below `.bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import asyncpg
import psutil
from redis import Redis

from benchmarks import report
from benchmarks.environments import FOLDER, ROOT, environment
from benchmarks.plan import ENTRANTS, GROWN, GROWTH, LASTING, LONG, WORKLOADS, Entrant, Workload
from benchmarks.settings import Settings
from benchmarks.work_tables import TABLES
from celeriq.embedded import Postgres, Valkey

ROUNDS = 3
LONGEST = 400
"""Seconds after which a measurement is given up."""

Plan = list[tuple[Workload, Entrant]]


class TcpValkey(Valkey):
    """On a port, as in production: not every peer can use a Unix socket."""

    def __init__(self, directory: Path, sockets: Path) -> None:
        super().__init__(directory, sockets, durable=False)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self._command += ["--port", str(port), "--bind", "127.0.0.1"]
        self.url = f"redis://127.0.0.1:{port}/0"


@contextmanager
def servers() -> Generator[tuple[str, str]]:
    """URLs of a Valkey and a PostgreSQL that forget: what a disk does would hide what the systems do."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="celeriq-bench-")))
        directory.chmod(0o755)
        running = [TcpValkey(directory, directory / "s"), Postgres(directory, directory / "s", durable=False)]
        for server in running:
            stack.callback(server.stop)
            server.start()
        yield running[0].url, running[1].url


def plan(*, short: bool, only: set[str], systems: set[str]) -> Plan:
    """What one round measures, in its order: system after system for each workload, so that they are side by side."""
    chosen: Plan = []
    for workload in [*WORKLOADS, *GROWTH]:
        for entrant in ENTRANTS:
            named = workload.name in only if only else (workload.short or not short)
            takes_part = workload.name in entrant.only if entrant.only else workload.name not in entrant.skips
            grows = workload not in GROWTH or entrant.name in GROWN
            takes_part = takes_part and (not workload.entrants or entrant.name in workload.entrants)
            wanted = entrant.name in systems if systems else (entrant.short or not short)
            if named and takes_part and grows and wanted:
                chosen.append((workload, entrant))
    return chosen


def clean(settings: Settings) -> None:
    """Nothing is left of the measurement before."""
    with Redis.from_url(settings.redis) as redis:
        redis.flushall()
        redis.config_resetstat()

    async def tables() -> None:
        connection = await asyncpg.connect(settings.libpq)
        await connection.execute(TABLES)
        await connection.close()

    asyncio.run(tables())


def measure(workload: Workload, entrant: Entrant, settings: Settings) -> dict[str, float]:
    """The figures, none if the system has no such thing; raises `RuntimeError` with what the worker said."""
    settings = replace(
        settings,
        variant=entrant.variant,
        concurrency=workload.concurrency,
        processes=workload.processes or entrant.processes,
        results=workload.results,
    )
    clean(settings)
    with tempfile.TemporaryDirectory(prefix="celeriq-bench-") as folder:
        settings = replace(settings, folder=folder)
        command = [str(environment(entrant.environment)), "-m", "benchmarks.drive"]
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        driver = subprocess.Popen(
            [*command, entrant.module, workload.step, str(workload.messages(entrant))],
            cwd=ROOT,
            env={**kept, **settings.environment(), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        told, complained = _until_it_ends(driver)
    if driver.returncode:
        raise RuntimeError(complained[-3000:])
    figures: dict[str, float] = json.loads(told.splitlines()[-1])
    return figures


def _until_it_ends(driver: subprocess.Popen[str]) -> tuple[str, str]:
    """What it wrote; its worker, in a session of its own, does not outlive it in any case."""
    try:
        return driver.communicate(timeout=LONGEST)
    finally:
        if driver.poll() is None:
            main = psutil.Process(driver.pid)
            for process in [*main.children(recursive=True), main]:
                with suppress(psutil.Error):
                    process.kill()
            driver.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--short", action="store_true", help="four peers, the main workloads")
    parser.add_argument("--only", default="", help="workloads, separated by commas")
    parser.add_argument("--systems", default="", help="systems, separated by commas")
    parser.add_argument("--keep", action="store_true", help="make these the results in the repository")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    only, systems = _names(options.only), _names(options.systems)
    if unknown := only - {each.name for each in [*WORKLOADS, *GROWTH, *LONG]}:
        parser.error(f"unknown workload {', '.join(sorted(unknown))}; there are {', '.join(w.name for w in WORKLOADS)}")
    if unknown := systems - {each.name for each in ENTRANTS}:
        parser.error(f"unknown system {', '.join(sorted(unknown))}; there are {', '.join(e.name for e in ENTRANTS)}")
    if options.keep and only:
        parser.error("--keep with --only would leave the README without its figures: keep a short or a whole run")
    whole = not (options.short or only or systems)
    chosen = plan(short=options.short, only=only, systems=systems)
    lasting = [
        (workload, entrant)
        for workload in LONG
        for entrant in ENTRANTS
        if (whole or workload.name in only) and entrant.name in (systems or LASTING)
    ]
    environments = sorted({entrant.environment for _, entrant in chosen + lasting})
    for name in environments:
        environment(name)
    rounds = report.Rounds()
    told: list[bool] = []
    with servers() as (redis, database):
        settings = Settings(redis=redis, database=database, folder="")
        for number in range(1, options.rounds + 1):
            for workload, entrant in chosen + (lasting if number == 1 else []):
                told.append(_measure_and_tell(number, workload, entrant, settings, rounds))
    folder = report.KEPT if whole or options.keep else FOLDER / "results"
    report.write(rounds, folder, environments)
    print(f"written to {folder}; {told.count(False)} of {len(told)} measurements failed")
    return int(not all(told))


def _measure_and_tell(
    number: int, workload: Workload, entrant: Entrant, settings: Settings, rounds: report.Rounds
) -> bool:
    began = time.monotonic()
    try:
        figures = measure(workload, entrant, settings)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"{number} {workload.name} {entrant.name}: FAILED: {error}", file=sys.stderr, flush=True)
        return False
    rounds.add(entrant.name, figures)
    told = ", ".join(f"{name} {value:,.2f}" for name, value in figures.items()) or "has no such thing"
    print(f"{number} {workload.name} | {entrant.name} | {told} ({time.monotonic() - began:.0f} s)", flush=True)
    return True


def _names(given: str) -> set[str]:
    return {name.strip() for name in given.split(",") if name.strip()}


if __name__ == "__main__":
    sys.exit(main())
