"""The application's real processes: API, worker, scheduler, as the README starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
PATIENCE = 30.0

ENGINE_WORKERS = {
    "taskiq": ("taskiq", "worker", "tests.engine:broker", "--workers", "1"),
    "celeriq": ("celeriq", "worker", "tests.engine:broker", "--workers", "1"),
}
"""The obedient application of the crash tests, under Taskiq's worker and under ours."""
ENGINE_SCHEDULERS = {
    "taskiq": ("taskiq", "scheduler", "tests.engine:scheduler"),
    "celeriq": ("celeriq", "scheduler", "tests.engine:scheduler"),
}
WORKER = ("taskiq", "worker", "broker:broker", "tasks", "--workers", "1")
OWN_WORKER = ("celeriq", "worker", "broker:broker", "tasks", "--workers", "1")
SCHEDULER = ("taskiq", "scheduler", "broker:scheduler", "tasks")


class Process:
    """A program of the application's, in a process group of its own, and what it wrote."""

    def __init__(self, command: tuple[str, ...], environment: Mapping[str, str], log: Path, cwd: Path = ROOT) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                cwd=cwd,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """`kill -9` of the whole group, at one instant."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self._process.wait(PATIENCE)

    def stop(self) -> int:
        """SIGTERM, and the exit code; fails if the process does not end."""
        if self.running:
            self._process.terminate()
        try:
            return self._process.wait(PATIENCE)
        finally:
            self.kill()

    def output(self) -> str:
        return self.log.read_text(errors="replace")


@contextmanager
def started(
    command: tuple[str, ...], environment: Mapping[str, str], log: Path, cwd: Path = ROOT
) -> Generator[Process]:
    process = Process(command, environment, log, cwd)
    try:
        yield process
    finally:
        process.kill()


def api(port: int) -> tuple[str, ...]:
    return ("uvicorn", "api.main:app", "--host", "127.0.0.1", "--port", str(port), "--log-level", "warning")


def is_alive(pid: int) -> bool:
    """A zombie whose parent was killed waits for somebody to take note, and is dead."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
