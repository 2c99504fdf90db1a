"""How an attempt ends in Redis: once, whole, and only if the message is still this worker's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celeriq.attempt import Delivery
from celeriq.redis.batches import Batches
from celeriq.redis.chords import Counted
from celeriq.redis.keys import GROUP, Keys
from celeriq.redis.scripts import Scripts
from celeriq.redis.sending import Parcel

logger = logging.getLogger(__name__)

T = TypeVar("T")

AT_ONCE = 25
"""Settlements in one run of the script: more of them save little, and the worker would have nothing to do meanwhile."""

AWAY = (RedisConnectionError, RedisTimeoutError, OutOfMemoryError, ReadOnlyError, OSError)
"""Errors that pass: a restart, a failover, a memory that somebody will enlarge."""

REFUSED = ("OOM", "READONLY", "MISCONF", "NOREPLICAS")
"""How the script tells of them."""


SETTLED, GONE = 1, 2
"""How the script answers; 0 is another worker's."""


class Ending(msgspec.Struct, frozen=True):
    """What the settlement script is told of one attempt."""

    delivery: Delivery
    fenced: bool = True
    records: Sequence[tuple[str, bytes]] = ()
    """Task ids and records."""
    parcels: Sequence[Parcel] = ()
    """Its next run, or what follows it."""
    dead_because: str = ""
    history: bytes = b""
    ticket: str = ""
    """Of the slot that it gives back, if it has one: '' is its place in the queue, '-' keeps it."""
    claim: tuple[str, str, int] | None = None
    """A key that it has, its task id, and milliseconds to hold the key from now on; 0 gives it back."""
    counted: Counted | None = None
    """What its chord is told of it."""


class Told(msgspec.Struct, frozen=True):
    """The same in the script's words."""

    ending: Ending
    keys: list[str]
    arguments: list[Any]


@dataclass(frozen=True, slots=True)
class Keeping:
    """How much of the past is kept."""

    records: int
    """Milliseconds; 0 stores none, -1 keeps them for ever."""
    failures: int
    """The same for failures."""
    history: int = 100_000
    dead_letters: int = 10_000
    """In each queue."""
    unfinished: int = 30 * 86_400_000
    """Milliseconds for what somebody may still go on with: dead letters, and the parts of a chord that have ended."""


class Settlement:
    """Settles attempts, those that end at the same moment in one round trip, until Redis has answered.

    Asking again after a broken connection is safe: the script's fence lets a settlement through once.
    """

    def __init__(
        self,
        keys: Keys,
        scripts: Scripts,
        keeping: Callable[[], Keeping],
        held: Callable[[], int],
        is_ours: Callable[[Delivery], bool],
    ) -> None:
        self._keys = keys
        self._scripts = scripts
        self._keeping = keeping
        self._is_ours = is_ours
        # As long as others are held here, some of them may end in a moment.
        self._batches: Batches[Told, bool] = Batches(
            self._flush, most=AT_ONCE, more_to_come=lambda ending: ending < held()
        )

    async def settle(self, ending: Ending) -> bool:
        """False if the message is no longer this worker's."""
        # Built here: what cannot be said of one attempt is no matter of those that end beside it.
        return await self._batches.put(self._told(ending))

    async def _flush(self, endings: Sequence[Told]) -> Sequence[bool | Exception]:
        """Ask until each has its answer; only those that were refused are asked again."""
        answers: dict[int, bool | Exception] = {}

        async def ask() -> None:
            left = [number for number in range(len(endings)) if number not in answers]
            keys, arguments = self._batch([endings[number] for number in left])
            told: list[int | bytes] = await self._scripts.settle(keys=keys, args=arguments)
            for number, answer in zip(left, told, strict=True):
                if isinstance(answer, int):
                    # What is settled and can be nobody else's was settled here, and the answer was lost.
                    ours = answer == GONE and self._is_ours(endings[number].ending.delivery)
                    answers[number] = answer == SETTLED or ours
                elif not answer.decode().startswith(REFUSED):
                    answers[number] = RedisError(f"not settled: {answer.decode()}")
            if len(answers) < len(endings):
                raise OutOfMemoryError("refused: memory is full, or this is a replica")

        await persistently(ask)
        return [answers[number] for number in range(len(endings))]

    def _batch(self, endings: Sequence[Told]) -> tuple[list[str], list[Any]]:
        keeping = self._keeping()
        keys = [self._keys.crashes, self._keys.history, self._keys.wake, self._keys.slots]
        arguments: list[Any] = [
            GROUP,
            endings[0].ending.delivery.worker,
            keeping.records,
            keeping.history,
            keeping.dead_letters,
            keeping.unfinished,
            keeping.failures,
        ]
        for told in endings:
            keys += told.keys
            arguments += told.arguments
        return keys, arguments

    def _told(self, ending: Ending) -> Told:
        keys: list[str] = []
        arguments: list[Any] = []
        delivery, records, parcels = ending.delivery, ending.records if self._keeping().records else (), ending.parcels
        has = (bool(ending.dead_because), bool(ending.history), ending.claim is not None, ending.counted is not None)
        numbers = (ending.fenced, len(records), len(parcels), *has)
        keys.append(delivery.stream)
        arguments.append(b"%b %d %d %d %d %d %d %d %b" % (delivery.entry_id, *numbers, ending.ticket.encode()))
        for task_id, stored in records:
            keys.append(self._keys.record(task_id))
            arguments.append(stored)
        for parcel in parcels:
            keys.append(parcel.key(self._keys))
            arguments += (parcel.when, parcel.data)
        if ending.dead_because:
            keys.append(self._keys.dead(delivery.queue))
            arguments += (ending.dead_because, bytes(delivery))
        if ending.history:
            arguments.append(ending.history)
        if ending.claim is not None:
            key, *holding = ending.claim
            keys.append(self._keys.unique(key))
            arguments += holding
        if ending.counted is not None:
            keys += ending.counted.keys(self._keys)
            arguments += ending.counted.arguments()
        return Told(ending, keys, arguments)


async def persistently(write: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Until Redis has answered: giving up would lose what a task has already committed."""
    pause = 0.1
    while True:
        try:
            return await write()
        except AWAY as error:
            logger.warning("Redis cannot be written to, again in %.1f s: %s", pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)
