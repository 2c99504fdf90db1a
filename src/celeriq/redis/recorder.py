"""From the stream of what became of each attempt into PostgreSQL: the history, and what of it is missing."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from uuid import uuid4

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from sqlalchemy.exc import DataError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from celeriq import history_rows
from celeriq.errors import TablesMissingError
from celeriq.history_rows import Gap, moment_of, number_of
from celeriq.redis.history_entry import row_of
from celeriq.redis.keys import GROUP, Keys
from celeriq.redis.scripts import Scripts

logger = logging.getLogger(__name__)

AT_ONCE = 1000
"""Entries that are written in one transaction."""

GATHER = 0.5
"""Seconds between two transactions, unless there is enough for one: each costs as much as a hundred rows."""

LONGEST = 10.0
"""Seconds that a recorder waits for an entry before it looks for what others have left."""

LOOK = 1.0
"""Seconds between two counts of what is missing while there is something to record."""

TAKE_OVER = 60.0
"""Seconds after which another recorder's entries are taken over; whoever has them, each becomes one row."""

GIVE_UP = 3600.0
"""Seconds after which an entry that was dropped while a recorder had it is missing, and a silent recorder is gone."""

LONGEST_PAUSE = 5.0
NOT_THERE = 30.0
"""Seconds until the next look for the tables, where there are none."""

LAST_WORDS = 2.0
"""Seconds that a process which stops has to record what its tasks have left: others will find the rest."""

Entries = Mapping[str, bytes]
"""By their ids in the stream."""


