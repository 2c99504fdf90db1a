"""One id from the request through its task to every line of the log."""

from __future__ import annotations

import json
import logging
from io import StringIO

import pytest
import structlog
from httpx import AsyncClient

from broker.logs import configure_logging
from tests.app.fixtures import ended


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, client: AsyncClient) -> StringIO:
    monkeypatch.setenv("BROKER_LOG_FORMAT", "json")
    configure_logging()
    [handler] = logging.getLogger().handlers
    assert isinstance(handler, logging.StreamHandler)
    written = StringIO()
    handler.setStream(written)
    return written


async def test_a_request_and_its_task_log_the_same_id(client: AsyncClient, lines: StringIO) -> None:
    answer = await client.post("/articles/pipeline", headers={"X-Request-ID": "from-the-client"})
    assert answer.headers["X-Request-ID"] == "from-the-client"
    task_id = answer.json()["task_id"]
    await ended(client, task_id)
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    of_the_task = [line for line in logged if line.get("task_id") == task_id]
    assert any(line["logger"] == "taskiq.receiver.receiver" for line in of_the_task)
    assert {line["correlation_id"] for line in of_the_task} == {"from-the-client"}


async def test_a_request_without_an_id_is_given_one(client: AsyncClient) -> None:
    first, second = (await client.get("/health")), (await client.get("/health"))
    assert len(first.headers["X-Request-ID"]) == 32
    assert first.headers["X-Request-ID"] != second.headers["X-Request-ID"]


async def test_an_id_that_could_forge_log_lines_is_replaced(client: AsyncClient) -> None:
    answer = await client.get("/health", headers={"X-Request-ID": 'x","level":"error'})
    assert len(answer.headers["X-Request-ID"]) == 32


async def test_a_request_leaves_no_id_behind(client: AsyncClient) -> None:
    await client.get("/health", headers={"X-Request-ID": "mine"})
    assert "correlation_id" not in structlog.contextvars.get_contextvars()
