"""An application that counts: each of its tasks adds to a row, so that what ran twice shows.

`celeriq worker tests.bookkeeping:broker`, `celeriq scheduler tests.bookkeeping:scheduler` and
`uvicorn tests.bookkeeping:app`, with DB_URL, BROKER_URL,
BROKER_NAMESPACE, ONCE, UNSETTLED and HOLD_SENDER in the environment.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from celeriq import PoolAdvice, RedisBroker, Scheduler, TaskSession, chain, injected
from celeriq.fastapi import RequestSession, lifespan
from celeriq.redis.settlement import Ending

TABLE = "create table account (id int primary key, balance int not null default 0)"
DUE = 111
"""What an account has when its three tasks have run, each once."""

UNSETTLED = float(os.environ.get("UNSETTLED", "0"))
"""Seconds between a commit and its settlement, which are next to none in earnest: kills are to hit them."""


@asynccontextmanager
async def open_sessions(pool: PoolAdvice) -> AsyncGenerator[async_sessionmaker[AsyncSession]]:
    engine = create_async_engine(os.environ["DB_URL"], **pool.engine_options())
    yield async_sessionmaker(engine)
    await engine.dispose()


broker = RedisBroker(
    os.environ["BROKER_URL"],
    namespace=os.environ.get("BROKER_NAMESPACE", "tests"),
    lease=1.0,
    # All that runs in a worker that is killed is a suspect, and there are many kills.
    max_crashes=1_000,
    task_defaults={"once": os.environ.get("ONCE") == "1"},
).with_sessions(open_sessions)
scheduler = Scheduler(broker)
app = FastAPI(lifespan=lifespan(broker))

_settle = broker.settlement.settle


async def settle_late(ending: Ending) -> bool:
    await asyncio.sleep(UNSETTLED)
    return await _settle(ending)


def hold(look_again: float | None) -> None:
    """In place of sending."""


broker.settlement.settle = settle_late  # type: ignore[method-assign]
if os.environ.get("HOLD_SENDER"):
    broker._outbox.begin = hold  # type: ignore[method-assign]


@broker.task(name="add", autoretry_for=(Exception,), max_retries=None, default_retry_delay=0.3)
async def add(account: int, amount: int, session: TaskSession = injected) -> int:
    statement = "update account set balance = balance + :amount where id = :id returning balance"
    return int(await session.scalar(text(statement), {"id": account, "amount": amount}) or 0)


@app.post("/accounts/{first}")
async def open_accounts(first: int, count: int, session: RequestSession) -> int:
    """Some new accounts, and the tasks that fill them: both, or neither. To ask again changes nothing."""
    opened: Sequence[Any] = (
        await session.scalars(
            text(
                "insert into account select generate_series(cast(:first as int), cast(:last as int)) on conflict do nothing returning id"
            ),
            {"first": first, "last": first + count - 1},
        )
    ).all()
    for account in opened:
        steps = [add.si(account, amount) for amount in (1, 10, 100)]
        await chain(*steps).apply_async(session=session)
    return len(opened)


@app.post("/deposits")
async def deposit(count: int, session: RequestSession, *, fails: bool = False) -> None:
    """One to the first account, by so many tasks."""
    await add.kiq_many([(1, 1)] * count, session=session)
    if fails:
        raise HTTPException(409, "rolled back")
