"""CPU-bound work, in processes beside the event loop."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable
from functools import cache
from typing import ParamSpec, TypeVar

from pebble import ProcessPool
from taskiq import TaskiqEvents, TaskiqState

from broker import broker
from tasks.settings import IngestSettings

P = ParamSpec("P")
R = TypeVar("R")


async def compute(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `function` in another process; a process that dies fails its call alone, and is replaced."""
    return await asyncio.wrap_future(_pool().schedule(function, args=args, kwargs=kwargs))


@cache
def _pool() -> ProcessPool:
    # Spawned, not forked: a fork would share the parent's threads, locks and connections.
    return ProcessPool(IngestSettings().processes, context=multiprocessing.get_context("spawn"))


def close_pool() -> None:
    if _pool.cache_info().currsize:
        _pool().stop()  # type: ignore[no-untyped-call]
        _pool().join()
        _pool.cache_clear()


@broker.on_event(TaskiqEvents.WORKER_SHUTDOWN, TaskiqEvents.CLIENT_SHUTDOWN)
def on_shutdown(_: TaskiqState) -> None:
    close_pool()
