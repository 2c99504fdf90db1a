"""The databases of a process: opened when it starts, each with a pool of its own, and closed when it stops."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from urllib.parse import quote

from sqlalchemy import URL, Engine, QueuePool, text
from sqlalchemy.exc import SQLAlchemyError, UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncEngine

from celeriq.errors import SessionsMissingError
from celeriq.pool import PoolAdvice
from celeriq.session import OpenSessions, Sessions

logger = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds that a database gets to say how many connections it allows, when a worker starts."""

ALLOWED = text(
    "select sum(case name when 'max_connections' then setting::int else -setting::int end) from pg_settings "
    "where name in ('max_connections', 'superuser_reserved_connections', 'reserved_connections')"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where connections go, as the engine's address has it: no user and no password."""

    server: str
    """Host and port; what it allows counts for all its databases."""

    database: str

    def __str__(self) -> str:
        return f"{self.server}/{quote(self.database, safe='')}"

    @staticmethod
    def of(url: URL) -> Place:
        hosts = [url.host] if url.host else _several(url.query.get("host", "localhost"))
        ports = [str(url.port)] if url.port else _several(url.query.get("port", "5432"))
        return Place(f"{','.join(hosts)}:{','.join(ports)}", url.database or "")

    @staticmethod
    def read(written: str) -> Place:
        server, _, database = written.rpartition("/")
        return Place(server, database)


class Database:
    """Where sessions of one name come from."""

    def __init__(self, name: str, open_sessions: OpenSessions, advice: PoolAdvice) -> None:
        self.name = name
        self.advice = advice
        """What the application says of the pool."""
        self.pool = advice
        """What `open_sessions` was told at last."""
        self._open_sessions = open_sessions
        self._sessions: Sessions | None = None
        self._opened = AsyncExitStack()

    @property
    def is_open(self) -> bool:
        return self._sessions is not None

    @property
    def sessions(self) -> Sessions:
        """The session factory; raises `SessionsMissingError` while it is not open."""
        if self._sessions is None:
            raise SessionsMissingError(
                f"no sessions: start the broker that has the database {self.name!r} "
                "(`async with broker`, or celeriq.fastapi.lifespan)"
            )
        return self._sessions

    async def open(self, pool: PoolAdvice) -> None:
        """Open it, or open it anew if it was told something else before."""
        pool = replace(pool, size=pool.kept)
        if self.is_open and pool == self.pool:
            return
        await self.close()
        self.pool = pool
        self._sessions = await self._opened.enter_async_context(self._open_sessions(self.pool))

    async def close(self) -> None:
        self._sessions = None
        await self._opened.aclose()

    @property
    def engine(self) -> Engine | None:
        """The engine below the sessions; None where they have none of their own, or more than one."""
        try:
            bind = self.sessions().get_bind()
        except UnboundExecutionError:
            return None
        return bind if isinstance(bind, Engine) else None

    @property
    def place(self) -> Place | None:
        """Where its connections go; None if they are none of PostgreSQL's, or all of PgBouncer's."""
        engine = self.engine
        if engine is None or self.pool.pgbouncer or engine.dialect.name != "postgresql":
            return None
        return Place.of(engine.url)

    def connections(self, at_a_time: int) -> int:
        """The most that it may have, as it was opened, whatever it was told; a task at a time takes one at most."""
        pool = None if self.engine is None else self.engine.pool
        if not isinstance(pool, QueuePool):
            return at_a_time
        size, overflow = pool.size(), pool._max_overflow  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        return at_a_time if size == 0 or overflow < 0 else size + overflow

    async def allowed(self) -> int | None:
        """How many connections the server allows; None if it does not say so now.

        The one on which it is asked is closed: a worker that asks nothing else has none.
        """
        engine = self.engine
        assert engine is not None
        try:
            async with asyncio.timeout(PATIENCE), AsyncEngine(engine).connect() as connection:
                found = await connection.scalar(ALLOWED)
                await connection.invalidate()
        except (SQLAlchemyError, OSError) as error:
            hint = "; behind PgBouncer say PoolAdvice(pgbouncer=True)" if "startup parameter" in str(error) else ""
            logger.warning("database %s does not say how many connections it allows%s: %s", self.place, hint, error)
            return None
        return None if found is None else int(found)


def _several(said: str | tuple[str, ...]) -> list[str]:
    return [said] if isinstance(said, str) else list(said)
