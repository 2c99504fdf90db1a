"""Sending: together, again, at most once; and clear errors."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from taskiq.exceptions import SendTaskError

from celeriq import RedisBroker, SendError
from celeriq.embedded import Services, Valkey
from celeriq.redis.keys import Keys
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running


async def depth(broker: RedisBroker) -> int:
    return int(await broker._client.xlen(broker.keys.queue("default")))


async def scripts_run(redis: Redis) -> int:
    statistics: Any = await redis.info("commandstats")
    return int(statistics.get("cmdstat_evalsha", {"calls": 0})["calls"])


async def test_concurrent_calls_share_round_trips(valkey: Valkey, namespace: str) -> None:
    broker = RedisBroker(valkey.url, namespace=namespace)

    @broker.task
    async def nothing(number: int) -> None: ...

    await nothing.kiq(0)
    before = await scripts_run(broker._client)
    await asyncio.gather(*(nothing.kiq(number) for number in range(1, 100)))
    assert await depth(broker) == 100
    assert await scripts_run(broker._client) - before == 1
    await broker.shutdown()


async def test_thousands_are_sent_in_few_round_trips(valkey: Valkey, namespace: str) -> None:
    broker = RedisBroker(valkey.url, namespace=namespace)

    @broker.task
    async def add(x: int, y: int = 0) -> None: ...

    results = await add.kiq_many([*((number,) for number in range(2000)), {"x": 1, "y": 2}])
    assert len({result.id for result in results}) == await depth(broker) == 2001
    assert await scripts_run(broker._client) <= 6
    await broker.shutdown()


async def test_of_many_calls_none_is_sent_if_one_does_not_fit(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task
    async def add(x: int) -> None: ...

    with pytest.raises(TypeError, match=r"call 1 of task .*missing a required argument: 'x'"):
        await add.kiq_many([(1,), ()])
    assert await depth(broker) == 0
    await broker.shutdown()


async def test_a_batch_whose_answer_was_lost_is_written_once(
    make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = make_broker()

    @broker.task
    async def nothing() -> None: ...

    send: Any = broker._scripts.send
    lost = 2

    async def losing(**asked: Any) -> Any:
        nonlocal lost
        answer = await send(**asked)
        if lost:
            lost -= 1
            raise RedisConnectionError("the answer was lost")
        return answer

    monkeypatch.setattr(broker._scripts, "send", losing)
    await nothing.kiq()
    await nothing.kiq()
    assert await depth(broker) == 2
    await broker.shutdown()


async def test_a_redis_that_is_away_is_a_clear_error_after_four_tries(valkey: Valkey, namespace: str) -> None:
    """CALL-07."""
    broker = RedisBroker(valkey.url, namespace=namespace)

    @broker.task(name="mail.send")
    async def send() -> None: ...

    await send.kiq()
    valkey.kill()
    with pytest.raises(
        SendError, match=r"task 'mail.send' was not sent: Redis did not take it, tried 4 times: "
    ) as told:
        await send.kiq()
    assert isinstance(told.value, SendTaskError)
    with pytest.raises(SendError, match=r"2 of 2 calls of 'mail.send' were not sent") as told:
        await send.kiq_many([(), ()])
    assert told.value.unsent == (0, 1)
    await asyncio.to_thread(valkey.start)
    await send.kiq()
    await broker.shutdown()


async def refusal(valkey: Valkey, namespace: str, **connection: Any) -> str:
    broker = RedisBroker(valkey.url, namespace=namespace, **connection)

    @broker.task
    async def nothing() -> None: ...

    with pytest.raises(SendError) as told:
        await nothing.kiq()
    await broker.shutdown()
    return str(told.value)


async def test_a_redis_without_memory_says_so_to_the_caller(valkey: Valkey, namespace: str) -> None:
    async with Redis.from_url(valkey.url) as admin:
        await admin.config_set("maxmemory", 1)
        assert "maxmemory" in await refusal(valkey, namespace)


async def test_a_replica_says_that_it_cannot_be_written_to(valkey: Valkey, namespace: str) -> None:
    async with Redis.from_url(valkey.url) as admin:
        await admin.replicaof("127.0.0.1", "1")
        assert "read only replica" in await refusal(valkey, namespace)
        await admin.replicaof("no", "one")


async def test_a_wrong_password_is_told_as_such(valkey: Valkey, namespace: str) -> None:
    async with Redis.from_url(valkey.url) as admin:
        await admin.config_set("requirepass", "right")
        told = await refusal(valkey, namespace, password="wrong")
        assert "invalid username-password" in told
        assert "wrong" not in told.replace("WRONGPASS", "")
        await admin.auth("right")
        await admin.config_set("requirepass", "")


async def test_a_script_that_the_server_has_forgotten_is_sent_again(valkey: Valkey, namespace: str) -> None:
    broker = RedisBroker(valkey.url, namespace=namespace)

    @broker.task
    async def nothing() -> str:
        return "done"

    async with running(broker), Redis.from_url(valkey.url) as admin:
        for _ in range(3):
            await admin.script_flush()
            assert (await (await nothing.kiq()).wait_result(timeout=20)).return_value == "done"


async def test_what_cannot_be_sent_is_refused_at_the_caller(make_broker: MakeBroker) -> None:
    broker = make_broker(max_payload=500)

    @broker.task(name="store")
    async def store(what: Any) -> None: ...

    with pytest.raises(SendError, match=r"^task 'store' was not sent: cannot be stored as JSON"):
        await store.kiq(object())
    with pytest.raises(SendError, match=r"the message of task 'store' has \d+ bytes, the limit is 500"):
        await store.kiq(500 * "x")
    with pytest.raises(SendError, match="priority is 11; it must be a number from 0"):
        await store.kicker().with_labels(priority=11).kiq(1)
    assert await depth(broker) == 0
    await broker.shutdown()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"countdown": -1}, ValueError, "countdown is -1"),
        ({"countdown": 2**31}, ValueError, "less than 2"),
        ({"countdown": 1, "eta": datetime.now(UTC)}, ValueError, "twice"),
        ({"countdwn": 1}, TypeError, "unknown option 'countdwn'.*countdown"),
    ],
)
async def test_a_call_with_impossible_options_is_refused(
    make_broker: MakeBroker, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    broker = make_broker()

    @broker.task
    async def nothing() -> None: ...

    with pytest.raises(error, match=text):
        await nothing.apply_async(**options)
    await broker.shutdown()


async def test_arguments_that_do_not_fit_are_refused_before_anything_is_sent(make_broker: MakeBroker) -> None:
    """DEF-09."""
    broker = make_broker()

    @broker.task(name="add")
    async def add(x: int, y: int) -> None: ...

    with pytest.raises(TypeError, match="the call of task 'add': missing a required argument: 'y'"):
        await add.apply_async((1,))
    await broker.shutdown()


@pytest.mark.parametrize("kind", ["countdown", "eta", "naive eta", "label"])
async def test_a_delayed_call_runs_no_sooner(make_broker: MakeBroker, kind: str) -> None:
    """CALL-04, CALL-05; Taskiq's brokers for Redis ignore the label (W14)."""
    broker = make_broker()
    loop = asyncio.get_running_loop()

    @broker.task
    async def when() -> float:
        return loop.time()

    async with running(broker):
        sent_at, moment = loop.time(), datetime.now(UTC) + timedelta(seconds=0.3)
        if kind == "label":
            sent: Any = await when.kicker().with_labels(delay=0.3).kiq()
        elif kind == "countdown":
            sent = await when.apply_async(countdown=0.3)
        else:
            sent = await when.apply_async(eta=moment if kind == "eta" else moment.replace(tzinfo=None))
        assert (await sent.wait_result(timeout=20)).return_value >= sent_at + 0.29


