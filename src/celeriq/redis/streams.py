"""The broker: Redis streams with one consumer group per queue.

Fetching and settling are deliberately plain here: one entry at a time, one script per settlement, and a living worker
keeps its entries by claiming them again on a timer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast, overload
from uuid import uuid4

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession
from taskiq import AckableMessage, AsyncResultBackend, BrokerMessage
from taskiq_redis import RedisStreamBroker

from celeriq import record
from celeriq.attempt import Attempt, Delivery
from celeriq.errors import SessionsMissingError, UnsupportedOptionError
from celeriq.options import read_options
from celeriq.outcome import Released, Retrying
from celeriq.record import Record
from celeriq.redis.envelope import EnvelopeFormatter, for_retry
from celeriq.redis.keys import Keys
from celeriq.redis.results import RedisResults
from celeriq.redis.scripts import Scripts
from celeriq.session import OpenSessions, PoolAdvice, Sessions
from celeriq.task import Task

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

GROUP = "celeriq"
DELAYED_PER_TURN = 500
TURN = 0.2
"""Seconds between two looks at the delayed messages, and the longest sleep that a stop has to wait for."""

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
        **connection: Any,
    ) -> None:
        for option in connection.keys() & REFUSED.keys():
            raise UnsupportedOptionError(f"RedisBroker refuses {option!r}: {REFUSED[option]}")
        super().__init__(url, queue_name=default_queue, consumer_group_name=GROUP, consumer_id="0", **connection)
        self.keys = Keys(namespace)
        self.lease = lease
        self.consumer_name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.decorator_class = Task
        self.formatter = EnvelopeFormatter(self)
        self.result_backend = RedisResults[Any](url, namespace=namespace, **connection)
        self._queues = None if queues is None else frozenset(queues)
        self._open_sessions: OpenSessions | None = None
        self._pool = PoolAdvice()
        self._sessions: Sessions | None = None
        # taskiq-redis builds a client per call, which costs more than the call.
        self._client = Redis(connection_pool=self.connection_pool)
        self._scripts = Scripts(self._client)
        self._declared: set[str] = set()
        self._held: set[tuple[str, bytes]] = set()
        self._resources = AsyncExitStack()
        self._keeper: asyncio.Task[None] | None = None
        self._settling: set[asyncio.Task[None]] = set()

    # -- the application -------------------------------------------------------------------------------------------

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
        if self._open_sessions is not None and self._sessions is None:
            self._sessions = await self._resources.enter_async_context(self._open_sessions(self._pool))
        await super().startup()
        if self.is_worker_process:
            self._keeper = asyncio.create_task(self._keep_alive())
            _wake_on_signals()

    async def shutdown(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        # Settlements that a broken hook left to us are brought to their end.
        await asyncio.gather(*self._settling, return_exceptions=True)
        if self.is_worker_process:
            await self._leave()
        await super().shutdown()
        # Last, for the handlers that super() calls may want a session.
        self._sessions = None
        await self._resources.aclose()

    async def _leave(self) -> None:
        for queue in self._reads():
            try:
                await self._scripts.leave(keys=[self.keys.queue(queue)], args=[GROUP, self.consumer_name])
            except RedisError as error:
                logger.warning("could not sign off from queue %r: %s", queue, error)

    # -- sending ---------------------------------------------------------------------------------------------------

    async def kick(self, message: BrokerMessage) -> None:
        queue = str(message.labels.get("queue", self.queue_name))
        await self._declare(queue)
        await self._client.xadd(self.keys.queue(queue), {"data": message.message})

    async def _declare_consumer_group(self) -> None:
        """Called by `RedisStreamBroker.startup()`."""
        for queue in self._reads():
            await self._declare(queue)

    async def _declare(self, queue: str) -> None:
        """The group begins at 0 and exists from the first send on: nothing is too early to be delivered."""
        if queue in self._declared:
            return
        try:
            await self._client.xgroup_create(self.keys.queue(queue), GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._declared.add(queue)

    def _reads(self) -> frozenset[str]:
        if self._queues is not None:
            return self._queues
        return frozenset({self.queue_name, *(str(task.labels["queue"]) for task in self.local_task_registry.values())})

    # -- receiving -------------------------------------------------------------------------------------------------

    async def listen(self) -> AsyncGenerator[AckableMessage, None]:
        """Deliveries, for ever. It never raises: an error would end the worker and cut off its running tasks."""
        pause = 0.1
        look_for_orphans = 0.0
        loop = asyncio.get_running_loop()
        while True:
            try:
                deliveries: list[Delivery] = []
                if loop.time() >= look_for_orphans:
                    deliveries = await self._take_over()
                    # Where there was one there may be more: they are looked for until there are none.
                    look_for_orphans = loop.time() + (0 if deliveries else self.lease / 3)
                deliveries = deliveries or await self._read()
                pause = 0.1
            except (RedisError, OSError) as error:
                logger.warning("queue not readable, next try in %.1f s: %s", pause, error)
                self._declared.clear()
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)
                continue
            if not deliveries and _cancellation_was_swallowed():
                raise asyncio.CancelledError
            # Held from now on, for those at the end may wait for a free slot.
            self._held.update(delivery.place for delivery in deliveries)
            for delivery in deliveries:
                yield AckableMessage(data=delivery, ack=partial(self._acknowledge, delivery))

    async def _read(self) -> list[Delivery]:
        for queue in self._reads():
            await self._declare(queue)
        streams = {self.keys.queue(queue): queue for queue in self._reads()}
        fetched = await self._client.xreadgroup(
            GROUP, self.consumer_name, dict.fromkeys(streams, ">"), count=1, block=round(TURN * 1000)
        )
        return [
            delivery
            for stream, entries in _pairs(fetched)
            for delivery in _deliveries(streams[stream.decode()], entries)
        ]

    async def _take_over(self) -> list[Delivery]:
        """One entry of each queue whose worker has not renewed it for a whole lease."""
        taken: list[Delivery] = []
        for queue in self._reads():
            await self._declare(queue)
            taken += _deliveries(queue, await self._claim_one(self.keys.queue(queue)))
        # Our own are among them when this loop was blocked for longer than a lease: they still run.
        return [delivery for delivery in taken if delivery.place not in self._held]

    async def _claim_one(self, stream: str) -> Any:
        """XAUTOCLAIM looks at a few entries per call: the cursor leads past those of living workers."""
        cursor: Any = b"0-0"
        while True:
            cursor, entries, _ = await self._client.xautoclaim(
                stream, GROUP, self.consumer_name, round(self.lease * 1000), start_id=cursor, count=1
            )
            if entries or cursor == b"0-0":
                return entries

    async def _keep_alive(self) -> None:
        """Renew what is held, and move what is due. It also wakes the loop often enough for signals to be seen."""
        loop = asyncio.get_running_loop()
        next_renewal = loop.time()
        while not _cancellation_was_swallowed():
            try:
                if loop.time() >= next_renewal:
                    next_renewal = loop.time() + self.lease / 3
                    await self._renew()
                for queue in self._reads():
                    await self._scripts.due(
                        keys=[self.keys.delayed(queue), self.keys.queue(queue)], args=[DELAYED_PER_TURN]
                    )
            except (RedisError, OSError) as error:
                logger.debug("not renewed: %s", error)
            await asyncio.sleep(TURN)

    async def _renew(self) -> None:
        for queue in self._reads():
            if held := [entry_id for held_in, entry_id in self._held if held_in == queue]:
                await self._scripts.renew(keys=[self.keys.queue(queue)], args=[GROUP, self.consumer_name, *held])

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
        if running is not None:
            running.add_done_callback(lambda _: self._after_receiver(attempt))

    def _after_receiver(self, attempt: Attempt) -> None:
        """The receiver is done. If somebody's hook raised, nothing was settled: do it from what is recorded."""
        if attempt.outcome is None or isinstance(attempt.outcome, Released):
            self._held.discard(attempt.delivery.place)
        elif not attempt.settled:
            settling = asyncio.get_running_loop().create_task(self.settle(attempt))
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)

    def new_session(self) -> AsyncSession:
        return self.sessions()

    async def store(self, stored: Record) -> None:
        results = self.result_backend
        if isinstance(results, RedisResults):
            await _persistently(lambda: results.store(stored))

    async def settle(self, attempt: Attempt) -> None:
        """End the attempt, once. Trying again after a broken connection is safe: the script's fence sees to it."""
        if attempt.settled or attempt.outcome is None or isinstance(attempt.outcome, Released):
            return
        if not await _persistently(lambda: self._run_settlement(attempt)):
            logger.warning(
                "task %s[%s]: another worker has taken it over; this outcome is not written",
                attempt.message.task_name,
                attempt.message.task_id,
            )
        attempt.settled = True
        self._held.discard(attempt.delivery.place)

    async def _run_settlement(self, attempt: Attempt) -> bool:
        delivery, outcome, results = attempt.delivery, attempt.outcome, self.result_backend
        ours = isinstance(results, RedisResults) and attempt.result is not None
        retry = isinstance(outcome, Retrying)
        return bool(
            await self._scripts.settle(
                keys=[
                    self.keys.queue(delivery.queue),
                    self.keys.delayed(delivery.queue),
                    self.keys.record(attempt.message.task_id),
                ],
                args=[
                    GROUP,
                    self.consumer_name,
                    delivery.entry_id,
                    int(not attempt.acknowledged),
                    record.encode(attempt.result) if ours else b"",
                    results.milliseconds if isinstance(results, RedisResults) else 0,
                    for_retry(delivery) if retry else b"",
                    round(outcome.delay * 1000) if isinstance(outcome, Retrying) else 0,
                ],
            )
        )

    async def _acknowledge(self, delivery: Delivery) -> None:
        """Called by Taskiq's receiver, and not only when a task has ended."""
        attempt = Attempt.current_or_none()
        if attempt is None or attempt.delivery is not delivery:
            await self._bury(delivery, "undecodable: not a celeriq message")
        elif attempt.outcome is not None:
            await self.settle(attempt)
        elif attempt.begun:
            await self._acknowledge_cancelled(attempt)
        elif self.find_task(attempt.message.task_name) is None:
            await self._bury(delivery, f"unknown task {attempt.message.task_name!r}: no module here registers it")
        else:
            await self._acknowledge_early(attempt)

    async def _acknowledge_cancelled(self, attempt: Attempt) -> None:
        """Leave the decision to `set_result`, which comes later and knows why; a foreign one would not tell us."""
        if not isinstance(self.result_backend, RedisResults):
            attempt.end_from_outside(asyncio.CancelledError())
            await self.settle(attempt)

    async def _acknowledge_early(self, attempt: Attempt) -> None:
        queue = self.keys.queue(attempt.delivery.queue)
        async with self._client.pipeline(transaction=True) as pipeline:
            pipeline.xack(queue, GROUP, attempt.delivery.entry_id)
            pipeline.xdel(queue, attempt.delivery.entry_id)
            await pipeline.execute()
        attempt.acknowledged = True

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        """A message that cannot be run is kept among the dead letters, not destroyed."""
        logger.error("dead letter in queue %r: %s", delivery.queue, reason)
        await self._scripts.dead(
            keys=[self.keys.queue(delivery.queue), self.keys.dead(delivery.queue)],
            args=[GROUP, delivery.entry_id, bytes(delivery), reason],
        )
        self._held.discard(delivery.place)


