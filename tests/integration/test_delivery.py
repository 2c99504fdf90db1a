"""Messages reach a worker, are settled once, and are never destroyed unread."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated, Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from taskiq import Context, TaskiqDepends, TaskiqMiddleware, TaskiqResult
from taskiq.acks import AcknowledgeType
from taskiq_redis.exceptions import ResultIsMissingError

from celeriq import EncodeError, Record, RedisBroker, RedisResults, UnsupportedOptionError, injected
from celeriq.embedded import Services, Valkey
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running


async def depth(broker: RedisBroker, queue: str = "default") -> int:
    return int(await broker._client.xlen(broker.keys.queue(queue)))


async def dead(broker: RedisBroker, queue: str = "default") -> list[dict[bytes, bytes]]:
    letters: Any = await broker._client.xrange(broker.keys.dead(queue))
    return [fields for _, fields in letters]


async def outcome(sent: Any) -> TaskiqResult[Any]:
    result: TaskiqResult[Any] = await sent.wait_result(check_interval=0.01, timeout=20)
    return result


async def test_these_tests_run_under_both_receivers(make_broker: MakeBroker, receiver: str) -> None:
    broker = make_broker()
    async with running(broker):
        await wait_for(lambda: broker.worker)
        await wait_for(lambda: broker.own_receiver == (receiver == "celeriq"))


async def test_what_was_sent_before_the_first_worker_is_run(make_broker: MakeBroker) -> None:
    """Taskiq's group begins at the end of the stream and loses it (W8)."""
    broker = make_broker()

    @broker.task
    async def double(x: int) -> int:
        return 2 * x

    sent = [await double.kiq(x) for x in range(5)]
    async with running(broker):
        assert [(await outcome(task)).return_value for task in sent] == [0, 2, 4, 6, 8]


async def test_a_queue_that_nobody_declared_keeps_its_messages(make_broker: MakeBroker) -> None:
    sender, late = make_broker(), make_broker(queues=["reports"])
    for broker in (sender, late):

        @broker.task(name="report", queue="reports")
        async def report() -> str:
            return "written"

    sent = await sender.find_task("report").kicker().kiq()  # type: ignore[union-attr]
    async with running(late):
        assert (await outcome(sent)).return_value == "written"
    await sender.shutdown()


async def test_a_settled_message_leaves_the_stream(make_broker: MakeBroker) -> None:
    """Acknowledged entries stay in Taskiq's stream for ever (W9)."""
    broker = make_broker()

    @broker.task
    async def nothing() -> None:
        return None

    async with running(broker):
        for sent in [await nothing.kiq() for _ in range(20)]:
            await outcome(sent)
        assert await depth(broker) == 0


async def test_a_result_expires(make_broker: MakeBroker, redis: Redis) -> None:
    """A record without an end fills Redis (W35)."""
    broker = make_broker()

    @broker.task
    async def nothing() -> None:
        return None

    async with running(broker):
        sent = await nothing.kiq()
        await outcome(sent)
        assert 86_000 < await redis.ttl(broker.keys.record(sent.task_id)) <= 86_400


async def test_nothing_is_pickled(make_broker: MakeBroker, redis: Redis) -> None:
    """Who can write to Redis must not be able to run code here (W36)."""
    broker = make_broker()

    @broker.task
    async def fail() -> None:
        raise ValueError("on purpose")

    async with running(broker):
        sent = await fail.kiq()
        await outcome(sent)
        stored: Any = await redis.get(broker.keys.record(sent.task_id))
        assert stored.startswith(b'{"status":"FAILURE","result":{"exc_type":"ValueError","exc_message":["on purpose"]')


@pytest.mark.parametrize("garbage", [{b"data": b"\x80\x04garbage"}, {b"data": b"{}"}, {b"other": b"field"}])
async def test_garbage_is_kept_among_the_dead_letters_and_the_worker_goes_on(
    make_broker: MakeBroker, redis: Redis, garbage: Any
) -> None:
    broker = make_broker()

    @broker.task
    async def fine() -> str:
        return "fine"

    await redis.xadd(broker.keys.queue("default"), garbage)
    async with running(broker):
        [letter] = await wait_for(lambda: dead(broker))
        assert letter[b"data"] == garbage.get(b"data", b"")
        assert letter[b"reason"].startswith(b"undecodable")
        assert (await outcome(await fine.kiq())).return_value == "fine"
        assert await depth(broker) == 0


