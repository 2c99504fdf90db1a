"""From the upload of a PDF to a search that finds its words, and every way in which that can go wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from httpx import AsyncClient
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import text

import tasks.compute
import tasks.documents
from api.settings import MIB, settings
from broker import broker
from celeriq import PoolAdvice
from db.documents import nearest
from db.engine import open_sessions
from db.models import DIMENSIONS
from tasks.articles import run_article_pipeline
from tasks.documents import ingest_pdf
from tests import databases
from tests.app.fixtures import ended, pdf, upload
from tests.waiting import wait_for

WHALE = "Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail about a little."
OPEN_TRANSACTIONS = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'"
COOK = "Peel the potatoes, slice the onions thinly, and let both simmer in vegetable broth for twenty minutes."


async def count(database_url: str, table: str) -> int:
    return int(await databases.value_of(database_url, f"select count(*) from {table}"))


async def test_an_uploaded_pdf_can_be_searched(client: AsyncClient) -> None:
    accepted = await upload(client, pdf(WHALE, COOK))
    view = await ended(client, accepted["task_id"])
    assert view["result"] == {"status": "success", "chunks": 2}

    document = (await client.get(f"/documents/{accepted['document_id']}")).json()
    assert (document["pages"], document["chunks"], document["filename"]) == (2, 2, "a.pdf")

    [first, *_] = (await client.get("/documents/search", params={"q": "potatoes and onions in broth"})).json()
    assert (first["page"], first["text"]) == (2, COOK)


async def test_a_client_can_follow_the_progress(client: AsyncClient) -> None:
    accepted = await upload(client, pdf(*[f"{WHALE} {number}" for number in range(60)]))
    async with client.stream("GET", f"/tasks/{accepted['task_id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) async for line in stream.aiter_lines() if line.startswith("data: ")]
    steps = {event["progress"]["step"]: event["progress"] for event in events if event["state"] == "PROGRESS"}
    assert steps["embed"] == {"step": "embed", "current": 60, "total": 60}
    assert events[-1]["result"] == {"status": "success", "chunks": 60}


async def test_a_document_that_is_ingested_twice_has_its_chunks_once(client: AsyncClient, database_url: str) -> None:
    accepted = await upload(client, pdf(WHALE, COOK))
    again = [(await ingest_pdf.kiq(UUID(accepted["document_id"]))).task_id for _ in range(3)]
    for task_id in (accepted["task_id"], *again):
        assert (await ended(client, task_id))["state"] == "SUCCESS"
    assert await count(database_url, "chunks") == 2


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 422, "The file is empty."),
        (b"<html>not a PDF</html>", 415, "The file is not a PDF."),
        (b"%PDF-" + bytes(settings.max_upload_bytes), 413, "The file is over 25 MiB."),
    ],
)
async def test_what_cannot_be_a_document_is_refused_at_the_door(
    client: AsyncClient, database_url: str, content: bytes, status: int, message: str
) -> None:
    answer = await client.post("/documents", files={"file": ("a.pdf", content, "application/pdf")})
    assert (answer.status_code, answer.json()["detail"]) == (status, message)
    assert await count(database_url, "documents") == 0


async def test_a_body_far_over_the_limit_is_not_even_read(client: AsyncClient, database_url: str) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.pdf"\r\n\r\n%PDF-'
        while sent < 100 * MIB:
            sent += MIB
            yield bytes(MIB)

    answer = await client.post(
        "/documents", content=endless(), headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 413
    assert sent < 30 * MIB
    assert await count(database_url, "documents") == 0


async def test_an_upload_without_a_file_says_so(client: AsyncClient) -> None:
    answer = await client.post("/documents", data={"other": "field"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "file"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pdf(WHALE, password="secret"), "the PDF is encrypted"),
        (pdf(""), "the PDF has no text"),
        (b"%PDF-1.7 and then nothing", "not a readable PDF"),
        (pdf(WHALE)[:-200], ""),
    ],
    ids=["encrypted", "without text", "not a PDF inside", "cut short"],
)
async def test_a_document_that_nobody_can_read_fails_with_the_reason_and_is_not_kept(
    client: AsyncClient, database_url: str, content: bytes, reason: str
) -> None:
    accepted = await upload(client, content)
    view = await ended(client, accepted["task_id"])
    assert view["state"] == "FAILURE"
    error: Any = view["error"]
    assert error["type"] == "UnreadableDocumentError"
    assert error["message"].startswith(reason)
    assert await count(database_url, "documents") == 0
    assert await count(database_url, "chunks") == 0


async def test_a_document_deleted_while_it_is_ingested_leaves_nothing(
    client: AsyncClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, deleted = asyncio.Event(), asyncio.Event()
    extract = tasks.documents.extract

    async def slow_extract(*args: Any) -> list[str]:
        reading.set()
        await deleted.wait()
        return await extract(*args)

    monkeypatch.setattr(tasks.documents, "extract", slow_extract)
    accepted = await upload(client, pdf(WHALE))
    await reading.wait()
    assert (await client.delete(f"/documents/{accepted['document_id']}")).status_code == 204
    deleted.set()
    view = await ended(client, accepted["task_id"])
    assert "was deleted while it was being ingested" in str(view["error"])
    assert await count(database_url, "chunks") == 0


async def test_no_connection_is_held_while_a_document_is_computed(
    client: AsyncClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: list[int] = []
    compute = tasks.compute.compute

    async def watched(*args: Any) -> Any:
        busy.append(await databases.value_of(database_url, OPEN_TRANSACTIONS))
        return await compute(*args)

    monkeypatch.setattr(tasks.documents, "compute", watched)
    accepted = await upload(client, pdf(WHALE))
    assert (await ended(client, accepted["task_id"]))["state"] == "SUCCESS"
    assert busy == [0, 0, 0]


async def test_a_thousand_pages_are_good_input(client: AsyncClient) -> None:
    accepted = await upload(client, pdf(*[f"Page {number} of the long book. {WHALE}" for number in range(1000)]))
    view = await ended(client, accepted["task_id"], within=110)
    assert view["result"] == {"status": "success", "chunks": 1000}


async def test_a_queue_that_cannot_be_reached_leaves_no_document(
    client: AsyncClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise RedisConnectionError("no route to the queue")

    monkeypatch.setattr(broker.result_backend, "store", away)
    answer = await client.post("/documents", files={"file": ("a.pdf", pdf(WHALE), "application/pdf")})
    assert (answer.status_code, answer.json()["detail"]) == (
        503,
        "The queue cannot be reached; nothing was stored. Try again.",
    )
    assert await count(database_url, "documents") == 0


@pytest.mark.parametrize("q", ["", "   "])
async def test_a_search_without_text_says_what_to_do(client: AsyncClient, q: str) -> None:
    answer = await client.get("/documents/search", params={"q": q})
    assert (answer.status_code, answer.json()["detail"]) == (422, "Say what to look for: /documents/search?q=...")


async def test_a_search_without_any_word_says_so(client: AsyncClient) -> None:
    answer = await client.get("/documents/search", params={"q": "?!"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "There is no word to look for in '?!'.")


async def test_an_unknown_document_is_not_found(client: AsyncClient) -> None:
    unknown = uuid4()
    for answer in (await client.get(f"/documents/{unknown}"), await client.delete(f"/documents/{unknown}")):
        assert (answer.status_code, answer.json()["detail"]) == (404, f"There is no document {unknown}.")


async def test_an_unknown_task_is_not_found_and_a_waiting_one_is_pending(client: AsyncClient) -> None:
    answer = await client.get("/tasks/nobody")
    assert answer.status_code == 404
    assert "There is no task 'nobody'" in answer.json()["detail"]
    assert (await client.get("/tasks/nobody/events")).status_code == 404

    waiting = await run_article_pipeline.kicker().with_labels(queue="nobody-reads-this").kiq()
    assert (await client.get(f"/tasks/{waiting.task_id}")).json()["state"] == "PENDING"


async def test_search_finds_a_passage_among_a_thousand_by_the_index(client: AsyncClient, database_url: str) -> None:
    subjects = ["tax", "garden", "engine", "violin", "harbour", "glacier", "compiler", "orchard", "tunnel", "comet"]
    verbs = ["repairs", "paints", "measures", "forgets", "buys", "describes", "hides", "studies", "sells", "moves"]
    pages = [f"Note {a}{b}{c}: the {x} keeper {y} the {z}." for a, x in enumerate(subjects)
             for b, y in enumerate(verbs) for c, z in enumerate(subjects)]  # fmt: skip
    pages[617] = "The lighthouse in Skagen burned whale oil until the winter of 1788."
    accepted = await upload(client, pdf(*pages))
    assert (await ended(client, accepted["task_id"], within=110))["result"] == {"status": "success", "chunks": 1000}

    [first, *_] = (
        await client.get("/documents/search", params={"q": "which oil did the Skagen lighthouse burn"})
    ).json()
    assert first["page"] == 618

    await databases.execute(database_url, "analyze")
    async with open_sessions(PoolAdvice()) as sessions, sessions() as session:
        search = nearest([1.0] * DIMENSIONS, 5).compile(session.get_bind(), compile_kwargs={"literal_binds": True})
        assert await session.scalar(text("show hnsw.ef_search")) == "120"
        plan = [line for (line,) in await session.execute(text(f"explain {search}"))]
    assert any("Index Scan using ix_chunks_embedding" in line for line in plan), plan


async def test_the_limit_of_results_is_kept(client: AsyncClient) -> None:
    accepted = await upload(client, pdf(WHALE, COOK, WHALE))
    await ended(client, accepted["task_id"])
    assert len((await client.get("/documents/search", params={"q": "sail", "limit": 2})).json()) == 2
    assert (await client.get("/documents/search", params={"q": "sail", "limit": 0})).status_code == 422


async def test_the_states_in_between_are_seen_in_order(client: AsyncClient) -> None:
    accepted = await upload(client, pdf(WHALE))
    seen: list[str] = []

    async def succeeded() -> bool:
        state = str((await client.get(f"/tasks/{accepted['task_id']}")).json()["state"])
        if state not in seen:
            seen.append(state)
        return state == "SUCCESS"

    await wait_for(succeeded, within=60)
    assert seen == [state for state in ("PENDING", "PROGRESS", "SUCCESS") if state in seen]


async def test_a_file_name_is_cut_to_what_can_be_stored(client: AsyncClient) -> None:
    accepted = await upload(client, pdf(WHALE), name="C:\\papers\\" + 300 * "a" + ".pdf")
    name = (await client.get(f"/documents/{accepted['document_id']}")).json()["filename"]
    assert (len(name), name[-5:]) == (255, "a.pdf")


async def test_a_body_over_the_limit_is_refused_by_its_announced_length(client: AsyncClient) -> None:
    content = b"%PDF-" + bytes(26 * MIB)
    answer = await client.post("/documents", files={"file": ("a.pdf", content, "application/pdf")})
    assert (answer.status_code, answer.json()["detail"]) == (413, "The file is over 25 MiB.")


async def test_while_redis_is_away_an_upload_is_refused_and_nothing_is_stored(
    client: AsyncClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise RedisConnectionError("connection refused")

    monkeypatch.setattr(broker.result_backend, "store", away)
    monkeypatch.setattr(broker.result_backend, "find", away)
    answer = await client.post("/documents", files={"file": ("a.pdf", pdf(WHALE), "application/pdf")})
    assert (answer.status_code, answer.json()["detail"]) == (
        503,
        "The queue cannot be reached; nothing was stored. Try again.",
    )
    assert await count(database_url, "documents") == 0
    assert (await client.get("/tasks/any")).status_code == 503
