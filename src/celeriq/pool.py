"""What an application's engine should be opened with: how many connections, and what keeps them healthy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from sqlalchemy import URL, make_url

DEFAULT_SIZE = 10
OVERFLOW = 5
"""A pool may grow by one for each five that it keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolAdvice:
    """What the application's engine should be opened with; `open_sessions(pool)` receives it.

    `create_async_engine(url, **pool.engine_options(url))`, with the application's own options among the arguments.
    """

    size: int | None = None
    """Connections kept; tasks beyond it queue at the pool. None is as many as tasks run at a time, as far as the server
    has room for them: what `open_sessions` receives bears the number. Defaults to None."""

    max_overflow: int | None = None
    """Connections opened under pressure and closed again. Defaults to None, a fifth of the size."""

    pre_ping: bool = True
    """Test a connection before it is handed out. Defaults to True."""

    recycle: int = 450
    """Seconds after which a connection is replaced. Defaults to 450."""

    timeout: float = 30.0
    """Seconds to wait for a connection before the attempt fails. Defaults to 30."""

    idle_in_transaction: float | None = 600.0
    """Seconds after which PostgreSQL ends a transaction in which nothing happens, and with it the connection; it must
    be more than a task computes between two statements. None is never. Defaults to 600."""

    statement_timeout: float | None = None
    """Seconds after which PostgreSQL cancels a statement. Defaults to None, never."""

    application_name: str | None = None
    """How the connections are named in `pg_stat_activity`. Defaults to None: in a worker its name, else celeriq."""

    pgbouncer: bool = False
    """Whether the address is that of a PgBouncer in transaction mode. Defaults to False.

    Statements are then prepared without a name and never kept, for the next transaction is another server connection's.
    The pool stays: what it keeps are connections to PgBouncer, which cost the server none. The two timeouts cannot be
    said at the start of a connection there: say `ALTER ROLE ... SET statement_timeout`. An engine with
    `isolation_level="AUTOCOMMIT"` does not work there, because each statement is two messages.
    """

    @property
    def connections(self) -> int:
        """The most that the pool may have."""
        return self.kept + self.overflow

    @property
    def kept(self) -> int:
        return DEFAULT_SIZE if self.size is None else self.size

    @property
    def overflow(self) -> int:
        return self.kept // OVERFLOW if self.max_overflow is None else self.max_overflow

    def largest_size(self, connections: int) -> int:
        """The largest pool that has at most so many connections with its overflow; one at least."""
        if self.max_overflow is not None:
            return max(1, connections - self.max_overflow)
        size = connections * OVERFLOW // (OVERFLOW + 1) + 1
        return max(1, size if size + size // OVERFLOW <= connections else size - 1)

    def within(self, connections: int) -> PoolAdvice:
        """The same with at most so many connections; with one if there is not even that."""
        lowered = replace(self, size=self.largest_size(connections))
        return replace(lowered, max_overflow=max(0, min(lowered.overflow, connections - lowered.kept)))

    def engine_options(self, url: str | URL | None = None, /, **own: Any) -> dict[str, Any]:
        """The advice as keyword arguments of `create_async_engine`, and `own` ones, which win.

        Dictionaries are merged: with `connect_args={"server_settings": {"jit": "off"}}` the settings of the advice
        stay. Those are for asyncpg: for another driver give the `url`, and they are left out.
        """
        options: dict[str, Any] = {
            "pool_size": self.kept,
            "max_overflow": self.overflow,
            "pool_pre_ping": self.pre_ping,
            "pool_recycle": self.recycle,
            "pool_timeout": self.timeout,
        }
        if url is None or make_url(url).get_driver_name() == "asyncpg":
            options["connect_args"] = self._connect_args()
        return _merged(options, own)

    def _connect_args(self) -> dict[str, Any]:
        named = {"application_name": self.application_name or "celeriq"}
        if self.pgbouncer:
            return {"server_settings": named, **_NOTHING_KEPT}
        limits = {
            "idle_in_transaction_session_timeout": self.idle_in_transaction,
            "statement_timeout": self.statement_timeout,
        }
        said = {name: f"{seconds * 1000:.0f}" for name, seconds in limits.items() if seconds is not None}
        return {"server_settings": named | said}


def _no_name() -> str:
    return ""


# SQLAlchemy prepares every statement, behind the BEGIN of its transaction; without a name it is gone with the next one,
# so that names neither collide on a server connection nor pile up there, and PgBouncer need not reset anything.
_NOTHING_KEPT: dict[str, Any] = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": _no_name,
}


def _merged(options: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = {**options, **own}
    for name in options.keys() & own.keys():
        if isinstance(options[name], Mapping) and isinstance(own[name], Mapping):
            merged[name] = _merged(cast("Mapping[str, Any]", options[name]), cast("Mapping[str, Any]", own[name]))
    return merged
