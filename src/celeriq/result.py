"""What a caller holds of a task that it sent."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast, overload, runtime_checkable

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.exceptions import TaskiqResultTimeoutError
from taskiq.result import TaskiqResult
from taskiq.task import AsyncTaskiqTask

from celeriq import record
from celeriq.arguments import reader
from celeriq.attempt import Attempt
from celeriq.errors import ResultTimeoutError, TaskRevokedError
from celeriq.record import Record
from celeriq.states import EXCEPTION, FAILURE, PENDING, READY, REVOKED, SUCCESS
from celeriq.waiting import first_told

if TYPE_CHECKING:
    from celeriq.group_result import GroupResult

R = TypeVar("R")

AsTuple = tuple[tuple[str, Any], Any]
"""`((id, the same of its parent or None), None)`; of a group a list of its members' in place of the last None."""

logger = logging.getLogger(__name__)


@runtime_checkable
class Pushes(Protocol):
    """A result backend that keeps states and tells when a task has ended."""

    async def wait(self, task_id: str, timeout: float | None = None) -> Record: ...  # noqa: ASYNC109 - as callers know it

    async def find(self, task_id: str) -> Record | None: ...

    async def forget(self, task_id: str) -> None: ...


@runtime_checkable
class Revokes(Protocol):
    """A broker that can call tasks off."""

    async def revoke(self, task_id: str | Sequence[str], *, terminate: bool = False) -> None: ...


_may_wait: ContextVar[bool] = ContextVar("celeriq_may_wait", default=False)


@contextmanager
def allow_join_result() -> Generator[None]:
    """Inside a task, wait for the result of another all the same (RES-04)."""
    token = _may_wait.set(True)
    try:
        yield
    finally:
        _may_wait.reset(token)


