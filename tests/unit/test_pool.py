"""What an engine is opened with."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url

from celeriq import PoolAdvice
from celeriq.databases import Database, Place


def test_a_pool_keeps_ten_and_may_grow_by_a_fifth() -> None:
    assert PoolAdvice().connections == 12
    assert PoolAdvice(size=50).connections == 60
    assert PoolAdvice(size=50, max_overflow=0).connections == 50


@pytest.mark.parametrize("connections", range(1, 300))
def test_what_is_lowered_is_the_largest_that_fits(connections: int) -> None:
    lowered = PoolAdvice(size=1000, recycle=60).within(connections)
    size = PoolAdvice().largest_size(connections)
    assert lowered.size == size
    assert lowered.recycle == 60
    assert lowered.connections <= connections < size + 1 + (size + 1) // 5


def test_an_overflow_that_was_said_stays_as_far_as_it_fits() -> None:
    assert PoolAdvice(size=100, max_overflow=3).within(50) == PoolAdvice(size=47, max_overflow=3)
    assert PoolAdvice(size=100, max_overflow=60).within(50) == PoolAdvice(size=1, max_overflow=49)


@pytest.mark.parametrize("connections", [0, -7])
def test_one_connection_there_always_is(connections: int) -> None:
    assert PoolAdvice().within(connections).connections == 1


def test_the_options_are_those_of_an_engine() -> None:
    assert PoolAdvice(statement_timeout=2.5).engine_options() == {
        "pool_size": 10,
        "max_overflow": 2,
        "pool_pre_ping": True,
        "pool_recycle": 450,
        "pool_timeout": 30.0,
        "connect_args": {
            "server_settings": {
                "application_name": "celeriq",
                "idle_in_transaction_session_timeout": "600000",
                "statement_timeout": "2500",
            }
        },
    }


def test_the_applications_own_options_win_and_lose_none_of_the_others() -> None:
    own: dict[str, Any] = {"server_settings": {"jit": "off", "application_name": "shop"}, "timeout": 3}
    options = PoolAdvice().engine_options(pool_size=3, echo=True, connect_args=own)
    assert (options["pool_size"], options["echo"], options["pool_recycle"]) == (3, True, 450)
    assert options["connect_args"] == {
        "server_settings": {"jit": "off", "application_name": "shop", "idle_in_transaction_session_timeout": "600000"},
        "timeout": 3,
    }


def test_nothing_of_asyncpgs_is_said_to_another_driver() -> None:
    assert "connect_args" not in PoolAdvice().engine_options("sqlite+aiosqlite://")
    assert "connect_args" in PoolAdvice().engine_options("postgresql+asyncpg://db/shop")


def test_behind_pgbouncer_nothing_is_kept_and_nothing_set() -> None:
    said = PoolAdvice(pgbouncer=True, application_name="w").engine_options()["connect_args"]
    assert said["prepared_statement_name_func"]() == ""
    assert (said["statement_cache_size"], said["prepared_statement_cache_size"]) == (0, 0)
    assert said["server_settings"] == {"application_name": "w"}


@pytest.mark.parametrize(
    ("url", "written"),
    [
        ("postgresql+asyncpg://me:secret@db:6432/shop", "db:6432/shop"),
        ("postgresql+asyncpg://me@db/shop", "db:5432/shop"),
        ("postgresql+asyncpg:///a%2Fb?host=/run/pg", "/run/pg:5432/a%2Fb"),
        ("postgresql+asyncpg://me@/shop?host=/run/pg&port=7000", "/run/pg:7000/shop"),
        ("postgresql+asyncpg:///shop?host=a:1&host=b:2", "a:1,b:2:5432/shop"),
    ],
)
def test_a_place_is_written_without_the_password_and_read_again(url: str, written: str) -> None:
    place = Place.of(make_url(url))
    assert str(place) == written
    assert str(Place.read(written)) == written.replace("%2F", "%252F")
    assert Place.read(written).server == place.server


class Bound:
    """A session, as far as it is asked for its engine."""

    def __init__(self, bind: Engine) -> None:
        self._bind = bind

    def get_bind(self) -> Engine:
        return self._bind


async def test_what_is_not_postgresql_has_no_place_and_is_asked_nothing() -> None:
    engine = create_engine("sqlite://")

    @asynccontextmanager
    async def open_sqlite(_: PoolAdvice) -> AsyncGenerator[Any]:
        yield lambda: Bound(engine)

    database = Database("main", open_sqlite, PoolAdvice())
    await database.open(PoolAdvice())
    assert database.engine is engine
    assert database.place is None
    await database.close()
    engine.dispose()
