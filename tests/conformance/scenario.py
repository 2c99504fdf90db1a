"""What scenarios are written in: tasks, calls, notes and gates, the same words for Celery and for celeriq.

A scenario says what is done and what is seen, never what ought to be seen: that is what Celery does. Celery's words are
used throughout, settings included; whoever plays the scenarios translates.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal, Protocol

from tests import waiting

PATIENCE = float(os.environ.get("CONFORMANCE_PATIENCE", "30"))
"""Seconds that a scenario waits for something that is sure to come."""

wait_for = partial(waiting.wait_for, within=PATIENCE)

Body = Callable[..., Awaitable[Any]]


class NotThereYetError(NotImplementedError):
    """The system has no such thing, or nobody has said yet how it is done there."""


# -- who plays ---------------------------------------------------------------------------------------------------------


class Bound(Protocol):
    """The running task, as its body and its handlers see it."""

    name: str
    request: Any

    async def update_state(self, task_id: str | None = None, state: str | None = None, meta: Any = None) -> None: ...

    def retry(self, **options: Any) -> BaseException:
        """What is to be raised; where `throw` is not False it is raised already."""
        ...

    async def replace(self, call: Call | Canvas) -> Any: ...

    async def run(self, *args: Any, **kwargs: Any) -> Any:
        """The body, from a `__call__` of the base class."""
        ...

    def __getattr__(self, name: str) -> Any: ...

    def __setattr__(self, name: str, value: Any) -> None: ...


class Result(Protocol):
    """What the caller holds of a task, or of a group of them."""

    @property
    def id(self) -> str: ...

    @property
    def parent(self) -> Result | None: ...

    @property
    def results(self) -> Sequence[Result]:
        """Of a group: its members."""
        ...

    async def get(self, timeout: float | None = PATIENCE, **options: Any) -> Any: ...  # noqa: ASYNC109 - Celery's

    async def state(self) -> str: ...

    async def info(self) -> Any: ...

    async def traceback(self) -> str | None: ...

    async def ready(self) -> bool: ...

    async def successful(self) -> bool: ...

    async def failed(self) -> bool: ...

    async def exists(self) -> bool: ...

    async def children(self) -> Sequence[Result] | None: ...

    async def date_done(self) -> Any: ...

    async def detail(self, name: str) -> Any:
        """One of `name`, `args`, `kwargs`, `worker`, `retries`, `queue`."""
        ...

    async def forget(self) -> None: ...

    async def revoke(self, **options: Any) -> None: ...

    async def abort(self) -> None: ...

    async def as_tuple(self) -> Any: ...

    async def collect(self) -> list[Any]: ...

    async def completed_count(self) -> int: ...

    async def waiting(self) -> bool: ...

    async def save(self) -> None: ...

    async def delete(self) -> None: ...


class Worker(Protocol):
    """A worker of a scenario's own."""

    async def kill(self) -> None:
        """All of its processes end at once."""
        ...

    async def tell_to_stop(self) -> None:
        """It stops after what it runs."""
        ...

    async def tell_to_cancel(self) -> None:
        """It stops without waiting for what it runs."""
        ...

    async def break_connections(self) -> None:
        """All of its connections to the broker are closed; only of a worker that was started `breakable`."""
        ...

    async def stopped(self) -> int:
        """How it exited, as soon as it has."""
        ...

    @property
    def running(self) -> bool: ...


class States(Protocol):
    """What is told of a task while it is watched."""

    async def until_now(self) -> list[str]:
        """The states in their order."""
        ...

    async def until(self, *states: str) -> list[str]:
        """The states in their order, as soon as one of these has come."""
        ...


