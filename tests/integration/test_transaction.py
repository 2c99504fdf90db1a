"""A task is a transaction: what it wrote is there if, and only if, it succeeded."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, cast

import pytest
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from taskiq import TaskiqDepends

from celeriq import AsyncResult, BoundTask, CommitTimeoutError, CurrentTask, RedisBroker, TaskSession, injected
from tests import databases
from tests.conftest import Figure
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

INSTANTS = 1000 if os.environ.get("PROVE") else 60
TABLES = (
    "create table parent (id int primary key)",
    "create table effect (id int references parent deferrable initially deferred)",
    "insert into parent values (1)",
)


@pytest.fixture
async def broker(make_broker: MakeBroker, open_sessions: Any, database_url: str) -> RedisBroker:
    await databases.execute(database_url, *TABLES)
    return make_broker().with_sessions(open_sessions)


async def rows(database_url: str) -> int:
    return int(await databases.value_of(database_url, "select count(*) from effect"))


async def open_transactions(database_url: str) -> int:
    query = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'"
    return int(await databases.value_of(database_url, query))


async def pending(broker: RedisBroker) -> int:
    summary = await broker._client.xpending(broker.keys.queue("default"), "celeriq")
    return int(summary["pending"])


async def audit(session: TaskSession = injected) -> AsyncIterator[None]:
    yield
    await session.execute(text("insert into effect values (1)"))


async def test_what_a_task_wrote_is_committed_before_its_result_is_seen(broker: RedisBroker, database_url: str) -> None:
    @broker.task
    async def write(session: TaskSession = injected) -> str:
        await session.execute(text("insert into effect values (1)"))
        return "done"

    async with running(broker):
        result = await (await write.kiq()).wait_result(check_interval=0.01, timeout=20)
        assert result.return_value == "done"
        assert await rows(database_url) == 1
        assert await open_transactions(database_url) == 0


async def test_a_task_that_raises_leaves_nothing_behind(broker: RedisBroker, database_url: str) -> None:
    @broker.task
    async def write_and_fail(session: TaskSession = injected) -> None:
        await session.execute(text("insert into effect values (1)"))
        raise ValueError("on purpose")

    async with running(broker):
        result = await (await write_and_fail.kiq()).wait_result(check_interval=0.01, timeout=20)
        assert result.is_err
        assert isinstance(result.error, ValueError)
        assert await rows(database_url) == 0
        assert await open_transactions(database_url) == 0


async def test_a_commit_that_fails_is_a_failed_task(broker: RedisBroker, database_url: str) -> None:
    """A deferred constraint is checked by the commit; Taskiq alone would lose task, result and acknowledgement (W15)."""

    @broker.task
    async def write_orphan(session: TaskSession = injected) -> None:
        await session.execute(text("insert into effect values (99)"))

    async with running(broker):
        result = await (await write_orphan.kiq()).wait_result(check_interval=0.01, timeout=20)
        assert "violates foreign key" in str(result.error)
        assert await rows(database_url) == 0
        assert await pending(broker) == 0


async def test_a_commit_that_fails_is_retried(broker: RedisBroker, database_url: str) -> None:
    runs: list[int] = []

    @broker.task(autoretry_for=(IntegrityError,), default_retry_delay=0)
    async def write_orphan_first(session: TaskSession = injected) -> int:
        runs.append(1)
        await session.execute(text(f"insert into effect values ({99 if len(runs) == 1 else 1})"))
        return len(runs)

    async with running(broker):
        result = await (await write_orphan_first.kiq()).wait_result(check_interval=0.01, timeout=20)
        assert result.return_value == 2
        assert await rows(database_url) == 1
        assert await pending(broker) == 0


async def test_a_value_that_cannot_be_stored_rolls_back(broker: RedisBroker, database_url: str) -> None:
    @broker.task
    async def return_nonsense(session: TaskSession = injected) -> object:
        await session.execute(text("insert into effect values (1)"))
        return object()

    async with running(broker):
        result = await (await return_nonsense.kiq()).wait_result(check_interval=0.01, timeout=20)
        assert "cannot be stored as JSON" in str(result.error)
        assert await rows(database_url) == 0


async def test_a_dependency_writes_in_the_same_transaction(broker: RedisBroker, database_url: str) -> None:
    @broker.task
    async def audited(
        trail: Annotated[None, TaskiqDepends(audit)] = injected,
        session: TaskSession = injected,
        *,
        fail: bool = False,
    ) -> None:
        if fail:
            raise ValueError("on purpose")
        await session.execute(text("insert into effect values (1)"))

    async with running(broker):
        await (await audited.kiq()).wait_result(check_interval=0.01, timeout=20)
        assert await rows(database_url) == 2
        await (await audited.kiq(fail=True)).wait_result(check_interval=0.01, timeout=20)
        assert await rows(database_url) == 2


async def test_a_task_that_never_asks_the_database_takes_no_connection(broker: RedisBroker, database_url: str) -> None:
    @broker.task
    async def idle(session: TaskSession = injected) -> bool:
        return session.in_transaction()

    async with running(broker):
        result = await (await idle.kiq()).wait_result(check_interval=0.01, timeout=20)
        assert result.return_value is False
        others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        # The one with which the outbox is looked at.
        assert await databases.value_of(database_url, others) == 1


async def test_a_stopped_worker_rolls_back_and_another_runs_the_task(
    make_broker: MakeBroker, open_sessions: Any, database_url: str
) -> None:
    await databases.execute(database_url, *TABLES)
    started = asyncio.Event()

    def declare(broker: RedisBroker, *, wait: bool) -> Any:
        @broker.task(name="slow")
        async def slow(session: TaskSession = injected) -> str:
            await session.execute(text("insert into effect values (1)"))
            started.set()
            if wait:
                await asyncio.Event().wait()
            return "finished"

        return slow

    first = make_broker(lease=0.5).with_sessions(open_sessions)
    task = declare(first, wait=True)
    async with running(first, patience=0.1):
        sent = await task.kiq()
        await started.wait()
    assert await rows(database_url) == 0

    second = make_broker(lease=0.5).with_sessions(open_sessions)
    declare(second, wait=False)
    async with running(second):
        sent.result_backend = second.result_backend
        result = await sent.wait_result(check_interval=0.01, timeout=20)
        assert result.return_value == "finished"
        assert await rows(database_url) == 1


@pytest.mark.proof(of="engine")
@pytest.mark.timeout(600)
async def test_cancelling_at_any_instant_around_the_commit_never_tears_state_from_rows(
    make_broker: MakeBroker, open_sessions: Any, database_url: str, figure: Figure, receiver: str
) -> None:
    """By a stop, a time limit or a revocation: SUCCESS means committed once, everything else rolled back."""
    await databases.execute(database_url, "create table written (id text)")
    broker = make_broker(lease=60).with_sessions(open_sessions)
    chance, written = random.Random(1), asyncio.Event()

    @broker.task
    async def write(session: TaskSession = injected, task: CurrentTask = injected) -> None:
        await session.execute(text("insert into written values (:id)"), {"id": task.id})
        written.set()

    async def cancel(way: str) -> AsyncResult[None]:
        if way == "limit":
            limited: Any = write.kicker().with_labels(timeout=chance.uniform(0.0001, 0.005))
            return cast("AsyncResult[None]", await limited.kiq())
        sent = await write.kiq()
        await written.wait()
        for _ in range(chance.randrange(60)):
            await asyncio.sleep(0)
        if way == "stop":
            broker.cancel_attempts()
        else:
            await sent.revoke(terminate=True)
        return sent

    async with running(broker, slots=1):
        sent: list[AsyncResult[None]] = []
        for number in range(INSTANTS):
            written.clear()
            sent.append(await cancel(("limit", "stop", "revocation")[number % 3]))
            await sent[-1].wait_result(timeout=20)
        # What was revoked is told to be so at once, and may have succeeded all the same.
        await wait_for(lambda: is_empty(broker))
        succeeded = [one.id for one in sent if await one.successful()]
    assert sorted(await databases.column_of(database_url, "select id from written")) == sorted(succeeded)
    figure(
        f"Cancelled around the commit, {receiver}'s receiver: {INSTANTS} instants, {len(succeeded)} succeeded, "
        "state and rows agree each time"
    )
    assert 0 < len(succeeded) < INSTANTS


async def is_empty(broker: RedisBroker) -> bool:
    return await broker._client.xlen(broker.keys.queue("default")) == 0


async def lock_that_breaks() -> AsyncIterator[None]:
    yield
    raise RuntimeError("the lock was lost")


async def test_what_is_closed_after_the_commit_cannot_make_a_failure_of_it(
    broker: RedisBroker, database_url: str
) -> None:
    @broker.task
    async def locked(
        lock: Annotated[None, TaskiqDepends(lock_that_breaks)] = injected, session: TaskSession = injected
    ) -> str:
        await session.execute(text("insert into effect values (1)"))
        return "done"

    async with running(broker):
        result = await (await locked.kiq()).wait_result(check_interval=0.01, timeout=20)
        assert result.return_value == "done"
        assert await rows(database_url) == 1


async def test_the_value_is_stored_as_it_was_before_the_commit(broker: RedisBroker) -> None:
    """Whatever is closed after the commit may still change the object: what could be stored then is stored."""
    returned: dict[str, Any] = {}

    async def spoiler() -> AsyncIterator[None]:
        yield
        returned["late"] = object()

    async def body(
        spoil: None = injected,
        session: TaskSession = injected,
    ) -> dict[str, Any]:
        returned["early"] = 1
        return returned

    body.__annotations__["spoil"] = Annotated[None, TaskiqDepends(spoiler)]
    task = broker.task(name="spoiled")(body)
    async with running(broker):
        result = await (await task.kiq()).wait_result(check_interval=0.01, timeout=20)
        assert result.return_value == {"early": 1}


SLOWLY = "create function slowly() returns trigger language plpgsql as 'begin perform pg_sleep(0.7); return null; end'"
AT_COMMIT = "create constraint trigger slow after insert on effect deferrable initially deferred"
SLOW_COMMIT = (SLOWLY, f"{AT_COMMIT} for each row execute function slowly()")


async def test_a_commit_that_takes_too_long_fails_the_task_and_keeps_no_connection(
    broker: RedisBroker, database_url: str
) -> None:
    await databases.execute(database_url, *SLOW_COMMIT)
    broker.commit_timeout = 0.2

    @broker.task
    async def write(session: TaskSession = injected) -> None:
        await session.execute(text("insert into effect values (1)"))

    async with running(broker):
        result = await (await write.kiq()).wait_result(timeout=20)
        assert isinstance(result.error, CommitTimeoutError)
        assert "may or may not have happened" in str(result.error)
        assert await open_transactions(database_url) == 0
        assert await rows(database_url) == 0


async def test_a_time_limit_during_a_commit_comes_too_late_and_costs_nothing(
    broker: RedisBroker, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await databases.execute(database_url, *SLOW_COMMIT)

    @broker.task(labels={"timeout": 0.3})
    async def write(session: TaskSession = injected) -> str:
        await session.execute(text("insert into effect values (1)"))
        return "committed"

    async with running(broker):
        sent = await write.kiq()
        await wait_for(lambda: broker.result_backend.is_result_ready(sent.task_id))
        assert await rows(database_url) == 1
        assert len(caplog.records) < 50


async def test_the_engine_is_closed_when_a_worker_cannot_start(open_sessions: Any, tmp_path: Any) -> None:
    closed: list[bool] = []

    @asynccontextmanager
    async def watched(pool: Any) -> AsyncGenerator[Any]:
        async with open_sessions(pool) as sessions:
            yield sessions
        closed.append(True)

    broker = RedisBroker(f"unix://{tmp_path}/nobody.sock").with_sessions(watched)
    broker.is_worker_process = True
    with pytest.raises(RedisError):
        await broker.startup()
    assert closed == [True]


# -- what the database refuses ----------------------------------------------------------------------------------------


async def test_a_serialization_failure_is_retried_as_configured(broker: RedisBroker, database_url: str) -> None:
    await databases.execute(database_url, "create table account (id int primary key, balance int)")
    await databases.execute(database_url, "insert into account values (1, 0)")
    both_have_read = asyncio.Barrier(2)

    @broker.task(autoretry_for=(DBAPIError,), default_retry_delay=0, bind=True)
    async def add(self: BoundTask, session: TaskSession = injected) -> int:
        await session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        balance = await session.scalar(text("select balance from account"))
        if not self.retries:
            await both_have_read.wait()
        await session.execute(text("update account set balance = :balance"), {"balance": balance + 1})
        return self.retries

    async with running(broker):
        retries = [await sent.get(timeout=20) for sent in [await add.kiq(), await add.kiq()]]
    assert sorted(retries) == [0, 1]
    assert await databases.value_of(database_url, "select balance from account") == 2


async def test_a_deadlock_is_retried_as_configured(broker: RedisBroker, database_url: str) -> None:
    await databases.execute(database_url, "create table account (id int primary key, balance int)")
    await databases.execute(database_url, "insert into account values (1, 0), (2, 0)")
    both_hold_one = asyncio.Barrier(2)

    @broker.task(autoretry_for=(DBAPIError,), default_retry_delay=0, bind=True)
    async def add(self: BoundTask, first: int, second: int, session: TaskSession = injected) -> int:
        for number, account in enumerate((first, second)):
            await session.execute(text("update account set balance = balance + 1 where id = :id"), {"id": account})
            if not self.retries and not number:
                await both_hold_one.wait()
        return self.retries

    async with running(broker):
        retries = [await sent.get(timeout=20) for sent in [await add.kiq(1, 2), await add.kiq(2, 1)]]
    assert sorted(retries) == [0, 1]
    assert await databases.column_of(database_url, "select balance from account") == [2, 2]
