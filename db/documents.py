"""Documents and their searchable chunks. Functions take the session first and never commit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, insert, select
from sqlalchemy import delete as delete_rows
from sqlalchemy.ext.asyncio import AsyncSession

from db.models import Chunk, Document


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, with its page and its embedding."""

    page: int
    text: str
    embedding: Sequence[float]


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found; `distance` is the cosine distance, 0 for the same direction, at most 2."""

    document_id: UUID
    filename: str
    page: int
    text: str
    distance: float


async def create(session: AsyncSession, filename: str, content: bytes) -> Document:
    document = Document(filename=filename, content=content, size=len(content))
    session.add(document)
    await session.flush()
    return document


async def get(session: AsyncSession, document_id: UUID) -> Document | None:
    return await session.get(Document, document_id)


async def content(session: AsyncSession, document_id: UUID) -> bytes | None:
    return await session.scalar(select(Document.content).where(Document.id == document_id))


async def delete(session: AsyncSession, document_id: UUID) -> bool:
    """Whether there was such a document; its chunks go with it."""
    removed = await session.execute(delete_rows(Document).where(Document.id == document_id).returning(Document.id))
    return removed.first() is not None


async def delete_unread(session: AsyncSession, older_than: timedelta) -> int:
    """Delete documents without pages, stored longer ago than this; how many there were."""
    old = Document.created_at < func.now() - older_than
    removed = await session.execute(delete_rows(Document).where(Document.pages.is_(None), old).returning(Document.id))
    return len(removed.all())


async def count_chunks(session: AsyncSession, document_id: UUID) -> int:
    return await session.scalar(select(func.count()).where(Chunk.document_id == document_id)) or 0


async def store_passages(session: AsyncSession, document_id: UUID, pages: int, passages: Sequence[Passage]) -> bool:
    """Replace the document's chunks; False if it has been deleted meanwhile.

    The document stays locked until the transaction ends, so two that do this at once leave the chunks of one.
    """
    document = await session.scalar(select(Document).where(Document.id == document_id).with_for_update())
    if document is None:
        return False
    document.pages = pages
    await session.execute(delete_rows(Chunk).where(Chunk.document_id == document_id))
    rows = [
        {"document_id": document_id, "position": position, "page": p.page, "text": p.text, "embedding": p.embedding}
        for position, p in enumerate(passages)
    ]
    if rows:
        await session.execute(insert(Chunk), rows)
    return True


async def search(session: AsyncSession, embedding: Sequence[float], limit: int) -> list[Hit]:
    """The nearest passages, nearest first."""
    rows = await session.execute(nearest(embedding, limit))
    return [Hit(row.document_id, row.filename, row.page, row.text, row.distance) for row in rows]


def nearest(embedding: Sequence[float], limit: int) -> Select[Any]:
    """The statement of a search: by the HNSW index on the cosine distance."""
    distance = Chunk.embedding.cosine_distance(embedding).label("distance")
    found = select(Chunk.document_id, Chunk.page, Chunk.text, distance).order_by(distance).limit(limit).subquery()
    # The join comes after the limit, or the planner may leave the index aside.
    return (
        select(found, Document.filename).join(Document, Document.id == found.c.document_id).order_by(found.c.distance)
    )
