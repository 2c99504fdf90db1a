"""The broker: Redis streams with one consumer group per queue."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import warnings
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload
from uuid import uuid4

from msgspec.structs import replace as with_fields
from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncSession
from taskiq import AckableMessage, AsyncResultBackend, BrokerMessage, Context, TaskiqMiddleware, TaskiqState
from taskiq_redis import RedisStreamBroker

from celeriq import envelope, shared, signals
from celeriq.attempt import Attempt, Delivery
from celeriq.attempt_logs import FAILURES_ONLY, AttemptLogs, HistoryLogs
from celeriq.canvas import Signature
from celeriq.databases import Database
from celeriq.definition import Definition
from celeriq.envelope import Claim, Envelope, without_turn
from celeriq.errors import (
    DuplicateTaskNameWarning,
    ScheduleError,
    SendError,
    SessionsMissingError,
    TaskDefinitionError,
    UnsupportedOptionError,
)
from celeriq.history import History
from celeriq.hooks import Hooks, SendingHooks, hooks_of, kinds_of, readers, sending_hooks
from celeriq.keywords import CallKeywords, TaskKeywords
from celeriq.middleware import STANDARD, Middleware, Revocation, standard
from celeriq.options import DeclaredOptions, Options, TaskOptions, names_of, read_options
from celeriq.pool import DEFAULT_SIZE, PoolAdvice
from celeriq.record import Record
from celeriq.redis.addresses import Addresses
from celeriq.redis.attempts import Attempts
from celeriq.redis.circuits import Circuits
from celeriq.redis.claims import Claims
from celeriq.redis.connections import cancellations, lean, lone, unrepeated
from celeriq.redis.dead_letters import DeadLetters
from celeriq.redis.formatter import EnvelopeFormatter
from celeriq.redis.keys import GROUP, Keys
from celeriq.redis.listeners import Listeners
from celeriq.redis.pools import Family, Fitting, published_pools
from celeriq.redis.queues import Queues
from celeriq.redis.recorder import Recorder
from celeriq.redis.relay import LOOK_AGAIN, Relay
from celeriq.redis.results import DAY, RedisResults, patient
from celeriq.redis.scripts import Scripts
from celeriq.redis.sending import Sender, again_and_again
from celeriq.redis.settlement import Keeping, Settlement, persistently
from celeriq.redis.sleep import LONGEST, Sleep
from celeriq.redis.watch import Watch
from celeriq.redis.worker import LAST_WORDS, PULSE, Worker, connecting, leave_on_signals
from celeriq.remote import Remote
from celeriq.result import AsyncResult
from celeriq.routing import Routes
from celeriq.said_elsewhere import SaidElsewhere
from celeriq.schedule_entry import read_task_schedules, taskiq_labels
from celeriq.session import OpenSessions, Sessions
from celeriq.task import Task, check_injection
from celeriq.upkeep import Upkeep

logger = logging.getLogger(__name__)

YOUNG_OBJECTS = 5_000
"""How many a worker makes before Python looks for cycles among them."""

MAIN = "main"
"""How the database is called that has no other name."""

LONGEST_NAME = 63
"""Letters that PostgreSQL keeps of a connection's name."""
MOST_SETTINGS = 1_000
"""How many tasks, each with what calls say of it, a broker remembers the middlewares of."""

P = ParamSpec("P")
R = TypeVar("R")
REFUSED = {
    "queue_name": "say default_queue=",
    "maxlen": "it would drop messages that nobody has read",
    "approximate": "it belongs to maxlen, which would drop messages that nobody has read",
    "consumer_id": "a group that starts at '$' never sees what was sent before the first worker",
    "additional_streams": "name further queues with queues=[...]",
    "idle_timeout": "say lease=seconds",
    "xread_count": "a worker takes what it has free slots for, so that none hoards",
    "xread_block": "waiting is the broker's own affair",
    "mkstream": "queues are always created",
    "unacknowledged_batch_size": "messages of dead workers are taken over one by one",
    "unacknowledged_lock_timeout": "taking over needs no lock",
    "consumer_name": "every worker process has a name of its own",
    "consumer_group_name": "it is always 'celeriq'; say namespace= to keep applications apart",
}
"""Options of `RedisStreamBroker` that are refused, with the reason or the remedy."""


