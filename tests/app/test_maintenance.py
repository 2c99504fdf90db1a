"""What the application does by itself, and when."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from httpx import AsyncClient
from sqlalchemy import update

from broker import broker, scheduler
from db import documents
from db.models import Document
from tasks.maintenance import purge, report
from tests.app.fixtures import ended, pdf, upload


async def test_what_the_tasks_declare_is_in_the_table(client: AsyncClient) -> None:
    await scheduler._declare()
    rows = {row.name: row.schedule for row in await scheduler.schedules.list()}
    assert rows == {
        "articles.run_pipeline": '{"cron": "*/10 * * * *", "tz": "UTC"}',
        "maintenance.purge": '{"cron": "0 3 * * *", "tz": "UTC"}',
        "maintenance.report": '{"interval": 3600.0}',
    }


async def test_the_purge_deletes_old_uploads_that_were_never_read(client: AsyncClient) -> None:
    read = await upload(client, pdf("The ferry leaves from the old harbour."))
    await ended(client, read["task_id"])
    long_ago = datetime.now(UTC) - timedelta(days=8)
    async with broker.sessions.begin() as session:
        await session.execute(update(Document).values(created_at=long_ago))
        lost = (await documents.create(session, "lost.pdf", b"%PDF")).id
        new = (await documents.create(session, "new.pdf", b"%PDF")).id
        await session.execute(update(Document).where(Document.id == lost).values(created_at=long_ago))
    assert await (await purge.kiq()).get(timeout=30) == {"deleted": 1}
    async with broker.sessions() as session:
        there = [await documents.get(session, UUID(str(one))) for one in (read["document_id"], new, lost)]
    assert [document is not None for document in there] == [True, True, False]


async def test_the_report_counts_what_there_is(client: AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await ended(client, (await upload(client, pdf("One page.")))["task_id"])
    user = (await client.post("/users", json={"email": "ada@example.org"})).json()["id"]
    await client.post("/articles", json={"author_id": user, "title": "One", "body": "a b"})
    counts = await (await report.kiq()).get(timeout=30)
    assert counts == {"documents": 1, "chunks": 1, "users": 1, "articles": 1, "pending_articles": 1}
    assert "the library has documents: 1, chunks: 1, users: 1, articles: 1, pending_articles: 1" in caplog.text
