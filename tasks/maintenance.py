from __future__ import annotations

import logging
from dataclasses import asdict
from datetime import timedelta

from broker import broker
from celeriq import TaskSession, crontab, injected
from db import documents, stock
from tasks.settings import MaintenanceSettings

logger = logging.getLogger(__name__)
settings = MaintenanceSettings()


@broker.task(name="maintenance.purge", schedule=crontab(hour=3, minute=0))
async def purge(session: TaskSession = injected) -> dict[str, int]:
    """Delete uploads that nobody will ever be able to search: their ingestion was lost, or called off."""
    return {"deleted": await documents.delete_unread(session, timedelta(days=settings.unread_days))}


@broker.task(name="maintenance.report", schedule=settings.report_seconds)
async def report(session: TaskSession = injected) -> dict[str, int]:
    """Write down how much there is."""
    counts = asdict(await stock.count(session))
    logger.info("the library has %s", ", ".join(f"{name}: {number}" for name, number in counts.items()))
    return counts
