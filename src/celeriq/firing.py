"""What is due is fired: one transaction for each schedule, with its calls and its last tick."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from time import monotonic
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from celeriq import schedule_rows as rows
from celeriq.errors import CeleriqError, ScheduleError, TablesMissingError
from celeriq.redis.streams import RedisBroker
from celeriq.schedule_calls import ScheduledCalls
from celeriq.schedule_entry import ScheduleEntry
from celeriq.schedule_rows import StoredSchedule
from celeriq.session import transaction
from celeriq.ticks import Due, plan, still_runs

logger = logging.getLogger(__name__)

Clock = Callable[[AsyncSession], Awaitable[datetime]]
"""What time it is; the session may be asked."""

PUT_OFF = 5.0
"""Seconds until the next try of a schedule with which something failed that may not fail then."""


class Firing:
    """Looks for schedules that are due, and makes their calls.

    A schedule is locked by whoever deals with it, and passed over by all others. Its last tick, the calls and their
    way into the outbox are one transaction: they are true together or not at all.
    """

    def __init__(self, broker: RedisBroker, calls: ScheduledCalls, clock: Clock = rows.now) -> None:
        self._broker = broker
        self._calls = calls
        self._clock = clock
        self._put_off: dict[str, float] = {}

    async def seconds_left(self) -> float | None:
        """Until the next one is due; None if there is none."""
        async with self._broker.new_session() as session:
            earliest = await rows.earliest(session, self._broker.namespace, self._calls.tasks)
            return None if earliest is None else (earliest - await self._clock(session)).total_seconds()

    @property
    def puts_off(self) -> bool:
        """Whether something that is due is left for later."""
        return bool(self._put_off)

    async def fire_all(self) -> int:
        """How many schedules were dealt with. Raises what the database raises."""
        self._put_off = {name: until for name, until in self._put_off.items() if until > monotonic()}
        count = 0
        while await self._fire_one():
            count += 1
        return count

    async def _fire_one(self) -> bool:
        row: StoredSchedule | None = None
        try:
            limit = self._broker.commit_timeout
            async with transaction(self._broker.new_session, commit_timeout=limit) as session:
                now = await self._clock(session)
                row = await rows.claim_due(
                    session, self._broker.namespace, now, self._calls.tasks, tuple(self._put_off)
                )
                if row is not None:
                    await self._deal_with(row, now, session)
        except TablesMissingError:
            raise
        except Exception:
            if row is None:
                raise
            # It must not keep others from being fired.
            self._put_off[row.name] = monotonic() + PUT_OFF
            logger.exception("schedule %r could not be fired, next try in %g s", row.name, PUT_OFF)
        return row is not None

    async def _deal_with(self, row: StoredSchedule, now: datetime, session: AsyncSession) -> None:
        try:
            entry = row.entry()
            self._calls.check(entry)
            # A savepoint: of what cannot be sent as it is written, nothing is.
            async with session.begin_nested():
                changes = await self._fire(row, entry, now, session)
        except (CeleriqError, TypeError, ValueError) as error:
            if isinstance(error, TablesMissingError):
                raise
            changes = self._broken(row, error)
        await rows.change(session, self._broker.namespace, row.name, changes)

    def _broken(self, row: StoredSchedule, error: Exception) -> dict[str, Any]:
        if isinstance(error, ScheduleError) and not self._calls.knows(row.task):
            logger.error("schedule %r waits for a scheduler that knows it: %s", row.name, error)
            return {"error": str(error)}
        logger.error("schedule %r cannot run, until it is edited: %s", row.name, error)
        return {"error": str(error), "next_due": None}

    async def _fire(
        self, row: StoredSchedule, entry: ScheduleEntry, now: datetime, session: AsyncSession
    ) -> dict[str, Any]:
        """Make the calls that are due; what becomes of the row."""
        due = plan(row.name, entry.schedule, row.last_due, now, entry.policy)
        ticks = await self._not_overlapping(row, entry, due, now)
        changes: dict[str, Any] = {"last_due": due.last, "next_due": due.next, "error": None}
        if due.missed:
            logger.warning("schedule %r: %d ticks came too late", row.name, due.missed)
            changes["missed"] = row.missed + due.missed
        if skipped := len(due.fire) - len(ticks):
            logger.info("schedule %r: the run before goes on, %d ticks are given up", row.name, skipped)
            changes["skipped"] = row.skipped + skipped
        for tick in ticks:
            result = await self._calls.send(entry, session, tick)
            logger.info("schedule %r: task %s for %s", row.name, result.task_id, tick.isoformat())
            changes |= {"last_task_id": result.task_id, "last_run_at": now, "runs": row.runs + len(ticks)}
        return changes

    async def _not_overlapping(
        self, row: StoredSchedule, entry: ScheduleEntry, due: Due, now: datetime
    ) -> tuple[datetime, ...]:
        """Those of the ticks that fire in spite of the run before."""
        if entry.policy.overlap == "allow" or not due.fire:
            return due.fire
        if row.last_task_id is None or row.last_run_at is None:
            return due.fire[-1:]
        may_run = still_runs(row.last_run_at, now, self._calls.longest_run(entry))
        if may_run and not await self._calls.has_ended(row.last_task_id):
            return ()
        return due.fire[-1:]
