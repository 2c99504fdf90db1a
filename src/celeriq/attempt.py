"""One attempt to run one message: named steps over one record, ending in exactly one outcome.

The order: open dependencies → body → encode the value → close dependencies, the session's commit among them → settle.
Only *succeeded* commits. The broker settles; nothing here talks to Redis.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Mapping
from concurrent.futures import Executor
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from taskiq.exceptions import NoResultError
from taskiq.message import TaskiqMessage

from celeriq import envelope, parts, record
from celeriq.definition import Definition
from celeriq.dependencies import OpenedDependencies
from celeriq.envelope import RETRIES_LABEL, Claim, Envelope, for_retry, within
from celeriq.errors import CeleriqError, ChordError, WorkerLostError
from celeriq.hooks import NO_HOOKS, Hooks
from celeriq.options import NO_OPTIONS, Options, check_wait
from celeriq.outbox import Waiting
from celeriq.outcome import (
    Failed,
    Ignored,
    NotFinishedError,
    Outcome,
    Released,
    Retrying,
    Revoked,
    Succeeded,
    after_broken_hook,
    after_misfit,
)
from celeriq.parts import Part
from celeriq.routing import check_priority
from celeriq.steps import next_steps

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


class Delivery(bytes):
    """A message as it came from the queue: its bytes, and where they lie until they are settled."""

    stream: str
    """The key of the stream."""
    entry_id: bytes
    queue: str
    priority: int
    worker: str
    """Who took it, and alone may settle it."""
    crashes: int
    """Workers that died while they held it."""
    again: bool
    """Whether another worker has held it before."""

    @property
    def place(self) -> tuple[str, bytes]:
        """What tells it from another delivery of the same bytes."""
        return self.stream, self.entry_id


class Engine(Protocol):
    """What an attempt needs of its broker."""

    dependency_overrides: dict[Any, Any]
    max_payload: int
    commit_timeout: float

    @property
    def namespace(self) -> str: ...

    def new_session(self, database: str | None = None) -> AsyncSession: ...

    threads: Executor | None

    async def write_outgoing(self, attempt: Attempt, session: AsyncSession) -> None: ...

    async def store(self, stored: record.Record, attempt: Attempt | None) -> None: ...

    async def settle(self, attempt: Attempt) -> None: ...

    async def acquire(self, attempt: Attempt, kind: str, most: int) -> bool | None: ...

    async def reserve(self, kind: str, seconds: float, before: int | None, late: float) -> int | None: ...

    async def claim(self, call: Envelope, claim: Claim, *, replace: bool) -> str: ...

    async def circuit_open_until(self, kind: str, call: Envelope, period: float) -> float | None: ...

    async def report_to_circuit(
        self, kind: str, call: Envelope, *, succeeded: bool | None, failures: int, period: float
    ) -> None: ...

    def is_revoked(self, call: Envelope) -> bool: ...

    def settings_of(self, definition: Definition, said: Mapping[str, Any]) -> tuple[Options, Hooks]: ...


@dataclass(slots=True, eq=False)
class Attempt:
    """What is known of a running message, from the fetch to its settlement."""

    engine: Engine
    delivery: Delivery
    envelope: Envelope
    message: TaskiqMessage
    dependency_context: dict[Any, Any] = field(default_factory=dict[Any, Any])
    started: float = field(default_factory=monotonic)
    definition: Definition | None = None
    options: Options = field(default_factory=lambda: NO_OPTIONS)
    """What the task says, and over it the call."""
    hooks: Hooks = NO_HOOKS
    limits: tuple[float | None, float | None] = (None, None)
    """Soft and hard, in seconds, of a body that no cancellation reaches: kept by what runs it, if it can."""
    announced: bool = False
    """Whether anybody was told that it begins."""
    children: list[str] = field(default_factory=list[str])
    """Ids of the tasks that it has sent (CALL-12)."""
    outgoing: list[Waiting] | None = None
    """What it has sent and is still to be written into its transaction; None sends at once."""
    outcome: Outcome | None = None
    called_off: Outcome | None = None
    """How it ends when it is cancelled, if not because its worker stops."""
    stored: bytes = b""
    """The record, encoded before the commit: what is stored is what could be stored then."""
    next_steps: list[tuple[Envelope, bytes]] = field(default_factory=list[tuple[Envelope, bytes]])
    """What follows it, encoded then as well."""
    part: Part | None = None
    """What its chord is told of it."""
    logs: deque[str] | None = None
    """The last lines that it has logged, if anybody notes them."""
    session: AsyncSession | None = None
    """Its own, if it has asked for one."""
    begun: bool = False
    commit_begun: bool = False
    ran: bool = False
    """Whether its body was called."""
    committed: bool = False
    repeated: bool = False
    """Whether another attempt had the effects that count as this one's."""
    acknowledged: bool = False
    """Taken off the queue before the body ran (`acks_late=False`)."""
    settled: bool = False
    asked_to_settle: bool = False
    """Settled perhaps: the answer was not awaited."""

    @staticmethod
    def current() -> Attempt:
        """The attempt that this code runs in; raises `RuntimeError` outside of a task."""
        attempt = _current.get()
        if attempt is None:
            raise RuntimeError("no task is running here: the session and the current task exist only in a worker")
        return attempt

    @staticmethod
    def current_or_none() -> Attempt | None:
        return _current.get()

    def become_current(self) -> None:
        """Make this the attempt of the asyncio task that receives the message."""
        _current.set(self)

    @property
    def retries(self) -> int:
        return int(self.message.labels.get(RETRIES_LABEL, 0))

    @property
    def ticket(self) -> str:
        """The name of its slot, if a limit gives it one: no other message has the same, whatever their task ids are."""
        return self.envelope.ticket or f"{self.delivery.stream}/{self.delivery.entry_id.decode()}"

    def open_session(self) -> AsyncSession:
        return self.engine.new_session()

    async def run(self, definition: Definition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the steps; what is returned or raised tells Taskiq's receiver what the outcome was."""
        self.begun = True
        if self.outcome is not None:
            raise NotFinishedError
        try:
            self._prepare(definition)
            self._refuse_if_broken()
            await self._ask_whether_to_begin()
            if (convert := definition.convert).is_needed:
                args, kwargs = convert(args, kwargs)
            value = await self._perform(definition, args, kwargs)
        except asyncio.CancelledError:
            self._end_if_called_off()
            raise
        except NotFinishedError:
            raise
        except NoResultError:
            # Taskiq's way to say that there is nothing to store, `Context.requeue()` for one.
            self._end(Ignored())
            raise
        except BaseException as error:
            if self.outcome is not None:
                # It failed before its body.
                raise
            return self._end_after(error, _storable(self.envelope, await self._after(error, definition, args, kwargs)))
        self.outcome = Succeeded(value)
        return value

    def _end_after(self, error: BaseException, outcome: Outcome) -> Any:
        """The value of what another attempt has done already; raises what tells of every other outcome."""
        if isinstance(outcome, Succeeded):
            self.repeat(outcome)
            return outcome.value
        self._end(outcome)
        if not isinstance(outcome, Failed):
            raise NotFinishedError from error
        if outcome.error is not error:
            raise outcome.error from error
        raise error

    def repeat(self, outcome: Succeeded) -> None:
        """End as another attempt has ended."""
        self.repeated = True
        self._encode(outcome.value)
        self.outcome = outcome

    def _prepare(self, definition: Definition) -> None:
        self.definition = definition
        self.options, self.hooks = self.engine.settings_of(definition, self.envelope.options)

    def _refuse_if_broken(self) -> None:
        if self.envelope.broken:
            raise ChordError(self.envelope.broken)

    async def _ask_whether_to_begin(self) -> None:
        for before in self.hooks.before:
            outcome = before(self)
            if outcome is not None and isinstance(outcome, Awaitable):
                outcome = await outcome
            if isinstance(outcome, Succeeded):
                raise _RepeatedError(outcome)
            if outcome is not None:
                self._end(outcome)
                raise outcome.error if isinstance(outcome, Failed) else NotFinishedError

    def _end_if_called_off(self) -> None:
        """Raise `NotFinishedError` in place of the cancellation, if it was somebody's who said how the attempt ends.

        Who cancels any other attempt is told by what becomes of it outside: see `end_from_outside`.
        """
        running = asyncio.current_task()
        if self.called_off is not None and running is not None and running.uncancel() == 0:
            self._end(self.called_off)
            raise NotFinishedError

    async def _after(
        self, error: BaseException, definition: Definition, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Outcome:
        if isinstance(error, _RepeatedError):
            return error.outcome
        if self.envelope.broken:
            return Failed(error)
        if isinstance(error, SystemExit | KeyboardInterrupt):
            # It does not end the worker, in which others run (EXE-10).
            return Failed(WorkerLostError(f"the task ended as if it were a program: {error!r}"))
        if isinstance(error, TypeError) and not self.acknowledged and not definition.accepts(args, kwargs):
            self.ran = False
            return after_misfit(error, self.envelope.postponed)
        for decide in self.hooks.decide:
            outcome = decide(self, error)
            if outcome is not None and isinstance(outcome, Awaitable):
                outcome = await outcome
            if outcome is not None:
                return outcome
        return Failed(error)

    def end_from_outside(self, value: Any, error: BaseException | None) -> None:
        """Decide the outcome of an attempt that was cancelled: a time limit fails it, a stopping worker releases it.

        A task that another broker registered ran without us: what became of it is told here, too.
        """
        if self.outcome is not None:
            return
        if isinstance(error, NoResultError):
            self._end(Ignored())
            return
        if error is None:
            try:
                self._encode(value)
                self.outcome = Succeeded(value)
            except CeleriqError as refused:
                self._end(Failed(refused))
            return
        running = asyncio.current_task()
        stopping = isinstance(error, asyncio.CancelledError) and running is not None and running.cancelling() > 0
        if stopping and self.acknowledged:
            # Off the queue already: nobody will run it again.
            error, stopping = WorkerLostError("its worker was told to stop while it ran"), False
        self._end(Released() if stopping else Failed(error))

    async def _perform(self, definition: Definition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.ran = True
        graph = definition.graphs.for_overrides(self.engine.dependency_overrides)
        if graph.is_empty():
            value = await self._call(definition, args, kwargs)
            await self._make_ready_to_commit(value)
            return value
        opened = OpenedDependencies(graph, graph, dict(self.dependency_context))
        value = None
        error: BaseException | None = None
        try:
            value = await self._call(definition, args, {**await opened.resolve_kwargs(), **kwargs})
            await self._make_ready_to_commit(value)
        except BaseException as raised:  # noqa: BLE001 - every way to end closes the dependencies
            error = raised
        if error := await opened.close_all(error, lambda: self.committed):
            raise error
        return value

    async def _make_ready_to_commit(self, value: Any) -> None:
        self._encode(value)
        for committing in self.hooks.committing:
            outcome = await committing(self, value)
            if outcome is not None:
                raise _RepeatedError(outcome)

    def _call(self, definition: Definition, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Awaitable[Any]:
        """The body, inside of what middlewares put around it."""
        elsewhere = self.hooks.call
        body: Awaitable[Any] = (
            elsewhere[0](self, definition, args, kwargs) if elsewhere else definition.call(self, args, kwargs)
        )
        for around in self.hooks.around:
            body = around(self, body)
        return body

    def _encode(self, value: Any) -> None:
        """Before the commit: a value that cannot be stored fails the task while it can still be rolled back."""
        limit, name = self.engine.max_payload, self.message.task_name
        encoded = within(limit, record.encode(value), f"the return value of task {name!r}")
        record.refuse_what_is_lost(value, encoded)
        self.next_steps = [(step, envelope.encode(step, limit)) for step in next_steps(self.envelope, value)]
        stored = record.success(self.message.task_id, msgspec.Raw(encoded), self.runtime, self.children)
        self.stored = record.encode(stored)
        if self.envelope.chord is not None:
            self.part = parts.succeeded(self.envelope, self.envelope.chord, value)

    def _end(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.next_steps, self.part = [], None
        task_id = self.message.task_id
        if isinstance(outcome, Failed | Revoked | Ignored) and outcome.error is not None:
            self.part = parts.failed(self.envelope, outcome.error)
        match outcome:
            case Failed(error):
                self.stored = record.encode(record.failure(task_id, error, self.runtime, self.children))
            case Revoked(error):
                self.stored = record.encode(record.revoked(task_id, error, self.runtime))
            case Retrying(error):
                trace = outcome.asked or error
                self.stored = record.encode(record.retry(task_id, error, self.runtime, self.children, trace))
            case _:
                self.stored = b""

    def refuse(self, definition: Definition | None, error: BaseException, limit: int) -> None:
        """Decide the outcome of an attempt that a middleware's hook ended before it began."""
        if definition is not None:
            self._prepare(definition)
        self._end(after_broken_hook(error, self.envelope.postponed, limit))

    def fail_unbegun(self, definition: Definition, error: BaseException) -> None:
        """Decide the outcome of an attempt that nobody can make any more."""
        self._prepare(definition)
        self._end(Failed(error, dead_because=str(error)))

    @property
    def runtime(self) -> float:
        """Seconds since the message was read, to the microsecond."""
        return round(monotonic() - self.started, 6)


class _RepeatedError(Exception):
    """Rolls back what another attempt has done already."""

    def __init__(self, outcome: Succeeded) -> None:
        super().__init__("another attempt has done it")
        self.outcome = outcome


def _storable(call: Envelope, outcome: Outcome) -> Outcome:
    """The outcome, or the failure of a retry that cannot be sent (RETRY-11), or not be read then."""
    if isinstance(outcome, Retrying):
        try:
            check_wait("the delay of a retry", outcome.delay)
            if outcome.changes:
                record.refuse_what_is_lost(outcome.changes, record.encode(outcome.changes))
                again = envelope.decode(record.encode(for_retry(call, outcome.changes)))
                check_priority(again.priority)
        except (CeleriqError, msgspec.DecodeError, TypeError, ValueError) as refused:
            return Failed(refused)
    return outcome


_current: ContextVar[Attempt | None] = ContextVar("celeriq_attempt", default=None)