async def test_a_task_that_nobody_knows_for_too_long_is_kept_among_the_dead_letters(make_broker: MakeBroker) -> None:
    """Taskiq acknowledges it: a typo in a deploy eats the queue (W20)."""
    sender, worker = make_broker(), make_broker(unknown_grace=0.2, lease=0.5)

    @sender.task(name="unknown")
    async def unknown() -> None:
        return None

    await unknown.kiq()
    async with running(worker):
        [letter] = await wait_for(lambda: dead(worker))
        assert b"unknown task 'unknown'" in letter[b"reason"]
    await sender.shutdown()


async def test_a_retried_task_runs_again_under_its_own_id(make_broker: MakeBroker) -> None:
    broker = make_broker()
    runs: list[int] = []

    @broker.task(autoretry_for=(ConnectionError,), max_retries=3, default_retry_delay=0)
    async def flaky() -> str:
        runs.append(1)
        if len(runs) < 3:
            raise ConnectionError("away")
        return "reached"

    async with running(broker):
        assert (await outcome(await flaky.kiq())).return_value == "reached"
        assert len(runs) == 3


async def test_an_exhausted_retry_fails_with_the_exception_itself(make_broker: MakeBroker) -> None:
    """RETRY-02 and RETRY-14: four executions, then the original exception."""
    broker = make_broker()
    runs: list[int] = []

    @broker.task(autoretry_for=(ConnectionError,), max_retries=3, default_retry_delay=0)
    async def never() -> None:
        runs.append(1)
        raise ConnectionError("away")

    async with running(broker):
        result = await outcome(await never.kiq())
        assert isinstance(result.error, ConnectionError)
        assert len(runs) == 4


async def test_between_two_runs_the_state_is_retry_and_the_message_waits(make_broker: MakeBroker, redis: Redis) -> None:
    broker = make_broker()

    @broker.task(autoretry_for=(ConnectionError,), default_retry_delay=3600)
    async def later() -> None:
        raise ConnectionError("away")

    async with running(broker):
        sent = await later.kiq()
        results: RedisResults[Any] = broker.result_backend  # type: ignore[assignment]
        record: Record = await wait_for(lambda: results.find(sent.task_id))
        assert (record.status, record.date_done) == ("RETRY", None)
        waiting: Any = await redis.zrange(broker.keys.delayed("default"), 0, -1, withscores=True)
        [(_, due)] = waiting
        seconds, _ = await redis.time()
        assert 3590 < due / 1000 - seconds <= 3601


async def test_an_early_acknowledgement_takes_the_message_off_before_the_body(make_broker: MakeBroker) -> None:
    """ACK-01, for who wants it."""
    broker = make_broker()

    @broker.task(acks_late=False)
    async def early() -> int:
        return await depth(broker)

    async with running(broker):
        assert (await outcome(await early.kiq())).return_value == 0


async def test_a_silent_worker_loses_its_messages_to_a_living_one(make_broker: MakeBroker, redis: Redis) -> None:
    broker = make_broker(lease=0.5)

    @broker.task
    async def orphan() -> str:
        return "adopted"

    sent = await orphan.kiq()
    await broker.queues.declare()
    fetched = await redis.xreadgroup("celeriq", "dead-worker", {broker.keys.queue("default"): ">"}, count=1)
    assert fetched
    async with running(broker):
        assert (await outcome(sent)).return_value == "adopted"


