"""The Lua scripts, read at import."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from celeriq.redis.connections import Connections

SOURCES = {
    file.name.removesuffix(".lua"): file.read_text()
    for file in files("celeriq.redis").iterdir()
    if file.name.endswith(".lua")
}


class Script:
    """One script. Every one may be run again when its answer was lost: each says what it checks."""

    def __init__(self, connections: Connections, source: str) -> None:
        self._connections = connections
        self._source = source
        self._sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, *, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The script's answer. Raises redis-py's errors, and `OSError`."""
        kept = self._connections.take()
        if kept is not None:
            try:
                return await self._run_on(kept, keys, args)
            except RedisConnectionError:
                # It may have been closed long ago; whether Redis is away a new one tells.
                pass
        return await self._run_on(self._connections.make(), keys, args)

    async def _run_on(self, connection: AbstractConnection, keys: Sequence[str], args: Sequence[Any]) -> Any:
        try:
            answer = await self._ask(connection, keys, args)
        except ResponseError:
            self._connections.keep(connection)
            raise
        except BaseException:
            # What is still to be read on it would be taken for the next answer.
            await connection.disconnect(nowait=True)
            raise
        self._connections.keep(connection)
        return answer

    async def _ask(self, connection: AbstractConnection, keys: Sequence[str], args: Sequence[Any]) -> Any:
        asking: Any = connection  # not typed in redis-py
        await asking.send_command("EVALSHA", self._sha, len(keys), *keys, *args)
        try:
            return await asking.read_response()
        except NoScriptError:
            await asking.send_command("EVAL", self._source, len(keys), *keys, *args)
            return await asking.read_response()


class Scripts:
    """Every script of this package, on connections of their own."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._connections = connections = Connections(pool)
        self.send = Script(connections, SOURCES["send"])
        self.known = Script(connections, SOURCES["known"])
        self.fetch = Script(connections, SOURCES["fetch"])
        self.settle = Script(connections, SOURCES["settle"])
        self.store = Script(connections, SOURCES["store"])
        self.release = Script(connections, SOURCES["release"])
        self.leave = Script(connections, SOURCES["leave"])
        self.park = Script(connections, SOURCES["park"])
        self.unpark = Script(connections, SOURCES["unpark"])
        self.acquire = Script(connections, SOURCES["acquire"])
        self.reserve = Script(connections, SOURCES["reserve"])
        self.claim = Script(connections, SOURCES["claim"])
        self.let_pass = Script(connections, SOURCES["pass"])
        self.report = Script(connections, SOURCES["report"])
        self.revoke = Script(connections, SOURCES["revoke"])
        self.replay = Script(connections, SOURCES["replay"])
        self.recorded = Script(connections, SOURCES["recorded"])
        self.missing = Script(connections, SOURCES["missing"])
        self.inherit = Script(connections, SOURCES["inherit"])
        self.sign_off = Script(connections, SOURCES["signoff"])

    async def close(self) -> None:
        """Disconnect; a script that is run later connects again."""
        await self._connections.close()
