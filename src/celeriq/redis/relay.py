"""From the outbox to the queues: what a transaction has written there is sent when it is committed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from celeriq import envelope, outbox
from celeriq.attempt import Attempt
from celeriq.errors import SendError
from celeriq.outbox import Waiting
from celeriq.redis.keys import Keys
from celeriq.redis.sending import Parcel, Sender
from celeriq.tables import is_missing

logger = logging.getLogger(__name__)

AT_ONCE = 500
"""Messages that are sent in one transaction."""

LOOK_AGAIN = 1.0
"""Seconds after which a worker looks for what a crash has left, or what nobody rang for."""

LONGEST_PAUSE = 5.0
NOT_THERE = 30.0
"""Seconds until the next look for the table, where there is none."""

LAST_LOOK = 5.0
"""Seconds that a process which stops has to send what its transactions have left."""


class Relay:
    """Writes calls into the outbox of a transaction; one task of the process sends what is committed.

    A commit only rings: SQLAlchemy tells of it at savepoints and in transactions that others will end, too. Whoever
    sends holds the rows in a transaction of its own; if that does not end well, they are sent again, which Redis
    knows by their ids.
    """

    def __init__(self, keys: Keys, sender: Sender, client: Redis, sessions: Callable[[], AsyncSession]) -> None:
        self._keys = keys
        # Its own: a sender has one batch on its way at a time.
        self._sender = sender
        self._client = client
        self._sessions = sessions
        self._bell = asyncio.Event()
        self._relaying: asyncio.Task[None] | None = None

    # -- writing ---------------------------------------------------------------------------------------------------

    async def takes(self, parcels: Sequence[tuple[str, Parcel]], session: AsyncSession | None) -> bool:
        """Whether these are written, by their task ids, into a transaction: that of `session`, or of a task with
        `once`. Raises `TablesMissingError`.
        """
        attempt = Attempt.current_or_none()
        outgoing = None if attempt is None else attempt.outgoing
        if session is None and outgoing is None:
            return False
        messages = [
            Waiting(task_id=task_id, message=parcel.message.decode(), due=_moment(parcel))
            for task_id, parcel in parcels
        ]
        if session is not None:
            await self.write(session, messages)
        elif outgoing is not None:
            outgoing += messages
        return True

    async def write(self, session: AsyncSession, messages: Sequence[Waiting]) -> None:
        """Write them in the session's transaction, and send them when it is committed. Raises `TablesMissingError`."""
        if messages:
            await outbox.add(session, self._keys.namespace, messages)
            known = session.sync_session.info
            if known.get("celeriq_bell") is not self:
                known["celeriq_bell"] = self
                event.listen(session.sync_session, "after_commit", self._ring)

    def _ring(self, _: Any) -> None:
        self._bell.set()

    # -- sending ---------------------------------------------------------------------------------------------------

    def begin(self, look_again: float | None) -> None:
        """Send from now on; every `look_again` seconds what others have left, too, None leaves that to them."""
        if self._relaying is None:
            self._bell = asyncio.Event()  # of this loop
            self._relaying = asyncio.create_task(self._relay(look_again))

    async def end(self) -> None:
        """Send what is there, as far as that is possible in a few seconds: others will find the rest."""
        if self._relaying is None:
            return
        self._relaying.cancel()
        with suppress(asyncio.CancelledError):
            await self._relaying
        self._relaying = None
        with suppress(TimeoutError, SendError, SQLAlchemyError, OSError):
            async with asyncio.timeout(LAST_LOOK):
                await self._send_all()

    async def _relay(self, look_again: float | None) -> None:
        pause = 0.0
        patience: float | None = 0.0
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._bell.wait(), patience)
            try:
                if self._bell.is_set() or not await self._is_empty():
                    await self._send_all()
                pause, patience = 0.0, look_again
            except Exception as error:  # noqa: BLE001 - whatever it is: nobody else sends what this process commits at once
                pause = patience = NOT_THERE if is_missing(error) else min(LONGEST_PAUSE, pause * 2 or 0.1)
                level = logging.DEBUG if is_missing(error) else logging.WARNING
                logger.log(level, "the outbox waits, next try in %.1f s: %s", pause, error)
                self._bell.clear()

    async def _is_empty(self) -> bool:
        async with self._sessions() as session:
            return await outbox.is_empty(session, self._keys.namespace)

    async def _send_all(self) -> None:
        while True:
            self._bell.clear()
            try:
                if await self._send_some() < AT_ONCE:
                    return
            except BaseException:
                self._bell.set()
                raise

    async def _send_some(self) -> int:
        """How many rows were dealt with."""
        async with self._sessions() as session, session.begin():
            messages = await outbox.take(session, self._keys.namespace, AT_ONCE)
            if not messages:
                return 0
            unsendable = await self._send(messages)
            if unsendable:
                await outbox.bury(session, self._keys.namespace, unsendable)
        # Nobody can send them once more: Redis need not know them any longer.
        with suppress(RedisError, OSError):
            await self._client.zrem(self._keys.sent, *map(_send_id, messages))
        return len(messages)

    async def _send(self, messages: Sequence[Waiting]) -> list[tuple[Waiting, str]]:
        """Those that cannot be sent, with the reason. Raises `SendError` when Redis takes none."""
        unsendable: list[tuple[Waiting, str]] = []
        parcels: dict[Waiting, Parcel] = {}
        for message in messages:
            try:
                parcels[message] = _parcel(message)
            except (msgspec.DecodeError, ValueError) as error:
                unsendable.append((message, f"not a message of celeriq's: {error}"))
        answers = await self._sender.send_all(list(parcels.values()))
        if any(answers):
            # One that Redis refuses must not keep back the others.
            for message, parcel in parcels.items():
                try:
                    await self._sender.send(parcel)
                except SendError as error:
                    if not error.refused:
                        raise
                    unsendable.append((message, error.reason))
        for message, reason in unsendable:
            logger.error("task %s stays in the outbox: %s", message.task_id, reason)
        return unsendable


def _send_id(message: Waiting) -> str:
    return f"{message.task_id}/{message.id}"


def _parcel(message: Waiting) -> Parcel:
    call = envelope.decode(message.message.encode())
    return Parcel(call.queue, message.message.encode(), call.priority, at=message.due, send_id=_send_id(message))


def _moment(parcel: Parcel) -> float | None:
    """A delay counts from when it was written, by the clock of who did."""
    return time.time() + parcel.delay if parcel.delay else parcel.at