async def test_a_long_task_runs_once_while_its_worker_lives(make_broker: MakeBroker) -> None:
    """A fixed visibility timeout would run it again and again (W4, ACK-08)."""
    first, second = make_broker(lease=0.4), make_broker(lease=0.4)
    runs: list[int] = []
    finish = asyncio.Event()
    for broker in (first, second):

        @broker.task(name="long")
        async def long() -> None:
            runs.append(1)
            await finish.wait()

    async with running(first), running(second):
        sent = await first.find_task("long").kicker().kiq()  # type: ignore[union-attr]
        await wait_for(lambda: runs)
        loop = asyncio.get_running_loop()
        three_leases = loop.time() + 3 * 0.4
        await wait_for(lambda: loop.time() > three_leases)
        finish.set()
        await outcome(sent)
        assert runs == [1]


async def test_the_late_settlement_of_a_worker_given_up_for_dead_writes_nothing(
    make_broker: MakeBroker, redis: Redis
) -> None:
    broker = make_broker(lease=60)
    started, finish = asyncio.Event(), asyncio.Event()

    @broker.task
    async def zombie() -> str:
        started.set()
        await finish.wait()
        return "too late"

    async with running(broker):
        sent = await zombie.kiq()
        await started.wait()
        queue = broker.keys.queue("default")
        [entry] = await redis.xpending_range(queue, "celeriq", "-", "+", 1)
        await redis.xclaim(queue, "celeriq", "another", 0, [entry["message_id"]])
        finish.set()
        await wait_for(lambda: not broker.queues.held)
        assert await redis.get(broker.keys.record(sent.task_id)) is None
        assert (await redis.xpending(queue, "celeriq"))["pending"] == 1


def fail(*_: object) -> None:
    raise RuntimeError("somebody else's middleware")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("hook", ["post_execute", "post_save"])
async def test_a_hook_that_raises_cannot_keep_a_finished_task_from_being_settled(
    make_broker: MakeBroker, hook: str
) -> None:
    """The error leaves Taskiq's receiver before it saves or acknowledges anything (W15)."""
    broker = make_broker().with_middlewares(type("Hooked", (TaskiqMiddleware,), {hook: fail})())

    @broker.task
    async def fine() -> str:
        return "fine"

    async with running(broker):
        assert (await outcome(await fine.kiq())).return_value == "fine"
        await wait_for(lambda: not broker.queues.held)
        assert await depth(broker) == 0


async def test_a_worker_signs_off_so_that_consumers_do_not_pile_up(make_broker: MakeBroker, redis: Redis) -> None:
    """Taskiq leaves one behind at every restart (W11)."""
    broker = make_broker()

    @broker.task
    async def nothing() -> None:
        return None

    async with running(broker):
        await outcome(await nothing.kiq())
    assert await redis.xinfo_consumers(broker.keys.queue("default"), "celeriq") == []


async def test_a_worker_outlives_a_restart_of_redis(valkey: Valkey) -> None:
    """A listener's error ends Taskiq's worker and cuts off what runs (W1); here the task ends and is settled."""
    broker = RedisBroker(valkey.url)
    started, finish = asyncio.Event(), asyncio.Event()

    @broker.task
    async def across() -> str:
        started.set()
        await finish.wait()
        return "still here"

    async with running(broker):
        sent = await across.kiq()
        await started.wait()
        valkey.kill()
        finish.set()
        await asyncio.to_thread(valkey.start)
        result = await wait_for(lambda: settled(broker, sent.task_id))
        assert result.return_value == "still here"
        assert await depth(broker) == 0


async def settled(broker: RedisBroker, task_id: str) -> TaskiqResult[Any] | None:
    with suppress(ResultIsMissingError, RedisConnectionError):
        return await broker.result_backend.get_result(task_id)
    return None


async def test_a_time_limit_of_taskiqs_fails_the_task(make_broker: MakeBroker) -> None:
    broker = make_broker(lease=0.5)
    runs: list[int] = []

    @broker.task(labels={"timeout": 0.1})
    async def endless() -> None:
        runs.append(1)
        await asyncio.Event().wait()

    async with running(broker):
        result = await outcome(await endless.kiq())
        assert isinstance(result.error, TimeoutError)
        assert runs == [1]
        assert await depth(broker) == 0


