"""What became of the tasks: what a monitor asks, each answered from an index."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import BigInteger, ColumnElement, Select, and_, func, literal, select, union_all
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession

from celeriq.history_rows import DAY, Reason, number_at
from celeriq.tables import history, history_gaps, is_missing, missing

FAILURES = ("FAILURE", "DEAD")
"""States of attempts that failed; DEAD could not even begin."""

STATES = ("SUCCESS", *FAILURES, "RETRY", "REVOKED", "IGNORED", "POSTPONED")
"""All of them."""

Question = Select[*tuple[Any, ...]]

SECONDS = {"minute": 60, "hour": 3600, "day": 86_400}


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRow:
    """What became of one attempt."""

    entry: int
    """Its place among all, by time: say it as `before` to read on."""
    finished_at: datetime
    task_id: str
    task: str
    queue: str
    state: str
    """One of `STATES`."""
    worker: str
    runtime: float
    """Seconds."""
    retries: int
    """How many there were before."""
    error: str | None
    root: str
    """The id of the task with which it all began."""
    parent: str | None
    group_id: str | None
    logs: str | None
    """The last lines that it has logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryCount:
    """How many attempts of a task ended so within a span of time."""

    at: datetime
    """When it begins."""
    task: str
    state: str
    count: int
    runtime: float
    """Seconds, of all of them together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryGap:
    """Something that the history has not got."""

    reason: Reason
    """`trimmed`: more came than the recorders have read; `forgotten`: Redis has lost what it knew; `unreadable`."""
    entries: int | None
    """How many attempts; None if nobody can know."""
    began_at: datetime | None
    """None is the beginning of the stream."""
    ended_at: datetime


class History:
    """Reads what recorders have written: `broker.history`. All of it raises `TablesMissingError` without the tables."""

    def __init__(self, namespace: str, sessions: Callable[[], AsyncSession]) -> None:
        self._namespace = namespace
        self._sessions = sessions

    async def latest(
        self,
        limit: int = 100,
        *,
        task: str | None = None,
        state: str | Sequence[str] | None = None,
        before: int | None = None,
    ) -> list[HistoryRow]:
        """The last attempts, of a task or with one of some states, the newest first.

        `before` is the `entry` of the last one of the page before: what comes meanwhile moves nothing.
        """
        states = (state,) if isinstance(state, str) else state
        async with self._sessions() as session:
            return await self._rows(session, latest(self._namespace, limit, task, states, before))

    async def failures(
        self, limit: int = 100, *, task: str | None = None, before: int | None = None
    ) -> list[HistoryRow]:
        """The last attempts that failed."""
        return await self.latest(limit, task=task, state=FAILURES, before=before)

    async def of(self, task_id: str) -> list[HistoryRow]:
        """All attempts of a task, the oldest first."""
        async with self._sessions() as session:
            return await self._rows(session, attempts_of(self._namespace, task_id))

    async def counts(
        self, since: datetime | None = None, *, by: Literal["minute", "hour", "day"] = "hour", task: str | None = None
    ) -> list[HistoryCount]:
        """How many ended how, by task and span of time in UTC, the oldest first; by default of the last day."""
        async with self._sessions() as session:
            found = await self._all(session, counts(self._namespace, _start(since), SECONDS[by], task))
        return [
            HistoryCount(
                at=datetime.fromtimestamp(row.span * SECONDS[by], UTC),
                task=row.task,
                state=row.state,
                count=row.count,
                runtime=row.runtime,
            )
            for row in found
        ]

    async def slowest(
        self, limit: int = 20, *, since: datetime | None = None, task: str | None = None
    ) -> list[HistoryRow]:
        """The attempts that took longest; by default of the last day."""
        async with self._sessions() as session:
            return await self._rows(session, slowest(self._namespace, limit, _start(since), task))

    async def gaps(self, limit: int = 100) -> list[HistoryGap]:
        """What is missing, the newest first."""
        columns = history_gaps.c
        shown: list[Any] = [columns.reason, columns.entries, columns.began_at, columns.ended_at]
        of_mine = select(*shown).where(columns.namespace == self._namespace)
        statement = of_mine.order_by(columns.id.desc()).limit(limit)
        async with self._sessions() as session:
            return [HistoryGap(**row._mapping) for row in await self._all(session, statement)]  # noqa: SLF001 - its public name

    async def _rows(self, session: AsyncSession, statement: Question) -> list[HistoryRow]:
        return [HistoryRow(**row._mapping) for row in await self._all(session, statement)]  # noqa: SLF001 - its public name

    async def _all(self, session: AsyncSession, statement: Question) -> Sequence[Any]:
        connection = await session.connection(bind_arguments={"clause": history})
        try:
            found: Sequence[Any] = (await connection.execute(statement)).all()
        except ProgrammingError as error:
            if not is_missing(error):
                raise
            raise missing(history) from error
        return found


def _start(since: datetime | None) -> float:
    return time.time() - DAY if since is None else since.timestamp()


# -- the questions -----------------------------------------------------------------------------------------------------

_SHOWN = tuple(column for column in history.columns if column.name != "namespace")
_entry, _task, _state, _runtime = history.c.entry, history.c.task, history.c.state, history.c.runtime


def latest(namespace: str, limit: int, task: str | None, states: Sequence[str] | None, before: int | None) -> Question:
    if states is None and task is None:
        return _newest(namespace, limit, before)
    # A page of each state, and of those the newest: so each is read off an index, and no more than a page.
    pages = [_newest(namespace, limit, before, task, state).subquery() for state in states or STATES]
    if len(pages) == 1:
        return _newest(namespace, limit, before, task, *(states or ()))
    of_all = union_all(*(select(page) for page in pages)).subquery()
    return select(of_all).order_by(of_all.c.entry.desc()).limit(limit)


def _newest(
    namespace: str, limit: int, before: int | None, task: str | None = None, state: str | None = None
) -> Question:
    conditions: list[ColumnElement[bool]] = [history.c.namespace == namespace]
    if task is not None:
        conditions.append(_task == task)
    if state is not None:
        # In the statement's own text, so that PostgreSQL sees which index has it, however often it is asked.
        conditions.append(_state == literal(state, literal_execute=True))
    if before is not None:
        conditions.append(_entry < before)
    return select(*_SHOWN).where(and_(*conditions)).order_by(_entry.desc()).limit(limit)


def attempts_of(namespace: str, task_id: str) -> Question:
    return select(*_SHOWN).where(history.c.namespace == namespace, history.c.task_id == task_id).order_by(_entry)


def counts(namespace: str, since: float, seconds: int, task: str | None) -> Question:
    span = (_entry // literal(number_at(seconds), BigInteger)).label("span")
    told: list[Any] = [span, _task, _state, func.count().label("count"), func.sum(_runtime).label("runtime")]
    return (
        select(*told).where(*_since(namespace, since, task)).group_by(span, _task, _state).order_by(span, _task, _state)
    )


def slowest(namespace: str, limit: int, since: float, task: str | None) -> Question:
    # Found in the index alone; only what is shown is read from the table.
    found = (
        select(_entry.label("found"))
        .where(*_since(namespace, since, task))
        .order_by(_runtime.desc())
        .limit(limit)
        .subquery()
    )
    return (
        select(*_SHOWN)
        .join(found, and_(history.c.namespace == namespace, found.c.found == _entry))
        .order_by(_runtime.desc())
    )


def _since(namespace: str, since: float, task: str | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [history.c.namespace == namespace, _entry >= number_at(since)]
    return conditions if task is None else [*conditions, _task == task]