class AsyncResult(AsyncTaskiqTask[R]):
    """The state and the result of a task, by its id: `AsyncResult(task_id, broker=broker)`, or what `delay()` returned.

    It is Taskiq's handle, too, which waits without asking again and again (W37). It asks at each call, until the task
    has succeeded, which is final: what is stored then it keeps (RES-05, ST-07).
    """

    def __init__(
        self,
        task_id: str,
        result_backend: AsyncResultBackend[R] | None = None,
        return_type: type[R] | None = None,
        *,
        broker: AsyncBroker | None = None,
        parent: AsyncResult[Any] | GroupResult | None = None,
        ignored: bool = False,
    ) -> None:
        backend: Any = result_backend if broker is None else broker.result_backend
        if backend is None:
            raise TypeError("AsyncResult needs to know where results are: write AsyncResult(task_id, broker=broker)")
        super().__init__(task_id, backend, return_type)
        self.parent = parent
        """The step before this one in its chain; of a chord's body, its header."""
        self.ignored = ignored
        """Whether the task was sent with `ignore_result`: nothing is stored then, and nothing waited for (CALL-14)."""
        self._broker = broker
        self._ended: Record | None = None

    @property
    def id(self) -> str:
        return self.task_id

    def __repr__(self) -> str:
        return f"<AsyncResult {self.task_id}>"

    # -- waiting ---------------------------------------------------------------------------------------------------

    @overload
    async def get(
        self,
        timeout: float | None = ...,  # noqa: ASYNC109 - as callers know it
        propagate: Literal[True] = ...,
        *,
        follow_parents: bool = ...,
        disable_sync_subtasks: bool = ...,
    ) -> R: ...

    @overload
    async def get(
        self,
        timeout: float | None = ...,  # noqa: ASYNC109 - as callers know it
        *,
        propagate: bool,
        follow_parents: bool = ...,
        disable_sync_subtasks: bool = ...,
    ) -> R | BaseException: ...

    async def get(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as callers know it
        propagate: bool = True,  # noqa: FBT001, FBT002 - as in Celery
        *,
        follow_parents: bool = True,
        disable_sync_subtasks: bool = True,
    ) -> R | BaseException:
        """What the task returned, of the type that it says, as soon as it has. Raises what it raised,
        `TaskRevokedError` if it was called off, and `ResultTimeoutError` after `timeout` seconds, None waits for ever
        (RES-01).

        With `propagate=False` an exception is returned in place of being raised (RES-02). Raises `RuntimeError` inside
        a task, which would hold its slot until others have ended (RES-04): send what follows as a chain, or say
        `disable_sync_subtasks=False`.

        What follows a header raises the exception of the part that has failed, as soon as it has; without
        `follow_parents` it raises `ChordError` when all parts have ended (RES-03).
        """
        assert_may_wait(self.task_id, allowed=not disable_sync_subtasks)
        if self.ignored:
            return cast("R", None)
        headers = self._headers() if propagate and follow_parents and self.parent is not None else ()
        try:
            stored = await (self._wait_behind(headers, timeout) if headers else self._wait(timeout))
        except TimeoutError as error:
            raise ResultTimeoutError(f"task {self.task_id} has not ended within {timeout:g} s") from error
        if isinstance(stored, BaseException):
            raise stored
        if stored.status == SUCCESS:
            self._ended = stored
        if stored.failed:
            failed = _exception(stored)
            if propagate:
                raise failed
            return failed
        return self._converted(stored.result)

    async def _wait(self, timeout: float | None) -> Record:  # noqa: ASYNC109 - as callers know it
        return self._ended or await self._pushes.wait(self.task_id, timeout)

    async def _wait_behind(
        self,
        headers: Sequence[GroupResult],
        timeout: float | None,  # noqa: ASYNC109 - as callers know it
    ) -> Record | BaseException:
        """Its record, or the exception of a part of the headers before it."""
        async with asyncio.timeout(timeout):
            waits: list[Coroutine[Any, Any, Record | BaseException | None]] = [self._wait(None)]
            waits += [header.failure() for header in headers]
            told: Record | BaseException | None = await first_told(waits)
            if isinstance(told, Record) and told.failed:
                for header in headers:
                    if (failed := await header.failure_so_far()) is not None:
                        return failed
        assert told is not None
        return told

    def _headers(self) -> list[GroupResult]:
        """Those of the chords before it."""
        found: list[GroupResult] = []
        step = self.parent
        while step is not None:
            if not isinstance(step, AsyncResult):
                found.append(step)
            step = step.parent
        return found

    async def failure(self) -> BaseException | None:
        """What it raised, as soon as it has ended; None if it has succeeded."""
        told = await self.get(propagate=False, disable_sync_subtasks=False)
        return told if isinstance(told, BaseException) else None

    async def failure_so_far(self) -> BaseException | None:
        """The same, as it is now."""
        stored = await self.snapshot()
        return _exception(stored) if stored.failed else None

    async def wait_result(
        self,
        check_interval: float = 0.2,
        timeout: float = -1.0,  # noqa: ASYNC109 - Taskiq's signature
        with_logs: bool = False,  # noqa: FBT001, FBT002
    ) -> TaskiqResult[R]:
        """The result, when it is there; raises `TaskiqResultTimeoutError` after `timeout` seconds, 0 waits for ever.

        `check_interval` is for result backends of others, which must be asked.
        """
        if not isinstance(self.result_backend, Pushes):
            return await super().wait_result(check_interval, timeout, with_logs)
        try:
            await self.result_backend.wait(self.task_id, timeout if timeout > 0 else None)
        except TimeoutError as error:
            raise TaskiqResultTimeoutError(timeout=timeout) from error
        return await self.get_result(with_logs=with_logs)

    # -- looking ---------------------------------------------------------------------------------------------------

    async def snapshot(self) -> Record:
        """All that is stored, at one moment; PENDING if nothing is (ST-02).

        With `Results(extended=True)` it is an `ExtendedRecord`, which knows the call, too (ST-06).
        """
        return await self._find() or Record(status=PENDING, task_id=self.task_id)

    async def _find(self) -> Record | None:
        if self._ended is not None:
            return self._ended
        found = await self._pushes.find(self.task_id)
        if found is not None and found.status == SUCCESS:
            self._ended = found
        return found

    async def exists(self) -> bool:
        """Whether anything is stored; a task that waits for its first run has nothing (ST-02)."""
        return await self._find() is not None

    async def state(self) -> str:
        """One of `celeriq.states`, or your own."""
        return (await self.snapshot()).status

    status = state

    async def ready(self) -> bool:
        """Whether it has ended, in whatever way (RES-06)."""
        return await self.state() in READY

    async def successful(self) -> bool:
        return await self.state() == SUCCESS

    async def failed(self) -> bool:
        """Whether it raised; a task that was called off did not (RES-06)."""
        return await self.state() == FAILURE

    async def info(self) -> Any:
        """The value, the exception, or what was told with a state of your own (ST-04)."""
        stored = await self.snapshot()
        return _exception(stored) if stored.status in EXCEPTION and stored.result is not None else stored.result

    result = info

    async def traceback(self) -> str | None:
        """As text (ST-11)."""
        return (await self.snapshot()).traceback

    async def date_done(self) -> datetime | None:
        done = (await self.snapshot()).date_done
        return None if done is None else datetime.fromisoformat(done)

    async def children(self) -> list[AsyncResult[Any]]:
        """What the task has sent (CALL-12)."""
        stored = await self.snapshot()
        return [AsyncResult(child[0][0], self.result_backend, broker=self._broker) for child in stored.children]

    async def collect(self) -> AsyncGenerator[tuple[AsyncResult[Any], Any]]:
        """It and all that it has sent, and what that has sent, each with its value as soon as it has ended (RES-08)."""
        waiting: deque[AsyncResult[Any]] = deque([self])
        while waiting:
            one = waiting.popleft()
            yield one, await one.get()
            waiting += await one.children()

    def as_tuple(self) -> AsTuple:
        """Its id and that of the steps before it, as plain data: see `result_from_tuple` (RES-09)."""
        return (self.task_id, None if self.parent is None else self.parent.as_tuple()), None

    __json__ = as_tuple
    """What a task that returns it has as its result (ST-13)."""

    # -- changing --------------------------------------------------------------------------------------------------

    async def forget(self) -> None:
        """Delete what is stored, of the steps before it in a chain, too: it is PENDING then (ST-21)."""
        self._ended = None
        await self._pushes.forget(self.task_id)
        if self.parent is not None:
            await self.parent.forget()

    async def revoke(self, *, terminate: bool = False) -> None:
        """Keep it from running; `terminate` ends it if it runs (LIM-12, LIM-14)."""
        if not isinstance(self._broker, Revokes):
            raise TypeError("to revoke a task, its broker is needed: write AsyncResult(task_id, broker=broker)")
        await self._broker.revoke(self.task_id, terminate=terminate)

    def _converted(self, value: Any) -> R:
        """From JSON to what the task's annotation says it returns: a model, a dataclass, a UUID."""
        read = None if self.return_type is None else reader(cast("Any", self.return_type))
        if read is None:
            return cast("R", value)
        try:
            return cast("R", read(value))
        except ValueError as error:
            logger.warning("task %s returned what its annotation does not say: %s", self.task_id, error)
            return cast("R", value)

    @property
    def _pushes(self) -> Pushes:
        if not isinstance(self.result_backend, Pushes):
            raise TypeError(f"{type(self.result_backend).__name__} keeps no states: wait_result() is what it can do")
        return self.result_backend


def _exception(stored: Record) -> BaseException:
    found = record.decode_exception(stored.result)
    if stored.status == REVOKED and not isinstance(found, TaskRevokedError):
        return TaskRevokedError(*found.args)
    return found


def assert_may_wait(waited_for: str, *, allowed: bool) -> None:
    """Raise `RuntimeError` inside a task, unless it is `allowed` or insists (RES-04)."""
    running = Attempt.current_or_none()
    if running is None or allowed or _may_wait.get():
        return
    raise RuntimeError(
        f"task {running.envelope.task!r} waits for the result of {waited_for}: Never call result.get() within a task! "
        "It would hold its slot until another has one: make a chain of them, or say get(disable_sync_subtasks=False)"
    )