async def test_a_worker_takes_no_more_than_it_has_slots_for(make_broker: MakeBroker) -> None:
    """What one worker hoards, an idle one could run (W5)."""
    first, second = make_broker(queues=["a", "b", "c"]), make_broker(queues=["a", "b", "c"])
    runs: list[str] = []
    finish = asyncio.Event()
    for broker in (first, second):

        @broker.task(name="slow")
        async def slow(name: str) -> None:
            runs.append(name)
            await finish.wait()

    kicker = first.find_task("slow").kicker  # type: ignore[union-attr]
    sent = [await kicker().with_labels(queue=name).kiq(name) for name in "abc"]
    async with running(first, slots=1):
        await wait_for(lambda: len(runs) == 1)
        async with running(second):
            await wait_for(lambda: len(runs) == 3)
            finish.set()
            for task in sent:
                await outcome(task)
    assert sorted(runs) == ["a", "b", "c"]


async def test_the_messages_of_a_dead_worker_are_taken_over_one_after_another(
    make_broker: MakeBroker, redis: Redis
) -> None:
    broker = make_broker(lease=2)
    runs: list[int] = []

    @broker.task
    async def orphan(number: int) -> None:
        runs.append(number)

    for number in range(50):
        await orphan.kiq(number)
    await broker.queues.declare()
    await redis.xreadgroup("celeriq", "dead-worker", {broker.keys.queue("default"): ">"}, count=50)
    async with running(broker):
        await wait_for(lambda: len(runs) == 50, within=30)
    assert sorted(runs) == list(range(50))


async def test_a_dead_workers_message_is_found_behind_those_of_living_ones(
    make_broker: MakeBroker, redis: Redis
) -> None:
    """XAUTOCLAIM looks at the first entries only, and begins anew at each call (W10)."""
    living, other = make_broker(lease=0.5), make_broker(lease=0.5)
    finish = asyncio.Event()
    for broker in (living, other):

        @broker.task(name="wait")
        async def wait() -> None:
            await finish.wait()

        @broker.task(name="orphan")
        async def orphan() -> str:
            return "adopted"

    async with running(living, slots=30):
        waiting = [await living.find_task("wait").kicker().kiq() for _ in range(30)]  # type: ignore[union-attr]
        await wait_for(lambda: len(living.queues.held) == 30)
        sent = await living.find_task("orphan").kicker().kiq()  # type: ignore[union-attr]
        await living.queues.declare()
        await redis.xreadgroup("celeriq", "dead-worker", {living.keys.queue("default"): ">"}, count=1)
        async with running(other):
            assert (await outcome(sent)).return_value == "adopted"
        finish.set()
        for task in waiting:
            await outcome(task)


@pytest.mark.parametrize("acknowledge", list(AcknowledgeType)[:3])
async def test_a_time_limit_settles_whenever_taskiq_acknowledges(
    make_broker: MakeBroker, acknowledge: AcknowledgeType
) -> None:
    broker = make_broker()

    @broker.task(labels={"timeout": 0.1})
    async def endless() -> None:
        await asyncio.Event().wait()

    async with running(broker, acknowledge=acknowledge):
        assert isinstance((await outcome(await endless.kiq())).error, TimeoutError)
        assert await depth(broker) == 0


async def test_a_task_that_has_succeeded_stays_so_when_it_is_delivered_again(make_broker: MakeBroker) -> None:
    """ST-07, where the settlement itself writes."""
    broker = make_broker()
    runs: list[int] = []

    @broker.task
    async def once_only() -> str:
        runs.append(1)
        if len(runs) > 1:
            raise ValueError("again")
        return "first"

    async with running(broker):
        await once_only.kicker().with_task_id("the-same").kiq()
        sent = await once_only.kicker().with_task_id("the-same").kiq()
        await wait_for(lambda: len(runs) == 2 and not broker.queues.held)
        assert (await outcome(sent)).return_value == "first"


