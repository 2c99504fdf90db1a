"""The task-scoped session: one transaction per attempt, on a pool that lives as long as the worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache, partial
from typing import Annotated, Any, TypeVar

import anyio
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from taskiq_dependencies import Depends

from celeriq.attempt import Attempt
from celeriq.dependencies import Graph
from celeriq.errors import CommitTimeoutError
from celeriq.pool import PoolAdvice

logger = logging.getLogger(__name__)

Sessions = async_sessionmaker[AsyncSession]
OpenSessions = Callable[[PoolAdvice], AbstractAsyncContextManager[Sessions]]


@asynccontextmanager
async def transaction(
    sessions: Callable[[], AsyncSession],
    before_commit: Callable[[], None] = lambda: None,
    on_commit: Callable[[], None] = lambda: None,
    commit_timeout: float | None = None,
) -> AsyncGenerator[AsyncSession]:
    """A session that commits at a good end, rolls back otherwise, and gives its connection back in any case.

    The connection is taken at the first statement. A commit that takes longer than `commit_timeout` seconds raises
    `CommitTimeoutError`. `before_commit` is called when nothing can stop it any more, `on_commit` when it has
    succeeded, before anything else can fail.
    """
    session = sessions()
    try:
        yield session
        before_commit()
        try:
            await uninterrupted(_within(commit_timeout, session.commit()))
        except TimeoutError as error:
            raise CommitTimeoutError(
                f"the commit did not end within {commit_timeout} s: it may or may not have happened"
            ) from error
        on_commit()
    finally:
        # Closing rolls back whatever was not committed.
        await uninterrupted(session.close())


@asynccontextmanager
async def task_transaction(attempt: Attempt) -> AsyncGenerator[AsyncSession]:
    """The `transaction` of an attempt."""

    def begun() -> None:
        attempt.commit_begun = True

    def committed() -> None:
        attempt.committed = True

    async with transaction(attempt.open_session, begun, committed, attempt.engine.commit_timeout) as session:
        yield session


async def open_task_session() -> AsyncIterator[AsyncSession]:
    attempt = Attempt.current()
    async with task_transaction(attempt) as session:
        attempt.session = session
        yield session


TaskSession = Annotated[AsyncSession, Depends(open_task_session)]
"""The attempt's session: `session: TaskSession = injected`."""


def task_session(name: str) -> Any:
    """The attempt's session on another database, as an annotation.

    `reports: Annotated[AsyncSession, task_session("reports")] = injected`, with the name that stands in
    `with_sessions(main=..., reports=...)`. It is a transaction of its own, and two databases
    cannot commit together: the others commit before the main one, whose commit decides. When that one fails, so does
    the task, and what the others hold already is written again by the retry: it must bear that.
    """
    return Depends(_opener_of(name))


@cache
def _opener_of(name: str) -> Callable[[AsyncSession], AsyncIterator[AsyncSession]]:
    # What is opened before it is closed, and committed, after it; and no session takes a connection before it is used.
    async def open_named_session(_main: TaskSession) -> AsyncIterator[AsyncSession]:
        attempt = Attempt.current()
        opens = partial(attempt.engine.new_session, name)
        async with transaction(opens, commit_timeout=attempt.engine.commit_timeout) as session:
            yield session

    _session_openers.append(open_named_session)
    return open_named_session


_session_openers: list[Callable[..., AsyncIterator[AsyncSession]]] = [open_task_session]


def uses_session(graph: Graph) -> bool:
    """Whether a session is anywhere among the dependencies."""
    return any(graph.uses(opener) for opener in _session_openers)


T = TypeVar("T")


async def _within(seconds: float | None, work: Coroutine[Any, Any, T]) -> T:
    async with asyncio.timeout(seconds):
        return await work


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end, whoever cancels meanwhile.

    A transaction that is cancelled while it commits may or may not have committed; nobody could tell afterwards. So
    the cancellation comes too late, and is dropped.
    """
    running = asyncio.ensure_future(work)
    # anyio cancels again at every turn of the loop, asyncio once.
    with anyio.CancelScope(shield=True):
        while not running.done():
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                if running.cancelled():
                    raise
                logger.info("cancelled while a transaction was ending: it is brought to its end first")
    return running.result()
