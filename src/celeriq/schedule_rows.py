"""Schedules in the database: one row each, with what is called, when, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Result
from sqlalchemy.exc import ProgrammingError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import Executable

from celeriq import record
from celeriq.errors import EncodeError, ScheduleError, TablesMissingError
from celeriq.schedule import Schedule, read_schedule
from celeriq.schedule_entry import ScheduleEntry
from celeriq.tables import is_missing, missing, schedules
from celeriq.ticks import DEFAULT_POLICY, POLICY_KEYS, TickPolicy

CALL = ("task", "schedule", "args", "kwargs", "options", "labels", "policy")
"""What a schedule says; the other columns tell what became of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSchedule:
    """A schedule as its row tells it. Moments are in UTC."""

    name: str

    task: str
    """The name of the task."""

    schedule: str
    """In the form that `celeriq.schedule.read_schedule` reads."""

    args: Sequence[Any]

    kwargs: Mapping[str, Any]

    options: Mapping[str, Any]
    """Of the call, as `apply_async` takes them."""

    labels: Mapping[str, Any]
    """Of the message, for Taskiq's middlewares."""

    policy: Mapping[str, Any]
    """What it says of `TickPolicy`; the rest is by default."""

    paused: bool

    declared: Mapping[str, Any] | None
    """What the code said of it at the last start of a scheduler; None for one that was made by `add`."""

    last_due: datetime
    """The last tick that was dealt with, or the beginning."""

    next_due: datetime | None
    """When its next tick fires; None if nothing comes any more."""

    last_run_at: datetime | None

    last_task_id: str | None

    runs: int

    missed: int
    """Ticks that were given up because they came too late."""

    skipped: int
    """Ticks that were given up because the run before went on."""

    error: str | None
    """Why it cannot run; None if it can."""

    version: int
    """How often it was edited."""

    updated_at: datetime

    def entry(self) -> ScheduleEntry:
        """What it says; raises `ScheduleError`, for anybody may have written into the row."""
        for name, kind in (("args", list), ("kwargs", dict), ("options", dict), ("labels", dict), ("policy", dict)):
            if not isinstance(getattr(self, name), kind):
                raise ScheduleError(f"{name} is {getattr(self, name)!r}; it must be a {kind.__name__}")
        for key in self.policy:
            if key not in POLICY_KEYS:
                raise ScheduleError(f"policy has an unknown key {key!r}; known are {', '.join(POLICY_KEYS)}")
        return ScheduleEntry(
            name=self.name,
            task=self.task,
            schedule=read_schedule(self.schedule),
            args=tuple(self.args),
            kwargs=self.kwargs,
            options=self.options,
            labels=self.labels,
            policy=TickPolicy(**self.policy),
        )


_COLUMNS = tuple(schedules.c[field.name] for field in fields(StoredSchedule))


