"""A worker process among others: that it lives, what it may take, and what it gives up."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from celeriq.attempt import Attempt
from celeriq.redis.keys import Keys
from celeriq.redis.lease import Lease, patient_client
from celeriq.redis.queues import GROUP, LONGEST_SLEEP, RELEASED, Queues, cancellation_was_swallowed
from celeriq.redis.scripts import SOURCES

logger = logging.getLogger(__name__)

Running = dict[asyncio.Task[Any], Attempt]


class Worker:
    """Beats, reconciles what Redis says with what is held here, and hands everything back at the end."""

    def __init__(self, keys: Keys, queues: Queues, lease: float, connect: Callable[..., SyncRedis]) -> None:
        # The name is made after the fork, and is new for every process.
        self.name = queues.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.running: Running = {}
        self._keys = keys
        self._queues = queues
        self._seconds = lease
        self._lease = Lease(connect, keys, lease, self._holders, self._recover)
        self._lapses = 0
        self._next_look = 0.0
        self._keeper: asyncio.Task[None] | None = None

    async def begin(self, client: Redis) -> None:
        """Beat for the first time: whoever holds a message has done so."""
        await client.hincrby(self._keys.beats, self.name, 1)
        self._lease.begin(self.name)
        self._lease.start()
        self._keeper = asyncio.create_task(self._keep())

    async def end(self) -> None:
        """Stop beating and hand back what is left, at once and without counting a crash."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        await asyncio.to_thread(self._lease.stop)
        try:
            await self._queues.hand_back_all()
        except (RedisError, OSError) as error:
            logger.warning("could not sign off: others take over after the lease: %s", error)

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

    async def _keep(self) -> None:
        """Look after all this while every slot is taken and nothing is read. It also wakes the loop for signals."""
        while not cancellation_was_swallowed():
            await asyncio.sleep(LONGEST_SLEEP)
            try:
                await self._give_up_what_is_lost()
                if not self._queues.reading:
                    await self.reconcile()
            except (RedisError, OSError) as error:
                logger.debug("not reconciled: %s", error)

    async def _give_up_what_is_lost(self) -> None:
        """After a lease without proof of life, and before anything is fetched again: cancel what runs elsewhere now."""
        lapses = self._lease.lapses
        if self._lease.lost or self._lapses == lapses:
            return
        lost = await self._queues.drop_lost()
        for task, attempt in self.running.items():
            if attempt.delivery.place in lost and not attempt.acknowledged:
                name, task_id = attempt.message.task_name, attempt.message.task_id
                logger.warning("task %s[%s] runs elsewhere by now: it is given up", name, task_id)
                task.cancel()
        self._lapses = lapses

    # The next two are called in the lease's thread.

    def _holders(self, client: SyncRedis) -> set[str]:
        """Who holds messages of our queues."""
        holders: set[str] = set()
        for stream in self._queues.streams():
            with suppress(ResponseError):  # a queue that nobody has used yet
                consumers: Any = client.xinfo_consumers(stream, GROUP)
                holders |= {consumer["name"].decode() for consumer in consumers if consumer["pending"]}
        return holders - {RELEASED}

    def _recover(self, client: SyncRedis, worker: str, beat: str) -> None:
        """Hand back what a dead worker holds."""
        release = client.register_script(SOURCES["release"])
        release(keys=[self._keys.beats, self._keys.crashes, *self._queues.streams()], args=[GROUP, worker, beat])


def connecting(url: str, lease: float, options: dict[str, Any]) -> Callable[..., SyncRedis]:
    """How the lease's thread connects; an answer that takes half a lease is none."""
    return partial(patient_client, url, **{"socket_timeout": max(1.0, lease / 2), **options})
