"""Users. Functions take the session first and never commit: whoever opened the transaction ends it."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from db.models import User


async def create(session: AsyncSession, email: str) -> User:
    user = User(email=email)
    session.add(user)
    await session.flush()
    return user


async def get(session: AsyncSession, user_id: int) -> User | None:
    """The user and the articles, in two statements."""
    found = await session.scalars(select(User).where(User.id == user_id).options(selectinload(User.articles)))
    return found.one_or_none()


async def activate(session: AsyncSession, user_id: int) -> User | None:
    """The user, active from now on; None if there is none. A second call changes nothing."""
    user = await get(session, user_id)
    if user is not None and not user.is_active:
        user.is_active = True
        user.activated_at = datetime.now(UTC)
        await session.flush()
    return user
