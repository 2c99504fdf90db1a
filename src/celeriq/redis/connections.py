"""Connections: those that the scripts keep, and how redis-py's write what they send."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.utils import HIREDIS_AVAILABLE


class Connections:
    """As many as are used at a time, made as the pool makes its own, and kept between two uses.

    Taking one from the pool, and redis-py's client around it, cost more than a round trip.
    """

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._kept: list[AbstractConnection] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def take(self) -> AbstractConnection | None:
        """One that was kept, if there is any: it may have been closed since."""
        if self._loop is not asyncio.get_running_loop():
            # A script may call asyncio.run() for each message: nothing of the loop before works in this one.
            self._loop, self._kept = asyncio.get_running_loop(), []
        return self._kept.pop() if self._kept else None

    def make(self) -> AbstractConnection:
        """A new one; it connects when something is sent."""
        pool: Any = self._pool  # not typed in redis-py
        made: AbstractConnection = pool.make_connection()
        return made

    def keep(self, connection: AbstractConnection) -> None:
        self._kept.append(connection)

    async def close(self) -> None:
        while self._kept:
            await self._kept.pop().disconnect(nowait=True)


def cancellations() -> int:
    """How often the running task was told to end; asyncio.wait_for, on which redis-py waits, may lose that before
    Python 3.12 (W23).
    """
    running = asyncio.current_task()
    return 0 if running is None else running.cancelling()


def lone(url: str, connection: dict[str, Any], seconds: float) -> AbstractConnection:
    """One that never reconnects, known to Redis by one id; it waits for an answer a little longer than `seconds`."""
    options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), **connection, "socket_timeout": seconds + 3}
    pool: Any = ConnectionPool
    made: AbstractConnection = pool.from_url(url, **options).make_connection()
    return made


def unrepeated(url: str, connection: dict[str, Any]) -> Redis:
    """A client that asks once: a read of a group is never repeated, for its lost answer would be nobody's."""
    options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), **connection, "socket_timeout": None}
    return Redis.from_url(url, **options)  # pyright: ignore[reportUnknownMemberType] - untyped in redis-py


def lean(connection_class: type[AbstractConnection]) -> type[AbstractConnection]:
    """The same connections with a cheaper way to write: half of what a round trip costs."""
    pack = import_module("hiredis").pack_command if HIREDIS_AVAILABLE else None

    class LeanConnection(connection_class):  # type: ignore[misc, valid-type]
        def pack_command(self, *args: Any) -> list[bytes]:
            """By hiredis, where `celeriq[speed]` is installed; redis-py uses it for blocking connections only."""
            if pack is None or args[0] != "EVALSHA":
                packed: list[bytes] = super().pack_command(*args)
                return packed
            return [pack(args)]

        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002
            """Without a task that watches the time: the answer, which is waited for, has a limit of its own."""
            if self._writer is None or self.health_check_interval or not isinstance(command, list):
                await super().send_packed_command(command, check_health=check_health)
            else:
                self._writer.writelines(command)  # pyright: ignore[reportUnknownArgumentType]

    return LeanConnection
