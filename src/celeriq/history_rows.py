"""Rows of the history: written as they come from the stream, deleted when they are old; and what of it is missing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import asyncpg
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as insert_or_not
from sqlalchemy.exc import DataError, DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession

from celeriq.tables import history, history_gaps, is_missing, missing

COLUMNS = tuple(history.columns.keys())

DAY = 86_400.0
"""Seconds."""

SAME_GAP = timedelta(minutes=1)
"""What goes missing so soon after a gap belongs to it."""

Reason = Literal["trimmed", "forgotten", "unreadable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What is missing of a stream."""

    stream: str
    reason: Reason
    entries: int | None = None
    """None are as many as nobody knows."""
    total: int = 0
    """How many of the stream were dropped unread by then."""
    began_at: datetime | None
    ended_at: datetime


def number_of(entry_id: str) -> int:
    """The place of a stream's entry among all, as one number: its milliseconds, and behind them its own number."""
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds) << 20 | int(number or 0)


def number_at(seconds: float) -> int:
    """The lowest number of a moment, in seconds since 1970."""
    return int(seconds * 1000) << 20


def moment_of(number: int) -> datetime:
    """When Redis wrote the entry, by its clock."""
    return datetime.fromtimestamp((number >> 20) / 1000, UTC)


async def add(session: AsyncSession, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write rows, the values of `COLUMNS` each, in the session's transaction; those that are there stay as they are.

    Raises `TablesMissingError`, and SQLAlchemy's errors: `DataError` if there is a row that PostgreSQL does not take.
    """
    connection = await session.connection(bind_arguments={"clause": history})
    driver: Any = (await connection.get_raw_connection()).driver_connection
    try:
        if not (isinstance(driver, asyncpg.Connection) and await _copied(session, driver, rows)):
            statement = insert_or_not(history).on_conflict_do_nothing()
            await connection.execute(statement, [dict(zip(COLUMNS, row, strict=True)) for row in rows])
    except ProgrammingError as error:
        if not is_missing(error):
            raise
        raise missing(history) from error


async def _copied(session: AsyncSession, driver: Any, rows: Sequence[tuple[Any, ...]]) -> bool:
    """False if some are there already, as after a crash between a commit and its acknowledgement.

    COPY costs half of what INSERT does, which can pass over them (measured: 10 µs a row and 19, in Python and
    PostgreSQL together).
    """
    try:
        async with session.begin_nested():
            await driver.copy_records_to_table(history.name, records=rows, columns=COLUMNS)
    except asyncpg.UniqueViolationError:
        return False
    except asyncpg.UndefinedTableError as error:
        raise missing(history) from error
    except (asyncpg.DataError, ValueError, OverflowError) as error:
        raise DataError(f"COPY {history.name}", None, error) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise OperationalError(f"COPY {history.name}", None, error) from error
    return True


async def add_each(session: AsyncSession, rows: Sequence[tuple[Any, ...]]) -> int:
    """Write those that PostgreSQL takes; how many it refuses. For batches in which there are such."""
    refused = 0
    statement = insert_or_not(history).on_conflict_do_nothing()
    for row in rows:
        try:
            async with session.begin_nested():
                await session.execute(statement, dict(zip(COLUMNS, row, strict=True)))
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            refused += 1
    return refused


async def forget(session: AsyncSession, namespace: str, older_than: float, most: int) -> int:
    """Delete up to `most` rows that are older than so many seconds; how many there were."""
    bound = number_at(time.time() - older_than)
    old = (
        select(history.c.entry)
        .where(history.c.namespace == namespace, history.c.entry < bound)
        .order_by(history.c.entry)
        .limit(most)
    )
    statement = delete(history).where(history.c.namespace == namespace, history.c.entry.in_(old))
    deleted: Any = await session.execute(statement)
    return int(deleted.rowcount)


# -- what is missing ---------------------------------------------------------------------------------------------------


async def known_missing(session: AsyncSession, namespace: str, stream: str) -> int:
    """How many entries of a stream are known to be missing. Raises `TablesMissingError`."""
    greatest = select(func.max(history_gaps.c.total))
    try:
        found = await session.scalar(
            greatest.where(history_gaps.c.namespace == namespace, history_gaps.c.stream == stream)
        )
    except ProgrammingError as error:
        if not is_missing(error):
            raise
        raise missing(history_gaps) from error
    return int(found or 0)


async def note_missing(session: AsyncSession, namespace: str, gap: Gap) -> int:
    """Write down that by now `gap.total` entries of a stream were dropped unread; how many of them are new.

    Whoever else does so is waited for, so that each is counted once.
    """
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"celeriq_history_gaps/{namespace}"))))
    new = gap.total - await known_missing(session, namespace, gap.stream)
    if new <= 0:
        return 0
    columns = history_gaps.c
    last = (
        await session.execute(
            select(columns.id, columns.ended_at)
            .where(columns.namespace == namespace, columns.stream == gap.stream, columns.reason == gap.reason)
            .order_by(columns.id.desc())
            .limit(1)
        )
    ).one_or_none()
    if last is not None and gap.ended_at - last.ended_at < SAME_GAP:
        longer = {"entries": columns.entries + new, "total": gap.total, "ended_at": gap.ended_at}
        await session.execute(update(history_gaps).where(columns.id == last.id).values(longer))
    else:
        await note_gap(session, namespace, replace(gap, entries=new))
    return new


async def note_gap(session: AsyncSession, namespace: str, gap: Gap) -> None:
    """Write down a gap as it is."""
    await session.execute(insert(history_gaps).values(namespace=namespace, **asdict(gap)))
