from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from httpx import AsyncClient

from celeriq.embedded import Postgres
from tests import databases, processes
from tests.acceptance.conftest import Start, healthy
from tests.app.fixtures import ended
from tests.waiting import wait_for


@pytest.fixture
def postgres(tmp_path: Path, short_folder: Path) -> Iterator[Postgres]:
    server = Postgres(tmp_path / "own", short_folder)
    server.start()
    yield server
    server.stop()


async def test_while_the_database_is_away_the_api_says_so_and_afterwards_all_goes_on(
    postgres: Postgres, start: Start
) -> None:
    await asyncio.to_thread(command.upgrade, databases.alembic_config(postgres.url), "head")
    port = processes.free_port()
    start(processes.api(port), DB_URL=postgres.url)
    start(processes.WORKER, DB_URL=postgres.url)
    async with AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        await wait_for(lambda: healthy(client), within=60)
        created = await client.post("/users", json={"email": "ada@example.org"})
        assert created.status_code == 201

        postgres.kill()
        answer = await client.get("/users/1")
        assert (answer.status_code, answer.json()["detail"]) == (
            503,
            "The database cannot be reached; nothing was stored. Try again.",
        )
        await asyncio.to_thread(postgres.start)
        assert (await client.get("/users/1")).status_code == 200
        accepted = (await client.post("/users/1/activation")).json()
        assert (await ended(client, accepted["task_id"]))["state"] == "SUCCESS"
