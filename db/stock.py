"""How much there is of everything. Functions take the session first and never commit."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from db.models import Article, Chunk, Document, User


@dataclass(frozen=True, slots=True)
class Stock:
    """Numbers of rows, all at one moment."""

    documents: int
    chunks: int
    users: int
    articles: int
    pending_articles: int


async def count(session: AsyncSession) -> Stock:
    pending = select(func.count()).select_from(Article).where(Article.status == "pending")
    every = [select(func.count()).select_from(table) for table in (Document, Chunk, User, Article)]
    row = (await session.execute(select(*(one.scalar_subquery() for one in (*every, pending))))).one()
    return Stock(*row)
