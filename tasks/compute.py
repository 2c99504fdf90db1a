"""CPU-bound work, in processes beside the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from taskiq import TaskiqEvents, TaskiqState

from broker import broker
from celeriq.processes import Processes
from tasks.settings import IngestSettings

P = ParamSpec("P")
R = TypeVar("R")


class Compute:
    """A pool of processes, which start when they are needed, and again after it was closed."""

    def __init__(self) -> None:
        self._processes: Processes | None = None

    async def __call__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function` in another process; one that dies, or takes too long, fails its call alone and is replaced.

        Raises `TimeLimitExceeded` after `INGEST_STEP_SECONDS`, and `WorkerLostError` if the process dies.
        """
        settings = IngestSettings()
        if self._processes is None:
            self._processes = Processes(settings.processes)
        return cast("R", await self._processes.run(function, args, kwargs, hard=settings.step_seconds))

    async def close(self) -> None:
        """End the processes; what still runs is killed."""
        processes, self._processes = self._processes, None
        if processes is not None:
            await processes.close(0)


compute = Compute()


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN, TaskiqEvents.CLIENT_SHUTDOWN)
async def on_shutdown(_: TaskiqState) -> None:
    await compute.close()