class Recorder:
    """Copies entries into the table and takes them off the stream when that is committed; any number may run.

    An entry is read by one of them, and written again by another if that one dies: the table has each once. The stream
    is bounded, so that beyond its bound the oldest entries go unread: how many is counted exactly, by what the server
    says was ever added to the stream. A server that is restarted without its last second (`appendfsync everysec`), or a
    replica that takes over, has forgotten settlements together with their entries, so that those attempts run again
    and are told of then. That it has forgotten something is seen if a recorder lived through it and had recorded
    something meanwhile; how many entries nobody knows, so the gap says none.
    """

    def __init__(
        self, keys: Keys, scripts: Scripts, connect: Callable[[], Redis], sessions: Callable[[], AsyncSession]
    ) -> None:
        self._keys = keys
        self._scripts = scripts
        self._connect = connect
        self._sessions = sessions
        self._name = ""
        self._client: Redis | None = None
        self._recording: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._forget_place()

    def _forget_place(self) -> None:
        self._held: dict[str, bytes] = {}
        # How often Redis has said that this one has recorded something, and when it did so last.
        self._turns = 0
        self._told_at = datetime.now(UTC)
        self._looked_at = -LOOK
        self._stream = ""
        self._missing: int | None = None
        # The last entry that had been read when nothing more was missing.
        self._read_until = ""

    # -- life ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Record from now on."""
        if self._recording is None:
            # Made after the fork, and new for every process.
            self._name = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
            self._forget_place()
            self._stop = asyncio.Event()  # of this loop
            self._recording = asyncio.create_task(self._record())

    async def end(self) -> None:
        """Record what is there, as far as that is possible in a moment."""
        if self._recording is None:
            return
        self._stop.set()
        recording, self._recording = self._recording, None
        with suppress(TimeoutError, TablesMissingError, SQLAlchemyError, RedisError, OSError):
            async with asyncio.timeout(LAST_WORDS):
                await recording
                await self._record_the_rest()
        await self._disconnect()

    async def _record_the_rest(self) -> None:
        if self._client is None or not self._stream:
            return  # it never got as far as to read, or Redis is away
        self._held |= await self._read("0") or await self._read(">")
        while self._held:
            await self._write_held()
            self._held |= await self._read(">")
        await self._look_after()
        await self._scripts.sign_off(keys=self._places, args=[GROUP, self._name])

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @property
    def _places(self) -> list[str]:
        return [self._keys.history, self._keys.recorded]

    # -- the loop --------------------------------------------------------------------------------------------------

    async def _record(self) -> None:
        pause = 0.0
        while not self._stop.is_set():
            try:
                await self._prepare()
                while not self._stop.is_set():
                    await self._record_some()
                    pause = 0.0
            except TablesMissingError as error:
                pause = NOT_THERE
                logger.debug("no history, next look in %.0f s: %s", pause, error)
            except (SQLAlchemyError, RedisError, OSError) as error:
                pause = min(LONGEST_PAUSE, pause * 2 or 0.1)
                logger.warning("the history waits, next try in %.1f s: %s", pause, error)
                await self._disconnect()
            except Exception:
                pause = NOT_THERE
                logger.exception("the history waits, next try in %.0f s", pause)
            await self._rest(pause)

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    async def _prepare(self) -> None:
        """Look for the tables before anything is read, and for what was read and its answer lost."""
        if self._client is None:
            self._client = self._connect()
        async with self._sessions() as session:
            await history_rows.known_missing(session, self._keys.namespace, self._stream)
        with suppress(ResponseError):  # there it is
            await self._client.xgroup_create(self._keys.history, GROUP, id="0", mkstream=True)
        await self._look_after()
        self._held |= await self._read("0")

    async def _record_some(self) -> None:
        if not self._held:
            self._held |= await self._wait_for_entries()
        full = len(self._held) >= AT_ONCE
        busy = bool(self._held)
        if busy:
            await self._write_held()
        if not busy or monotonic() - self._looked_at >= LOOK:
            await self._look_after()
        if busy and not full:
            await self._rest(GATHER)

    async def _wait_for_entries(self) -> Entries:
        """What is there or comes within a while; nothing when this is told to stop."""
        reading = asyncio.create_task(self._read(">", block=round(LONGEST * 1000)))
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            # What comes too late for it is found by whoever takes over.
            return reading.result() if reading.done() else {}
        finally:
            stopping.cancel()
            reading.cancel()
            await asyncio.wait({reading})

    async def _read(self, after: str, block: int | None = None) -> Entries:
        """New entries (`>`), or those that this one has read and not acknowledged, of which some may be dropped."""
        client: Any = self._client  # not typed in redis-py
        told = await client.xreadgroup(GROUP, self._name, {self._keys.history: after}, count=AT_ONCE, block=block)
        return _entries(told[0][1]) if told else {}

    # -- writing ---------------------------------------------------------------------------------------------------

    async def _write_held(self) -> None:
        await self._write(self._held)
        turns, self._turns = (
            self._turns,
            await self._scripts.recorded(keys=self._places, args=[GROUP, self._name, *self._held]),
        )
        self._held = {}
        before, self._told_at = self._told_at, datetime.now(UTC)
        if self._turns <= turns:
            logger.warning("Redis has forgotten what it knew: the history may have a gap since %s", before)
            await self._note(Gap(stream=self._stream, reason="forgotten", began_at=before, ended_at=self._told_at))

    async def _write(self, entries: Entries) -> None:
        rows, unreadable = self._rows(entries)
        try:
            async with self._sessions() as session, session.begin():
                if rows:
                    await history_rows.add(session, rows)
        except DataError as error:
            logger.error("PostgreSQL does not take all of the history: %s", error)  # noqa: TRY400 - it goes on
            async with self._sessions() as session, session.begin():
                unreadable += await history_rows.add_each(session, rows)
        if unreadable:
            first, last = (moment_of(number_of(entry)) for entry in (min(entries), max(entries)))
            gap = Gap(stream=self._stream, reason="unreadable", entries=unreadable, began_at=first, ended_at=last)
            await self._note(gap)

    def _rows(self, entries: Entries) -> tuple[list[tuple[Any, ...]], int]:
        """The rows, and how many entries are none."""
        rows: list[tuple[Any, ...]] = []
        for entry, data in entries.items():
            try:
                rows.append(row_of(self._keys.namespace, entry, data))
            except (msgspec.DecodeError, ValueError) as error:
                logger.error("entry %s of the history is not readable: %s", entry, error)  # noqa: TRY400 - known why
        return rows, len(entries) - len(rows)

    # -- what is missing -------------------------------------------------------------------------------------------

    async def _look_after(self) -> None:
        """Take over what others have left, and count what was dropped unread."""
        self._looked_at = monotonic()
        milliseconds = (round(TAKE_OVER * 1000), AT_ONCE, round(GIVE_UP * 1000))
        left = await self._scripts.inherit(keys=self._places, args=[GROUP, self._name, *milliseconds])
        self._held |= _entries([(entry, dict(zip(fields[::2], fields[1::2], strict=True))) for entry, fields in left])
        stream, total, read, first = await self._scripts.missing(keys=self._places, args=[GROUP, uuid4().hex])
        await self._count(stream.decode(), total, read.decode(), first.decode())

    async def _count(self, stream: str, total: int, read: str, first: str) -> None:
        if stream != self._stream:
            self._stream, self._missing, self._read_until = stream, 0, read
            if total < 0:
                logger.warning("what the history loses is not counted: that takes Redis 7 or Valkey")
        if total > (self._missing or 0):
            began = None if self._read_until == "0-0" else moment_of(number_of(self._read_until))
            ended = moment_of(number_of(first)) if first else datetime.now(UTC)
            gap = Gap(stream=stream, reason="trimmed", total=total, began_at=began, ended_at=ended)
            async with self._sessions() as session, session.begin():
                new = await history_rows.note_missing(session, self._keys.namespace, gap)
            if new:
                logger.warning(
                    "the history misses %d entries from %s to %s: no recorder has kept up", new, began, ended
                )
        self._missing, self._read_until = max(total, 0), read

    async def _note(self, gap: Gap) -> None:
        async with self._sessions() as session, session.begin():
            await history_rows.note_gap(session, self._keys.namespace, gap)


def _entries(told: Sequence[tuple[bytes, Mapping[bytes, bytes] | None]]) -> dict[str, bytes]:
    """Those that are still there."""
    return {entry.decode(): fields.get(b"data", b"") for entry, fields in told if fields}