async def test_the_same_message_twice_is_held_twice(make_broker: MakeBroker) -> None:
    first, second = make_broker(lease=0.5), make_broker(lease=0.5)
    runs: list[int] = []
    finish = asyncio.Event()
    for broker in (first, second):

        @broker.task(name="twin")
        async def twin() -> None:
            runs.append(1)
            await finish.wait()

    async with running(first), running(second):
        for _ in range(2):
            await first.find_task("twin").kicker().with_task_id("the-same").kiq()  # type: ignore[union-attr]
        await wait_for(lambda: len(runs) == 2)
        loop = asyncio.get_running_loop()
        three_leases = loop.time() + 3 * 0.5
        await wait_for(lambda: loop.time() > three_leases)
        finish.set()
        await wait_for(lambda: is_drained(first))
    assert len(runs) == 2


async def is_drained(broker: RedisBroker) -> bool:
    return await depth(broker) == 0


async def test_a_retry_does_not_run_before_its_time(make_broker: MakeBroker) -> None:
    broker = make_broker()
    ran_at: list[float] = []

    @broker.task(autoretry_for=(ConnectionError,), default_retry_delay=1)
    async def flaky() -> None:
        ran_at.append(asyncio.get_running_loop().time())
        if len(ran_at) == 1:
            raise ConnectionError("away")

    async with running(broker):
        await outcome(await flaky.kiq())
        assert ran_at[1] - ran_at[0] >= 1


async def test_labels_that_cannot_be_read_make_a_dead_letter(make_broker: MakeBroker, redis: Redis) -> None:
    """A newer Taskiq may know more types of labels; the older one acknowledges what it cannot read."""
    broker = make_broker()
    envelope = b'{"v":1,"id":"x","task":"t","args":[],"kwargs":{},"labels":{"n":"1"},"labels_types":{"n":99}}'
    await redis.xadd(broker.keys.queue("default"), {"data": envelope})
    async with running(broker):
        [letter] = await wait_for(lambda: dead(broker))
        assert letter[b"data"] == envelope
        failed = await broker.result_backend.get_result("x")
        assert isinstance(failed.error, EncodeError)


async def test_a_settlement_waits_for_a_redis_that_is_out_of_memory(make_broker: MakeBroker, valkey: Valkey) -> None:
    broker = RedisBroker(valkey.url, lease=60)
    admin = Redis.from_url(valkey.url)
    started, finish = asyncio.Event(), asyncio.Event()

    @broker.task
    async def full() -> str:
        started.set()
        await finish.wait()
        return "x" * 100_000

    async with running(broker):
        sent = await full.kiq()
        await started.wait()
        await admin.config_set("maxmemory", 1)
        finish.set()
        await wait_for(lambda: admin_says_refused(admin))
        await admin.config_set("maxmemory", 0)
        assert (await outcome(sent)).return_value == "x" * 100_000
        assert await depth(broker) == 0
    await admin.aclose()


async def admin_says_refused(admin: Redis) -> bool:
    stats: Any = await admin.info("errorstats")
    return "errorstat_OOM" in stats


async def test_groups_that_the_server_has_lost_are_made_again(make_broker: MakeBroker, redis: Redis) -> None:
    broker = make_broker()

    @broker.task
    async def fine() -> str:
        return "fine"

    async with running(broker):
        await outcome(await fine.kiq())
        await redis.delete(broker.keys.queue("default"))
        assert (await outcome(await fine.kiq())).return_value == "fine"


async def test_a_requeued_task_has_no_result_until_it_runs_again(make_broker: MakeBroker) -> None:
    broker = make_broker()
    runs: list[int] = []

    @broker.task
    async def again(context: Annotated[Context, TaskiqDepends()] = injected) -> str:
        runs.append(1)
        if len(runs) == 1:
            await context.requeue()
        return "second"

    async with running(broker):
        assert (await outcome(await again.kiq())).return_value == "second"
        assert await depth(broker) == 0


async def test_results_that_would_be_read_elsewhere_are_refused(make_broker: MakeBroker, services: Services) -> None:
    broker = make_broker()
    with pytest.raises(UnsupportedOptionError, match="result_expires"):
        broker.with_result_backend(RedisResults(services.redis_url, namespace="another"))
    same: RedisResults[Any] = RedisResults(services.redis_url, namespace=broker.keys.namespace, expires=60)
    assert broker.with_result_backend(same).result_backend is same
