"""Messages on their way to Redis: together where they can be, again where they must be, and never twice."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar
from uuid import uuid4

import msgspec
from redis.exceptions import RedisError

from celeriq.errors import SendError
from celeriq.redis.batches import Batches
from celeriq.redis.keys import PRIORITY_STEPS, Keys, step_of
from celeriq.redis.scripts import Scripts

T = TypeVar("T")

RETRIES = (0.0, 0.2, 0.4)
"""Seconds before each further try, as Celery publishes (CALL-07)."""

REMEMBER_SENT = 3_600_000
"""Milliseconds after which a sender's last batch, and a send id, is forgotten: longer than any of its tries."""


class Parcel(msgspec.Struct, frozen=True):
    """An encoded message, where it goes and when."""

    queue: str
    message: bytes
    priority: int = 0
    delay: float = 0.0
    """Seconds from now, by the clock of Redis."""
    at: float | None = None
    """Or seconds since 1970."""
    send_id: str = ""
    """What tells it from others, if somebody else may send it as well: Redis takes it once."""

    @property
    def delayed(self) -> bool:
        return self.at is not None or self.delay > 0

    def key(self, keys: Keys) -> str:
        return keys.delayed(self.queue) if self.delayed else keys.queue(self.queue, step_of(self.priority))

    @property
    def data(self) -> bytes:
        """What is written: a delayed message bears the number of its priority step in front."""
        return (b"%d" % PRIORITY_STEPS.index(step_of(self.priority))) + self.message if self.delayed else self.message

    @property
    def when(self) -> str:
        if self.at is not None:
            return f"@{round(self.at * 1000)}"
        return f"+{round(self.delay * 1000)}" if self.delayed else ""


async def again_and_again(send: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The answer, as soon as Redis gives one; raises `SendError` when it has been asked often enough."""
    for pause in (*RETRIES, None):
        try:
            return await send()
        except (RedisError, OSError) as error:
            if "WRONGTYPE" in str(error):
                # Its script has written what comes before that, and is not asked again.
                raise SendError(reason=f"Redis refused it: {error}", refused=True) from error
            if pause is None:
                raise SendError(reason=_remedy(error)) from error
            await asyncio.sleep(pause)
    raise AssertionError("unreachable")


class Sender:
    """Sends parcels: a lone one at once, what comes meanwhile in one round trip.

    A batch whose answer was lost is sent again under the same number, and the script writes a number once.
    """

    def __init__(self, keys: Keys, scripts: Scripts) -> None:
        self._keys = keys
        self._scripts = scripts
        self._batches: Batches[Parcel, None] = Batches(self._flush)
        self._name = ""
        self._process = 0
        self._number = 0

    async def send(self, parcel: Parcel) -> None:
        """Raises `SendError` when Redis did not take it."""
        await self._batches.put(parcel)

    async def send_all(self, parcels: Sequence[Parcel]) -> list[Exception | None]:
        """What became of each: None, or the `SendError`."""
        return await self._batches.put_all(parcels)

    async def _flush(self, parcels: Sequence[Parcel]) -> Sequence[Exception | None]:
        self._number += 1
        keys, arguments = self._batch(parcels)
        try:
            await again_and_again(lambda: self._scripts.send(keys=keys, args=arguments))
        except SendError as error:
            return [error] * len(parcels)
        return [None] * len(parcels)

    def _batch(self, parcels: Sequence[Parcel]) -> tuple[list[str], list[Any]]:
        numbers: dict[str, int] = {}
        arguments: list[Any] = [self._number, REMEMBER_SENT]
        for parcel in parcels:
            key = parcel.key(self._keys)
            arguments += (numbers.setdefault(key, len(numbers) + 1), parcel.when, parcel.send_id, parcel.data)
        return [self._keys.sender(self._own_name()), self._keys.wake, self._keys.sent, *numbers], arguments

    def _own_name(self) -> str:
        """New in every process: a worker's children are copies of the one that imported the broker."""
        if self._process != os.getpid():
            self._process, self._name = os.getpid(), uuid4().hex
        return self._name


def _remedy(error: Exception) -> str:
    said = str(error) or type(error).__name__
    return (
        f"Redis did not take it, tried {len(RETRIES) + 1} times: {said}; it is not queued, unless the answer was lost"
    )
