"""The request's session: committed before the answer, on the engine that the broker opened."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from httpx import ASGITransport, AsyncClient
from sqlalchemy import text

import celeriq.fastapi
from celeriq import SessionsMissingError
from celeriq.fastapi import RequestSession
from tests import databases
from tests.integration.conftest import MakeBroker

TABLE = "create table effect (id int unique deferrable initially deferred)"


@pytest.fixture
async def client(make_broker: MakeBroker, open_sessions: Any, database_url: str) -> AsyncGenerator[AsyncClient]:
    await databases.execute(database_url, TABLE)
    app = FastAPI(lifespan=celeriq.fastapi.lifespan(make_broker().with_sessions(open_sessions)))

    @app.post("/effects/{number}")
    async def add(number: int, session: RequestSession) -> dict[str, str]:
        await session.execute(text("insert into effect values (:number)"), {"number": number})
        if number < 0:
            raise HTTPException(422, "negative")
        return {"status": "ok"}

    async with (
        app.router.lifespan_context(app),
        AsyncClient(transport=ASGITransport(app, raise_app_exceptions=False), base_url="http://test") as client,
    ):
        yield client


async def effects(database_url: str) -> list[int]:
    return await databases.column_of(database_url, "select id from effect order by id")


async def test_a_request_that_succeeds_is_committed(client: AsyncClient, database_url: str) -> None:
    assert (await client.post("/effects/1")).status_code == 200
    assert await effects(database_url) == [1]


async def test_a_commit_that_fails_is_no_success(client: AsyncClient, database_url: str) -> None:
    """FastAPI ends a dependency after the response by default: the client would read 200 (F3)."""
    assert (await client.post("/effects/1")).status_code == 200
    assert (await client.post("/effects/1")).status_code == 500
    assert await effects(database_url) == [1]


async def test_a_request_that_is_refused_is_rolled_back(client: AsyncClient, database_url: str) -> None:
    assert (await client.post("/effects/-1")).status_code == 422
    assert await effects(database_url) == []


async def test_a_broker_without_sessions_says_what_to_do(make_broker: MakeBroker) -> None:
    with pytest.raises(SessionsMissingError, match="with_sessions"):
        _ = make_broker().sessions
