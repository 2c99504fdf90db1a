"""A task is a transaction, whatever dies: effects exactly once, and no message of a transaction lost or made up.

Small in `make test`; `make prove ONLY=transaction` runs the same at full size (PROVE=1), and with LONG=1 five times that.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Sequence
from functools import partial

import pytest
from httpx import AsyncClient, TransportError
from redis.asyncio import Redis

from celeriq.embedded import Postgres, Valkey
from celeriq.redis.keys import Keys
from tests import bookkeeping, databases, processes
from tests.acceptance.conftest import Start
from tests.conftest import Figure
from tests.processes import Process
from tests.waiting import wait_for

FULL = bool(os.environ.get("PROVE"))
CHAINS = (10_000 if os.environ.get("LONG") else 2000) if FULL else 60
AT_A_TIME = 20
BETWEEN_KILLS = 2.0 if FULL else 1.0
KILLS = 1_000_000 if FULL else 6
"""At most: where a machine is slow, those that are killed hardly begin."""
PATIENCE = 3000 if FULL else 100
API_KILLS = 30 if FULL else 3
UNSENT = 35
ROLLED_BACK = 5
BALANCE = "select balance from account"

pytestmark = [pytest.mark.proof(of="transaction"), pytest.mark.timeout(3600 if FULL else 200)]

WORKER = ("celeriq", "worker", "tests.bookkeeping:broker", "--workers", "1")
SCHEDULER = ("celeriq", "scheduler", "tests.bookkeeping:scheduler")


def api(port: int) -> tuple[str, ...]:
    return ("uvicorn", "tests.bookkeeping:app", "--host", "127.0.0.1", "--port", str(port), "--log-level", "info")


class Bank:
    """The processes of `tests.bookkeeping`, one of which dies now and then."""

    def __init__(self, start: Start, environment: dict[str, str], port: int, mortal: Sequence[int]) -> None:
        """`mortal` are those that die."""
        self._start = start
        self._environment = environment
        self._commands = [WORKER, WORKER, api(port), SCHEDULER]
        self._mortal = mortal
        self._random = random.Random(port)
        self._running: list[Process] = [self._started(number) for number in range(len(self._commands))]
        self.kills = 0

    def _started(self, number: int) -> Process:
        return self._start(self._commands[number], **self._environment)

    def _at_work(self) -> list[int]:
        return [
            number
            for number in self._mortal
            if any(
                word in self._running[number].output()
                for word in ("Listening started", "startup complete", "Startup completed")
            )
        ]

    async def kill_some(self, every: float, most: int) -> None:
        """One of those that are at work each `every` seconds; another one takes its place."""
        while self.kills < most:
            await asyncio.sleep(every)
            number = self._random.choice(await wait_for(self._at_work, within=PATIENCE))
            await asyncio.to_thread(self._running[number].kill)
            self._running[number] = self._started(number)
            self.kills += 1


async def ask(client: AsyncClient, path: str, **parameters: int) -> None:
    """Until there is an answer: the API may be dying, or starting."""

    async def answered() -> bool:
        try:
            answer = await client.post(path, params=parameters)
        except TransportError:
            return False
        return answer.status_code == 200

    await wait_for(answered, within=PATIENCE)


async def open_accounts(client: AsyncClient) -> None:
    for first in range(0, CHAINS, AT_A_TIME):
        await ask(client, f"/accounts/{first}", count=AT_A_TIME)


async def is_over(database_url: str, redis_url: str, namespace: str, accounts: int) -> bool:
    """Every account has its due, and no message is on its way any more."""
    keys = Keys(namespace)
    query = f"select count(*) from account where balance >= {bookkeeping.DUE}"
    try:
        filled = await databases.value_of(database_url, query)
        waiting = await databases.value_of(database_url, "select count(*) from celeriq_outbox")
    except OSError:
        return False
    async with Redis.from_url(redis_url) as redis:
        queued = await redis.xlen(keys.queue("default")) + await redis.zcard(keys.delayed("default"))
    return bool(filled == accounts and not waiting and not queued)


async def balances(
    start: Start, postgres: Postgres, valkey: Valkey, namespace: str, *, once: bool
) -> tuple[list[int], int]:
    """Of all accounts when the storm is over, and how many processes were killed."""
    url = databases.url_of(postgres.url, namespace)
    await databases.execute(postgres.url, f'create database "{namespace}"')
    await asyncio.to_thread(databases.migrate, url)
    await databases.execute(url, bookkeeping.TABLE)
    port = processes.free_port()
    told = {"DB_URL": url, "BROKER_URL": valkey.url, "BROKER_NAMESPACE": namespace, "ONCE": str(int(once))}
    # At the small size it is workers that must die, and while much is committed and not settled.
    certain = not (once or FULL)
    bank = Bank(start, {**told, "UNSETTLED": "0.5" if certain else "0.05"}, port, (0, 1) if certain else (0, 1, 2, 3))
    async with AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        opening = asyncio.create_task(open_accounts(client))
        if certain:
            await wait_for(partial(has_begun, url, 0.1), within=PATIENCE)
        killing = asyncio.create_task(bank.kill_some(0.2 if certain else BETWEEN_KILLS, KILLS))
        for server, share in ((postgres, 0.3), (valkey, 0.6)):
            await wait_for(partial(has_begun, url, share), within=PATIENCE)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        await opening
    await wait_for(lambda: is_over(url, valkey.url, namespace, CHAINS), within=PATIENCE)
    killing.cancel()
    return await databases.column_of(url, "select balance from account"), bank.kills


async def has_begun(url: str, share: float) -> bool:
    return bool(await databases.value_of(url, "select count(*) from account where balance > 0") >= share * CHAINS)


async def test_effects_happen_exactly_once(
    start: Start, postgres: Postgres, valkey: Valkey, namespace: str, figure: Figure
) -> None:
    found, kills = await balances(start, postgres, valkey, namespace, once=True)
    figure(
        f"once: {CHAINS} chains of three, {kills} processes killed, PostgreSQL and Valkey killed once each: "
        f"{sum(balance == bookkeeping.DUE for balance in found)} rows are exactly their due"
    )
    assert found == [bookkeeping.DUE] * CHAINS


async def test_without_once_some_happen_twice(
    start: Start, postgres: Postgres, valkey: Valkey, namespace: str, figure: Figure
) -> None:
    """Or the test above could not fail."""
    found, kills = await balances(start, postgres, valkey, namespace, once=False)
    more = sum(balance > bookkeeping.DUE for balance in found)
    figure(f"without once: {CHAINS} chains of three, {kills} processes killed: {more} rows have more than their due")
    assert len(found) == CHAINS
    assert more > 0


async def test_what_an_api_has_committed_is_sent_though_it_is_killed(
    start: Start, environment: dict[str, str], database_url: str, redis: Redis, namespace: str, figure: Figure
) -> None:
    """A failpoint keeps it from sending, so that it dies with all of it unsent."""
    await databases.execute(database_url, bookkeeping.TABLE, "insert into account values (1)")
    port = processes.free_port()
    count = "select count(*) from celeriq_outbox"
    async with AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        for kill in range(API_KILLS):
            program = start(api(port), HOLD_SENDER="1", **environment)
            await ask(client, "/deposits", count=UNSENT)
            assert (await client.post("/deposits", params={"count": ROLLED_BACK, "fails": True})).status_code == 409
            assert await databases.value_of(database_url, count) == (kill + 1) * UNSENT
            program.kill()
    start(WORKER, ONCE="1", **environment)
    await wait_for(lambda: is_filled(database_url), within=PATIENCE)
    await wait_for(lambda: is_drained(redis, namespace), within=PATIENCE)
    ran = await databases.value_of(database_url, BALANCE)
    figure(f"{API_KILLS} kills of an API with {UNSENT} or more messages unsent: {ran} of them ran, each once")
    assert ran == API_KILLS * UNSENT
    assert await databases.value_of(database_url, count) == 0


async def is_filled(url: str) -> bool:
    return bool(await databases.value_of(url, BALANCE) == API_KILLS * UNSENT)


async def is_drained(redis: Redis, namespace: str) -> bool:
    return bool(await redis.xlen(Keys(namespace).queue("default")) == 0)
