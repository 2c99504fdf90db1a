"""The application under `taskiq worker` and `taskiq scheduler`, as processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from httpx import AsyncClient
from redis.asyncio import Redis

from celeriq.redis.keys import Keys
from tests import databases, processes
from tests.acceptance.conftest import Start
from tests.app.fixtures import ended, pdf, upload
from tests.processes import Process
from tests.waiting import wait_for

EVERY_SECOND = """
from broker import broker
from celeriq import Record
from tasks.articles import run_article_pipeline

@broker.task(name="every_second", schedule=[{"interval": 1}])
async def every_second():
    published = await run_article_pipeline.kicker().with_task_id("every-second").kiq()
"""
SENTENCE = "The ferry to the northern islands leaves from the old harbour."


async def test_the_stock_worker_runs_what_the_api_sends(start: Start, api: AsyncClient) -> None:
    start(processes.WORKER)
    accepted = await upload(api, pdf(SENTENCE))
    assert (await ended(api, accepted["task_id"]))["result"] == {"status": "success", "chunks": 1}
    [hit] = (await api.get("/documents/search", params={"q": "ferry islands"})).json()
    assert hit["text"] == SENTENCE


async def test_the_stock_scheduler_sends_what_is_periodic(start: Start, api: AsyncClient, tmp_path: Path) -> None:
    """What the application schedules comes every ten minutes; beside it, a task of this test's own every second."""
    (tmp_path / "every_second.py").write_text(EVERY_SECOND)
    start((*processes.WORKER[:4], "every_second", "--workers", "1"), PYTHONPATH=str(tmp_path))
    scheduler = start((*processes.SCHEDULER, "every_second", "--update-interval", "1"), PYTHONPATH=str(tmp_path))

    async def published() -> bool:
        answer = await api.get("/tasks/every-second")
        return answer.is_success and answer.json()["state"] == "SUCCESS"

    await wait_for(published, within=60)
    assert scheduler.stop() in {0, -15}


async def test_a_worker_ends_at_sigterm_though_it_is_idle(start: Start, api: AsyncClient) -> None:
    """On Python 3.11 Taskiq's own broker never does (W23)."""
    worker = start(processes.WORKER)
    await listening(worker)
    assert worker.stop() == 0


@pytest.mark.parametrize("command", [processes.WORKER, processes.OWN_WORKER])
async def test_it_does_so_on_the_loop_of_asyncio_too(
    command: tuple[str, ...], start: Start, api: AsyncClient, tmp_path: Path
) -> None:
    """Where `celeriq[speed]` is not installed: neither uvloop nor hiredis can be imported."""
    missing = tmp_path / "missing"
    missing.mkdir()
    for module in ("uvloop", "hiredis"):
        (missing / f"{module}.py").write_text("raise ImportError\n")
    worker = start(command, PYTHONPATH=str(missing))
    await listening(worker)
    accepted = await upload(api, pdf(SENTENCE))
    assert (await ended(api, accepted["task_id"]))["state"] == "SUCCESS"
    assert worker.stop() == 0


async def test_a_worker_killed_in_the_middle_of_a_document_leaves_its_chunks_once(
    start: Start, api: AsyncClient, database_url: str, redis: Redis, namespace: str
) -> None:
    worker = start(processes.WORKER, BROKER_LEASE="1", INGEST_PAGES_PER_STEP="1")
    accepted = await upload(api, pdf(*[f"{SENTENCE} {number}" for number in range(200)]))

    async def half_way() -> bool:
        progress = (await api.get(f"/tasks/{accepted['task_id']}")).json()["progress"]
        return bool(progress and progress["current"] >= 20)

    await wait_for(half_way, within=60)
    worker.kill()
    view = (await api.get(f"/tasks/{accepted['task_id']}")).json()
    assert view["state"] == "PROGRESS"
    assert await databases.value_of(database_url, "select count(*) from chunks") == 0

    start(processes.WORKER, BROKER_LEASE="1")
    view = await ended(api, accepted["task_id"])
    assert view["result"] == {"status": "success", "chunks": 200}
    assert await databases.value_of(database_url, "select count(*) from chunks") == 200
    assert await redis.xlen(Keys(namespace).queue("default")) == 0


async def listening(worker: Process) -> None:
    await wait_for(lambda: "Listening started" in worker.output(), within=60)
