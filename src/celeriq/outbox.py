"""Messages that wait in the database, written by the transaction with whose commit they become true.

Nothing is ever sent from memory: whoever sends takes committed rows, and deletes them when they are sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, Text, cast, delete, func, insert, select
from sqlalchemy.exc import ProgrammingError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncSession

from celeriq.errors import TablesMissingError
from celeriq.tables import is_missing, missing, outbox

IN_SIGHT = 2000
"""Rows that are looked at for some that nobody else sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A message in the outbox."""

    id: int = 0
    """Of its row; they are in the order of writing."""
    task_id: str
    message: str
    due: float | None = None
    """Seconds since 1970; None is at once."""


async def add(session: AsyncSession, namespace: str, messages: Sequence[Waiting]) -> None:
    """Write messages in the session's transaction, or savepoint, at once.

    Raises `TablesMissingError` where there is no table for it, or nobody knows in which database.
    """
    statement = insert(outbox).values(
        namespace=namespace,
        transaction=cast(cast(func.pg_current_xact_id(), Text), BigInteger),
        created_at=func.clock_timestamp(),
    )
    rows = [{"task_id": one.task_id, "message": one.message, "due": one.due} for one in messages]
    try:
        await session.execute(statement, rows)
    except UnboundExecutionError as error:
        raise TablesMissingError(
            "the session has several databases: say in which one messages wait, "
            "binds={..., celeriq.tables.outbox: engine}"
        ) from error
    except ProgrammingError as error:
        if not is_missing(error):
            raise
        raise missing(outbox) from error


async def is_empty(session: AsyncSession, namespace: str) -> bool:
    """Whether nothing is to be sent; asked outside of any transaction."""
    connection = await session.connection(
        bind_arguments={"clause": outbox}, execution_options={"isolation_level": "AUTOCOMMIT"}
    )
    found = select(outbox.c.id).where(outbox.c.namespace == namespace, outbox.c.error.is_(None)).limit(1)
    return await connection.scalar(found) is None


async def take(session: AsyncSession, namespace: str, most: int) -> list[Waiting]:
    """Delete up to `most` messages that nobody else is sending, and answer with them in the order of writing.

    They are gone when `session` is committed, which is when they are sent. The first message of a transaction is the
    token for all of it, so that two who send do not share one: within it the order holds.
    """
    sight = (
        select(outbox.c.id, outbox.c.transaction)
        .where(outbox.c.namespace == namespace, outbox.c.error.is_(None))
        .order_by(outbox.c.id)
        .limit(IN_SIGHT)
        .cte("sight")
        .prefix_with("MATERIALIZED")
    )
    firsts = select(func.min(sight.c.id)).group_by(sight.c.transaction)
    tokens = select(outbox.c.transaction).where(outbox.c.id.in_(firsts)).with_for_update(skip_locked=True).cte("tokens")
    mine = (
        select(sight.c.id).where(sight.c.transaction.in_(select(tokens.c.transaction))).order_by(sight.c.id).limit(most)
    )
    statement = (
        delete(outbox)
        .where(outbox.c.id.in_(mine))
        .returning(outbox.c.id, outbox.c.task_id, outbox.c.message, outbox.c.due)
    )
    rows = (await session.execute(statement)).mappings()
    return sorted((Waiting(**row) for row in rows), key=lambda one: one.id)


async def bury(session: AsyncSession, namespace: str, messages: Sequence[tuple[Waiting, str]]) -> None:
    """Keep messages that cannot be sent, each with the reason; `revive` sends them after all."""
    statement = insert(outbox).values(namespace=namespace, transaction=0, created_at=func.clock_timestamp())
    rows = [
        {"task_id": one.task_id, "message": one.message, "due": one.due, "error": reason} for one, reason in messages
    ]
    await session.execute(statement, rows)
