"""Who holds a connection while it waits for something that is not the database, and in which line.

A transaction that is open while a task waits for a mail server keeps a connection from all others, its locks, and the
rows that VACUUM may not clean. Nothing is measured for a statement: what is noted is that a connection was taken, and
where its task waits is looked up from outside, once in a while.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, TypeGuard
from weakref import WeakSet

from sqlalchemy import Engine, event

from celeriq import loop_watch
from celeriq.attempt import Attempt
from celeriq.time_limits import driven

logger = logging.getLogger(__name__)

LOOKS_PER_LIMIT = 4
LONGEST_PAUSE = 1.0
"""Seconds between two looks."""

BLOCKED = 1.0
"""Seconds by which a look is late when the loop was blocked meanwhile."""

DATABASE = frozenset({"sqlalchemy", "asyncpg", "psycopg", "aiosqlite"})
"""Packages: who waits in them waits for the database."""

RUNNERS = frozenset({"taskiq", "taskiq_dependencies", "anyio"})
"""Packages that run a task, and are never what it waits for."""


@dataclass(slots=True, eq=False)
class _Held:
    """A connection that an attempt has taken."""

    attempt: Attempt
    waits_at: str | None = None
    since: float = field(default=0.0)
    """When it was first seen to wait there."""


class HeldConnections:
    """Says in the log, once for each attempt, which line holds a connection for more than `limit` seconds.

    `running`: the attempts of this process, by the asyncio task that runs each.
    """

    def __init__(
        self,
        running: Mapping[asyncio.Task[Any], Attempt],
        *,
        limit: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._running = running
        self._limit = limit
        self._pause = min(LONGEST_PAUSE, limit / LOOKS_PER_LIMIT)
        self._clock = clock
        self._engines: list[Engine] = []
        self._held: dict[Any, _Held] = {}
        self._told: WeakSet[asyncio.Task[Any]] = WeakSet()
        self._looked = clock()

    def attach(self, engine: Engine) -> None:
        """Note who takes the connections of this engine."""
        event.listen(engine, "checkout", self._taken)
        event.listen(engine, "checkin", self._given_back)
        self._engines.append(engine)

    def detach(self) -> None:
        for engine in self._engines:
            event.remove(engine, "checkout", self._taken)
            event.remove(engine, "checkin", self._given_back)
        self._engines.clear()

    def _taken(self, _connection: Any, record: Any, _proxy: Any) -> None:
        if (attempt := Attempt.current_or_none()) is not None:
            self._held[record] = _Held(attempt)

    def _given_back(self, _connection: Any, record: Any) -> None:
        self._held.pop(record, None)

    async def watch(self) -> None:
        """Look, for ever."""
        while True:
            await asyncio.sleep(self._pause)
            try:
                self.look()
            except Exception:
                logger.exception("could not look at who holds a connection")

    def look(self) -> None:
        now = self._clock()
        # When the loop did not turn meanwhile, nobody could go on, and whoever blocked it is named elsewhere.
        blocked, self._looked = now - self._looked > self._pause + BLOCKED, now
        if not self._held:
            return
        tasks = {id(attempt): task for task, attempt in self._running.items()}
        for record, held in list(self._held.items()):
            task = tasks.get(id(held.attempt))
            if task is None:
                del self._held[record]
            elif task not in self._told:
                self._look_at(record, held, task, now, restart=blocked)

    def _look_at(self, record: Any, held: _Held, task: asyncio.Task[Any], now: float, *, restart: bool) -> None:
        waits_at = None if _is_busy(record) else place(task)
        if waits_at is None or waits_at != held.waits_at or restart:
            held.waits_at, held.since = waits_at, now
        elif now - held.since >= self._limit:
            self._told.add(task)
            logger.warning(
                "task %s[%s] has held a connection to the database for %.1f s while it waits at %s: "
                "wait for that before the first statement, or commit before it",
                held.attempt.message.task_name,
                held.attempt.message.task_id,
                now - held.since,
                waits_at,
            )


def _is_busy(record: Any) -> bool:
    """Whether a statement runs on it, whichever asyncio task waits for that."""
    mutex = getattr(record.dbapi_connection, "_execute_mutex", None)
    return mutex is not None and mutex.locked()


# -- where a task waits ------------------------------------------------------------------------------------------------


def place(task: asyncio.Task[Any]) -> str | None:
    """The line of the application in which a task waits; None if it waits for the database, or is not in its hands."""
    frames = _awaiting(task.get_coro())
    codes = [frame.f_code for frame in frames]
    if _PERFORM not in codes:
        return None
    inside = frames[codes.index(_PERFORM) + 1 :]
    if any(_package(frame) in DATABASE for frame in inside):
        return None
    theirs = [frame for frame in inside if _package(frame) not in RUNNERS and not loop_watch.is_library(frame)]
    return loop_watch.place(theirs[::-1])


def _awaiting(awaitable: Any) -> list[FrameType]:
    """The frames of a suspended coroutine and of what it awaits, the innermost last."""
    frames: list[FrameType] = []
    frame: FrameType | None
    while awaitable is not None and len(frames) < sys.getrecursionlimit():
        kind = next((kind for kind in _ATTRIBUTES if isinstance(awaitable, kind)), None)
        if kind is None:
            awaitable = _behind(awaitable)
            continue
        own, awaited = _ATTRIBUTES[kind]
        frame, awaitable = getattr(awaitable, own), getattr(awaitable, awaited)
        if frame is not None:
            frames.append(frame)
            awaitable = driven(frame) if awaitable is None else awaitable
    return frames


# By the kind of what is suspended: its frame, and what it awaits.
_ATTRIBUTES: dict[type[Any], tuple[str, str]] = {
    CoroutineType: ("cr_frame", "cr_await"),
    GeneratorType: ("gi_frame", "gi_yieldfrom"),
    AsyncGeneratorType: ("ag_frame", "ag_await"),
}


def _behind(awaited: Any) -> Any:
    """What the interpreter's own iterators lead to: `anext()` of an asynchronous generator, or another asyncio task."""
    for behind in gc.get_referents(awaited):
        if _is_task(behind):
            return behind.get_coro()
        if isinstance(behind, tuple(_ATTRIBUTES)):
            return behind
    return None


def _is_task(found: object) -> TypeGuard[asyncio.Task[Any]]:
    return isinstance(found, asyncio.Task)


def _package(frame: FrameType) -> str | None:
    """The name of the installed package that a frame's code belongs to."""
    parts = Path(frame.f_code.co_filename).parts
    for folder in loop_watch.INSTALLED:
        if folder in parts:
            return parts[parts.index(folder) + 1]
    return None


_PERFORM = Attempt._perform.__code__  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