async def _persistently(write: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Until Redis has answered: giving up would lose what a task has already committed."""
    pause = 0.1
    while True:
        try:
            return await write()
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            logger.warning("Redis away, writing again in %.1f s: %s", pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)


def _cancellation_was_swallowed() -> bool:
    """Before Python 3.12 asyncio.wait_for, on which redis-py waits, may lose a cancellation: stops hang (W23)."""
    running = asyncio.current_task()
    return running is not None and running.cancelling() > 0


def _pairs(fetched: Any) -> Iterable[tuple[bytes, Any]]:
    """RESP2 answers with a list of pairs, RESP3 with a mapping of lists of entries."""
    if isinstance(fetched, dict):
        answer = cast("dict[bytes, list[Any]]", fetched)
        return [(stream, entries[0]) for stream, entries in answer.items()]
    return cast("list[tuple[bytes, Any]]", fetched or [])


def _deliveries(queue: str, entries: Iterable[tuple[bytes, dict[bytes, bytes] | None]]) -> list[Delivery]:
    deliveries: list[Delivery] = []
    for entry_id, fields in entries:
        delivery = Delivery((fields or {}).get(b"data", b""))
        delivery.queue, delivery.entry_id = queue, entry_id
        deliveries.append(delivery)
    return deliveries


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
