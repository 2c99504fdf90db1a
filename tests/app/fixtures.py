from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator

import pytest
from fpdf import FPDF
from httpx import ASGITransport, AsyncClient
from taskiq import TaskiqEvents

from api.main import app
from broker import broker
from celeriq.processes import Processes
from tasks.compute import compute, on_shutdown
from tests.waiting import wait_for
from tests.workers import running


@pytest.fixture(scope="session")
def compute_pool() -> Iterator[None]:
    """One pool of processes for all tests: to start one costs seconds. Nobody waits for a place in it, which would bind
    it to the loop of a test.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for event in (TaskiqEvents.WORKER_SHUTDOWN, TaskiqEvents.CLIENT_SHUTDOWN):
        broker.event_handlers[event].remove(on_shutdown)
    compute._processes = Processes(20)
    yield
    asyncio.run(compute.close())


@pytest.fixture
async def client(
    database_url: str, namespace: str, compute_pool: None, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[AsyncClient]:
    """A client of the API, whose process is the worker too: taskiq-fastapi runs the application's lifespan."""
    broker.with_namespace(namespace)
    monkeypatch.setattr(broker, "is_worker_process", True)
    async with (
        running(broker),
        AsyncClient(transport=ASGITransport(app), base_url="http://test", timeout=60) as client,
    ):
        yield client


def pdf(*pages: str, password: str | None = None) -> bytes:
    document = FPDF()
    document.set_font("helvetica", size=12)
    for page in pages:
        document.add_page()
        document.multi_cell(0, text=page)
    if password:
        document.set_encryption(owner_password=password, user_password=password)
    return bytes(document.output())


async def ended(client: AsyncClient, task_id: str, within: float = 60.0) -> dict[str, object]:
    """The task as the API shows it once it has ended."""

    async def ready() -> dict[str, object] | None:
        view: dict[str, object] = (await client.get(f"/tasks/{task_id}")).raise_for_status().json()
        return view if view["ready"] else None

    view: dict[str, object] = await wait_for(ready, within)
    return view


async def upload(client: AsyncClient, content: bytes, name: str = "a.pdf") -> dict[str, str]:
    answer = await client.post("/documents", files={"file": (name, content, "application/pdf")})
    assert answer.status_code == 202, answer.text
    accepted: dict[str, str] = answer.json()
    return accepted
