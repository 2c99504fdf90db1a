"""An idle worker's sleep: it ends with the next message, at a given moment, or when somebody wakes the worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

LONGEST = 2.0
"""Seconds; whoever is not woken looks by himself then."""

ASK_AGAIN = 0.01


class Sleep:
    """A blocking read on a connection of its own, which is ended by asking Redis to (`CLIENT UNBLOCK`).

    Redis ends a blocking read up to 0.1 s late, and a read that is cancelled may lose what it was just given. Asked to
    unblock, Redis answers at once, with a message or without one.
    """

    def __init__(self, make_connection: Callable[[], AbstractConnection], client: Redis) -> None:
        self._make_connection = make_connection
        self._client = client
        # Without redis-py's client around it, through which each answer comes later.
        self._connection: AbstractConnection | None = None
        self._id = 0
        self._reading: asyncio.Task[Any] | None = None
        self._woken = asyncio.Event()
        self._allowed = True

    def wake(self) -> None:
        """End the sleep, or the next one."""
        self._woken.set()

    def allow(self, *, sleep: bool) -> None:
        """Whether there may be a sleep at all: whoever is to stop does not sleep any more."""
        self._allowed = sleep
        self._woken.set()

    def look(self) -> None:
        """Call this before looking for messages: a wake from now on ends the sleep that follows."""
        if self._allowed:
            self._woken.clear()

    async def read(self, group: str, worker: str, streams: Sequence[str], seconds: float) -> Any:
        """The answer to a blocking read of one message for at most `seconds`."""
        await self.finish()
        reading = self._reading = asyncio.create_task(self._read(group, worker, streams))
        # Whoever is cancelled does not ask for its answer; what it took is handed back as everything unknown is.
        reading.add_done_callback(lambda read: read.cancelled() or read.exception())
        woken = asyncio.create_task(self._woken.wait())
        try:
            await asyncio.wait({reading, woken}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            await self.finish()
        return reading.result()

    async def finish(self) -> None:
        """See to it that nothing is being read: what is read later would be nobody's."""
        client: Any = self._client  # not typed in redis-py
        while self._reading is not None and not self._reading.done():
            self._woken.set()
            try:
                if self._id:
                    await client.client_unblock(self._id)
            except (RedisError, OSError) as error:
                logger.debug("not unblocked: %s", error)
            await asyncio.wait({self._reading}, timeout=ASK_AGAIN)

    async def close(self) -> None:
        await self.finish()
        await self._disconnect()

    async def _read(self, group: str, worker: str, streams: Sequence[str]) -> Any:
        if not streams:
            await self._woken.wait()
            return None
        try:
            if self._connection is None:
                self._connection = self._make_connection()
                self._id = await self._ask("CLIENT", "ID")
            reading = ["GROUP", group, worker, "COUNT", 1, "BLOCK", round(LONGEST * 1000)]
            return await self._ask("XREADGROUP", *reading, "STREAMS", *streams, *[">"] * len(streams))
        except (RedisError, OSError):
            # A new connection has a new id.
            await self._disconnect()
            raise

    async def _ask(self, *command: Any) -> Any:
        connection: Any = self._connection  # not typed in redis-py
        await connection.send_command(*command)
        return await connection.read_response()

    async def _disconnect(self) -> None:
        connection, self._connection, self._id = self._connection, None, 0
        if connection is not None:
            await connection.disconnect(nowait=True)
