"""`pool="process"`: tasks in child processes, any one of which may die or be killed without harm to the others.

Pebble starts a process, hands calls to it and notices its death. Each child has a pool of pebble's to itself, since in
one that they share
- a child killed while it is idle breaks the pool, and every call that waits in it;
- a child that ends with code 0 inside a call leaves the caller waiting for ever;
- a child killed while it holds the pipe's lock stops all others;
- a child is given up to 3 s to end by itself, and the others wait.

Children are spawned. The worker has threads and an event loop, so a forked child would begin with locks that nobody
releases and with connections that are not its own. A fork server would avoid that, but stands between the worker and
its children: they see the environment of when it was started, and are orphaned when it is killed.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar
from weakref import WeakSet

import anyio

from celeriq.child import (
    HELD_BACK,
    SOFT_LIMIT,
    Call,
    Ending,
    Reference,
    begin,
    check,
    encode_arguments,
    perform,
    prepare,
    reference_to,
)
from celeriq.errors import CeleriqError, TimeLimitExceeded, WorkerLostError

try:
    from pebble import ProcessExpired, ProcessPool
except ImportError as error:
    raise ImportError("tasks with pool=\"process\" need pebble: pip install 'celeriq[processes]'") from error

__all__ = ["Processes", "check"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

AGAIN = 0.1
"""Seconds until a soft limit is told once more, doubled with each time: a child that has not begun yet drops it."""

LOOK = 1.0
"""Seconds between two looks at whether a process that runs something is alive."""


class Processes:
    """Child processes that run functions. They start when they are needed, and are kept for the next call.

    `size`: how many there may be at a time. Defaults to the number of CPUs.
    `max_tasks_per_child`: calls after which a child is replaced. Defaults to None, no limit (SHUT-07).
    `max_memory_per_child`: KiB of resident memory; a child that has more after a call is replaced. Defaults to None.
    """

    def __init__(
        self,
        size: int | None = None,
        *,
        max_tasks_per_child: int | None = None,
        max_memory_per_child: int | None = None,
    ) -> None:
        self._size = size or os.cpu_count() or 1
        self._max_tasks = max_tasks_per_child
        self._max_memory = max_memory_per_child
        self._slots = asyncio.Semaphore(self._size)
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._retiring: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Lock()
        self._closed_by_force = False
        self._held = 0
        """Slots that are taken so that nothing runs."""
        self._threads = self._new_threads()

    def _new_threads(self) -> ThreadPoolExecutor:
        """To start and to end children in. The loop's own threads may all be taken by tasks."""
        return ThreadPoolExecutor(self._size, thread_name_prefix="celeriq-processes")

    @property
    def pids(self) -> list[int]:
        """The children that there are now."""
        return [child.pid for child in (*self._idle, *self._busy) if child.pid is not None]

    async def run(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        hard: float | None = None,
        soft: float | None = None,
    ) -> Any:
        """What `function` returns in a child; raises what it raises there, with the traceback as the cause.

        A child that has not run it before imports its module first; the limits begin after that.
        `soft`: seconds after which `SoftTimeLimitExceeded` is raised inside the function, which may catch it (LIM-01).
        `hard`: seconds after which the child is killed and `TimeLimitExceeded` is raised (LIM-02).

        Whoever cancels this kills the child that runs it (LIM-14). Raises `WorkerLostError` if the child dies (ACK-04,
        EXE-10), `EncodeError` for arguments and return values that cannot be pickled, and `TaskDefinitionError` as
        `check` does.
        """
        call = Call(reference_to(function), encode_arguments(function, args, kwargs or {}))
        await self._slots.acquire()
        child = self._take()
        try:
            await child.start(self._threads)
            await child.know(call.reference)
            ending = await child.run(call, soft, hard)
        finally:
            self._give_back(child)
        return ending.result()

    def _take(self) -> _Child:
        """The child that was busy last, whose memory is warm, or a new one."""
        if self._closed_by_force:
            self._slots.release()
            raise WorkerLostError("the pool of processes was closed before it could begin")
        child = None
        while self._idle and child is None:
            child = self._idle.pop()
            if not child.alive:
                self._retire(child)
                child = None
        child = child or _Child()
        self._busy.add(child)
        return child

    def _give_back(self, child: _Child) -> None:
        """Keep it for the next call; or make room for another one as soon as it has ended."""
        self._busy.discard(child)
        if child.alive and not self._is_spent(child):
            self._idle.append(child)
            self._slots.release()
        else:
            self._retire(child).add_done_callback(lambda _: self._slots.release())

    def _is_spent(self, child: _Child) -> bool:
        too_old = self._max_tasks is not None and child.calls >= self._max_tasks
        return too_old or (self._max_memory is not None and child.memory > self._max_memory)

    def _retire(self, child: _Child) -> asyncio.Task[None]:
        retiring = asyncio.create_task(self._end(child))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)
        return retiring

    async def _end(self, child: _Child) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, child.close)
        except RuntimeError:
            logger.exception("process %s does not end", child.pid)

    async def close(self, patience: float | None = None) -> None:
        """End all children: what runs has `patience` seconds, None for no limit, and is killed then.

        Whatever is called afterwards starts children anew.
        """
        async with self._closing:
            try:
                await self._hold_slots(patience)
                self._closed_by_force = self._held < self._size
                for child in self._busy:
                    child.kill()
                await self._hold_slots(None)
                await self._end_idle()
            finally:
                self._closed_by_force = False
                while self._held:
                    self._held -= 1
                    self._slots.release()

    async def _hold_slots(self, patience: float | None) -> None:
        """All that come free in time: whoever holds them all knows that nothing runs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._held < self._size:
                    await self._slots.acquire()
                    self._held += 1

    async def _end_idle(self) -> None:
        while self._idle:
            self._retire(self._idle.pop())
        if self._retiring:
            await asyncio.wait(self._retiring)
        self._threads.shutdown(wait=False)
        self._threads = self._new_threads()


class _Child:
    """One process, from its start to its end."""

    def __init__(self) -> None:
        self._context = _OneProcess()
        self._pool = ProcessPool(1, initializer=begin, context=self._context)
        self._known: set[Reference] = set()
        self._started = False
        self._overdue = False
        self._killed = False
        self._telling: asyncio.TimerHandle | None = None
        """The soft limit."""
        self.calls = 0
        self.memory = 0
        """KiB, after its last call."""
        _children.add(self)

    @property
    def pid(self) -> int | None:
        process = self._context.process
        return None if process is None else process.pid

    @property
    def alive(self) -> bool:
        process = self._context.process
        return not self._killed and process is not None and process.is_alive()

    def kill(self) -> None:
        self._killed = True
        process = self._context.process
        if process is not None and process.pid is not None:
            process.kill()

    def close(self) -> None:
        """Called in a thread. A process that is alive ends by itself; pebble kills it after three seconds."""
        if self._killed:
            self.kill()  # it may have been told so before there was one
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()
        if self._context.process is not None:
            self._context.process.close()
            self._context.process = None

    async def start(self, threads: ThreadPoolExecutor) -> None:
        if not self._started:
            self._started = True
            await self._watched(asyncio.get_running_loop().run_in_executor(threads, self._start))

    def _start(self) -> None:
        """Called in a thread, whose mask of blocked signals the process inherits."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            _ = self._pool.active  # asking starts it
        except BrokenExecutor as error:
            raise WorkerLostError(f"a process could not be started: {error.__cause__}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    async def know(self, reference: Reference) -> None:
        """Have the function imported, once."""
        if reference not in self._known:
            (await self._ask(prepare, reference)).result()
            self._known.add(reference)

    async def run(self, call: Call, soft: float | None, hard: float | None) -> Ending:
        self.calls += 1
        try:
            ending = await self._ask(perform, call, (soft, self._interrupt), (hard, self._end_overdue))
        except WorkerLostError:
            if self._overdue:
                raise TimeLimitExceeded(hard) from None
            raise
        finally:
            if self._telling is not None:
                self._telling.cancel()
        self.memory = ending.memory
        return ending

    def _interrupt(self, pause: float = AGAIN) -> None:
        if self.alive and self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, SOFT_LIMIT)
            self._telling = asyncio.get_running_loop().call_later(pause, self._interrupt, 2 * pause)

    def _end_overdue(self) -> None:
        self._overdue = True
        self.kill()

    async def _ask(
        self, function: Callable[[Any], Ending], argument: Any, *limits: tuple[float | None, Callable[[], None]]
    ) -> Ending:
        """Have `function` called there; each of the limits, in seconds, does something if that takes longer."""
        try:
            answer = asyncio.wrap_future(self._pool.schedule(function, args=(argument,)))
        except RuntimeError as error:  # it has died since
            raise await self._loss() from error
        loop = asyncio.get_running_loop()
        timers = [loop.call_later(seconds, _unless, answer, act) for seconds, act in limits if seconds is not None]
        try:
            return await self._watched(answer)
        finally:
            for timer in timers:
                timer.cancel()

    async def _watched(self, running: asyncio.Future[T]) -> T:
        """Await it; the process is killed when somebody cancels this."""
        try:
            while not await self._is_over(running):
                pass
        except asyncio.CancelledError:
            self.kill()
            await self._end_uncancelled(running)
            raise
        if not running.done():
            raise await self._loss()
        try:
            return running.result()
        except (ProcessExpired, BrokenExecutor) as error:
            raise await self._loss() from error

    async def _is_over(self, running: asyncio.Future[Any]) -> bool:
        """Whether pebble has said so, or has had the time to say that the process is dead.

        It says that within 0.1 s, but never of a call that came at the very moment of the death.
        """
        process = self._context.process
        dead = process is not None and process.pid is not None and not process.is_alive()
        await asyncio.wait({running}, timeout=LOOK)
        return dead or running.done()

    async def _end_uncancelled(self, running: asyncio.Future[Any]) -> None:
        """Its slot is not free before it has ended. anyio cancels again at every turn of the loop."""
        over = False
        with anyio.CancelScope(shield=True):
            while not over:
                with suppress(asyncio.CancelledError):
                    over = await self._is_over(running)
        if running.done():
            running.exception()

    async def _loss(self) -> CeleriqError:
        self.kill()
        return WorkerLostError(f"Worker exited prematurely: {await self._how_it_ended()}.")

    async def _how_it_ended(self) -> str:
        """In Celery's words."""
        for _ in range(100):
            code = None if self._context.process is None else self._context.process.exitcode
            if code is not None:
                return f"exitcode {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"
            # Two threads ask the kernel, which tells only one of them.
            await asyncio.sleep(0.01)
        return "nobody knows how"


def _unless(answer: asyncio.Future[Any], act: Callable[[], None]) -> None:
    if not answer.done():
        act()


class _OneProcess:
    """What pebble needs of multiprocessing. It starts one process; when that has died, pebble says so at once."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self.process: BaseProcess | None = None
        self.Pipe = self._context.Pipe
        self.RLock = self._context.RLock
        self.get_start_method = self._context.get_start_method

    def Process(self, **options: Any) -> BaseProcess:  # noqa: N802 - as multiprocessing calls it
        if self.process is not None:
            raise ChildProcessError("this pool has had its process")
        self.process = self._context.Process(**options)
        return self.process


_children: WeakSet[_Child] = WeakSet()


@atexit.register
def _kill_all() -> None:
    """Whoever did not close the pool does not wait for it when the interpreter ends."""
    for child in _children:
        child.kill()
