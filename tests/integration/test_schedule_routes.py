"""Schedules over HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from celeriq import Scheduler
from celeriq.fastapi import schedule_router
from tests.integration.conftest import MakeBroker

DAILY: dict[str, Any] = {"name": "daily/one", "task": "note", "schedule": {"cron": "0 2 * * *"}, "args": [1]}


@pytest.fixture
async def client(make_broker: MakeBroker, open_sessions: Any) -> AsyncGenerator[AsyncClient]:
    broker = make_broker().with_sessions(open_sessions)

    @broker.task(name="note")
    async def note(number: int = 0) -> int:
        return number

    app = FastAPI()
    app.include_router(schedule_router(Scheduler(broker, tz="Europe/Berlin")), prefix="/schedules")
    async with broker, AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        yield client


async def test_a_schedule_is_made_read_changed_and_deleted(client: AsyncClient) -> None:
    made = await client.post("/schedules", json=DAILY)
    assert made.status_code == 201
    view = made.json()
    assert view["schedule"] == '{"cron": "0 2 * * *", "tz": "Europe/Berlin"}'
    assert (view["args"], view["is_declared"], view["version"]) == ([1], False, 1)
    assert (await client.get("/schedules")).json() == [view]
    assert (await client.get("/schedules/daily/one")).json() == view

    change = {"args": [2], "policy": {"overlap": "skip"}, "version": 1}
    changed = (await client.patch("/schedules/daily/one", json=change)).json()
    assert (changed["args"], changed["policy"], changed["version"]) == ([2], {"overlap": "skip"}, 2)
    assert (await client.post("/schedules/daily/one/pause")).json()["paused"] is True
    assert (await client.post("/schedules/daily/one/resume")).json()["paused"] is False
    run = await client.post("/schedules/daily/one/run")
    assert run.status_code == 202
    assert (await client.get("/schedules/daily/one")).json()["last_task_id"] == run.json()["task_id"]

    assert (await client.delete("/schedules/daily/one")).status_code == 204
    assert (await client.get("/schedules")).json() == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "told"),
    [
        ("GET", "/daily/two", None, 404, "did you mean 'daily/one'?"),
        ("POST", "", DAILY, 409, "there is a schedule 'daily/one' already"),
        ("PATCH", "/daily/one", {"args": [3], "version": 7}, 409, "it has version 1, not 7"),
        ("PATCH", "/daily/one", {"schedule": {"cron": "0 2 31 2 *"}}, 422, "never comes"),
        ("PATCH", "/daily/one", {"policy": {"grace": -1}}, 422, "grace is -1.0"),
        ("PATCH", "/daily/one", {"shedule": {}}, 422, "Extra inputs"),
        ("POST", "", {**DAILY, "name": "other", "task": "nots"}, 422, "did you mean 'note'?"),
    ],
)
async def test_what_cannot_be_says_why(
    client: AsyncClient, method: str, path: str, body: dict[str, Any] | None, status: int, told: str
) -> None:
    await client.post("/schedules", json=DAILY)
    answer = await client.request(method, f"/schedules{path}", json=body)
    assert answer.status_code == status
    assert told in answer.text
