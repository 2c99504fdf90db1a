"""What has run once: a row in the transaction of the task itself, so that both are true or neither."""

from __future__ import annotations

from typing import Any

import asyncpg
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from celeriq.tables import inbox, is_missing, missing

_RECORD = (
    "INSERT INTO celeriq_inbox (namespace, task_id, value, created_at) "
    "VALUES ($1, $2, $3, clock_timestamp()) ON CONFLICT DO NOTHING"
)


async def record(session: AsyncSession, namespace: str, task_id: str, value: bytes) -> bool:
    """Write down, in the session's transaction, that a task has returned `value`; False if another attempt has.

    One that writes it down at the same moment is waited for. Raises `TablesMissingError`.
    """
    driver = await session.run_sync(_driver_of)
    try:
        # On the driver's own connection, for a statement of SQLAlchemy's costs a fifth of a small task. It begins a
        # transaction with its first statement only.
        if driver.is_in_transaction():
            return bool((await driver.execute(_RECORD, namespace, task_id, value)).endswith("1"))
        values = {"namespace": namespace, "task_id": task_id, "value": value, "created_at": func.clock_timestamp()}
        written: Any = await session.execute(insert(inbox).values(values).on_conflict_do_nothing())
    except asyncpg.UndefinedTableError as error:
        raise missing(inbox) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise OperationalError(_RECORD, None, error) from error
    except ProgrammingError as error:
        if not is_missing(error):
            raise
        raise missing(inbox) from error
    return bool(written.rowcount)


def _driver_of(session: Session) -> Any:
    return session.connection(bind_arguments={"clause": inbox}).connection.driver_connection


async def find(session: AsyncSession, namespace: str, task_id: str) -> bytes | None:
    """What a task has returned, None if it has not."""
    found = select(inbox.c.value).where(inbox.c.namespace == namespace, inbox.c.task_id == task_id)
    value: bytes | None = await session.scalar(found)
    return value


async def find_for_certain(session: AsyncSession, namespace: str, task_id: str) -> bytes | None:
    """The same when a transaction that writes it down may still be going on, its client gone: its end is waited for."""
    if await record(session, namespace, task_id, b""):
        await session.rollback()
        return None
    return await find(session, namespace, task_id)


async def forget(session: AsyncSession, namespace: str, older_than: float, most: int) -> int:
    """Delete up to `most` rows that are older than so many seconds; how many there were."""
    old = (
        select(inbox.c.task_id)
        .where(inbox.c.namespace == namespace)
        .where(inbox.c.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, 0, older_than))
        .limit(most)
    )
    deleted: Any = await session.execute(delete(inbox).where(inbox.c.namespace == namespace, inbox.c.task_id.in_(old)))
    return int(deleted.rowcount)
