"""FastAPI beside the workers: the same engine, the same session, and a commit before the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Annotated, cast

from fastapi import Depends, FastAPI
from fastapi.requests import HTTPConnection
from sqlalchemy.ext.asyncio import AsyncSession

from celeriq.redis.streams import RedisBroker
from celeriq.session import transaction


def lifespan(broker: RedisBroker) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """A FastAPI lifespan that starts and stops `broker`, and with it the engine that it was given.

    In a worker, where taskiq-fastapi runs the application's lifespan, the broker has started already.
    """

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncGenerator[None]:
        app.state.celeriq = broker
        if broker.is_worker_process:
            yield
            return
        async with broker:
            yield

    return run


async def request_session(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    broker = cast("RedisBroker", connection.app.state.celeriq)
    async with transaction(broker.sessions) as session:
        yield session


# FastAPI runs a dependency's exit after the response unless told otherwise: a commit that fails would follow a 200.
RequestSession = Annotated[AsyncSession, Depends(request_session, scope="function")]
"""The request's session: committed before the response is sent, rolled back when the handler raises."""
