"""The history of workers that are killed while they record it: each attempt is a row, or counted as missing."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from celeriq import RedisBroker
from celeriq.redis.keys import GROUP, Keys
from tests import databases
from tests.acceptance.conftest import Start
from tests.acceptance.observing import Command, finished, is_empty, listens
from tests.conftest import Figure
from tests.waiting import wait_for

FULL = bool(os.environ.get("PROVE"))
MESSAGES = 20_000 if FULL else 800
KILLS = 20 if FULL else 4
GIVE_UP = "3"
"""Seconds, instead of an hour."""

pytestmark = [pytest.mark.proof(of="transaction"), pytest.mark.timeout(900 if FULL else 150)]


async def send_all(sender: RedisBroker) -> list[str]:
    """Task ids."""
    sent: list[str] = []
    for first in range(0, MESSAGES, 50):
        names = range(first, min(first + 50, MESSAGES))
        results = await asyncio.gather(*(sender.send_task("run", [str(name), 0.02]) for name in names))
        sent += [result.id for result in results]
    return sent


async def passed(database_url: str, share: float) -> bool:
    return len(await finished(database_url)) >= share * MESSAGES


async def settled(redis: Redis, namespace: str) -> int:
    """Attempts that have ever ended."""
    told: Any = await redis.xinfo_stream(Keys(namespace).history)
    return int(told["entries-added"])


async def accounted(redis: Redis, namespace: str, database_url: str) -> tuple[int, int] | None:
    """Rows, and what is missing, when nothing is left to be recorded."""
    key = Keys(namespace).history
    pending: Any = await redis.xpending(key, GROUP)
    if pending["pending"] or await redis.xlen(key):
        return None
    rows = await databases.value_of(database_url, "select count(*) from celeriq_history")
    missing = await databases.value_of(database_url, "select coalesce(sum(entries), 0) from celeriq_history_gaps")
    return (int(rows), int(missing)) if rows + missing == await settled(redis, namespace) else None


async def test_a_killed_recorder_loses_nothing_and_writes_nothing_twice(
    sender: RedisBroker,
    start: Start,
    worker: Command,
    kind: str,
    redis: Redis,
    namespace: str,
    database_url: str,
    figure: Figure,
) -> None:
    workers = [start(worker, LEASE="1", GIVE_UP=GIVE_UP) for _ in range(2)]
    sending = asyncio.create_task(send_all(sender))
    for kill in range(KILLS):
        await wait_for(partial(passed, database_url, (kill + 1) / (KILLS + 1)), within=120)
        workers[kill % 2].kill()
        workers[kill % 2] = start(worker, LEASE="1", GIVE_UP=GIVE_UP)
    await sending
    await wait_for(lambda: is_empty(redis, namespace), within=120)
    rows, missing = await wait_for(lambda: accounted(redis, namespace, database_url), within=60)
    # Workers die here in their first moments, again and again; a message that three of them had is a dead letter.
    ends = "select task_id from celeriq_history where state in ('SUCCESS', 'DEAD')"
    ids = Counter(await databases.column_of(database_url, ends))
    assert missing == 0
    assert len(ids) == MESSAGES
    assert set(ids.values()) == {1}
    figure(f"{kind} worker, {MESSAGES} messages, {KILLS} recorders killed: {rows} attempts settled, each one row")


async def test_what_recorders_cannot_keep_up_with_is_counted_though_they_are_killed(
    sender: RedisBroker,
    start: Start,
    worker: Command,
    kind: str,
    redis: Redis,
    namespace: str,
    database_url: str,
    figure: Figure,
) -> None:
    """Somebody holds the table, and the stream overflows."""
    variables = {"LEASE": "1", "GIVE_UP": GIVE_UP, "HISTORY_LIMIT": "100"}
    workers = [start(worker, **variables) for _ in range(2)]
    for one in workers:
        await wait_for(partial(listens, one), within=60)
    sending = asyncio.create_task(send_all(sender))
    await wait_for(partial(passed, database_url, 0.1), within=60)
    other = await databases.connect(database_url)
    async with other.transaction():
        await other.execute("lock table celeriq_history")
        await wait_for(partial(passed, database_url, 0.5), within=120)
        workers[0].kill()
        workers[0] = start(worker, **variables)
        await wait_for(partial(passed, database_url, 0.9), within=120)
    await other.close()
    await sending
    await wait_for(lambda: is_empty(redis, namespace), within=120)
    rows, missing = await wait_for(lambda: accounted(redis, namespace, database_url), within=60)
    assert missing > 0
    told = f"{rows} of {rows + missing} attempts are rows, {missing} are counted as missing, none is unaccounted for"
    figure(f"{kind} worker, {MESSAGES} messages, history held up: {told}")
