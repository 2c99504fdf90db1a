"""Tasks that were called off: kept in Redis, and a copy of them in each worker (LIM-12)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis

from celeriq import record
from celeriq.envelope import Envelope
from celeriq.errors import TaskRevokedError
from celeriq.redis.keys import Keys
from celeriq.redis.scripts import Scripts

ID, HEADER = "i", "h"
"""The first letter of what is remembered."""


class Command(msgspec.Struct):
    """What workers are told on the control channel."""

    revoked: list[str]
    terminate: bool = False


_command = msgspec.json.Decoder(Command)


class Revocations:
    """What was called off, and is not forgotten yet."""

    def __init__(self, client: Redis, keys: Keys, scripts: Scripts) -> None:
        self._client = client
        self._keys = keys
        self._scripts = scripts
        self._revoked: frozenset[str] = frozenset()
        self._number: int | None = None

    def covers(self, call: Envelope) -> bool:
        return bool(self._revoked) and not self._revoked.isdisjoint(names_of(call))

    async def refresh(self, number: int) -> None:
        """Read them anew, unless they are those of this number: how often they have changed."""
        if number != self._number:
            client: Any = self._client  # not typed in redis-py
            members = await client.zrange(self._keys.revoked, 0, -1)
            self._revoked = frozenset(member.decode() for member in members)
            self._number = number

    def told(self, message: bytes) -> Command:
        """What the control channel said."""
        command = _command.decode(message)
        self._revoked |= frozenset(command.revoked)
        return command

    async def add(
        self,
        ids: Sequence[str],
        headers: Mapping[str, Any],
        *,
        terminate: bool,
        remember: float,
        keep_records: int,
    ) -> None:
        """Call off what has one of these ids, or one of these headers, for `remember` seconds."""
        members = [*(ID + one for one in ids), *map(_header, headers.items())]
        error = TaskRevokedError("terminated" if terminate else "revoked")
        records = [record.encode(record.revoked(one, error, 0.0)) for one in ids]
        command = record.encode(Command(members, terminate))
        await self._scripts.revoke(
            keys=[self._keys.revoked, self._keys.revocations, self._keys.control, *map(self._keys.record, ids)],
            args=[round(remember * 1000), keep_records, command, *members, *records],
        )


def names_of(call: Envelope) -> set[str]:
    """What it may be called off by."""
    return {ID + call.id, *map(_header, call.headers.items())}


def _header(header: tuple[str, Any]) -> str:
    return HEADER + json.dumps(header, sort_keys=True, default=str)
