"""A worker in the test's own process: Taskiq's receiver or ours, stopped as `taskiq worker` stops it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from taskiq.acks import AcknowledgeType
from taskiq.receiver import Receiver as StockReceiver

from celeriq import RedisBroker
from celeriq.receiver import Receiver

RECEIVERS: dict[str, type[StockReceiver]] = {"taskiq": StockReceiver, "celeriq": Receiver}
receiver_in_use = "taskiq"
"""Set by the tests that run under both."""


@asynccontextmanager
async def running(
    broker: RedisBroker, *, slots: int = 20, acknowledge: AcknowledgeType | None = None, patience: float = 10
) -> AsyncGenerator[RedisBroker]:
    """The broker, started as a worker's and fetching; at the end it waits `patience` seconds for what runs."""
    broker.is_worker_process = True
    await broker.startup()
    stop = asyncio.Event()
    with ThreadPoolExecutor() as threads:
        receiver = RECEIVERS[receiver_in_use](
            broker, threads, max_async_tasks=slots, ack_type=acknowledge, run_startup=False, wait_tasks_timeout=patience
        )
        listening = asyncio.create_task(receiver.listen(stop))
        try:
            yield broker
        finally:
            stop.set()
            await listening
            await broker.shutdown()
