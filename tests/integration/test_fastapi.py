"""The request's session: committed before the answer, on the engine that the broker opened."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from httpx import ASGITransport, AsyncClient
from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession

import celeriq.fastapi
from celeriq import PoolAdvice, RedisBroker, SessionsMissingError
from celeriq.fastapi import RequestSession
from tests import databases
from tests.integration.conftest import MakeBroker

TABLE = "create table effect (id int unique deferrable initially deferred)"


class UnwellError(Exception):
    """What the application answers in words of its own."""


def routes(broker: RedisBroker) -> APIRouter:
    """One for each way to answer."""
    router = APIRouter()

    async def insert(session: AsyncSession, number: int) -> None:
        await session.execute(text("insert into effect values (:number)"), {"number": number})

    @router.post("/effects/{number}")
    async def add(number: int, session: RequestSession) -> dict[str, str]:
        await insert(session, number)
        if number == -2:
            raise UnwellError
        if number == -3:
            raise RuntimeError
        if number < 0:
            raise HTTPException(422, "negative")
        return {"status": "ok"}

    @router.post("/streamed/{number}")
    async def stream(number: int, session: RequestSession) -> StreamingResponse:
        await insert(session, number)

        async def lines() -> AsyncIterator[str]:
            async with broker.sessions() as another:
                yield f"{await another.scalar(text('select count(*) from effect'))} committed"

        return StreamingResponse(lines())

    @router.post("/too-late/{number}")
    async def too_late(number: int, session: RequestSession) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            await insert(session, number)
            yield "never"

        return StreamingResponse(lines())

    @router.post("/generated/{number}", response_class=StreamingResponse)
    async def generate(number: int, session: RequestSession) -> AsyncIterator[str]:
        await insert(session, number)
        yield "never"

    @router.post("/afterwards/{number}")
    async def afterwards(number: int, session: RequestSession, tasks: BackgroundTasks) -> None:
        tasks.add_task(insert, session, number)

    return router


@pytest.fixture
async def app(make_broker: MakeBroker, open_sessions: Any, database_url: str) -> AsyncGenerator[FastAPI]:
    await databases.execute(database_url, TABLE)
    broker = make_broker().with_sessions(open_sessions, PoolAdvice(size=1, max_overflow=0, timeout=2))
    app = FastAPI(lifespan=celeriq.fastapi.lifespan(broker))
    app.include_router(routes(broker))

    @app.exception_handler(UnwellError)
    async def unwell(*_: object) -> JSONResponse:
        return JSONResponse({"detail": "unwell"}, 200)

    async with app.router.lifespan_context(app):
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncGenerator[AsyncClient]:
    async with AsyncClient(transport=ASGITransport(app, raise_app_exceptions=False), base_url="http://test") as client:
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


@pytest.mark.parametrize(
    ("number", "status"), [(-1, 422), (-2, 200), (-3, 500)], ids=["refused", "handled elsewhere", "broken"]
)
async def test_a_handler_that_raises_is_rolled_back(
    client: AsyncClient, database_url: str, number: int, status: int
) -> None:
    """Whatever is answered in the end: an exception handler of the application comes after the session's end."""
    assert (await client.post(f"/effects/{number}")).status_code == status
    assert await effects(database_url) == []


async def test_a_stream_begins_after_the_commit(client: AsyncClient, database_url: str) -> None:
    """Its first byte says 200."""
    assert (await client.post("/streamed/1")).text == "1 committed"
    failed = await client.post("/streamed/1")
    assert (failed.status_code, "committed" in failed.text) == (500, False)
    assert await effects(database_url) == [1]


@pytest.mark.parametrize("path", ["/too-late/1", "/generated/1", "/afterwards/1"])
async def test_a_session_cannot_be_used_after_its_commit(
    app: FastAPI, client: AsyncClient, database_url: str, path: str
) -> None:
    """It would begin a transaction that nobody ends, and keep a connection: this pool has one."""
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as careless:
        for _ in range(3):
            with pytest.raises(InvalidRequestError, match="closed"):
                await careless.post(path)
    assert (await client.post("/effects/2")).status_code == 200
    assert await effects(database_url) == [2]


async def test_a_broker_without_sessions_says_what_to_do(make_broker: MakeBroker) -> None:
    with pytest.raises(SessionsMissingError, match="with_sessions"):
        _ = make_broker().sessions
