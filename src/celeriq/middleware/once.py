"""Once: of all attempts at a task one has an effect in the database, however often it is delivered."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from celeriq import inbox, record
from celeriq.attempt import Attempt
from celeriq.errors import CommitNotYoursError
from celeriq.hooks import Middleware
from celeriq.options import DeclaredOptions, Options, is_bool, option
from celeriq.outcome import Outcome, Postponed, Succeeded
from celeriq.session import task_transaction, uninterrupted

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from celeriq.definition import Definition

logger = logging.getLogger(__name__)

ASK_AGAIN = 5.0
"""Seconds until a task begins again of which nobody knows whether it was committed: its database is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnceOptions(DeclaredOptions):
    """What `Once` reads."""

    once: bool = option(False, is_bool, "it must be True or False")  # noqa: FBT003
    """Whether the task's effects in the database happen exactly once, though its message may come twice. celeriq alone
    commits its session then, and what it sends goes through the outbox. Defaults to False."""


class Once(Middleware):
    """Writes the task's id and its value into its own transaction, as the last thing before the commit.

    The attempt that comes second rolls back, and ends with the value of the first; one that is delivered again looks
    before it runs the body. Its links and next steps follow as they would have; handlers are not called. Effects
    elsewhere, a mail for one, may happen twice.
    """

    options = OnceOptions

    def concerns(self, options: Options) -> bool:
        return OnceOptions in options and options[OnceOptions].once

    def check(self, task: Definition) -> None:
        # Of all sessions, once: to listen to a task's own costs a tenth of a small task.
        if self.concerns(task.options) and not event.contains(Session, "before_commit", _refuse_commit):
            event.listen(Session, "before_commit", _refuse_commit)

    def before(self, attempt: Attempt) -> Awaitable[Outcome | None] | None:
        attempt.outgoing = []
        delivery, call = attempt.delivery, attempt.envelope
        came_back = delivery.again or delivery.crashes or call.redelivered or call.postponed
        return self._look(attempt) if came_back else None

    async def _look(self, attempt: Attempt) -> Succeeded | None:
        async with attempt.open_session() as session:
            return _succeeded(await inbox.find(session, attempt.engine.namespace, attempt.envelope.id))

    async def burying(self, attempt: Attempt) -> Succeeded | None:
        """Workers may have died after the commit. If nobody can be asked, it is a dead letter, to be replayed."""
        try:
            return await self._look(attempt)
        except (SQLAlchemyError, OSError) as error:
            logger.warning("whether task %s was committed is not known: %s", attempt.envelope.id, error)
            return None

    async def committing(self, attempt: Attempt, value: Any) -> Succeeded | None:
        stored = record.encode(value)
        if attempt.session is not None:
            return await self._write(attempt, attempt.session, stored)
        async with task_transaction(attempt) as session:
            return await self._write(attempt, session, stored)

    async def _write(self, attempt: Attempt, session: AsyncSession, stored: bytes) -> Succeeded | None:
        namespace, task_id = attempt.engine.namespace, attempt.envelope.id
        await attempt.engine.write_outgoing(attempt, session)
        if await inbox.record(session, namespace, task_id, stored):
            return None
        await session.rollback()
        return _succeeded(await inbox.find(session, namespace, task_id))

    def decide(self, attempt: Attempt, error: BaseException) -> Awaitable[Outcome | None] | None:
        """A commit that failed may have happened: its answer was lost."""
        return uninterrupted(self._find_out(attempt, error)) if attempt.commit_begun else None

    async def _find_out(self, attempt: Attempt, error: BaseException) -> Outcome | None:
        try:
            async with attempt.open_session() as session:
                return _succeeded(await inbox.find_for_certain(session, attempt.engine.namespace, attempt.envelope.id))
        except (SQLAlchemyError, OSError) as unknown:
            logger.warning("whether task %s was committed is not known yet: %s", attempt.envelope.id, unknown)
            return Postponed(error, ASK_AGAIN, counted=False)


def _refuse_commit(session: Session) -> None:
    """Keep a body from committing: what it has done then would be done again by the next attempt."""
    attempt = Attempt.current_or_none()
    if attempt is None or attempt.outgoing is None or attempt.session is None or attempt.commit_begun:
        return
    if session is attempt.session.sync_session and not session.in_nested_transaction():
        raise CommitNotYoursError(
            f"task {attempt.envelope.task!r} has once=True, so celeriq commits, when it has returned: leave "
            "session.commit() out, and write session.begin_nested() in place of session.begin()"
        )


def _succeeded(value: bytes | None) -> Succeeded | None:
    return None if value is None else Succeeded(msgspec.json.decode(value))
