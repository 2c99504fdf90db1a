"""A rate and a number of running tasks that two workers share, one of which is killed: counted in the database.

Small in `make test`; `make prove ONLY=limits` runs the same at full size (PROVE=1).
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any

import pytest
from redis.asyncio import Redis

from celeriq import RedisBroker
from celeriq.middleware.rate_limits import LATE
from celeriq.redis.keys import Keys
from tests import databases
from tests.acceptance.conftest import Start
from tests.acceptance.observing import Command, child, listens
from tests.conftest import Figure
from tests.waiting import wait_for

FULL = bool(os.environ.get("PROVE"))
TASKS = 10_000 if FULL else 300
RATE, AT_ONCE = 100, 5
KEYS = 20
SECONDS = 0.4
"""Of each task: the keys allow more than the rate, also while some wait with what was killed, but not much more."""
SEEN = 0.1 if FULL else 1.0
"""Seconds from the moment that a task may start to its row, on a busy machine."""
IDLE = 15
"""Seconds in which less than half of what the rate allows may start: killed tasks wait for the lease, with their slots."""
PATIENCE = 300 if FULL else 90
TABLE = """create table runs (
    run bigserial, id text, key text, worker int, started timestamptz default clock_timestamp(), ended timestamptz
)"""

pytestmark = [pytest.mark.proof(of="limits"), pytest.mark.timeout(400 if FULL else 120)]


@dataclass(frozen=True)
class Run:
    task: str
    key: str
    started: float
    ended: float
    """For one that was killed, when its worker was."""


async def test_limits_hold_in_two_workers_one_of_which_is_killed_and_no_slot_is_lost(
    sender: RedisBroker,
    environment: dict[str, str],
    start: Start,
    worker: Command,
    kind: str,
    redis: Redis,
    database_url: str,
    namespace: str,
    figure: Figure,
) -> None:
    await databases.execute(database_url, TABLE)
    environment |= {"RATE": str(RATE), "AT_ONCE": str(AT_ONCE)}
    victim, survivor = start(worker), start(worker)
    await wait_for(lambda: listens(victim) and listens(survivor), within=60)
    victims_id = child(victim).pid
    sent_at = (await now(database_url)).timestamp()
    await send_all(sender)
    await wait_for(lambda: no_more_left(redis, namespace, 2 / 3), within=PATIENCE)
    victim.kill()
    killed_at = await now(database_url)
    await wait_for(lambda: no_more_left(redis, namespace, 1 / 3), within=PATIENCE)
    start(worker)
    await wait_for(lambda: no_more_left(redis, namespace, 0), within=PATIENCE)
    await wait_for(lambda: nothing_is_left(redis, namespace), within=PATIENCE)
    runs = await runs_until(database_url, victims_id, killed_at)

    assert {run.task for run in runs} == {str(number) for number in range(TASKS)}
    again = len(runs) - TASKS
    assert again <= KEYS * AT_ONCE
    at_once = max(most_at_once([run for run in runs if run.key == key]) for key in {run.key for run in runs})
    assert at_once <= AT_ONCE
    starts = sorted(run.started for run in runs)
    assert all(number <= (at - sent_at + LATE) * RATE + 1 for number, at in enumerate(starts, start=1))
    in_a_second = most_in_a_second(starts)
    assert in_a_second <= (1 + LATE + SEEN) * RATE + 1
    idle = idle_seconds(runs, sent_at)
    figure(
        f"{kind} worker, {TASKS} tasks, {RATE} a second and {AT_ONCE} of a key, one of two killed: at most {in_a_second} "
        f"started in a second and {at_once} of a key ran at once, {again} ran again, all in "
        f"{starts[-1] - sent_at:.0f} s, {idle} of them idle by half, nothing left"
    )
    assert idle <= IDLE or not FULL


async def send_all(sender: RedisBroker) -> None:
    @sender.task(name="limited")
    async def limited(name: str, key: str, seconds: float) -> None: ...

    await limited.kiq_many([(str(number), str(number % KEYS), SECONDS) for number in range(TASKS)])


async def now(database_url: str) -> datetime:
    found: datetime = await databases.value_of(database_url, "select clock_timestamp()")
    return found


async def no_more_left(redis: Redis, namespace: str, share: float) -> bool:
    """Of the tasks; those in line are still in their queue."""
    keys = Keys(namespace)
    left = await redis.xlen(keys.queue("default")) + await redis.zcard(keys.delayed("default"))
    return bool(left <= share * TASKS)


async def nothing_is_left(redis: Redis, namespace: str) -> bool:
    """No message, no slot, nobody in line, no moment reserved, no crash remembered."""
    left: set[bytes] = set()
    for part in ("delayed:*", "dead:*", "slots", "running:*", "line:*", "rate:*", "crashes"):
        left |= {key async for key in redis.scan_iter(match=f"{{{namespace}}}:{part}", count=10_000)}
    queues = [key async for key in redis.scan_iter(match=f"{{{namespace}}}:queue:*", count=10_000)]
    return not left and not any([await redis.xlen(key) for key in queues])


async def runs_until(database_url: str, killed_worker: int, killed_at: datetime) -> list[Run]:
    """All attempts; those whose end nobody wrote down must be the killed worker's."""
    connection: Any = await databases.connect(database_url)
    try:
        rows = await connection.fetch("select id, key, worker, started, ended from runs")
    finally:
        await connection.close()
    assert {row["worker"] for row in rows if row["ended"] is None} <= {killed_worker}
    return [
        Run(row["id"], row["key"], row["started"].timestamp(), (row["ended"] or killed_at).timestamp()) for row in rows
    ]


def most_at_once(runs: Sequence[Run]) -> int:
    """Who ends at the moment at which another starts does not run beside it."""
    changes = sorted([(run.started, 1) for run in runs] + [(run.ended, -1) for run in runs])
    return max(accumulate(change for _, change in changes))


def most_in_a_second(starts: Sequence[float]) -> int:
    return max(bisect_left(starts, at + 1) - number for number, at in enumerate(starts))


def idle_seconds(runs: Sequence[Run], since: float) -> int:
    """Whole seconds in which less than half of the rate started, while every key had more to start."""
    last: defaultdict[str, float] = defaultdict(float)
    for run in runs:
        last[run.key] = max(last[run.key], run.started)
    started = Counter(int(run.started - since) for run in runs)
    return sum(started[second] < RATE / 2 for second in range(int(min(last.values()) - since)))
