"""`python -m tests.conformance`: Celery plays twice, celeriq once, and what they did is compared.

`celery`, `celeriq`, `report` or `page` (the tables of docs/leaving-celery.md) as an argument does one of these; `--only` picks scenarios by parts of names, or by rows.
`crontabs` records the next moments of Celery's crontabs. What Celery did is kept in `celery.json`, if it did the same twice; the tests compare celeriq with that.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from celeriq.embedded import Valkey
from tests.conformance import environment
from tests.conformance.environment import FOLDER, ROOT
from tests.conformance.page import PAGE, written
from tests.conformance.playing import broken
from tests.conformance.report import lines, quarrels
from tests.conformance.rows import RECORDING

LONGEST = 1800
"""Seconds after which a run of all scenarios is given up."""

KEPT = ("PATH", "HOME", "LANG", "CONFORMANCE_PATIENCE")
"""What the players see of our environment."""

OURS = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
"""Of this tree, whatever is installed."""

PLAYED = FOLDER / "celeriq.json"
"""What celeriq did last."""


class TcpValkey(Valkey):
    """On a port: Celery's result backend and its transport disagree on the URL of a Unix socket."""

    def __init__(self, directory: Path, sockets: Path) -> None:
        super().__init__(directory, sockets, durable=False)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self._command += ["--port", str(port), "--bind", "127.0.0.1"]
        self.url = f"redis://127.0.0.1:{port}/0"


@contextmanager
def valkey() -> Generator[str]:
    """The URL of a Valkey that forgets."""
    with tempfile.TemporaryDirectory(prefix="celeriq-") as folder:
        server = TcpValkey(Path(folder), Path(folder) / "s")
        server.start()
        try:
            yield server.url
        finally:
            server.stop()


def played_by(system: str, only: str, order: str = "forwards") -> dict[str, Any]:
    """What a system did, on a Valkey of its own."""
    program = environment.python() if system == "celery" else Path(sys.executable)
    with valkey() as url, tempfile.TemporaryDirectory(prefix="celeriq-") as folder:
        told = Path(folder) / "told.json"
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        recorder = subprocess.Popen(
            [str(program), "-m", "tests.conformance.recording", system, str(told), only, order],
            cwd=ROOT,
            env={**kept, "CONFORMANCE_REDIS": url, "PYTHONPATH": OURS, "PYTHONUNBUFFERED": "1", "TMPDIR": folder},
        )
        try:
            if recorder.wait(LONGEST):
                raise SystemExit(f"{system} did not get to the end")
        finally:
            _end(recorder)
        recorded: dict[str, Any] = json.loads(told.read_text())
        return recorded


def _end(recorder: subprocess.Popen[bytes]) -> None:
    """Its workers, in sessions of their own, do not outlive it in any case."""
    if recorder.poll() is None:
        main = psutil.Process(recorder.pid)
        for process in [*main.children(recursive=True), main]:
            with suppress(psutil.Error):
                process.kill()
        recorder.wait()


def record(only: str, *, once: bool) -> int:
    """Keep what Celery did, if it did the same each time."""
    # Backwards as well: no scenario leans on what another one has left behind.
    orders = ["forwards"] if once else ["forwards", "backwards"]
    runs = [played_by("celery", only, order) for order in orders]
    first, *others = (run["observations"] for run in runs)
    unlike = [name for name in first if any(other[name] != first[name] for other in others)]
    for name in unlike:
        tell(f"{name}: unlike each time:", *("  " + json.dumps(run["observations"][name]) for run in runs))
    if failed := broken(first):
        tell("broken:", *failed)
    if once:
        tell(json.dumps(first, indent=1))
    else:
        _keep(runs[0]["versions"], {name: first[name] for name in first if name not in {*unlike, *failed}}, only)
    return int(bool(unlike or failed))


def _keep(versions: dict[str, str], observations: dict[str, Any], only: str) -> None:
    before = json.loads(RECORDING.read_text())["observations"] if only else {}
    told = {"versions": versions, "observations": dict(sorted((before | observations).items()))}
    RECORDING.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def record_crontabs() -> None:
    """They need neither a worker nor a Valkey, and no clock: it is the same each time."""
    command = [str(environment.python()), "-m", "tests.conformance.crontabs"]
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    subprocess.run(command, cwd=ROOT, env={**kept, "PYTHONPATH": OURS}, check=True)


def compare(only: str) -> int:
    """Whether celeriq does what Celery did, or differs on purpose."""
    given = played_by("celeriq", only)["observations"]
    FOLDER.mkdir(exist_ok=True)
    PLAYED.write_text(json.dumps((_played() if only else {}) | given))
    found = list(quarrels(given))
    tell(*found, *lines(given))
    return int(bool(found))


def _played() -> dict[str, Any]:
    played: dict[str, Any] = json.loads(PLAYED.read_text()) if PLAYED.exists() else {}
    return played


def tell(*told: str) -> None:
    print(*told, sep="\n", flush=True)  # noqa: T201 - what was asked for


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument(
        "what",
        nargs="?",
        choices=["celery", "celeriq", "crontabs", "report", "page"],
        help="what Celery does, and celeriq, if left out",
    )
    parser.add_argument("--only", default="", help="parts of names, or rows, separated by commas")
    parser.add_argument("--once", action="store_true", help="Celery plays once, and nothing is kept")
    options = parser.parse_args()
    if options.what == "report":
        tell(*lines(_played()))
        return 0
    if options.what == "crontabs":
        record_crontabs()
        return 0
    if options.what == "page":
        PAGE.write_text(written(PAGE.read_text()))
        return 0
    failed = record(options.only, once=options.once) if options.what != "celeriq" else 0
    return compare(options.only) or failed if options.what != "celery" else failed


if __name__ == "__main__":
    sys.exit(main())
