"""What is old is deleted: rows of the history and of the inbox."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from celeriq import history_rows, inbox
from celeriq.history_rows import DAY
from celeriq.tables import is_missing

logger = logging.getLogger(__name__)

EVERY = 3600.0
"""Seconds."""

PORTION = 5000
"""Rows that are deleted in one transaction: none is long, and no lock is held for long."""

Forget = Callable[[AsyncSession, str, float, int], Coroutine[Any, Any, int]]


class Upkeep:
    """Deletes old rows, once an hour and a portion at a time, in one process at a time; None for days keeps them."""

    def __init__(
        self,
        namespace: str,
        sessions: Callable[[], AsyncSession],
        *,
        history_days: float | None = 30.0,
        inbox_days: float | None = 14.0,
    ) -> None:
        self._namespace = namespace
        self._sessions = sessions
        self._kept: list[tuple[Forget, float]] = [
            (forget, days * DAY)
            for forget, days in ((history_rows.forget, history_days), (inbox.forget, inbox_days))
            if days is not None
        ]
        self._stop = asyncio.Event()
        self._working: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Delete from now on."""
        if self._working is None and self._kept:
            self._stop = asyncio.Event()  # of this loop
            self._working = asyncio.create_task(self._work())

    async def end(self) -> None:
        """Stop after the portion that is being deleted."""
        if self._working is not None:
            self._stop.set()
            await self._working
            self._working = None

    async def _work(self) -> None:
        while not self._stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), EVERY)
                return
            try:
                await self.run()
            except (SQLAlchemyError, OSError) as error:
                level = logging.DEBUG if is_missing(error) else logging.WARNING
                logger.log(level, "old rows stay for another hour: %s", error)

    async def run(self) -> int:
        """Delete what is old now; how many rows there were. Another process that does so is left to it."""
        deleted = 0
        for forget, seconds in self._kept:
            while not self._stop.is_set() and (portion := await self._delete_some(forget, seconds)):
                deleted += portion
        return deleted

    async def _delete_some(self, forget: Forget, seconds: float) -> int:
        async with self._sessions() as session, session.begin():
            lock = func.pg_try_advisory_xact_lock(func.hashtext(f"celeriq_upkeep/{self._namespace}"))
            if not await session.scalar(select(lock)):
                return 0
            return await forget(session, self._namespace, seconds, PORTION)
