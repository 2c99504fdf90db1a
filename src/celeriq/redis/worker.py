"""A worker process among others: that it lives, what it may take, and what it gives up."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import math
import os
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, cast
from uuid import uuid4

import msgspec
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from sqlalchemy import Engine

from celeriq import signals
from celeriq.held_connections import HeldConnections
from celeriq.loop_watch import LoopWatch
from celeriq.redis.attempts import Attempts
from celeriq.redis.connections import cancellations
from celeriq.redis.keys import GROUP, Keys
from celeriq.redis.lease import Lease, patient_client
from celeriq.redis.pools import forget_pools
from celeriq.redis.queues import PARKED, RELEASED, WAITING, Queues, release_keys
from celeriq.redis.scripts import SOURCES
from celeriq.redis.sleep import Sleep
from celeriq.redis.watch import LOOK_AGAIN, Watch

logger = logging.getLogger(__name__)

PULSE = 0.1
"""Seconds between two looks at what this process holds."""

LAST_WORDS = 4.0
"""Seconds that cancelled attempts get to close what they have opened under Taskiq's worker, which waits five."""

BLOCKED = 70
"""Exit code of a process whose event loop was blocked for too long."""


class Worker:
    """Beats, reconciles what Redis says with what is held here, and hands everything back at the end."""

    def __init__(
        self,
        keys: Keys,
        queues: Queues,
        attempts: Attempts,
        sleep: Sleep,
        client: Redis,
        *,
        watch: Watch,
        lease: float,
        blocked_limit: float,
        connect: Callable[..., SyncRedis],
    ) -> None:
        # The name is made after the fork, and is new for every process.
        self.name = queues.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self._keys = keys
        self._queues = queues
        self._attempts = attempts
        self._sleep = sleep
        self._client = client
        self._watch = watch
        self._seconds = lease
        self._blocked_limit = blocked_limit
        self._loop_watch: LoopWatch | None = None
        self._held: HeldConnections | None = None
        self._lease = Lease(connect, keys, lease, self._holders, self._recover, each_turn=self._end_if_blocked)
        self._lapses = 0
        self._next_look = 0.0
        # Nobody looks after the loop yet.
        self._pulse = math.inf
        self._helpers: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Beat for the first time: whoever holds a message has done so."""
        await self._client.hincrby(self._keys.beats, self.name, 1)
        self._lease.begin(self.name)
        self._lease.start()

    def publish_pools(self, pools: bytes) -> None:
        """Say with each beat what its pools are."""
        self._lease.pools = pools

    def look_after(self) -> None:
        """Keep in order, from now on, what this process holds."""
        self._pulse = monotonic()
        works = (self._keep_pulse(), self._keep(), self._wake(), self._obey())
        self._helpers += [asyncio.create_task(work) for work in works]

    def watch_loop(self, limit: float) -> None:
        """Say in the log what blocks the event loop for more than `limit` seconds, from now on."""
        loop, name_of = asyncio.get_running_loop(), self._attempts.name_of
        self._pulse = monotonic()
        self._loop_watch = LoopWatch(loop, lambda: self._pulse, name_of, limit=limit)
        self._loop_watch.start()

    def watch_connections(self, engines: Iterable[Engine | None], limit: float) -> None:
        """Say in the log who holds one of their connections for more than `limit` seconds, from now on."""
        held = self._held = HeldConnections(self._attempts.running, limit=limit)
        for engine in engines:
            if engine is not None:
                held.attach(engine)
        self._helpers.append(asyncio.create_task(held.watch()))

    # -- leaving ---------------------------------------------------------------------------------------------------

    def leave(self, grace: float | None) -> None:
        """Told to stop: whatever ends this process now did not crash it. After `grace` seconds nothing may run on."""
        loop = asyncio.get_running_loop()
        self._helpers.append(loop.create_task(self._say_so()))
        if grace is not None:
            loop.call_later(grace, self._attempts.cancel_all)

    async def _say_so(self) -> None:
        await signals.worker_shutting_down.send(self.name, sig="SIGTERM", how="Warm", exitcode=0)
        with suppress(RedisError, OSError):
            await self._client.sadd(self._keys.leaving, self.name)

    async def end(self, patience: float | None) -> None:
        """Stop what runs, then beating, and hand back what is left, at once and without counting a crash.

        A thread and a commit cannot be stopped. As long as one goes on after `patience` seconds, None for no limit,
        this process beats on and keeps its message.
        """
        self._attempts.cancel_all()
        if running := list(self._attempts.running):
            await asyncio.wait(running, timeout=patience)
        await self._attempts.drain()
        for helper in self._helpers:
            helper.cancel()
        if self._helpers:
            await asyncio.wait(self._helpers)
        if self._held is not None:
            self._held.detach()
        # Nobody looks after the loop any more.
        self._pulse = math.inf
        if self._loop_watch is not None:
            await asyncio.to_thread(self._loop_watch.stop)
        unstoppable = {attempt.delivery.place for attempt in self._attempts.running.values()}
        if not unstoppable:
            await asyncio.to_thread(self._lease.stop)
        try:
            await self._queues.hand_back_all(unstoppable)
            if not unstoppable:
                await self._client.hdel(self._keys.pools, self.name)
        except (RedisError, OSError) as error:
            logger.warning("could not sign off: others take over after the lease: %s", error)

    # -- living ----------------------------------------------------------------------------------------------------

    @property
    def lapses(self) -> int:
        """How often others may have given this worker up."""
        return self._lease.lapses

    @property
    def may_take(self) -> bool:
        """Not while others may have given this worker up, until what it ran then is given up, too."""
        return not self._lease.lost and self._lapses == self._lease.lapses

    async def reconcile(self) -> None:
        """Once per lease, between two reads: what a read brings is known only after it."""
        now = asyncio.get_running_loop().time()
        if now >= self._next_look:
            self._next_look = now + self._seconds
            await self._queues.reconcile()
        elif not self._queues.more_parked:
            return
        await self._attempts.look_after_parked()

    async def _keep_pulse(self) -> None:
        """Tell that the loop turns; that wakes it for signals, too."""
        while not cancellations():
            self._pulse = monotonic()
            await asyncio.sleep(PULSE)

    async def _keep(self) -> None:
        """Look after all this while every slot is taken and nothing is read. An answer of Redis may take its time."""
        while not cancellations():
            await asyncio.sleep(PULSE)
            try:
                await self._give_up_what_is_lost()
                if not self._queues.reading:
                    await self.reconcile()
            except (RedisError, OSError) as error:
                logger.debug("not reconciled: %s", error)

    async def _wake(self) -> None:
        """End the sleep when something is there that a blocking read does not see: see the scripts."""
        async for _ in self._told(self._keys.wake):
            self._sleep.wake()

    async def _obey(self) -> None:
        """Do what is said to all workers. Whoever has missed something wakes, and sees what was revoked then."""
        async for message in self._told(self._keys.control):
            if message == LOOK_AGAIN:
                self._sleep.wake()
                continue
            try:
                command = self._queues.revocations.told(message)
            except msgspec.DecodeError as error:
                logger.warning("a command that is not understood: %s", error)
                continue
            if command.terminate:
                self._attempts.terminate(command.revoked)

    async def _told(self, channel: str) -> AsyncGenerator[bytes]:
        """What is published, for ever."""
        while not cancellations():
            try:
                async with self._watch.changes(channel) as told:
                    while True:
                        yield await told.get()
            except (RedisError, OSError) as error:
                logger.debug("not subscribed: %s", error)
                await asyncio.sleep(PULSE)

    async def _give_up_what_is_lost(self) -> None:
        """After a lease without proof of life, and before anything is fetched again: cancel what runs elsewhere now."""
        lapses = self._lease.lapses
        if self._lease.lost or self._lapses == lapses:
            return
        lost = await self._queues.drop_lost()
        for task, attempt in self._attempts.running.items():
            if attempt.delivery.place in lost and not attempt.acknowledged:
                name, task_id = attempt.message.task_name, attempt.message.task_id
                logger.warning("task %s[%s] runs elsewhere by now: it is given up", name, task_id)
                task.cancel()
        self._lapses = lapses

    # The next three are called in the lease's thread.

    def _end_if_blocked(self) -> None:
        """A loop that is blocked for so long will not come back, and its messages would never move."""
        blocked = monotonic() - self._pulse
        if blocked > self._blocked_limit:
            logger.critical("the event loop has been blocked for %.0f s: this process ends", blocked)
            faulthandler.dump_traceback(all_threads=True)
            os._exit(BLOCKED)

    def _holders(self, client: SyncRedis) -> set[str]:
        """Who holds messages."""
        consumers = [one for several in self._consumers(client).values() for one in several]
        return {one["name"].decode() for one in consumers if one["pending"]} - {RELEASED, PARKED, WAITING}

    def _recover(self, client: SyncRedis, worker: str, beat: str) -> None:
        """Hand back what a dead worker holds."""
        release = client.register_script(SOURCES["release"])
        release(keys=[*release_keys(self._keys), *self._consumers(client)], args=[GROUP, worker, beat])
        forget_pools(client, self._keys)

    def _consumers(self, client: SyncRedis) -> dict[str, list[Any]]:
        """By stream, of all queues that any worker reads: a dead one is given up once, with all that it holds."""
        found: dict[str, list[Any]] = {}
        queues: Any = client.smembers(self._keys.queues)
        for stream in (stream for queue in sorted(queues) for stream in self._keys.steps(queue.decode())):
            with suppress(ResponseError):  # somebody has deleted it
                found[stream] = cast("list[Any]", client.xinfo_consumers(stream, GROUP))
        return found


def connecting(url: str, lease: float, options: dict[str, Any]) -> Callable[..., SyncRedis]:
    """How the lease's thread connects; an answer that takes half a lease is none."""
    return partial(patient_client, url, **{"socket_timeout": max(1.0, lease / 2), **options})


def leave_on_signals(leave: Callable[[], None]) -> None:
    """Taskiq's own signal handlers set an event without waking the loop; asyncio's wakes it, and then calls them."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        handler = signal.getsignal(number)
        if callable(handler):
            try:
                loop.add_signal_handler(number, _leave_and, leave, handler, number)
            except (NotImplementedError, RuntimeError, ValueError):  # not the main thread, or no Unix
                return


def _leave_and(leave: Callable[[], None], handler: Callable[[int, None], Any], number: int) -> None:
    leave()
    handler(number, None)
