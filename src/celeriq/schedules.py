"""The schedules of an application while it runs: looking at them, and changing them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from difflib import get_close_matches
from typing import Any, TypedDict, Unpack

from sqlalchemy.ext.asyncio import AsyncSession

from celeriq import schedule_rows as rows
from celeriq.declarations import rescheduled
from celeriq.errors import ScheduleConflictError, ScheduleError, UnknownScheduleError
from celeriq.firing import Clock
from celeriq.redis.streams import RedisBroker
from celeriq.result import AsyncResult
from celeriq.schedule import Schedule, read_schedule
from celeriq.schedule_calls import ScheduledCalls
from celeriq.schedule_entry import ScheduleEntry, as_schedule
from celeriq.schedule_rows import StoredSchedule
from celeriq.session import transaction
from celeriq.task import Task
from celeriq.ticks import DEFAULT_POLICY, TickPolicy, beginning, next_look, resumed

Called = str | Task[Any, Any]
"""A task, or its name."""

When = Schedule | float | timedelta | datetime | Mapping[str, Any]
"""A crontab, seconds, a `timedelta`, a moment, or what `celeriq.schedule.read_schedule` reads: `{"interval": 30}`."""


class Changes(TypedDict, total=False):
    """What `Schedules.edit` changes; what is not named stays."""

    task: Called
    schedule: When
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: Mapping[str, Any]
    labels: Mapping[str, Any]
    policy: TickPolicy


class Schedules:
    """What `scheduler.schedules` is. Every scheduler heeds a change within a second.

    Each method joins the transaction of a `session`; without one it has its own. `name` is that of the entry in
    `beat_schedule`, of the task whose option `schedule` it is, or what `add` was told. All but `list` and `add` raise
    `UnknownScheduleError` if there is none of this name.
    """

    def __init__(self, broker: RedisBroker, calls: ScheduledCalls, tz: str | tzinfo, clock: Clock = rows.now) -> None:
        self._broker = broker
        self._calls = calls
        self._tz = tz
        self._clock = clock

    async def list(self, *, session: AsyncSession | None = None) -> Sequence[StoredSchedule]:
        """All of them, by name, the broken ones with their `error`."""
        async with self._joined(session) as joined:
            return await rows.all_of(joined, self._broker.namespace)

    async def get(self, name: str, *, session: AsyncSession | None = None) -> StoredSchedule:
        async with self._joined(session) as joined:
            return await self._found(joined, name)

    async def add(
        self,
        name: str,
        task: Called,
        schedule: When,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        labels: Mapping[str, Any] | None = None,
        policy: TickPolicy = DEFAULT_POLICY,
        paused: bool = False,
        session: AsyncSession | None = None,
    ) -> StoredSchedule:
        """A schedule that the code does not declare, and that no start of a scheduler changes.

        Raises `ScheduleError` for what cannot be called, `ScheduleConflictError` if there is one of this name.
        """
        if not name:
            raise ScheduleError("name is ''; it must be text that tells this schedule from others")
        entry = ScheduleEntry(
            name=name,
            task=_name_of(task),
            schedule=self._schedule(schedule),
            args=tuple(args),
            kwargs=kwargs or {},
            options=options or {},
            labels=labels or {},
            policy=policy,
        )
        self._calls.check(entry)
        async with self._joined(session) as joined:
            last = beginning(entry.schedule, await self._clock(joined))
            ticks = {"last_due": last, "next_due": next_look(name, entry.schedule, last, policy)}
            values = {**rows.entry_values(entry), **ticks, "paused": paused}
            if not await rows.add(joined, self._broker.namespace, name, values):
                raise ScheduleConflictError(f"there is a schedule {name!r} already; edit it, or give another name")
            return await self._found(joined, name)

    async def edit(
        self,
        name: str,
        *,
        version: int | None = None,
        session: AsyncSession | None = None,
        **changes: Unpack[Changes],
    ) -> StoredSchedule:
        """Change what is named. Its last tick stays, so that what a new schedule would have fired since then is due
        at once (BEAT-10). A declared one stays as it is edited until the code says something else of it.

        `version`: the one that you have read. Raises `ScheduleConflictError` if somebody has edited it since, and
        `ScheduleError` for what cannot be called.
        """
        async with self._joined(session) as joined:
            row = await self._found(joined, name, for_update=True)
            if version is not None and version != row.version:
                raise ScheduleConflictError(
                    f"schedule {name!r} was edited: it has version {row.version}, not {version}; read it again"
                )
            values = rows.written(self._read(changes))
            entry = replace(row, **values).entry()
            self._calls.check(entry)
            await rows.edit(joined, self._broker.namespace, name, {**values, **rescheduled(row, entry)})
            return await self._found(joined, name)

    async def pause(self, name: str, *, session: AsyncSession | None = None) -> StoredSchedule:
        """No tick fires from now on; what runs goes on."""
        async with self._joined(session) as joined:
            await self._found(joined, name, for_update=True)
            await rows.edit(joined, self._broker.namespace, name, {"paused": True})
            return await self._found(joined, name)

    async def resume(self, name: str, *, session: AsyncSession | None = None) -> StoredSchedule:
        """Ticks fire again. Those of the pause are given up; a single moment that was in it fires now."""
        async with self._joined(session) as joined:
            row = await self._found(joined, name, for_update=True)
            if row.paused:
                changes = {"paused": False, **self._resumed(row, await self._clock(joined))}
                await rows.edit(joined, self._broker.namespace, name, changes)
            return await self._found(joined, name)

    async def run_now(self, name: str, *, session: AsyncSession | None = None) -> AsyncResult[Any]:
        """Make its call once, beside its ticks, though it be paused or the run before go on.

        Raises `ScheduleError` if it cannot be made.
        """
        async with self._joined(session) as joined:
            row = await self._found(joined, name, for_update=True)
            entry = row.entry()
            self._calls.check(entry)
            result = await self._calls.send(entry, joined)
            now = await self._clock(joined)
            changes = {"last_task_id": result.task_id, "last_run_at": now, "runs": row.runs + 1}
            await rows.change(joined, self._broker.namespace, name, changes)
            return result

    async def delete(self, name: str, *, session: AsyncSession | None = None) -> None:
        """A declared one is there again when a scheduler starts: pause it, or delete it in the code."""
        async with self._joined(session) as joined:
            await self._found(joined, name, for_update=True)
            await rows.remove(joined, self._broker.namespace, name)

    @asynccontextmanager
    async def _joined(self, session: AsyncSession | None) -> AsyncGenerator[AsyncSession]:
        if session is not None:
            yield session
            return
        async with transaction(self._broker.new_session) as own:
            yield own

    async def _found(self, session: AsyncSession, name: str, *, for_update: bool = False) -> StoredSchedule:
        row = await rows.find(session, self._broker.namespace, name, for_update=for_update)
        if row is not None:
            return row
        known = [one.name for one in await rows.all_of(session, self._broker.namespace)]
        nearest = get_close_matches(name, known, n=1)
        remedy = f"did you mean {nearest[0]!r}?" if nearest else "list() names them all"
        raise UnknownScheduleError(f"there is no schedule {name!r}; {remedy}")

    def _read(self, changes: Changes) -> dict[str, Any]:
        given: dict[str, Any] = dict(changes)
        for name in given:
            if name not in rows.CALL:
                raise ScheduleError(f"unknown change {name!r}; known are {', '.join(rows.CALL)}")
        if "task" in given:
            given["task"] = _name_of(given["task"])
        if "schedule" in given:
            given["schedule"] = self._schedule(given["schedule"])
        return given

    def _schedule(self, given: When) -> Schedule:
        read: Callable[..., Schedule] = as_schedule
        if isinstance(given, Mapping):
            return read(read_schedule(json.dumps(given)), tz=self._tz)
        return read(given, tz=self._tz)

    def _resumed(self, row: StoredSchedule, now: datetime) -> dict[str, Any]:
        if row.next_due is None:
            return {}
        try:
            entry = row.entry()
        except ScheduleError:
            # It says so as soon as it is due.
            return {}
        last = resumed(entry.schedule, row.last_due, now)
        return {"last_due": last, "next_due": next_look(row.name, entry.schedule, last, entry.policy)}


def _name_of(task: Called) -> str:
    return task if isinstance(task, str) else task.task_name