class RedisBroker(RedisStreamBroker):
    """Tasks over Redis or Valkey: sent, delivered and settled.

    `lease`: seconds after which the messages of a worker that gives no sign of life run elsewhere.
    `max_crashes`: how many workers may die while they run a message, before it is a dead letter.
    `result_expires`: seconds that a state or result is kept, counted anew at every write (ST-05); None is for ever.
    `result_failure_expires`: seconds that a failure is kept, None as long as the others (ST-19).
    `queues`: what a worker reads; by default the default queue and the queues of all registered tasks.
    `routes`: queue and priority by task name, glob, pattern or function: see `celeriq.routing`.
    `create_missing_queues`: whether a call may name a queue that neither `queues` nor a task names (RT-04).
    `max_payload`: bytes that a message or a return value may have.
    `commit_timeout`: seconds that the commit of a task may take; nothing else can interrupt it.
    `unknown_grace`: seconds that the message of an unknown task waits for a worker that knows it.
    `history_share`: how many of the plain successes the history gets, from 0 to 1; the rest it always gets.
    `history_logs`: which of the lines that an attempt logs go into the history: see `HistoryLogs`; None is none.
    `history_limit`: attempts that wait in Redis to be recorded; beyond them the oldest are lost, and counted.
    `record_history`: who records them: None a scheduler, True a worker that has sessions as well, False neither.
    `history_days`, `inbox_days`: how long rows of the history are kept, and of tasks with `once`; None is for ever.
    `grace`: seconds that running tasks get when a worker is told to stop; None waits for them.
    `concurrency`: tasks that a worker process runs at a time. Say the same as `taskiq worker --max-async-tasks`, which
    the broker cannot see: without it messages are taken in smaller numbers there.
    `blocked_limit`: seconds after which a worker ends whose event loop is blocked.
    `blocked_warning`: seconds after which it says in the log which task blocks it, and in which line; None is never.
    `held_session_warning`: seconds after which it says so of a task that holds a connection to the database while it
    waits for something else, and where it waits; None is never.
    `main`: what stands for the module in names of tasks of a program that is run as a file (DEF-03).
    `task_defaults`: options of all tasks that do not say them.
    `overrides`: options by name or glob of the tasks, which win over what the tasks say (DEF-08).
    `middlewares`: which of Celery's behaviours there are, by default all: `celeriq.middleware.standard()`.
    """

    result_backend: AsyncResultBackend[Any]

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "celeriq",
        default_queue: str = "default",
        queues: Iterable[str] | None = None,
        lease: float = 30.0,
        max_crashes: int = 3,
        result_expires: float | None = DAY,
        result_failure_expires: float | None = None,
        routes: Routes = (),
        create_missing_queues: bool = True,
        max_payload: int = 1024 * 1024,
        commit_timeout: float = 60.0,
        unknown_grace: float = 3600.0,
        history_share: float = 1.0,
        history_limit: int = 100_000,
        history_logs: HistoryLogs | None = FAILURES_ONLY,
        record_history: bool | None = None,
        history_days: float | None = 30.0,
        inbox_days: float | None = 14.0,
        grace: float | None = None,
        concurrency: int | None = None,
        blocked_limit: float = 600.0,
        blocked_warning: float | None = 1.0,
        held_session_warning: float | None = 5.0,
        main: str | None = None,
        middlewares: Iterable[TaskiqMiddleware] | None = None,
        task_defaults: TaskKeywords | None = None,
        overrides: Mapping[str, TaskKeywords] | None = None,
        **connection: Any,
    ) -> None:
        for option in connection.keys() & REFUSED.keys():
            raise UnsupportedOptionError(f"RedisBroker refuses {option!r}: {REFUSED[option]}")
        super().__init__(url, queue_name=default_queue, consumer_group_name=GROUP, consumer_id="0", **connection)
        self.lease = lease
        self.max_crashes = max_crashes
        self.max_payload = max_payload
        self.commit_timeout = commit_timeout
        self.unknown_grace = unknown_grace
        self.history_share = history_share
        self.history_limit = history_limit
        self.record_history = record_history
        self.attempt_logs = None if history_logs is None else AttemptLogs(history_logs, self)
        self._days = {"history_days": history_days, "inbox_days": inbox_days}
        self.grace = grace
        self.blocked_limit = blocked_limit
        self.blocked_warning = blocked_warning
        self.held_session_warning = held_session_warning
        if concurrency is not None and concurrency < 1:
            raise UnsupportedOptionError(f"concurrency is {concurrency}; it must be 1 or more, or None")
        self.concurrency = concurrency
        self.slots: int | None = None
        """How many tasks run here at a time, where the receiver has said so."""
        self.family: Family | None = None
        """The processes of the `celeriq worker` that this is one of."""
        self._main = main
        self._said_elsewhere = SaidElsewhere(task_defaults or {}, overrides or {})
        self._settings: dict[tuple[Definition, tuple[tuple[str, Any], ...]], tuple[Options, Hooks]] = {}
        self.with_middlewares(*(standard() if middlewares is None else middlewares))
        self.worker: Worker | None = None
        self.threads: Executor | None = None
        """Where `def` tasks run: not where the loop looks up names, or they would keep it from connecting."""
        self.own_receiver = False
        """Whether celeriq's receiver runs, which says so; Taskiq's cannot do all: see docs/reference/taskiq.md."""
        self.decorator_class = Task
        self._url = url
        self._client_options = dict(connection)
        self._queues = None if queues is None else frozenset(queues)
        self._queues_of_tasks: tuple[int, frozenset[str]] = -1, frozenset()
        named = frozenset(self._queues or ())
        self._addresses = Addresses(
            routes, default_queue, max_payload, None if create_missing_queues else lambda: named | self._of_tasks()
        )
        self._databases: dict[str, Database] = {}
        self._unreadable = 0.0
        # taskiq-redis builds a client per call, which costs more than the call.
        self.connection_pool.connection_class = lean(self.connection_pool.connection_class)
        self._client = Redis(connection_pool=self.connection_pool)
        self._scripts = Scripts(self.connection_pool)
        self._sleep = Sleep(partial(lone, url, connection, LONGEST), self._client)
        self._watch = Watch(partial(patient, url, connection))
        self.result_backend = RedisResults[Any](
            url, namespace=namespace, expires=result_expires, failure_expires=result_failure_expires, **connection
        )
        self.with_namespace(namespace)
        shared.join(self)

    # -- the application -------------------------------------------------------------------------------------------

    def with_namespace(self, namespace: str) -> Self:
        """Keep apart what belongs to `namespace`; in tests, say it before the broker starts."""
        self.keys = Keys(namespace)
        self.queues = Queues(self._client, self.keys, self._scripts, self._reads, self._sleep, slots=self.concurrency)
        self.attempts = Attempts(self)
        self.settlement = Settlement(
            self.keys, self._scripts, self._keeping, lambda: len(self.queues.held), self._is_surely_ours
        )
        self.formatter = EnvelopeFormatter(self.max_payload, self.attempts.begin)
        self._sender = Sender(self.keys, self._scripts)
        self._listeners = Listeners(self.keys, self._scripts)
        self._outbox = Relay(self.keys, Sender(self.keys, self._scripts), self._client, self.new_session)
        self.history = History(namespace, self.new_session)
        self._upkeep = Upkeep(namespace, self.new_session, **self._days)
        self._recorder = Recorder(
            self.keys, self._scripts, partial(unrepeated, self._url, self._client_options), self.new_session
        )
        self._claims = Claims(self.keys, self._scripts)
        self._circuits = Circuits(self.keys, self._scripts)
        if isinstance(self.result_backend, RedisResults):
            self.result_backend.keys = self.keys
        return self

    def with_result_backend(self, result_backend: AsyncResultBackend[Any]) -> Self:
        """Store results elsewhere: then state and acknowledgement are two steps, not one.

        Raises `UnsupportedOptionError` for a `RedisResults` that reads where this broker does not write.
        """
        if isinstance(result_backend, RedisResults) and (
            result_backend.keys != self.keys or _address(result_backend.redis_pool) != _address(self.connection_pool)
        ):
            raise UnsupportedOptionError(
                "RedisBroker settles a task together with its result: give RedisResults the broker's own URL and "
                "namespace, or say RedisBroker(..., result_expires=seconds)"
            )
        return super().with_result_backend(result_backend)

    def with_sessions(
        self, open_sessions: OpenSessions | None = None, pool: PoolAdvice | None = None, **named: OpenSessions
    ) -> RedisBroker:
        """Say where sessions come from: a context manager that opens the engine and yields its session factory.

        It is entered when the broker starts and left when it stops, in workers and in the API alike. What it receives
        is `pool`, which without a size gets one that suits the worker and the server.

        Several databases have names, `with_sessions(main=open_main, reports=open_reports)`, and for a pool of its own
        one is said in a call of its own. A task asks for `TaskSession`, which is the one called `main` or else the
        first, and for `Annotated[AsyncSession, task_session("reports")]`.
        """
        if open_sessions is not None:
            named = {MAIN: open_sessions, **named}
        for name, opens in named.items():
            self._databases[name] = Database(name, opens, pool or PoolAdvice())
        return self

    @property
    def sessions(self) -> Sessions:
        """The main session factory; raises `SessionsMissingError` before `startup()` or without `with_sessions`."""
        return self.sessions_of(None)

    def sessions_of(self, name: str | None) -> Sessions:
        """The session factory of the database of this name, None for the main one; raises `SessionsMissingError`."""
        if name is None:
            name = next(iter(self._databases), MAIN) if MAIN not in self._databases else MAIN
        if name not in self._databases:
            raise SessionsMissingError(
                f"no sessions: call RedisBroker(...).with_sessions({'' if name == MAIN else f'{name}='}open_sessions) "
                "and start the broker (`async with broker`, or celeriq.fastapi.lifespan)"
            )
        return self._databases[name].sessions

    @overload  # type: ignore[override]
    def task(  # pyright: ignore[reportIncompatibleMethodOverride] - options are checked, labels=... carries the rest
        self, task_name: Callable[P, R]
    ) -> Task[P, R]: ...

    @overload
    def task(
        self,
        task_name: str | None = None,
        *,
        bind: Literal[True],
        name: str | None = None,
        **options: Unpack[TaskKeywords],
    ) -> Callable[[Callable[Concatenate[Any, P], R]], Task[P, R]]: ...

    @overload
    def task(
        self,
        task_name: str | None = None,
        *,
        bind: Literal[False] = False,
        name: str | None = None,
        **options: Unpack[TaskKeywords],
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(  # pyright: ignore[reportIncompatibleMethodOverride] - its labels are labels={...} here
        self, task_name: Any = None, *, name: str | None = None, **options: Any
    ) -> Any:
        """Register a function as a task; see `celeriq.options.TaskOptions` for the options.

        Raises `TaskDefinitionError` at import for a task that could only fail later.
        """
        if callable(task_name):
            return self.task()(task_name)
        self._read_options(name or task_name or "(named after its function)", options)
        make_decorator = super().task

        def define(function: Callable[P, R]) -> Any:
            called = name or task_name or automatic_name(function, self._main)
            if called in self.local_task_registry:
                warnings.warn(_taken(called, function), DuplicateTaskNameWarning, stacklevel=2)
                return self.local_task_registry[called]
            read = self._read_options(called, options)
            _check_schedule(called, read[TaskOptions])
            labels = _labels_of(read[TaskOptions])
            # Anew for each function: one decorator of Taskiq's gives the first one's name to all.
            task = cast("Task[P, Any]", make_decorator(called, **labels, options=read)(function))
            for middleware in self.middlewares:
                if isinstance(middleware, Middleware):
                    middleware.check(task.definition)
            for alias in read[TaskOptions].aliases:
                self._register_task(alias, task)
            return task

        return define

    def _read_options(self, name: str, given: dict[str, Any]) -> Options:
        """What the task says, over what its base class says, and what is said of it elsewhere."""
        kinds: list[type[DeclaredOptions]] = [TaskOptions, *kinds_of(self.middlewares)]
        base: Any = given.get("base")
        inherited = {
            option: getattr(base, option)
            for kind in kinds
            for option in names_of(kind)
            if isinstance(base, type) and option not in NOT_INHERITED and hasattr(base, option)
        }
        said = self._said_elsewhere.with_those(name, {**inherited, **given})
        return read_options(name, said, kinds, readers(STANDARD))

    def settings_of(self, definition: Definition, said: Mapping[str, Any]) -> tuple[Options, Hooks]:
        """The options of a task, over them what a call has `said`, and what middlewares do around it."""
        calls = (definition, tuple(sorted(said.items())))
        try:
            known = self._settings.get(calls)
        except TypeError:  # not hashable
            return self._new_settings(definition, said)
        if known is None:
            if len(self._settings) >= MOST_SETTINGS:
                self._settings.clear()
            known = self._settings[calls] = self._new_settings(definition, said)
        return known

    def _new_settings(self, definition: Definition, said: Mapping[str, Any]) -> tuple[Options, Hooks]:
        options = definition.options.changed(said) if said else definition.options
        return options, hooks_of(self.middlewares, options)

    def with_middlewares(self, *middlewares: TaskiqMiddleware) -> Self:
        """Add middlewares; one of celeriq's takes the place of the one of its kind that is there."""
        for middleware in middlewares:
            kinds = [type(one) for one in self.middlewares]
            if isinstance(middleware, Middleware) and type(middleware) in kinds:
                middleware.set_broker(self)
                self.middlewares[kinds.index(type(middleware))] = middleware
            else:
                super().with_middlewares(middleware)
        self._settings.clear()
        self._sending_hooks = sending_hooks(self.middlewares)
        return self

    # -- life ------------------------------------------------------------------------------------------------------

    async def startup(self) -> None:
        worker = self._new_worker() if self.is_worker_process else None
        try:
            for database in self._databases.values():
                await database.open(self._advice(database, worker))
            if worker is not None:
                await self.queues.declare()
                await worker.begin()
                self.worker = worker
                await self._fit_pools(worker)
            await super().startup()
            if worker is not None:
                self._check_injection()
                await self._start_worker(worker)
            if self._databases:
                relays = self.is_worker_process or self.is_scheduler_process
                self._outbox.begin(LOOK_AGAIN if relays else None)
                if worker is not None:
                    self._upkeep.begin()
                if relays and (self.is_scheduler_process if self.record_history is None else self.record_history):
                    self._recorder.begin()
        except BaseException:
            await self._give_up_starting()
            raise

    def _check_injection(self) -> None:
        """By now the application has started, and has said what stands for what."""
        given = {*self._dependency_context, Context, TaskiqState}
        for task in list(self.local_task_registry.values()):
            if isinstance(task, Task):
                check_injection(task.definition, self.dependency_overrides, given)

    def _new_worker(self) -> Worker:
        return Worker(
            self.keys,
            self.queues,
            self.attempts,
            self._sleep,
            self._client,
            watch=self._watch,
            lease=self.lease,
            blocked_limit=self.blocked_limit,
            connect=connecting(self._url, self.lease, self._client_options),
        )

    def _advice(self, database: Database, worker: Worker | None) -> PoolAdvice:
        """What the database is opened with, before anybody has asked it what it allows."""
        pool = database.advice
        if worker is None:
            return pool
        name = pool.application_name or worker.name[-LONGEST_NAME:]
        if pool.size is None:
            # What is behind PgBouncer is not asked: its own connections are what counts there.
            size = self._at_a_time or DEFAULT_SIZE
            pool = replace(pool, size=size if pool.pgbouncer else min(size, DEFAULT_SIZE))
        return replace(pool, application_name=name)

    @property
    def _at_a_time(self) -> int | None:
        return self.slots or self.concurrency

    async def _fit_pools(self, worker: Worker) -> None:
        databases = list(self._databases.values())
        await Fitting(
            databases,
            worker,
            self._client,
            self.keys,
            at_a_time=self._at_a_time,
            family=self.family,
            lease=self.lease,
        ).fit()
        if self.held_session_warning and databases:
            worker.watch_connections([one.engine for one in databases], self.held_session_warning)

    async def pools(self) -> dict[str, dict[str, int]]:
        """How many connections each worker may have, by worker and by database: host, port and name."""
        published = await published_pools(self._client, self.keys)
        return {worker: said.pools for worker, said in published.items()}

    async def _give_up_starting(self) -> None:
        try:
            if self.worker is not None:
                await self.worker.end(LAST_WORDS)
                self.worker = None
        finally:
            await self._close_databases()

    async def _start_worker(self, worker: Worker) -> None:
        await signals.worker_process_init.send(self)
        await signals.worker_init.send(self)
        self.threads = self.threads or ThreadPoolExecutor(thread_name_prefix="celeriq-task")
        self._sleep.allow(sleep=True)
        if self.attempt_logs is not None:
            self.attempt_logs.begin()
        worker.look_after()
        if not self.own_receiver:
            logger.info("under Taskiq's receiver; what only `celeriq worker` does: docs/reference/taskiq.md")
        leave_on_signals(partial(worker.leave, self.grace))
        _spare_the_collector()
        if self.blocked_warning:
            worker.watch_loop(self.blocked_warning)
        await signals.worker_ready.send(self)

    async def shutdown(self) -> None:
        if self.worker is not None:
            await self.worker.end(None if self.own_receiver else LAST_WORDS)
            self.worker = None
            if self.attempt_logs is not None:
                self.attempt_logs.end()
            await signals.worker_process_shutdown.send(self)
            await signals.worker_shutdown.send(self)
        if self.threads is not None:
            self.threads.shutdown(wait=False)
            self.threads = None
        await self._outbox.end()
        await self._recorder.end()
        await self._upkeep.end()
        await self._sleep.close()
        await self._watch.close()
        await self._scripts.close()
        try:
            await super().shutdown()
        finally:
            # Last, for the handlers that super() calls may want a session.
            await self._close_databases()

    async def _close_databases(self) -> None:
        """In the reverse order of their opening, all of them."""
        async with AsyncExitStack() as closing:
            for database in self._databases.values():
                closing.push_async_callback(database.close)

    # -- sending ---------------------------------------------------------------------------------------------------

    async def kick(self, message: BrokerMessage) -> None:
        """For Taskiq's own senders: its scheduler, and `Context.requeue()`, after which it is the same call."""
        read = envelope.decode(message.message)
        attempt = Attempt.current_or_none()
        if attempt is not None and attempt.envelope.id == read.id:
            # Taskiq writes it anew, and knows nothing of the rest.
            anew = {name: getattr(read, name) for name in ("args", "kwargs", "labels", "labels_types")}
            read = with_fields(without_turn(attempt.envelope), **anew, delay=0.0, eta=None, claim=None)
        await self.send(read)

    async def send(self, envelope: Envelope, *, session: AsyncSession | None = None) -> None:
        """Send a message, or write it into the outbox of `session`, in which a task with `once` writes all of its own.

        Raises `SendError` with the reason; messages that are sent at the same moment share a round trip.
        """
        parcel = self._addresses.parcel(envelope)
        if await self._outbox.takes([(envelope.id, parcel)], session):
            return
        await self._listeners.look(parcel.queue)
        try:
            await self._sender.send(parcel)
        except SendError as error:
            raise SendError(reason=f"task {envelope.task!r} was not sent: {error.reason}") from error

    def sending_hooks(self) -> SendingHooks:
        """What middlewares do to a call that is sent."""
        return self._sending_hooks

    async def send_task(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallKeywords],
    ) -> AsyncResult[Any]:
        """Send a call of a task by its name, registered here or not; its arguments are not checked (CALL-08).

        Raises `TypeError` for an option that no call has, and `SendError` when Redis did not take it.
        """
        return await Signature(task=self.named(name), args=tuple(args), kwargs=kwargs or {}).apply_async(**options)

    def named(self, name: str) -> Remote:
        """A task to be called by its name, registered here or not."""
        task = self.find_task(name)
        if isinstance(task, Task):
            return Remote(self, name, task.definition.options, task.kicker())
        return Remote(self, name, read_options(name, {}, kinds_of(self.middlewares)))

    async def send_many(
        self, envelopes: Sequence[Envelope], *, session: AsyncSession | None = None
    ) -> list[Exception | None]:
        """`send` of each: None, or the `SendError`."""
        try:
            parcels = [self._addresses.parcel(one) for one in envelopes]
        except SendError as error:
            return [error] * len(envelopes)
        ids = [one.id for one in envelopes]
        if await self._outbox.takes(list(zip(ids, parcels, strict=True)), session):
            return [None] * len(envelopes)
        for queue in {parcel.queue for parcel in parcels}:
            await self._listeners.look(queue)
        return await self._sender.send_all(parcels)

    async def send_unique(self, envelope: Envelope, claim: Claim, *, replace: bool) -> str:
        """Send it unless another call has its key; the id of the one that has it.

        With `replace` it takes the place of the other one. Raises `SendError`.
        """
        parcel = self._addresses.parcel(envelope)
        await self._listeners.look(parcel.queue)
        take = partial(self._claims.take, envelope, claim, replace=replace, parcel=parcel, sending=uuid4().hex)
        return await again_and_again(take)

    async def _declare_consumer_group(self) -> None:
        """Called by `RedisStreamBroker.startup()`."""
        if self.is_worker_process:
            await self.queues.declare()

    def _reads(self) -> frozenset[str]:
        return self._of_tasks() if self._queues is None else self._queues

    def _of_tasks(self) -> frozenset[str]:
        """The default queue, and those of all registered tasks."""
        number, queues = self._queues_of_tasks
        if number != len(self.local_task_registry):
            # A copy: the lease's thread asks, too, while tasks may be registered.
            tasks = list(self.local_task_registry.values())
            queues = frozenset({self.queue_name, *map(self._addresses.queue_of, tasks)})
            self._queues_of_tasks = len(tasks), queues
        return queues

    # -- queues ----------------------------------------------------------------------------------------------------

    async def pause(self, queue: str) -> None:
        """Workers take nothing more from it, as soon as they are told; what runs goes on, and so does sending."""
        await self._client.sadd(self.keys.paused, queue)
        await self._wake_workers()

    async def resume(self, queue: str) -> None:
        await self._client.srem(self.keys.paused, queue)
        await self._wake_workers()

    async def revoke(self, task_id: str | Sequence[str], *, terminate: bool = False) -> None:
        """Call tasks off by their ids: those that have not begun never do, and are REVOKED at once (LIM-12, LIM-13).

        `terminate` ends those that run, unless they have begun to commit (LIM-14); without it they go on, and their
        end is what counts. Raises `UnsupportedOptionError` without the middleware `Revocation`.
        """
        await self._revoke([task_id] if isinstance(task_id, str) else task_id, {}, terminate=terminate)

    async def revoke_by_headers(self, headers: Mapping[str, Any], *, terminate: bool = False) -> None:
        """Call off what has one of these headers, now and as long as `Revocation` remembers it (LIM-17)."""
        await self._revoke((), headers, terminate=terminate)

    async def _revoke(self, ids: Sequence[str], headers: Mapping[str, Any], *, terminate: bool) -> None:
        mine = next((one for one in self.middlewares if isinstance(one, Revocation)), None)
        if mine is None:
            raise UnsupportedOptionError("to revoke a task the middleware Revocation is needed: add it")
        await self.queues.revocations.add(
            ids, headers, terminate=terminate, remember=mine.remember, keep_records=self._keeping().records
        )

    async def claim(self, call: Envelope, claim: Claim, *, replace: bool) -> str:
        """The id of the call that has the key, '' if another has taken the place of this one, which is to begin."""
        return await persistently(lambda: self._claims.take(call, claim, replace=replace))

    async def circuit_open_until(self, kind: str, call: Envelope, period: float) -> float | None:
        """Seconds since 1970 at which an attempt may ask again, None lets it begin."""
        return await self._circuits.open_until(kind, call.id, period)

    async def report_to_circuit(
        self, kind: str, call: Envelope, *, succeeded: bool | None, failures: int, period: float
    ) -> None:
        """How an attempt ended that its circuit let begin: None if that says nothing of what the task needs."""
        await self._circuits.report(kind, call.id, succeeded=succeeded, failures=failures, period=period)

    async def acquire(self, attempt: Attempt, kind: str, most: int) -> bool | None:
        """Whether an attempt may run beside at most `most - 1` others of its kind; None if it is not ours any more.

        If not, its message waits in line, and comes back with a slot.
        """
        delivery, keys = attempt.delivery, self.keys
        places = [delivery.stream, keys.slots, keys.running(kind), keys.line(kind)]
        arguments = [GROUP, delivery.worker, delivery.entry_id, attempt.ticket, kind, most]
        answer = await persistently(lambda: self._scripts.acquire(keys=places, args=arguments))
        return None if answer < 0 else bool(answer)

    async def reserve(self, kind: str, seconds: float, before: int | None, late: float) -> int | None:
        """The moment that is reserved for a start, in microseconds since 1970; None if it is now.

        `seconds` lie between two starts of a kind, less those that come up to `late` seconds after the moment that was
        reserved `before`. With 0 for that nothing is reserved: ask again.
        """
        arguments = [round(seconds * 1e6), "" if before is None else before, round(late * 1e6)]
        moment = await persistently(lambda: self._scripts.reserve(keys=[self.keys.rate(kind)], args=arguments))
        return int(moment) or None

    def is_revoked(self, call: Envelope) -> bool:
        """Whether a call was called off, as far as this worker has been told."""
        return self.queues.revocations.covers(call)

    async def _wake_workers(self) -> None:
        client: Any = self._client  # publish is not typed in redis-py
        await client.publish(self.keys.wake, "")

    async def paused(self) -> set[str]:
        """The queues that are paused."""
        names = cast("set[bytes]", await self._client.smembers(self.keys.paused))
        return {name.decode() for name in names}

    def dead_letters(self, queue: str | None = None) -> DeadLetters:
        """What could not be run of a queue, by default the default queue."""
        return DeadLetters(self._client, self.keys, self._scripts, queue or self.queue_name)

    # -- receiving -------------------------------------------------------------------------------------------------

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Deliveries, for ever: what Taskiq's receiver reads."""
        while True:
            deliveries = await self.take()
            try:
                while deliveries:
                    delivery = deliveries.pop(0)
                    if await self.attempts.admit(delivery):
                        yield AckableMessage(data=delivery, ack=partial(self.attempts.acknowledge, delivery))
            finally:
                for unread in deliveries:
                    self.attempts.finish_later(self.attempts.hand_back(unread))

    def read_queues(self, queues: Iterable[str]) -> None:
        """What this worker reads from now on, whatever its tasks say."""
        self._queues = frozenset(queues)

    def stop_taking(self) -> None:
        """A worker that is to stop does not wait for messages any more."""
        self._sleep.allow(sleep=False)

    def cancel_attempts(self) -> None:
        """Roll back what runs here; its messages are handed back."""
        self.attempts.cancel_all()

    async def take(self, free: int | None = None) -> list[Delivery]:
        """Messages for `free` slots, by default as many as are surely free; after a while nothing.

        It raises nothing: an error would end the worker and cut off its running tasks.
        """
        if self.worker is None or not self.worker.may_take:
            await asyncio.sleep(PULSE)
            return []
        try:
            await self.worker.reconcile()
            deliveries = await self.queues.take(free)
            self._unreadable = 0.0
        except (RedisError, OSError) as error:
            self._unreadable = min(self._unreadable * 2 or 0.1, 5.0)
            logger.warning("queue not readable, next try in %.1f s: %s", self._unreadable, error)
            self.queues.forget_declared()
            await asyncio.sleep(self._unreadable)
            return []
        if not deliveries and cancellations():
            raise asyncio.CancelledError
        return deliveries

    # -- the attempt -----------------------------------------------------------------------------------------------

    @property
    def custom_dependency_context(self) -> dict[Any, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A copy for each attempt: Taskiq writes the running task into what it gets here."""
        attempt = Attempt.current_or_none()
        if attempt is None:
            return self._dependency_context
        attempt.dependency_context = dict(self._dependency_context)
        return attempt.dependency_context

    @custom_dependency_context.setter
    def custom_dependency_context(  # pyright: ignore[reportIncompatibleVariableOverride] - an attribute of Taskiq's
        self, context: dict[Any, Any]
    ) -> None:
        self._dependency_context = context

    def new_session(self, database: str | None = None) -> AsyncSession:
        return self.sessions_of(database)()

    @property
    def namespace(self) -> str:
        return self.keys.namespace

    async def write_outgoing(self, attempt: Attempt, session: AsyncSession) -> None:
        """What the attempt has sent joins its transaction."""
        await self._outbox.write(session, attempt.outgoing or ())

    async def store(self, stored: Record, attempt: Attempt | None) -> None:
        results = self.result_backend
        held = None if attempt is None or attempt.acknowledged else attempt.delivery
        if isinstance(results, RedisResults):
            await persistently(lambda: results.store(stored, only_if_held=held))

    async def settle(self, attempt: Attempt) -> None:
        """End the attempt, once."""
        await self.attempts.settle(attempt)

    def _is_surely_ours(self, delivery: Delivery) -> bool:
        """Whether no other worker can have been given what was delivered here: nobody may have given this one up."""
        return self.worker is not None and self.worker.may_take and self.queues.holds(delivery)

    def _keeping(self) -> Keeping:
        results = self.result_backend
        if not isinstance(results, RedisResults):
            return Keeping(records=0, failures=0, history=self.history_limit)
        return Keeping(results.milliseconds, results.milliseconds_of_failures, self.history_limit)


NOT_INHERITED = frozenset({"aliases", "base", "bind", "labels"})


def automatic_name(function: Callable[..., Any], main: str | None = None) -> str:
    """`module.function`; in a program that is run as a file, `main` or the name that others import it by (DEF-03)."""
    module = function.__module__
    if module == "__main__" and main is not None:
        return f"{main}.{function.__name__}"
    if module == "__main__":
        program = sys.modules["__main__"]
        spec = getattr(program, "__spec__", None)
        module = spec.name if spec is not None else Path(getattr(program, "__file__", None) or "__main__").stem
    return f"{module}.{function.__name__}"


def _check_schedule(name: str, options: TaskOptions) -> None:
    try:
        read_task_schedules(name, options.schedule)
    except ScheduleError as error:
        raise TaskDefinitionError(str(error)) from error


def _labels_of(options: TaskOptions) -> dict[str, Any]:
    """What Taskiq's own parts read."""
    labels: dict[str, Any] = dict(options.labels)
    if options.queue is not None:
        labels["queue"] = options.queue
    if options.priority is not None:
        labels["priority"] = options.priority
    if schedule := taskiq_labels(options.schedule):
        labels["schedule"] = schedule
    if not options.acks_late:
        labels["ack_type"] = "when_received"
    return labels


def _spare_the_collector() -> None:
    """A task makes some twenty objects that live as long as it; to look for cycles among them at Python's default
    cost an eighth of a no-op (decision 7). What is loaded by now stays, and need not be looked at again.
    """
    gc.collect()
    gc.freeze()
    young, *older = gc.get_threshold()
    if young:
        gc.set_threshold(max(young, YOUNG_OBJECTS), *older)


def _taken(name: str, function: Callable[..., Any]) -> str:
    where = f"{function.__module__}.{function.__qualname__}"
    return f"there is a task {name!r} already, so that {where} is none (DEF-04): say @broker.task(name=...)"


def _address(pool: ConnectionPool) -> list[Any]:
    return [pool.connection_kwargs.get(part) for part in ("host", "port", "path", "db")]
