"""CPU-bound work, in processes beside the event loop."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from pebble import ProcessPool
from taskiq import TaskiqEvents, TaskiqState

from broker import broker
from tasks.settings import IngestSettings

P = ParamSpec("P")
R = TypeVar("R")

ROOT = str(Path(__file__).parent.parent)


class Compute:
    """A pool of processes, started at its first use and again should it ever break."""

    def __init__(self) -> None:
        self._pool: ProcessPool | None = None

    async def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function` in another process; one that dies, or takes too long, fails its call alone and is replaced.

        Raises `TimeoutError` after `INGEST_STEP_SECONDS`.
        """
        limit = IngestSettings().step_seconds
        return await asyncio.wrap_future(self._started().schedule(function, args=args, kwargs=kwargs, timeout=limit))

    def _started(self) -> ProcessPool:
        if self._pool is None or not self._pool.active:
            # Taskiq takes the working folder off the path after its imports; the new processes inherit the path.
            if ROOT not in sys.path:
                sys.path.append(ROOT)
            # Spawned, not forked: a fork would share the parent's threads, locks and connections.
            self._pool = ProcessPool(IngestSettings().processes, context=multiprocessing.get_context("spawn"))
        return self._pool

    def close(self) -> None:
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()
            self._pool = None


compute = Compute()


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN, TaskiqEvents.CLIENT_SHUTDOWN)
def on_shutdown(_: TaskiqState) -> None:
    compute.close()
