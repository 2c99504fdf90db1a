"""Articles. Functions take the session first and never commit."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from db.models import Article


async def create(session: AsyncSession, author_id: int, title: str, body: str) -> Article:
    article = Article(author_id=author_id, title=title, body=body)
    session.add(article)
    await session.flush()
    return article


async def claim_pending(session: AsyncSession, limit: int) -> Sequence[Article]:
    """At most `limit` pending articles, locked: a second run works on others."""
    pending = select(Article).where(Article.status == "pending").order_by(Article.id).limit(limit)
    return (await session.scalars(pending.with_for_update(skip_locked=True))).all()


async def publish(session: AsyncSession, article: Article) -> None:
    article.words = len(article.body.split())
    article.status = "published"
    await session.flush()
