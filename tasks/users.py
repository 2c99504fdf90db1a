from __future__ import annotations

from broker import broker
from celeriq import TaskSession, injected
from db import users


class UnknownUserError(LookupError):
    """There is no such user."""


@broker.task(name="users.activate", autoretry_for=(Exception,), max_retries=3, default_retry_delay=60)
async def activate_user(user_id: int, session: TaskSession = injected) -> dict[str, int]:
    """Set a user active; on an error again after a minute, three times."""
    user = await users.activate(session, user_id)
    if user is None:
        raise UnknownUserError(f"there is no user {user_id}")
    return {"user_id": user.id, "articles": len(user.articles)}