def written(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `CALL` as their columns hold them. Raises `ScheduleError` for what JSON, or PostgreSQL, cannot hold."""
    return {name: _written(name, value) for name, value in given.items()}


def _written(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, Schedule):
        return value.as_text()
    if isinstance(value, TickPolicy):
        return {key: said for key, said in asdict(value).items() if said != getattr(DEFAULT_POLICY, key)}
    try:
        encoded = record.encode(value)
        record.refuse_what_is_lost(value, encoded)
    except EncodeError as error:
        raise ScheduleError(f"{name} {error}") from error
    if b"\\u0000" in encoded:
        raise ScheduleError(f"{name} is {value!r}; PostgreSQL keeps no text with a NUL in it")
    return json.loads(encoded)


def entry_values(entry: ScheduleEntry) -> dict[str, Any]:
    """The same of an entry."""
    return written({name: getattr(entry, name) for name in CALL})


# -- reading -----------------------------------------------------------------------------------------------------------


async def now(session: AsyncSession) -> datetime:
    """By the clock of the database, which is the same for all schedulers."""
    found = await _execute(session, select(func.clock_timestamp()))
    return cast("datetime", found.scalar_one())


async def all_of(session: AsyncSession, namespace: str) -> list[StoredSchedule]:
    """In the order of their names."""
    found = select(*_COLUMNS).where(schedules.c.namespace == namespace).order_by(schedules.c.name)
    return [_stored(row) for row in await _execute(session, found)]


async def find(session: AsyncSession, namespace: str, name: str, *, for_update: bool = False) -> StoredSchedule | None:
    """The one of this name; `for_update` locks it until the transaction ends."""
    found = select(*_COLUMNS).where(_is(namespace, name))
    row = (await _execute(session, found.with_for_update() if for_update else found)).one_or_none()
    return None if row is None else _stored(row)


async def earliest(session: AsyncSession, namespace: str, tasks: Collection[str] | None) -> datetime | None:
    """When the next one is due; asked outside of any transaction."""
    await session.connection(bind_arguments={"clause": schedules}, execution_options={"isolation_level": "AUTOCOMMIT"})
    found = await _execute(session, select(func.min(schedules.c.next_due)).where(_waiting(namespace, tasks)))
    return cast("datetime | None", found.scalar_one())


async def claim_due(
    session: AsyncSession,
    namespace: str,
    moment: datetime,
    tasks: Collection[str] | None,
    passed_over: Collection[str] = (),
) -> StoredSchedule | None:
    """One that is due and that nobody else deals with, locked until the transaction ends.

    `tasks`: those that are known here. A schedule of another one is found once, and then by those who know it; None
    knows them all.
    """
    due = (
        select(*_COLUMNS)
        .where(_waiting(namespace, tasks), schedules.c.next_due <= moment, schedules.c.name.not_in(passed_over))
        .order_by(schedules.c.next_due, schedules.c.name)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = (await _execute(session, due)).one_or_none()
    return None if row is None else _stored(row)


def _waiting(namespace: str, tasks: Collection[str] | None) -> ColumnElement[bool]:
    """Not those that are broken, but for what somebody else did not know: their next tick is kept."""
    known = schedules.c.task.in_(tasks) if tasks is not None else schedules.c.task.is_not(None)
    return and_(
        schedules.c.namespace == namespace,
        ~schedules.c.paused,
        schedules.c.next_due.is_not(None),
        or_(schedules.c.error.is_(None), known),
    )


# -- writing -----------------------------------------------------------------------------------------------------------


async def lock(session: AsyncSession, namespace: str) -> None:
    """Wait until no other transaction has this lock: schedulers that start at the same moment take turns."""
    await _execute(session, select(func.pg_advisory_xact_lock(func.hashtextextended(f"celeriq/{namespace}", 0))))


async def add(session: AsyncSession, namespace: str, name: str, values: Mapping[str, Any]) -> bool:
    """False if there is one of this name already."""
    untouched = {"paused": False, "runs": 0, "missed": 0, "skipped": 0, "version": 1}
    row = {**untouched, **values, "namespace": namespace, "name": name, "updated_at": func.clock_timestamp()}
    statement = insert(schedules).values(row).on_conflict_do_nothing().returning(schedules.c.name)
    return (await _execute(session, statement)).first() is not None


async def change(session: AsyncSession, namespace: str, name: str, values: Mapping[str, Any]) -> None:
    """Write down what became of it."""
    await _execute(session, update(schedules).where(_is(namespace, name)).values(**values))


async def edit(session: AsyncSession, namespace: str, name: str, values: Mapping[str, Any]) -> None:
    """The same when somebody has edited it."""
    edited = {"version": schedules.c.version + 1, "updated_at": func.clock_timestamp()}
    await change(session, namespace, name, {**values, **edited})


async def remove(session: AsyncSession, namespace: str, name: str) -> bool:
    """Whether there was one of this name."""
    statement = delete(schedules).where(_is(namespace, name)).returning(schedules.c.name)
    return (await _execute(session, statement)).first() is not None


def _is(namespace: str, name: str) -> ColumnElement[bool]:
    return and_(schedules.c.namespace == namespace, schedules.c.name == name)


def _stored(row: Any) -> StoredSchedule:
    return StoredSchedule(**row._mapping)  # noqa: SLF001 - its public name


async def _execute(session: AsyncSession, statement: Executable) -> Result[Any]:
    """Raises `TablesMissingError` where there is no table for it, or nobody knows in which database."""
    try:
        return await session.execute(statement, bind_arguments={"clause": schedules})
    except UnboundExecutionError as error:
        raise TablesMissingError(
            "the session has several databases: say in which one schedules are, "
            "binds={..., celeriq.tables.schedules: engine}"
        ) from error
    except ProgrammingError as error:
        if not is_missing(error):
            raise
        raise missing(schedules) from error