class App(Protocol):
    """Whoever plays the scenarios: Celery or celeriq, with a worker that reads the default queue."""

    default_queue: str

    takes_beforehand: bool
    """Whether a worker takes messages from the queue before it can run them."""

    async def send(
        self,
        call: Task | Call | Canvas,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> Any: ...

    async def call(self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any: ...

    async def send_task(
        self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Result: ...

    async def send_many_as_one(self, task: Task, items: Sequence[Any], how: str, size: int = 0) -> Result:
        """`map`, `starmap`, or `chunks` of a size."""
        ...

    async def send_stamped(
        self, task: Task, args: Sequence[Any], stamps: Mapping[str, str], **options: Any
    ) -> Result: ...

    async def revoke_by_stamps(self, stamps: Mapping[str, str]) -> None: ...

    async def send_retried(self, task: Task, retries: int) -> Result:
        """As if the task had been retried so often."""
        ...

    def result(self, task_id: str) -> Result: ...

    async def restored_group(self, group_id: str) -> Result | None: ...

    async def restored(self, told: Any) -> Result:
        """A result from what `as_tuple` told."""
        ...

    async def revoke(self, task_id: str, **options: Any) -> None: ...

    async def record(self, task_id: str) -> dict[str, Any] | None:
        """What is stored of a task."""
        ...

    async def stored_state(self, task_id: str) -> str | None:
        """The state of the record, None if there is none."""
        ...

    async def time_to_live(self, task_id: str) -> int | None:
        """Seconds until the record goes; None if it stays."""
        ...

    async def held(self, task_id: str) -> bool:
        """Whether a worker has the message, and has not acknowledged it."""
        ...

    async def due_at(self, task_id: str) -> float | None:
        """When the message that waits under this id may run, in seconds since 1970; None if there is none."""
        ...

    async def store(self, record: Mapping[str, Any]) -> None:
        """Put a record there that nobody wrote."""
        ...

    async def queued(self, queue: str) -> list[str]:
        """The names of the tasks that wait in a queue, the first one first."""
        ...

    async def put(self, queue: str, content_type: str, body: str, headers: Mapping[str, Any]) -> None:
        """A message that no client of ours would send."""
        ...

    async def subscriptions(self) -> int:
        """How many results this process listens for."""
        ...

    async def worker_is_idle(self) -> None:
        """Wait until the worker has done with all that it has taken."""
        ...

    async def option(self, task: Task, name: str) -> Any:
        """What holds for the task."""
        ...

    async def state_sets(self) -> dict[str, list[str]]: ...

    async def higher_state(self, one: str, other: str) -> str:
        """The one that wins when both are told of a task."""
        ...

    async def logged(self, task_id: str) -> dict[str, Any]:
        """How the worker's log told of the task: how many `lines`, the gravest `level`, and whether a `traceback`."""
        ...

    async def rate_of(self, given: Any) -> Any:
        """Tasks in a second, None for no limit."""
        ...

    def states(self, task_id: str) -> AbstractAsyncContextManager[States]: ...

    def worker(
        self, *queues: str, name: str = "own", concurrency: int = 1, breakable: bool = False, **settings: Any
    ) -> AbstractAsyncContextManager[Worker]:
        """One more worker, of these queues alone."""
        ...

    def configured(self, **settings: Any) -> AbstractAsyncContextManager[App]:
        """The same with other settings; meanwhile tasks are called by it."""
        ...

    def without_broker(self) -> AbstractAsyncContextManager[App]:
        """The same while nobody answers at the broker's address."""
        ...

    def with_a_dead_address_first(self) -> AbstractAsyncContextManager[App]:
        """The same, told two addresses of the broker, at the first of which nobody answers."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        """A transaction of a database's: committed at the end, rolled back if an exception leaves it."""
        ...

    async def delay_on_commit(self, task: Task, transaction: Any, *args: Any) -> Any: ...

    def blank(self, main: str | None = None) -> Blank:
        """An application of its own, without any task."""
        ...

    def name_of(self, error: type[BaseException]) -> str:
        """Its name in Celery, or its own."""
        ...

    def error(self, name: str) -> type[BaseException]:
        """What Celery calls by this name."""
        ...

    async def note(self, topic: str, values: Sequence[Any]) -> None: ...

    async def notes(self, topic: str) -> list[Any]: ...

    async def pause(self, seconds: float) -> None: ...

    async def die(self) -> None:
        """The process that runs the task is killed."""
        ...

    async def process(self) -> int:
        """The process that runs the task."""
        ...

    async def open_gate(self, name: str) -> None: ...

    async def gate_is_open(self, name: str) -> bool: ...

    def running_task(self) -> Bound: ...

    async def is_aborted(self, task: Bound) -> bool: ...


class Blank(Protocol):
    """An application without tasks; nothing is sent."""

    def define(self, body: Body, **options: Any) -> str:
        """The name of the task that is made."""
        ...

    def define_class(self, name: str, body: Body) -> None: ...

    def share(self, body: Body, **options: Any) -> None:
        """For all applications that there are and will be."""
        ...

    def discover(self, package: str) -> None: ...

    def names(self) -> list[str]: ...

    async def call(self, name: str, *args: Any) -> Any: ...


DISCOVERING: list[Blank] = []
"""Whose tasks are being looked for."""

_playing: list[App] = []


def playing() -> App:
    """Who plays."""
    return _playing[-1]


def begin(app: App) -> None:
    _playing.append(app)


def end(app: App) -> None:
    _playing.remove(app)


# -- tasks and calls ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A call that is not made yet."""

    task: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    immutable: bool = False
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def set(self, **options: Any) -> Call:
        return replace(self, options={**self.options, **options})

    async def apply_async(self, args: Sequence[Any] = (), **options: Any) -> Result:
        sent: Result = await playing().send(self, args, None, options)
        return sent


@dataclass(frozen=True)
class Canvas:
    """Calls that belong together."""

    kind: Literal["chain", "group", "chord"]
    parts: tuple[Call | Canvas, ...]
    body: Call | Canvas | None = None
    error_callbacks: tuple[Call, ...] = ()

    def on_error(self, *callbacks: Call) -> Canvas:
        return replace(self, error_callbacks=(*self.error_callbacks, *callbacks))

    async def apply_async(self, args: Sequence[Any] = (), **options: Any) -> Result:
        sent: Result = await playing().send(self, args, None, options)
        return sent


def chain(*parts: Call | Canvas) -> Canvas:
    return Canvas("chain", parts)


def group(*parts: Call | Canvas) -> Canvas:
    return Canvas("group", parts)


def chord(header: Sequence[Call | Canvas], body: Call | Canvas) -> Canvas:
    return Canvas("chord", tuple(header), body)


class Task:
    """A task as it is declared; whoever plays makes a task of its own from it."""

    def __init__(self, name: str, body: Body, options: Mapping[str, Any]) -> None:
        self.name = name
        self.body = body
        self.options = options

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The body, here and now."""
        return await playing().call(self.name, args, kwargs)

    async def delay(self, *args: Any, **kwargs: Any) -> Result:
        return await self.apply_async(args, kwargs)

    async def apply_async(self, args: Any = (), kwargs: Mapping[str, Any] | None = None, **options: Any) -> Result:
        sent: Result = await playing().send(self, args, kwargs, options)
        return sent

    def s(self, *args: Any, **kwargs: Any) -> Call:
        return Call(self.name, args, kwargs)

    def si(self, *args: Any, **kwargs: Any) -> Call:
        return Call(self.name, args, kwargs, immutable=True)


TASKS: dict[str, Task] = {}


def task(name: str, **options: Any) -> Callable[[Body], Task]:
    """Declare a task with Celery's options; handlers are methods of a plain class given as `base`."""

    def declare(body: Body) -> Task:
        if name in TASKS:
            raise ValueError(f"there is a task {name!r} already")
        declared = TASKS[name] = Task(name, body, options)
        return declared

    return declare


# -- signals -----------------------------------------------------------------------------------------------------------

Event = Mapping[str, Any]
Receive = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True)
class Receiver:
    """Who is told of a signal: of one task's, or of those of the worker of this name."""

    signal: str
    receive: Receive
    task: str | None
    worker: str | None


RECEIVERS: list[Receiver] = []


def receiver(signal: str, *, of: Task | str | None = None, worker: str | None = None) -> Callable[[Receive], Receive]:
    """Connect a function to a signal; it gets the signal's arguments, `sender` included."""

    def connect(receive: Receive) -> Receive:
        RECEIVERS.append(Receiver(signal, receive, of.name if isinstance(of, Task) else of, worker))
        return receive

    return connect


# -- what tasks tell, and wait for -------------------------------------------------------------------------------------


class Log:
    """What tasks, handlers and receivers tell, in the order in which they do."""

    def __init__(self, topic: str) -> None:
        self.topic = topic

    async def __call__(self, *values: Any) -> None:
        await playing().note(self.topic, values)

    async def entries(self) -> list[Any]:
        return await playing().notes(self.topic)

    async def until(self, count: int) -> list[Any]:
        """The entries, as soon as there are so many."""
        return list(await wait_for(lambda: self._at_least(count)))

    async def settled(self) -> list[Any]:
        """The entries, when no more have come for a while."""
        same, before = 0, -1
        entries: list[Any] = []
        while same < 15:
            entries = await self.entries()
            same, before = (same + 1 if len(entries) == before else 0), len(entries)
            await asyncio.sleep(0.1)
        return entries

    async def _at_least(self, count: int) -> list[Any] | None:
        entries = await self.entries()
        return entries if len(entries) >= count else None

    def of(self, name: str) -> Log:
        """One of its own for a scenario that shares a task with others."""
        return Log(f"{self.topic}.{name}")


class Gate:
    """What a task waits for until the scenario lets it go on."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def open(self) -> None:
        await playing().open_gate(self.name)

    async def wait(self) -> None:
        for _ in range(round(PATIENCE / 0.02)):
            if await playing().gate_is_open(self.name):
                return
            await playing().pause(0.02)
        raise TimeoutError(f"nobody opened {self.name!r}")


async def pause(seconds: float) -> None:
    """Spend time in a task."""
    await playing().pause(seconds)


async def die() -> None:
    """The process that runs the task is killed; such a task runs in a worker of the scenario's own."""
    await playing().die()


def kind(name: str) -> type[BaseException]:
    """The exception that Celery calls by this name."""
    return playing().error(name)


def error(name: str, *arguments: Any, **options: Any) -> BaseException:
    """One of this kind."""
    return playing().error(name)(*arguments, **options)


def long_ago() -> datetime:
    """A moment that is over when the call is made."""
    return datetime.now(UTC) - timedelta(seconds=5)


# -- what scenarios wait for -------------------------------------------------------------------------------------------


async def ended(sent: Result) -> Result:
    """The same, when it is ready."""
    await wait_for(sent.ready)
    return sent


async def in_state(sent: Result, state: str) -> None:
    async def is_there() -> bool:
        return await sent.state() == state

    await wait_for(is_there)


async def due(task_id: str) -> float:
    """When it may run, as soon as its message waits for that."""
    return float(await wait_for(partial(playing().due_at, task_id)))


async def given_up(task_id: str) -> None:
    """No worker holds the message."""

    async def is_so() -> bool:
        return not await playing().held(task_id)

    await wait_for(is_so)


# -- scenarios ---------------------------------------------------------------------------------------------------------

Play = Callable[[App], Awaitable[Any]]


@dataclass(frozen=True)
class Scenario:
    """What is done, and the rows that it shows."""

    name: str
    rows: tuple[str, ...]
    play: Play
    longest: float


SCENARIOS: dict[str, Scenario] = {}


def scenario(*rows: str, longest: float = 60.0) -> Callable[[Play], Play]:
    """Shows these rows; it is given up after `longest` seconds."""

    def declare(play: Play) -> Play:
        section = play.__module__.rpartition(".")[2]
        name = f"{section}.{play.__name__}"
        SCENARIOS[name] = Scenario(name, rows, play, longest)
        return play

    return declare
