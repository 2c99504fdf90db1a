"""Who blocks the event loop: a thread looks at it from outside, and names the task and the line of code."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import sysconfig
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, process_time
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)

LOOKS_PER_LIMIT = 4
SHORTEST_PAUSE = 0.1
"""Seconds."""

NameOf = Callable[["asyncio.Task[Any]"], str | None]
"""How a task of ours that an asyncio task runs is called; None if that runs something else."""


class LoopWatch(threading.Thread):
    """Says in the log who has kept the event loop from turning for more than `limit` seconds, once each time.

    To be made in the loop's thread. It does not touch the loop, which costs nothing but the pulse that it has anyway.

    `pulse`: when the loop turned last, by `clock`; `math.inf` when it does not have to turn any more.
    `name_of`: called in this thread.
    `limit`: seconds. Defaults to 1.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        pulse: Callable[[], float],
        name_of: NameOf,
        *,
        limit: float = 1.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(name="celeriq-loop-watch", daemon=True)
        self._loop = loop
        self._watched = threading.get_ident()
        self._pulse = pulse
        self._name_of = name_of
        self._limit = limit
        self._clock = clock
        self._ended = threading.Event()
        self._incident: _Incident | None = None

    def run(self) -> None:
        pause = max(SHORTEST_PAUSE, self._limit / LOOKS_PER_LIMIT)
        began, worked = monotonic(), process_time()
        while not self._ended.wait(pause):
            if not _stood_still(monotonic() - began - pause, process_time() - worked):
                self._look_if_possible()
            began, worked = monotonic(), process_time()

    def _look_if_possible(self) -> None:
        try:
            self.look()
        except Exception:
            logger.exception("could not look at the event loop")

    def stop(self) -> None:
        """Called in another thread than the loop's: it waits for this one, which may be writing to the log."""
        self._ended.set()
        if self.is_alive():
            self.join()

    def look(self) -> None:
        """Whether the loop turns; called by the thread."""
        pulse = self._pulse()
        if self._incident is not None and self._incident.since != pulse:
            self._say_that_it_is_over(self._incident, pulse)
            self._incident = None
        if self._incident is None and self._clock() - pulse > self._limit:
            self._incident = self._name_the_culprit(pulse)

    def _name_the_culprit(self, pulse: float) -> _Incident | None:
        task = asyncio.current_task(self._loop)
        where = place(_stack(self._innermost(), task))
        if self._pulse() != pulse or asyncio.current_task(self._loop) is not task:
            return None  # it turns
        if where is None:
            return None  # it waits, and is to blame for nothing: the whole process has stood still
        incident = _Incident(pulse, self._described(task), where)
        logger.warning(
            "the event loop has been blocked for %.1f s by %s at %s: until that ends, nothing else runs here; "
            'await something, or write `def` for a thread, or pool="process"',
            self._clock() - pulse,
            incident.who,
            incident.where,
        )
        return incident

    def _innermost(self) -> FrameType | None:
        return sys._current_frames().get(self._watched)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]

    def _described(self, task: asyncio.Task[Any] | None) -> str:
        if task is None:
            return "a callback"
        name = self._name_of(task)
        return f"asyncio task {task.get_name()!r}" if name is None else f"task {name}"

    def _say_that_it_is_over(self, incident: _Incident, pulse: float) -> None:
        # The pulse is that of when the loop turned again; or infinite, when it has ended meanwhile.
        seconds = min(pulse, self._clock()) - incident.since
        logger.info("the event loop was blocked for %.1f s by %s at %s", seconds, incident.who, incident.where)


def _stood_still(late: float, worked: float) -> bool:
    """Whether the whole process was stopped, or had no CPU, for a while: then the loop is not to blame for its pulse.

    This thread is also late when C code has kept the interpreter to itself; but that takes CPU time.
    """
    return late > SHORTEST_PAUSE and worked < late / 2


@dataclass(frozen=True, slots=True)
class _Incident:
    since: float
    """The last pulse before it."""
    who: str
    where: str


# -- whose code it is --------------------------------------------------------------------------------------------------


def _stack(innermost: FrameType | None, task: asyncio.Task[Any] | None) -> list[FrameType]:
    """What the loop runs now, the innermost frame first; without what runs the loop. Empty if that cannot be told.

    A task's stack ends with its coroutine, a callback's with asyncio's handle. uvloop's handles are no frames.
    """
    coroutine: Any = None if task is None else task.get_coro()
    outermost = getattr(coroutine, "cr_frame", None)
    frames: list[FrameType] = []
    while innermost is not None:
        frames.append(innermost)
        if innermost is outermost or innermost.f_code is _HANDLE:
            return frames
        innermost = innermost.f_back
    return []


def place(frames: list[FrameType]) -> str | None:
    """The application's innermost line, and the line of an installed package that it waits for; else what there is."""
    packages = [frame for frame in frames if _is_package(frame)]
    own = [frame for frame in frames if not _is_package(frame) and not is_library(frame)]
    if own and packages and frames.index(packages[0]) < frames.index(own[0]):
        return f"{_line(own[0])}, inside {_line(packages[0])}"
    return next((_line(found[0]) for found in (own, packages, frames) if found), None)


def _line(frame: FrameType) -> str:
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"


def _is_package(frame: FrameType) -> bool:
    """Installed, and therefore not where the mistake is."""
    file = frame.f_code.co_filename
    return not file.startswith(_OURS) and any(folder in Path(file).parts for folder in INSTALLED)


def is_library(frame: FrameType) -> bool:
    """Python's, or ours."""
    return frame.f_code.co_filename.startswith((_OURS, *_STANDARD))


_HANDLE = asyncio.Handle._run.__code__  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
_OURS = f"{Path(__file__).parent}{os.sep}"
_STANDARD = ("<frozen ", *(f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib")))
INSTALLED = ("site-packages", "dist-packages")
"""Folders, which may lie inside the standard library's."""
