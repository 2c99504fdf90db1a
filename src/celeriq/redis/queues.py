"""A worker's side of the queues: what it takes, holds and hands back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from celeriq.attempt import Delivery
from celeriq.redis.keys import Keys
from celeriq.redis.scripts import Scripts

logger = logging.getLogger(__name__)

GROUP = "celeriq"
RELEASED = "released"
"""In this name those messages are pending that were handed back."""

MOST_PENDING = 100_000
"""More than any worker holds."""

LONGEST_SLEEP = 0.1
"""Seconds that an idle worker sleeps at most; a stop, a message handed back and a new delay wait that long for it."""


class Queues:
    """The queues of one worker process. `names` tells which they are; more may come as tasks are registered."""

    def __init__(self, client: Redis, keys: Keys, scripts: Scripts, names: Callable[[], Iterable[str]]) -> None:
        self._client = client
        self._keys = keys
        self._scripts = scripts
        self._names = names
        self._declared: set[str] = set()
        self.worker = ""
        self.held: dict[tuple[str, bytes], Delivery] = {}
        self._most = 0
        self.reading = False

    # -- sending ---------------------------------------------------------------------------------------------------

    async def declare(self, queue: str) -> None:
        """The group begins at 0 and exists from the first send on: nothing is too early to be delivered."""
        if queue in self._declared:
            return
        try:
            await self._client.xgroup_create(self._keys.queue(queue), GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._declared.add(queue)

    async def declare_all(self) -> list[str]:
        names = sorted(self._names())
        for queue in names:
            await self.declare(queue)
        return names

    def forget_declared(self) -> None:
        """After an error: the server may have lost its groups."""
        self._declared.clear()

    def streams(self) -> list[str]:
        return [self._keys.queue(queue) for queue in sorted(self._names())]

    # -- taking ----------------------------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Slots that are surely free: who asks for a message has one, and has had as many as it ever held at once."""
        return max(1, self._most - len(self.held))

    async def take(self) -> list[Delivery]:
        """What there is for the free slots, or after a short sleep the next message, or nothing."""
        self.reading = True
        try:
            names = await self.declare_all()
            wait, deliveries = await self._fetch(names)
            if not deliveries:
                deliveries = await self._sleep(names, wait)
            self._hold(deliveries)
        finally:
            self.reading = False
        return deliveries

    def _hold(self, deliveries: list[Delivery]) -> None:
        # All of them from now on: those at the end may have to wait for a slot.
        self.held.update((delivery.place, delivery) for delivery in deliveries)
        self._most = max(self._most, len(self.held))

    async def _fetch(self, names: list[str]) -> tuple[float, list[Delivery]]:
        keys = [self._keys.crashes]
        for queue in names:
            keys += [self._keys.queue(queue), self._keys.delayed(queue)]
        suspects_run = any(delivery.crashes for delivery in self.held.values())
        answer = await self._scripts.fetch(keys=keys, args=[GROUP, self.worker, self.free, int(not suspects_run)])
        next_due, taken = cast("tuple[int, list[tuple[int, bytes, bytes, int]]]", answer)
        sleep = LONGEST_SLEEP if next_due < 0 else min(LONGEST_SLEEP, next_due / 1000)
        return sleep, [
            self._delivery(names[queue - 1], entry_id, data, crashes) for queue, entry_id, data, crashes in taken
        ]

    async def _sleep(self, names: list[str], seconds: float) -> list[Delivery]:
        """A blocking read of one: the first worker to sleep is woken by the next message, and it alone."""
        streams = {self._keys.queue(queue): queue for queue in names}
        fetched: Any = await self._client.xreadgroup(
            GROUP, self.worker, dict.fromkeys(streams, ">"), count=1, block=max(1, round(seconds * 1000))
        )
        return [
            self._delivery(streams[stream.decode()], entry_id, fields.get(b"data", b""))
            for stream, entries in _pairs(fetched)
            for entry_id, fields in entries
        ]

    def _delivery(self, queue: str, entry_id: bytes, data: bytes, crashes: int = 0) -> Delivery:
        delivery = Delivery(data)
        delivery.queue, delivery.entry_id, delivery.worker, delivery.crashes = queue, entry_id, self.worker, crashes
        return delivery

    # -- giving back -----------------------------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Hand back what is pending for this worker though it knows nothing of it: a reply was lost on the wire."""
        pending = await self._pending()
        # Now, and while nothing is being read: whatever did arrive is held.
        strangers = [] if self.reading else [place for place in pending if place not in self.held]
        if strangers:
            logger.warning("%d messages were taken but never arrived here: they are handed back", len(strangers))
            await self._release(strangers)

    async def drop_lost(self) -> set[tuple[str, bytes]]:
        """Forget, and name, what was held here and has been given to others; to be called after a beat.

        Whoever gives a worker up names the beat that it saw last, so after a new one nothing more can be lost.
        """
        before = set(self.held)
        lost = before - set(await self._pending())
        for place in lost:
            self.held.pop(place, None)
        return lost

    async def _pending(self) -> list[tuple[str, bytes]]:
        pending: list[tuple[str, bytes]] = []
        for queue in sorted(self._names()):
            entries: Any = await self._client.xpending_range(
                self._keys.queue(queue), GROUP, "-", "+", MOST_PENDING, consumername=self.worker
            )
            pending += [(queue, entry["message_id"]) for entry in entries]
        return pending

    async def hand_back_all(self) -> None:
        """At the end: what is still pending runs elsewhere, at once and without a crash being counted."""
        await self._release([])
        self.held.clear()
        await self._scripts.leave(keys=[self._keys.beats, *self.streams()], args=[GROUP, self.worker])

    async def hand_back(self, delivery: Delivery) -> None:
        self.held.pop(delivery.place, None)
        await self._release([delivery.place])

    async def _release(self, places: list[tuple[str, bytes]]) -> None:
        numbers = {queue: number for number, queue in enumerate(sorted(self._names()), start=1)}
        entries = [part for queue, entry_id in places for part in (numbers[queue], entry_id)]
        await self._scripts.release(
            keys=[self._keys.beats, self._keys.crashes, *self.streams()], args=[GROUP, self.worker, "", *entries]
        )


def cancellation_was_swallowed() -> bool:
    """Before Python 3.12 asyncio.wait_for, on which redis-py waits, may lose a cancellation: stops hang (W23)."""
    running = asyncio.current_task()
    return running is not None and running.cancelling() > 0


Entries = list[tuple[bytes, dict[bytes, bytes]]]


def _pairs(fetched: Any) -> Iterable[tuple[bytes, Entries]]:
    """RESP2 answers with a list of pairs, RESP3 with a mapping of lists of entries."""
    if isinstance(fetched, dict):
        answer = cast("dict[bytes, list[Entries]]", fetched)
        return [(stream, entries[0]) for stream, entries in answer.items()]
    return cast("list[tuple[bytes, Entries]]", fetched or [])
