from __future__ import annotations

from broker import broker
from celeriq import TaskSession, crontab, injected
from db import articles


@broker.task(name="articles.run_pipeline", acks_late=True, schedule=crontab(minute="*/10"))
async def run_article_pipeline(limit: int = 100, session: TaskSession = injected) -> dict[str, int]:
    """Publish what is pending: all of it in one transaction, or none."""
    pending = await articles.claim_pending(session, limit)
    for article in pending:
        await articles.publish(session, article)
    return {"published": len(pending)}
