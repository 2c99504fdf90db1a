"""Messages that could not be run, and what an operator does with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
from msgspec.structs import replace
from redis.asyncio import Redis

from celeriq import envelope, record
from celeriq.envelope import Envelope, without_turn
from celeriq.redis.keys import Keys, step_of
from celeriq.redis.scripts import Scripts

PAGE = 500


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One of them."""

    id: str
    """Its own id, in the order of time; not the task's."""
    reason: str
    message: bytes
    envelope: Envelope | None
    """The message, read; None if it cannot be."""

    @property
    def died(self) -> datetime:
        return datetime.fromtimestamp(int(self.id.partition("-")[0]) / 1000, UTC)


class DeadLetters:
    """The dead letters of one queue: look, edit, replay, purge.

    They are bounded by number and age: the oldest go first.
    """

    def __init__(self, client: Redis, keys: Keys, scripts: Scripts, queue: str) -> None:
        self._client = client
        self._keys = keys
        self._scripts = scripts
        self._queue = queue
        self._key = keys.dead(queue)

    async def count(self) -> int:
        return int(await self._client.xlen(self._key))

    async def look(self) -> AsyncIterator[DeadLetter]:
        """All of them, the oldest first."""
        since = "-"
        while page := cast("list[tuple[bytes, dict[bytes, bytes]]]", await self._page(since)):
            for letter_id, fields in page:
                yield _letter(letter_id.decode(), fields)
            since = f"({page[-1][0].decode()}"

    async def find(self, letter_id: str) -> DeadLetter | None:
        found: Any = await self._client.xrange(self._key, letter_id, letter_id)
        return _letter(letter_id, found[0][1]) if found else None

    async def replay(
        self, letter_id: str, *, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None
    ) -> bool:
        """Send it once more under the same task id, with other arguments if given; False if it is gone.

        It is a new beginning: neither crashes nor postponements count, a finished workflow is not reopened (ST-07 lets
        its `FAILURE` be overwritten). Raises `ValueError` for a letter that cannot be read.
        """
        letter = await self.find(letter_id)
        if letter is None:
            return False
        if letter.envelope is None:
            raise ValueError(f"dead letter {letter_id} cannot be read, so no worker could: purge it")
        read = letter.envelope
        again = replace(
            without_turn(read),
            args=read.args if args is None else list(args),
            kwargs=read.kwargs if kwargs is None else dict(kwargs),
            postponed=0,
            chain=[],
            chord=None,
            group="",
            group_index=None,
            claim=None,
        )
        target = self._keys.queue(self._queue, step_of(again.priority))
        return bool(await self._scripts.replay(keys=[self._key, target], args=[letter_id, record.encode(again)]))

    async def purge(self, *letter_ids: str) -> int:
        """Destroy these, or all of them; answers with how many."""
        if letter_ids:
            return int(await self._client.xdel(self._key, *letter_ids))
        return int(await self._client.xtrim(self._key, maxlen=0, approximate=False))

    async def _page(self, since: str) -> Any:
        return await self._client.xrange(self._key, since, "+", count=PAGE)


def _letter(letter_id: str, fields: dict[bytes, bytes]) -> DeadLetter:
    message = fields[b"data"]
    try:
        read = envelope.decode(message)
    except (msgspec.DecodeError, ValueError):
        read = None
    return DeadLetter(letter_id, fields[b"reason"].decode(), message, read)
