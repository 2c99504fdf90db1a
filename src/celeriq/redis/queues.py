"""A worker's side of the queues: what it takes, holds and hands back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from celeriq.attempt import Delivery
from celeriq.redis.keys import GROUP, PRIORITY_STEPS, Keys
from celeriq.redis.revocations import Revocations
from celeriq.redis.scripts import Scripts
from celeriq.redis.sleep import LONGEST, Sleep

logger = logging.getLogger(__name__)

RELEASED = "released"
"""In this name those messages are pending that were handed back."""
PARKED = "parked"
"""In this one those that no worker could run so far."""
WAITING = "waiting"
"""And in this one those that wait in line, until one of their kind has ended."""

MOST_PENDING = 100_000
"""More than any worker holds."""

WITHOUT_ROOM = 0.02
"""Seconds to wait when a message is due and could not be moved: memory is full."""

AT_ONCE = 500
"""Parked messages that one run of the script `unpark` takes."""
FEW = 20
"""So many are taken without knowing of room for them: each look at what is parked costs more than they do."""

Place = tuple[str, bytes]
Taken = list[tuple[int, bytes, bytes]]


class Queues:
    """The queues of one worker process. `names` tells which they are; more may come as tasks are registered."""

    def __init__(
        self,
        client: Redis,
        keys: Keys,
        scripts: Scripts,
        names: Callable[[], Iterable[str]],
        sleep: Sleep,
        *,
        slots: int | None = None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._scripts = scripts
        self._names = names
        self._sleep = sleep
        self._declared: set[str] = set()
        self._turn = 0
        self.worker = ""
        self.held: dict[Place, Delivery] = {}
        self._slots = slots
        self._most = 0
        self.reading = False
        self.revocations = Revocations(client, keys, scripts)
        self._unparked: list[Delivery] = []
        self.more_parked = False
        """Whether there is more that is known here: to be looked after as soon as there is room."""

    async def declare(self) -> list[str]:
        """The queues; each of their groups exists after this and begins at 0, where nothing is too early for it."""
        names = sorted(self._names())
        for queue in names:
            if queue not in self._declared:
                for stream in self._keys.steps(queue):
                    await self._create_group(stream)
                # Who watches the workers looks after all queues that are read, not only after its own.
                await self._client.sadd(self._keys.queues, queue)
                self._declared.add(queue)
        return names

    async def _create_group(self, stream: str) -> None:
        try:
            await self._client.xgroup_create(stream, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    def forget_declared(self) -> None:
        """After an error: the server may have lost its groups."""
        self._declared.clear()

    def streams(self) -> list[str]:
        return [stream for queue in sorted(self._names()) for stream in self._keys.steps(queue)]

    # -- taking ----------------------------------------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Slots that are surely free: who asks for a message has one, and has as many as it was said to have, or as it
        ever held at once.
        """
        return max(1, (self._slots or self._most) - len(self.held))

    async def take(self, free: int | None = None) -> list[Delivery]:
        """What there is for the free slots, or after a sleep the next message, or nothing."""
        self._most = max(self._most, free or 0)
        if self._unparked:
            first, self._unparked = self._unparked[: free or self.free], self._unparked[free or self.free :]
            return [delivery for delivery in first if self.holds(delivery)]
        self.reading = True
        try:
            names = self._in_turn(await self.declare())
            self._sleep.look()
            free = free or self.free
            wait, streams, deliveries, revocations = await self._fetch(names, free)
            self._hold(deliveries)
            try:
                await self.revocations.refresh(revocations)
            except BaseException:
                # Nobody gets them, so they are strangers, and handed back as such.
                for delivery in deliveries:
                    self.forget(delivery)
                raise
            if not deliveries:
                deliveries = await self._next(streams, wait or WITHOUT_ROOM)
            self._hold(deliveries)
            # A read of one brings one from each stream that had any.
            for surplus in deliveries[free:]:
                with suppress(RedisError, OSError):  # then it is a stranger, and handed back as such
                    await self.hand_back(surplus)
            del deliveries[free:]
            self._most = max(self._most, len(self.held))
        finally:
            self.reading = False
        return deliveries

    def _in_turn(self, names: list[str]) -> list[str]:
        """Another queue is the first each time, so that of the same priority none waits for the others (RT-06)."""
        self._turn = (self._turn + 1) % len(names) if names else 0
        return names[self._turn :] + names[: self._turn]

    def _hold(self, deliveries: list[Delivery]) -> None:
        # All of them from now on: those at the end may have to wait for a slot.
        self.held.update((delivery.place, delivery) for delivery in deliveries)

    def holds(self, delivery: Delivery) -> bool:
        """Whether it is still this one that is held, and not a later delivery of the same message."""
        return self.held.get(delivery.place) is delivery

    def forget(self, delivery: Delivery) -> None:
        if self.holds(delivery):
            del self.held[delivery.place]

    async def _fetch(self, names: list[str], free: int) -> tuple[float, list[str], list[Delivery], int]:
        """Seconds until the next delayed message, the streams that may be read, what there was, and how often
        revocations have changed.
        """
        keys = [self._keys.crashes, self._keys.paused, self._keys.revocations]
        for queue in names:
            keys += [self._keys.delayed(queue), *self._keys.steps(queue)]
        suspects_run = any(delivery.crashes for delivery in self.held.values())
        arguments: list[Any] = [GROUP, self.worker, free, int(not suspects_run), len(PRIORITY_STEPS), *names]
        answer = await self._scripts.fetch(keys=keys, args=arguments)
        next_due, paused, taken, changes = cast(
            "tuple[int, list[int], list[tuple[int, bytes, bytes, int, int]], int]", answer
        )
        open_queues = [queue for number, queue in enumerate(names, start=1) if number not in paused]
        return (
            LONGEST if next_due < 0 else min(LONGEST, next_due / 1000),
            [self._keys.queue(queue, step) for step in PRIORITY_STEPS for queue in open_queues],
            [self._delivery(keys[key - 1], entry_id, data, *before) for key, entry_id, data, *before in taken],
            changes,
        )

    async def _next(self, streams: list[str], seconds: float) -> list[Delivery]:
        """A blocking read of one: the first worker to sleep is woken by the next message, and it alone."""
        fetched = await self._sleep.read(GROUP, self.worker, streams, seconds)
        return [
            self._delivery(stream.decode(), entry_id, dict(_in_twos(fields)).get(b"data", b""))
            for stream, entries in _pairs(fetched)
            for entry_id, fields in entries
        ]

    def _delivery(self, stream: str, entry_id: bytes, data: bytes, crashes: int = 0, again: int = 0) -> Delivery:
        delivery = Delivery(data)
        delivery.again = bool(again)
        delivery.stream, delivery.entry_id, delivery.worker, delivery.crashes = stream, entry_id, self.worker, crashes
        delivery.queue, delivery.priority = self._keys.queue_of(stream)
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

    async def drop_lost(self) -> set[Place]:
        """Forget, and name, what was held here and has been given to others; to be called after a beat.

        Whoever gives a worker up names the beat that it saw last, so after a new one nothing more can be lost.
        """
        before = set(self.held)
        lost = before - set(await self._pending())
        for place in lost:
            self.held.pop(place, None)
        return lost

    async def _pending(self) -> list[Place]:
        pending: list[Place] = []
        for stream in self.streams():
            entries: Any = await self._client.xpending_range(
                stream, GROUP, "-", "+", MOST_PENDING, consumername=self.worker
            )
            pending += [(stream, entry["message_id"]) for entry in entries]
        return pending

    async def hand_back_all(self, but: Collection[Place] = ()) -> None:
        """At the end: what is still pending runs elsewhere, at once and without a crash being counted."""
        await self._sleep.close()
        if but:
            for place in set(await self._pending()) - set(but):
                await self._release([place])
            return
        await self._release([])
        self.held.clear()
        await self._scripts.leave(
            keys=[self._keys.beats, self._keys.leaving, *self.streams()], args=[GROUP, self.worker]
        )

    async def hand_back(self, delivery: Delivery) -> None:
        self.forget(delivery)
        await self._release([delivery.place])

    async def _release(self, places: list[Place]) -> None:
        """Hand back what lies at `places`, or all that is pending for this worker, if there are none."""
        streams = self.streams()
        entries = [part for stream, entry_id in places for part in (streams.index(stream) + 1, entry_id)]
        await self._scripts.release(keys=[*release_keys(self._keys), *streams], args=[GROUP, self.worker, "", *entries])

    # -- what no module here can run -------------------------------------------------------------------------------

    async def park(self, delivery: Delivery, name: str) -> None:
        """Leave it to a worker that knows `name`."""
        await self._scripts.park(
            keys=[delivery.stream, self._keys.parked, self._keys.parked_as(name)],
            args=[GROUP, self.worker, delivery.entry_id, name],
        )
        self.forget(delivery)

    async def unpark(self, knows: Callable[[str], bool], grace: float) -> list[Delivery]:
        """Take what is parked under a name that is known here, as far as there is room; answers with what has waited
        longer than `grace` seconds under a name that is not.

        Handed back to all, they might always be taken by a worker that parks them again.
        """
        expired: list[Delivery] = []
        self.more_parked = False
        names = cast("set[bytes]", await self._client.smembers(self._keys.parked))
        for name in sorted(name.decode() for name in names):
            if knows(name):
                room = 0 if self._unparked else min(max(self.free, FEW), AT_ONCE)
                count, taken = await self._take_parked(name, 0.0, room) if room else (0, [])
                self.more_parked |= count == room
                self._unparked += taken
                continue
            count = AT_ONCE
            while count == AT_ONCE:
                count, taken = await self._take_parked(name, grace, AT_ONCE)
                expired += taken
        return expired

    async def _take_parked(self, name: str, waited: float, at_most: int) -> tuple[int, list[Delivery]]:
        keys = [self._keys.parked, self._keys.parked_as(name), *self.streams()]
        arguments = [GROUP, self.worker, name, round(waited * 1000), at_most]
        count, taken = cast("tuple[int, Taken]", await self._scripts.unpark(keys=keys, args=arguments))
        deliveries = [self._delivery(keys[key - 1], entry_id, data) for key, entry_id, data in taken]
        self._hold(deliveries)
        return count, deliveries


def release_keys(keys: Keys) -> list[str]:
    """The keys of the script `release` in front of the streams."""
    return [keys.beats, keys.crashes, keys.leaving, keys.wake]


Entries = list[tuple[bytes, list[bytes]]]


def _pairs(fetched: Any) -> Iterable[tuple[bytes, Entries]]:
    """RESP2 answers with a list of pairs, RESP3 with a mapping."""
    if isinstance(fetched, dict):
        return cast("dict[bytes, Entries]", fetched).items()
    return cast("list[tuple[bytes, Entries]]", fetched or [])


def _in_twos(fields: list[bytes]) -> Iterable[tuple[bytes, bytes]]:
    return zip(fields[::2], fields[1::2], strict=True)
