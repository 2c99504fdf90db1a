"""The application's HTTP side: `uvicorn api.main:app`."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError
from sqlalchemy.exc import InterfaceError, OperationalError
from taskiq.exceptions import SendTaskError

import celeriq.fastapi
from api.correlation import CorrelationMiddleware
from api.routes import articles, documents, tasks, users
from api.settings import settings
from broker import broker
from broker.logs import configure_logging

logger = logging.getLogger(__name__)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    configure_logging()
    async with celeriq.fastapi.lifespan(broker)(app):
        yield


# Uploads have a lower limit of their own, which answers in their words.
app = FastAPI(title="Document library", lifespan=lifespan, max_body_size=2 * settings.max_upload_bytes)
app.add_middleware(CorrelationMiddleware)
app.include_router(documents.uploads)
app.include_router(documents.router)
app.include_router(users.router)
app.include_router(articles.router)
app.include_router(tasks.router)


@app.exception_handler(SendTaskError)
@app.exception_handler(RedisError)
async def queue_unreachable(_: Request, error: Exception) -> JSONResponse:
    logger.error("the queue cannot be reached", exc_info=error)
    return JSONResponse({"detail": "The queue cannot be reached; nothing was stored. Try again."}, 503)


@app.exception_handler(OSError)
@app.exception_handler(OperationalError)
@app.exception_handler(InterfaceError)
async def database_unreachable(_: Request, error: Exception) -> JSONResponse:
    """While PostgreSQL is away asyncpg raises the socket's own error, and SQLAlchemy's for a connection that broke."""
    logger.error("the database cannot be reached", exc_info=error)
    return JSONResponse({"detail": "The database cannot be reached; nothing was stored. Try again."}, 503)


@app.exception_handler(RequestValidationError)
async def invalid(_: Request, error: Exception) -> JSONResponse:
    """FastAPI's answer without the input, which JSON may not be able to hold."""
    errors: Sequence[Any] = cast("RequestValidationError", error).errors()
    return JSONResponse({"detail": [{part: told[part] for part in ("type", "loc", "msg")} for told in errors]}, 422)


@app.get("/health", tags=["operations"])
async def health() -> dict[str, str]:
    return {"status": "ok"}
