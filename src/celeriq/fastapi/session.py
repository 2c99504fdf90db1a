"""The request's session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, cast

from fastapi import Depends
from fastapi.requests import HTTPConnection
from sqlalchemy.ext.asyncio import AsyncSession

from celeriq.redis.streams import RedisBroker
from celeriq.session import transaction


async def request_session(connection: HTTPConnection) -> AsyncIterator[AsyncSession]:
    broker = cast("RedisBroker", connection.app.state.celeriq)
    # Closed for good: the body of a streaming response, which is made after the commit, would begin a transaction that
    # nobody ends, on a connection that nobody gives back.
    async with transaction(partial(broker.sessions, close_resets_only=False)) as session:
        yield session


# FastAPI runs a dependency's exit after the response unless told otherwise: a commit that fails would follow a 200.
RequestSession = Annotated[AsyncSession, Depends(request_session, scope="function")]
"""The request's session: committed before the response is sent, rolled back when the handler raises.

What streams its response has committed before the first byte, and uses another one from then on:
`async with broker.sessions() as session`.
"""
