"""The broker: Redis streams with one consumer group per queue."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, ParamSpec, Self, TypeVar, overload

from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncSession
from taskiq import AckableMessage, AsyncResultBackend, BrokerMessage
from taskiq_redis import RedisStreamBroker

from celeriq import record
from celeriq.attempt import Attempt, Delivery
from celeriq.errors import EncodeError, NotRegistered, SessionsMissingError, UnsupportedOptionError, WorkerLostError
from celeriq.options import read_options
from celeriq.outcome import Released
from celeriq.record import Record
from celeriq.redis.envelope import EnvelopeFormatter, task_id_of
from celeriq.redis.keys import Keys
from celeriq.redis.queues import GROUP, LONGEST_SLEEP, Queues, cancellation_was_swallowed
from celeriq.redis.results import DAY, RedisResults
from celeriq.redis.scripts import Scripts
from celeriq.redis.settlement import Ending, ending_of, persistently, settle
from celeriq.redis.worker import Worker, connecting
from celeriq.session import OpenSessions, PoolAdvice, Sessions
from celeriq.task import Task

logger = logging.getLogger(__name__)

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
    `result_expires`: seconds that a state or result is kept, counted anew at every write (ST-05).
    `queues`: what a worker reads; by default the default queue and the queues of all registered tasks.
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
        result_expires: float = DAY,
        **connection: Any,
    ) -> None:
        for option in connection.keys() & REFUSED.keys():
            raise UnsupportedOptionError(f"RedisBroker refuses {option!r}: {REFUSED[option]}")
        super().__init__(url, queue_name=default_queue, consumer_group_name=GROUP, consumer_id="0", **connection)
        self.keys = Keys(namespace)
        self.lease = lease
        self.max_crashes = max_crashes
        self.worker: Worker | None = None
        self._url = url
        self._client_options = dict(connection)
        self.decorator_class = Task
        self.formatter = EnvelopeFormatter(self)
        self.result_backend = RedisResults[Any](url, namespace=namespace, expires=result_expires, **connection)
        self._queues = None if queues is None else frozenset(queues)
        self._open_sessions: OpenSessions | None = None
        self._pool = PoolAdvice()
        self._sessions: Sessions | None = None
        # taskiq-redis builds a client per call, which costs more than the call.
        self._client = Redis(connection_pool=self.connection_pool)
        self._scripts = Scripts(self._client)
        self.queues = Queues(self._client, self.keys, self._scripts, self._reads)
        self._resources = AsyncExitStack()
        self._settling: set[asyncio.Task[None]] = set()

    # -- the application -------------------------------------------------------------------------------------------

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

    def with_sessions(self, open_sessions: OpenSessions, pool: PoolAdvice | None = None) -> RedisBroker:
        """Say where sessions come from: a context manager that opens the engine and yields its session factory.

        It is entered when the broker starts and left when it stops, in workers and in the API alike.
        """
        self._open_sessions = open_sessions
        self._pool = pool or self._pool
        return self

    @property
    def sessions(self) -> Sessions:
        """The session factory; raises `SessionsMissingError` before `startup()` or without `with_sessions`."""
        if self._sessions is None:
            raise SessionsMissingError(
                "no sessions: call RedisBroker(...).with_sessions(open_sessions) and start the broker "
                "(`async with broker`, or celeriq.fastapi.lifespan)"
            )
        return self._sessions

    @overload  # type: ignore[override]
    def task(  # pyright: ignore[reportIncompatibleMethodOverride] - options are checked, labels=... carries the rest
        self, task_name: Callable[P, R]
    ) -> Task[P, R]: ...

    @overload
    def task(
        self, task_name: str | None = None, *, name: str | None = None, **options: Any
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(  # pyright: ignore[reportIncompatibleMethodOverride] - its labels are labels={...} here
        self, task_name: Any = None, *, name: str | None = None, **options: Any
    ) -> Any:
        """Register a function as a task; see `celeriq.options.TaskOptions` for the options.

        Raises `TaskDefinitionError` at import for a task that could only fail later.
        """
        if callable(task_name):
            return self.task()(task_name)
        read = read_options(name or task_name or "(named after its function)", options)
        labels: dict[str, Any] = {**read.labels, "queue": read.queue or self.queue_name, "options": read}
        if read.schedule:
            labels["schedule"] = list(read.schedule)
        if not read.acks_late:
            labels["ack_type"] = "when_received"
        make_decorator = super().task

        def define(function: Callable[P, R]) -> Any:
            # Anew for each function: one decorator of Taskiq's gives the first one's name to all.
            return make_decorator(name or task_name, **labels)(function)

        return define

    # -- life ------------------------------------------------------------------------------------------------------

    async def startup(self) -> None:
        try:
            if self._open_sessions is not None and self._sessions is None:
                self._sessions = await self._resources.enter_async_context(self._open_sessions(self._pool))
            await super().startup()
            if self.is_worker_process:
                connect = connecting(self._url, self.lease, self._client_options)
                self.worker = Worker(self.keys, self.queues, self.lease, connect)
                await self.worker.begin(self._client)
                _wake_on_signals()
        except BaseException:
            await self._close_sessions()
            raise

    async def shutdown(self) -> None:
        # Settlements that a broken hook left to us are brought to their end.
        while self._settling:
            await asyncio.wait(self._settling)
        if self.worker is not None:
            await self.worker.end()
            self.worker = None
        try:
            await super().shutdown()
        finally:
            # Last, for the handlers that super() calls may want a session.
            await self._close_sessions()

    async def _close_sessions(self) -> None:
        self._sessions = None
        await self._resources.aclose()

    # -- sending ---------------------------------------------------------------------------------------------------

    async def kick(self, message: BrokerMessage) -> None:
        queue = str(message.labels.get("queue", self.queue_name))
        await self.queues.declare(queue)
        await self._client.xadd(self.keys.queue(queue), {"data": message.message})

    async def _declare_consumer_group(self) -> None:
        """Called by `RedisStreamBroker.startup()`."""
        await self.queues.declare_all()

    def _reads(self) -> frozenset[str]:
        if self._queues is not None:
            return self._queues
        # A copy: the lease's thread asks, too, while tasks may be registered.
        tasks = list(self.local_task_registry.values())
        return frozenset({self.queue_name, *(str(task.labels["queue"]) for task in tasks)})

    # -- receiving -------------------------------------------------------------------------------------------------

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Deliveries, for ever. It never raises: an error would end the worker and cut off its running tasks."""
        pause = 0.1
        while True:
            try:
                deliveries = await self._take()
                pause = 0.1
            except (RedisError, OSError) as error:
                logger.warning("queue not readable, next try in %.1f s: %s", pause, error)
                self.queues.forget_declared()
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
                continue
            if not deliveries and cancellation_was_swallowed():
                raise asyncio.CancelledError
            try:
                while deliveries:
                    delivery = deliveries.pop(0)
                    if delivery.crashes >= self.max_crashes:
                        died = f"{delivery.crashes} workers died while they ran it"
                        await self._bury(delivery, WorkerLostError(died))
                    elif delivery.place in self.queues.held:
                        yield AckableMessage(data=delivery, ack=partial(self._acknowledge, delivery))
            finally:
                for unread in deliveries:
                    self._finish_later(self._hand_back(unread))

    async def _take(self) -> list[Delivery]:
        if self.worker is None or not self.worker.may_take:
            await asyncio.sleep(LONGEST_SLEEP)
            return []
        await self.worker.reconcile()
        return await self.queues.take()

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

    def begin(self, attempt: Attempt) -> None:
        """Called when a delivery was read: from here to its end, the asyncio task that did so is the attempt."""
        attempt.become_current()
        running = asyncio.current_task()
        if running is not None and self.worker is not None:
            self.worker.running[running] = attempt
            running.add_done_callback(lambda task: self._after_receiver(task, attempt))

    def _after_receiver(self, task: asyncio.Task[Any], attempt: Attempt) -> None:
        """The receiver is done. If somebody's hook raised, nothing was settled: do it from what is recorded."""
        if self.worker is not None:
            self.worker.running.pop(task, None)
        if attempt.outcome is not None and not isinstance(attempt.outcome, Released):
            if not attempt.settled:
                self._finish_later(self.settle(attempt))
        elif attempt.delivery.place in self.queues.held:
            self._finish_later(self._hand_back(attempt.delivery))

    def _finish_later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)

    async def _hand_back(self, delivery: Delivery) -> None:
        try:
            await self.queues.hand_back(delivery)
        except (RedisError, OSError) as error:
            logger.warning("not handed back yet: %s", error)

    def new_session(self) -> AsyncSession:
        return self.sessions()

    async def store(self, stored: Record) -> None:
        results = self.result_backend
        if isinstance(results, RedisResults):
            await persistently(lambda: results.store(stored))

    async def settle(self, attempt: Attempt) -> None:
        """End the attempt, once."""
        if attempt.settled or attempt.outcome is None or isinstance(attempt.outcome, Released):
            return
        if not await self._settle(attempt.delivery, ending_of(attempt)):
            name, task_id = attempt.message.task_name, attempt.message.task_id
            logger.warning("task %s[%s]: another worker has taken it over; nothing is written", name, task_id)
        attempt.settled = True

    async def _settle(self, delivery: Delivery, ending: Ending) -> bool:
        keep = self.result_backend.milliseconds if isinstance(self.result_backend, RedisResults) else 0
        written = await settle(self._scripts, self.keys, delivery, ending, keep)
        self.queues.held.pop(delivery.place, None)
        return written

    async def _bury(self, delivery: Delivery, error: Exception) -> None:
        """A message that cannot be run is kept among the dead letters, not destroyed, and its task has failed."""
        logger.error("dead letter in queue %r: %s", delivery.queue, error)
        task_id = task_id_of(delivery)
        failed = record.encode(record.failure(task_id, error, 0.0)) if task_id else b""
        await self._settle(delivery, Ending(task_id, record=failed, dead_because=str(error)))

    async def _acknowledge(self, delivery: Delivery) -> None:
        """Called by Taskiq's receiver, and not only when a task has ended."""
        attempt = Attempt.current_or_none()
        if attempt is None or attempt.delivery is not delivery:
            await self._bury(delivery, EncodeError("undecodable: not a celeriq message"))
        elif attempt.outcome is not None:
            await self.settle(attempt)
        elif attempt.begun:
            await self._acknowledge_cancelled(attempt)
        elif self.find_task(attempt.message.task_name) is None:
            name = attempt.message.task_name
            await self._bury(delivery, NotRegistered(f"unknown task {name!r}: no module here registers it"))
        else:
            await self._acknowledge_early(attempt)

    async def _acknowledge_cancelled(self, attempt: Attempt) -> None:
        """Leave the decision to `set_result`, which comes later and knows why; a foreign one would not tell us."""
        if not isinstance(self.result_backend, RedisResults):
            attempt.end_from_outside(None, asyncio.CancelledError())
            await self.settle(attempt)

    async def _acknowledge_early(self, attempt: Attempt) -> None:
        attempt.acknowledged = await settle(
            self._scripts, self.keys, attempt.delivery, Ending(attempt.message.task_id), keep=0
        )


def _address(pool: ConnectionPool) -> list[Any]:
    return [pool.connection_kwargs.get(part) for part in ("host", "port", "path", "db")]


def _wake_on_signals() -> None:
    """Taskiq's own signal handlers set an event without waking the loop; asyncio's wakes it and then calls them."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        handler = signal.getsignal(number)
        if callable(handler):
            try:
                loop.add_signal_handler(number, handler, number, None)
            except (NotImplementedError, RuntimeError, ValueError):  # not the main thread, or no Unix
                return
