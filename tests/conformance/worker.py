"""A worker in processes of its own, whichever system it is of."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis

from tests.conformance.environment import ROOT
from tests.conformance.observation import IDENTITY
from tests.conformance.proxy import Proxy, proxy
from tests.conformance.scenario import PATIENCE
from tests.waiting import wait_for

URL = os.environ.get("CONFORMANCE_REDIS", "")
NAME = os.environ.get("CONFORMANCE_WORKER", "")
"""Of this process, if it is a worker's; the client has none."""
LONGEST_START = 30.0
TOKEN = os.environ.get("CONFORMANCE_TOKEN", "")
SETTINGS: dict[str, Any] = json.loads(os.environ.get("CONFORMANCE_SETTINGS", "{}"))


class WorkerProcess:
    """A program in a process group of its own."""

    CANCELS: Sequence[signal.Signals] = (signal.SIGQUIT,)
    """What tells it not to wait for what it runs."""

    def __init__(
        self, store: redis.Redis, name: str, command: Sequence[str], settings: Mapping[str, Any], door: Proxy | None
    ) -> None:
        self.name = name
        self._store = store
        self._token = uuid4().hex
        self._door = door
        self._log = Path(tempfile.gettempdir()) / f"{self._token}.log"
        environment = {
            "CONFORMANCE_REDIS": URL,
            "CONFORMANCE_BROKER": door.url if door else URL,
            "CONFORMANCE_WORKER": name,
            "CONFORMANCE_TOKEN": self._token,
            "CONFORMANCE_SETTINGS": json.dumps(settings),
            # Celery refuses to start where a scenario lets it read pickles.
            "C_FORCE_ROOT": "1",
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command],
                cwd=ROOT,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    async def ready(self) -> None:
        await wait_for(lambda: self._store.exists(f"ready:{self._token}") or not self.running, LONGEST_START)
        if not self.running:
            raise RuntimeError(f"the worker {self.name!r} ended:\n{self.output()}")

    async def break_connections(self) -> None:
        assert self._door, "only a worker that was started breakable"
        await self._door.break_connections()
        # A broker that has not noticed yet would give the next message to a connection that is no more.
        self._store.ping()

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self.stopped()

    async def tell_to_stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    async def tell_to_cancel(self) -> None:
        for number in self.CANCELS:
            self._process.send_signal(number)

    async def stopped(self) -> int:
        await wait_for(lambda: not self.running, PATIENCE)
        return self._process.wait()

    def output(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(errors="replace")[-1500:]


Started = Callable[[Proxy | None], WorkerProcess]


@asynccontextmanager
async def running(start: Started, *, breakable: bool) -> AsyncGenerator[WorkerProcess]:
    """It is ready, and is killed in any case; a breakable one speaks to the broker through a door."""
    async with proxy(URL) as door:
        worker = start(door if breakable else None)
        try:
            await worker.ready()
            yield worker
        except BaseException:
            print(worker.output(), file=sys.stderr)  # noqa: T201 - what the scenario's failure does not tell
            raise
        finally:
            await worker.kill()


def tell_ready(store: redis.Redis) -> None:
    store.set(f"ready:{TOKEN}", 1)


class TellsOfTasks(logging.Handler):
    """Keeps what the log tells of each task."""

    def __init__(self, store: redis.Redis) -> None:
        super().__init__()
        self._store = store

    def emit(self, record: logging.LogRecord) -> None:
        for task_id in set(IDENTITY.findall(record.getMessage())):
            self._store.rpush(f"logged:{task_id}", json.dumps([record.levelno, bool(record.exc_info)]))


def told_by_the_log(store: redis.Redis, task_id: str) -> dict[str, Any]:
    """How many lines, how grave, and whether with a traceback."""
    found: Any = store.lrange(f"logged:{task_id}", 0, -1)
    told: list[tuple[int, bool]] = [json.loads(each) for each in found]
    gravest = max((level for level, _ in told), default=0)
    return {
        "lines": len(told),
        "level": logging.getLevelName(gravest),
        "traceback": any(traced for _, traced in told),
    }
