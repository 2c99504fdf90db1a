"""How redis-py's connections write what they send."""

from __future__ import annotations

from typing import Any

from redis.asyncio import ConnectionPool
from redis.connection import HiredisRespSerializer
from redis.utils import HIREDIS_AVAILABLE


def packing_in_c(pool: ConnectionPool) -> None:
    """Let the pool's connections pack commands with hiredis, where it is installed (`celeriq[speed]`).

    redis-py does so for its blocking connections only; in Python each argument of a script costs about a microsecond.
    """
    if HIREDIS_AVAILABLE:
        pool.connection_class = _packing(pool.connection_class)


def _packing(connection_class: Any) -> Any:
    serializer = HiredisRespSerializer()

    class PackingConnection(connection_class):  # type: ignore[misc]
        def pack_command(self, *args: Any) -> list[bytes]:
            packed: list[bytes] = serializer.pack(*args)
            return packed

    return PackingConnection
