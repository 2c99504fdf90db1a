"""`make demo`: every piece of the application on this machine, and one document through all of them.

PostgreSQL and Valkey are started unless `DB_URL` and `BROKER_URL` name others. Everything started here ends with it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import httpx
from rich.console import Console
from rich.progress import Progress

from celeriq import embedded
from celeriq.errors import CeleriqError

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
STORED = ROOT / ".services" / "demo"
PATIENCE = 60.0

console = Console(highlight=False)


class DemoError(Exception):
    """Why the demo cannot go on; the message is for who started it."""


def main() -> int:
    arguments = read_arguments()
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT, too: a shell's background job would ignore it
        signal.signal(number, end)
    try:
        with ExitStack() as stack:
            run(stack, arguments)
    except (DemoError, CeleriqError) as error:
        console.print(f"[bold red]The demo failed:[/] {error}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("\nEverything is stopped.")
    return 0


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--pdf", type=Path, required=True, help="the document (PDF=path)")
    parser.add_argument("--once", action="store_true", help="exit when the document is searchable (ONCE=1)")
    parser.add_argument("--ask", help="what to search for (ASK='...')")
    return parser.parse_args()


def end(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def run(stack: ExitStack, arguments: argparse.Namespace) -> None:
    pdf: Path = arguments.pdf
    if not pdf.is_file():
        raise DemoError(f"there is no file {str(pdf)!r}: name a PDF with PDF=path")
    environment = stack.enter_context(addresses())
    logs = STORED / "logs" / str(os.getpid())
    logs.mkdir(parents=True, exist_ok=True)
    stack.callback(shutil.rmtree, logs, ignore_errors=True)
    programs = Programs(environment, logs)
    stack.callback(programs.stop)

    programs.run_to_end("migrate", "alembic", "upgrade", "head")
    with listening_socket() as listening:
        port, descriptor = listening.getsockname()[1], listening.fileno()
        quiet = ("--log-level", "warning", "--timeout-graceful-shutdown", "5")
        programs.start("api", "uvicorn", "api.main:app", "--fd", str(descriptor), *quiet, inherits=(descriptor,))
    programs.start("worker", "taskiq", "worker", "broker:broker", "tasks", "--workers", "1")
    programs.start("scheduler", "taskiq", "scheduler", "broker:scheduler", "tasks")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as api:
        programs.wait_until(lambda: healthy(api), "the API answers")
        ingest(api, programs, pdf)
        search(api, arguments.ask or question_for(pdf))
    console.print(f"\nAPI        http://127.0.0.1:{port}\nAPI docs   http://127.0.0.1:{port}/docs")
    if not arguments.once:
        console.print("Everything stays up; Ctrl-C ends it.")
        while True:
            programs.check()
            time.sleep(0.5)


@contextmanager
def addresses() -> Generator[dict[str, str]]:
    """Where database and queue are: those that are configured, or servers of the demo's own."""
    configured = {name: os.environ[name] for name in ("DB_URL", "BROKER_URL") if os.environ.get(name)}
    if len(configured) == 2:  # noqa: PLR2004
        yield configured
        return
    console.print("Starting PostgreSQL and Valkey …")
    with embedded.services_below(STORED) as running:
        yield {"DB_URL": running.database_url, "BROKER_URL": running.redis_url, **configured}


class Programs:
    """The application's programs: they end with this process, whatever ends it, and an early end is told."""

    def __init__(self, environment: dict[str, str], logs: Path) -> None:
        self._environment = {**os.environ, **environment}
        self._logs = logs
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, program: str, *arguments: str, inherits: tuple[int, ...] = ()) -> None:
        with self._log(name).open("ab") as log:
            self._started[name] = subprocess.Popen(
                [*dying_with_parent(), str(BIN / program), *arguments],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=inherits,
                start_new_session=True,  # Ctrl-C is for the demo, which stops them in order
            )

    def run_to_end(self, name: str, program: str, *arguments: str) -> None:
        self.start(name, program, *arguments)
        if self._started.pop(name).wait():
            raise self._failure(name)

    def check(self) -> None:
        for name, process in self._started.items():
            if process.poll() is not None:
                raise self._failure(name)

    def wait_until(self, condition: Callable[[], bool], meaning: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"{PATIENCE:g} s have passed before {meaning}")
            time.sleep(0.05)

    def stop(self) -> None:
        for process in reversed(self._started.values()):
            process.terminate()
        for process in self._started.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _failure(self, name: str) -> DemoError:
        tail = self._log(name).read_text(errors="replace").strip().splitlines()[-15:]
        return DemoError("\n".join([f"{name} has ended; it wrote last:", *tail]))


def dying_with_parent() -> list[str]:
    """On Linux a program can be told to end when this process does, even by `kill -9`."""
    return ["setpriv", "--pdeathsig", "TERM", "--"] if shutil.which("setpriv") else []


def healthy(api: httpx.Client) -> bool:
    try:
        return api.get("/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def ingest(api: httpx.Client, programs: Programs, pdf: Path) -> None:
    began = time.monotonic()
    console.print(f"Uploading {pdf.name} ({pdf.stat().st_size / 1024:,.0f} KiB) …")
    with pdf.open("rb") as file:
        answer = api.post("/documents", files={"file": (pdf.name, file, "application/pdf")})
    if answer.is_error:
        raise DemoError(f"the API refused the document: {answer.json()['detail']}")
    last = follow(api, programs, answer.json()["task_id"])
    if last["state"] != "SUCCESS":
        raise DemoError(f"the document was not ingested: {last['error']['message']}")
    took = time.monotonic() - began
    console.print(f"[bold green]{last['result']['chunks']} chunks[/] are searchable after {took:.1f} s.")


def follow(api: httpx.Client, programs: Programs, task_id: str) -> dict[str, Any]:
    """The task's last state; every one before it moves the bars."""
    view: dict[str, Any] = {}
    with Progress(console=console) as bars:
        shown = {
            "extract": bars.add_task("pages extracted", total=None),
            "embed": bars.add_task("chunks embedded", total=None),
        }
        for view in states(api, task_id):
            programs.check()
            if view["state"] == "PROGRESS":
                told = view["progress"]
                bars.update(shown[told["step"]], completed=told["current"], total=told["total"])
            elif view["state"] == "SUCCESS":
                # The last steps may pass between two looks.
                bars.update(shown["embed"], completed=view["result"]["chunks"], total=view["result"]["chunks"])
    return view


def states(api: httpx.Client, task_id: str) -> Iterator[dict[str, Any]]:
    with api.stream("GET", f"/tasks/{task_id}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def question_for(pdf: Path) -> str:
    return "What happens when a commit fails?" if pdf.name == "manual.pdf" else pdf.stem


def search(api: httpx.Client, question: str) -> None:
    hits = api.get("/documents/search", params={"q": question, "limit": 1}).raise_for_status().json()
    console.print(f"\n[bold]{question}[/]")
    for hit in hits:
        console.print(f"{hit['filename']}, page {hit['page']} (distance {hit['distance']:.2f}):\n{hit['text'][:400]} …")


def listening_socket() -> socket.socket:
    """On port 8000, or on any that is free. Handed on as it is: a port that is only named may be taken meanwhile."""
    for wanted in (8000, 0):
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", wanted))
            listening.listen(128)
        except OSError:
            listening.close()
            continue
        return listening
    raise DemoError("no port of 127.0.0.1 is free")


if __name__ == "__main__":
    sys.exit(main())
