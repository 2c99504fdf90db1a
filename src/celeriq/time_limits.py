"""Soft and hard time limits around the body of a task, in plain asyncio.

asyncio can only cancel, and a cancellation that is renamed around the body comes too late for an `except` inside it. So
the body is driven by hand: the soft limit cancels what it awaits, and at that await the body is thrown a cancellation
that is a `SoftTimeLimitExceeded` too. It may catch that, clean up and return. The hard limit is a plain cancellation,
and what becomes of the body then no longer counts.

Neither can interrupt code that does not await, nor a task that the body has started and does not wait for. A session
whose query was interrupted works again after `rollback()`, on another connection.
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar, cast

from celeriq.errors import SoftTimeLimitExceeded, TimeLimitExceeded

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 1.0
"""Seconds until a body that goes on in spite of the hard limit is cancelled once more."""


class _SoftCancellation(SoftTimeLimitExceeded, asyncio.CancelledError):
    """The soft limit as the body sees it: a cancellation as well, to all the code between its `except` and the await.

    Such code is ready for nothing else there. Thrown a mere `Exception`, SQLAlchemy puts a connection back into the
    pool that has begun a transaction nobody knows of, asyncio's TaskGroup leaves its children running, its Semaphore
    loses a permit, and `wait_for` of Python 3.11 its task.
    """

    def __reduce__(self) -> tuple[type[SoftTimeLimitExceeded], tuple[Any, ...]]:
        return SoftTimeLimitExceeded, self.args


# Where it is stored or printed, it is what it stands for.
_SoftCancellation.__module__ = SoftTimeLimitExceeded.__module__
_SoftCancellation.__qualname__ = SoftTimeLimitExceeded.__qualname__


async def within(
    work: Coroutine[Any, Any, T],
    soft: float | None,
    hard: float | None,
    shielded: Callable[[], bool] = lambda: False,
) -> T:
    """Await `work` under a soft and a hard limit, both in seconds from now; `None` is no limit.

    After `soft` seconds `SoftTimeLimitExceeded` is raised inside of it, once; uncaught, it leaves as that, even out of
    a task group (LIM-01). Inside it is a `CancelledError` as well: whoever catches both names it first, and whoever
    catches it around a task group writes `except*`.

    After `hard` seconds it is cancelled, again and again until it ends, and `TimeLimitExceeded(hard)` is raised here,
    whatever it returned or raised (LIM-02). Whoever else cancels the task meanwhile is obeyed: that `CancelledError`
    passes, and from then on there is no soft limit.

    A limit that comes while `shielded()` is true is dropped, and a value returned then counts: what was committed has
    succeeded. Both limits cover `work` alone (LIM-05). `asyncio.Task.cancelling` counts afterwards what it did before,
    and what others have asked for.
    """
    limits = _Limits(soft, hard, shielded)
    try:
        value = await limits.drive(work)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        limits.end()
        if limits.others_cancelled(error):
            raise
        if limits.hard_has_passed:
            raise TimeLimitExceeded(hard) from error
        if _is_soft_in_disguise(error):
            raise SoftTimeLimitExceeded from error
        raise
    else:
        if limits.hard_has_passed and not shielded():
            raise TimeLimitExceeded(hard)
        return value
    finally:
        limits.end()


class _Limits:
    """The timers of one body, and which of the task's cancellations are theirs."""

    def __init__(self, soft: float | None, hard: float | None, shielded: Callable[[], bool]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._before = task.cancelling()
        self._soft = soft
        self._shielded = shielded
        self._asked = 0
        """Cancellations of ours that the task still counts."""
        self._soft_is_due = False
        self._soft_is_on_its_way = False
        self.hard_has_passed = False
        self._loop = asyncio.get_running_loop()
        self._soft_timer = None if soft is None else self._loop.call_later(soft, self._pass_soft)
        self._hard_timer = None if hard is None else self._loop.call_later(hard, self._pass_hard)

    @types.coroutine
    def drive(self, work: Coroutine[Any, Any, T]) -> Generator[Any, None, T]:
        """Pass on what the body awaits and what comes of it, except for our own soft cancellation."""
        error: BaseException | None = None
        try:
            while True:
                awaited = work.send(None) if error is None else work.throw(error)
                error = None
                if self._soft_is_due:
                    self._pass_soft()
                try:
                    yield awaited
                except GeneratorExit:
                    work.close()
                    raise
                except BaseException as raised:  # noqa: BLE001 - all of it is the body's
                    error = raised
                if self._soft_is_on_its_way:
                    error = self._arrive(error, work)
        except StopIteration as end:
            value: T = end.value
            return value
        finally:
            # Its traceback holds this frame.
            error = None

    def _pass_soft(self) -> None:
        self._soft_is_due = False
        if self._shielded():
            return
        if self._task.cancelling() > self._before:
            # A timeout inside the body perhaps: it is asked again when it has come to its next await.
            self._soft_is_due = True
            return
        self._soft_is_on_its_way = True
        self._cancel()

    def _arrive(self, error: BaseException | None, work: object) -> BaseException | None:
        """What the body is thrown at the await that our soft cancellation has ended."""
        self._soft_is_on_its_way = False
        self._asked -= 1
        if self._task.uncancel() > self._before:
            # Somebody else has cancelled since, and two cancellations come as one: it is theirs.
            self._soft_is_due = True
            return error
        name = getattr(work, "__qualname__", work)
        logger.warning("the soft time limit of %s s has passed in %s", self._soft, name)
        exceeded = _SoftCancellation()
        if not isinstance(error, asyncio.CancelledError):
            # A task that it awaited failed when it was cancelled.
            exceeded.__context__ = error
        return exceeded

    def _pass_hard(self) -> None:
        if self._shielded():
            return
        self.hard_has_passed = True
        self._cancel()
        self._hard_timer = self._loop.call_later(PATIENCE, self._pass_hard)

    def _cancel(self) -> None:
        self._asked += 1
        self._task.cancel()

    def others_cancelled(self, error: BaseException) -> bool:
        """Whether the body ended with a cancellation that somebody else has asked for, when ours are taken back."""
        by_name = isinstance(error, asyncio.CancelledError) and not isinstance(error, SoftTimeLimitExceeded)
        return by_name and self._task.cancelling() > self._before

    def end(self) -> None:
        """Stop the timers and take back what they have asked for; a second call does nothing."""
        for timer in (self._soft_timer, self._hard_timer):
            if timer is not None:
                timer.cancel()
        while self._asked:
            self._asked -= 1
            self._task.uncancel()


def driven(frame: types.FrameType) -> Coroutine[Any, Any, Any] | None:
    """The body that a frame drives by hand, None if it drives none: no await leads from one to the other."""
    work: Coroutine[Any, Any, Any] | None = frame.f_locals["work"] if frame.f_code is _DRIVE else None
    return work


def _is_soft_in_disguise(error: BaseException) -> bool:
    """Whether it is what the body was thrown, or what a task group has made of that."""
    if isinstance(error, BaseExceptionGroup):
        return cast("BaseExceptionGroup[BaseException]", error).split(SoftTimeLimitExceeded)[1] is None
    return isinstance(error, _SoftCancellation)


_DRIVE = _Limits.drive.__code__