async def test_delayed_messages_of_one_content_are_all_kept(make_broker: MakeBroker, redis: Redis) -> None:
    broker = make_broker()

    @broker.task
    async def nothing() -> None: ...

    for _ in range(3):
        await nothing.apply_async(countdown=60, task_id="the same")
    assert await redis.zcard(broker.keys.delayed("default")) == 3
    await broker.shutdown()


async def test_two_processes_of_one_broker_do_not_take_each_others_numbers(
    services: Services, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's children are copies of the process that imported the broker."""
    broker = RedisBroker(services.redis_url, namespace=namespace)

    @broker.task
    async def nothing() -> None: ...

    for process in (1, 2):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        broker._sender._number = 0
        await nothing.kiq()
    assert await depth(broker) == 2
    await broker.shutdown()


async def test_the_bookkeeping_of_a_sender_does_not_grow(make_broker: MakeBroker, redis: Redis, namespace: str) -> None:
    broker = make_broker()

    @broker.task
    async def nothing() -> None: ...

    for _ in range(20):
        await nothing.kiq()
    [key] = await wait_for(lambda: redis.keys(Keys(namespace).sender("*")))
    assert 0 < await redis.pttl(key) <= 3_600_000
    await broker.shutdown()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_script_may_run_a_loop_for_each_call(valkey: Valkey, namespace: str) -> None:
    """It leaves the connections of each loop unclosed, which is its own affair; the next call must not use them."""
    broker = RedisBroker(valkey.url, namespace=namespace)

    @broker.task
    async def nothing(number: int) -> None: ...

    async def call(number: int) -> int:
        await nothing.kicker().with_labels(queue=f"other{number}").kiq(number)
        await nothing.kiq(number)
        async with Redis.from_url(valkey.url) as redis:
            return int(await redis.xlen(broker.keys.queue("default")))

    assert [asyncio.run(call(number)) for number in range(3)] == [1, 2, 3]
    # What the loops left open warns here, and not in another test.
    broker._scripts._connections._kept.clear()
    gc.collect()


async def test_an_arguments_check_by_number_refuses_what_binding_would(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task
    async def add(x: int, y: int = 0, *, z: int = 0) -> None: ...

    @broker.task
    async def collect(*numbers: int) -> None: ...

    for arguments in ((), (1, 2, 3)):
        with pytest.raises(TypeError, match="call 0 of task"):
            await add.kiq_many([arguments])
    assert len(await add.kiq_many([(1,), (1, 2), {"x": 1, "z": 2}])) == 3
    assert len(await collect.kiq_many([(), (1, 2, 3)])) == 2
