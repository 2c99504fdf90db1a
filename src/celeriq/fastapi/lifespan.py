"""What starts and stops a broker with the application that sends its tasks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from fastapi import FastAPI

from celeriq.fastapi.session import request_session
from celeriq.redis.streams import RedisBroker
from celeriq.session import open_task_session


def lifespan(broker: RedisBroker) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """A FastAPI lifespan that starts and stops `broker`, and with it the engine that it was given.

    In a worker, where taskiq-fastapi runs the application's lifespan, the broker has started already. There the
    request's session is the task's: dependencies of the application write in the transaction of the task.
    """

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncGenerator[None]:
        app.state.celeriq = broker
        if broker.is_worker_process:
            broker.dependency_overrides.setdefault(request_session, open_task_session)
            yield
            return
        async with broker:
            yield

    return run
