"""`celeriq worker`: wrong options, a broken application, the death of a parent or a child, and stopping."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis

from celeriq import RedisBroker
from celeriq.redis.keys import Keys
from celeriq.supervisor import CANNOT_START
from tests.acceptance.conftest import Start
from tests.acceptance.observing import child, finished, listens, send, started
from tests.processes import ENGINE_WORKERS, Process
from tests.waiting import wait_for

ENGINE = ("celeriq", "worker", "tests.engine:broker")


async def test_help_names_every_option(start: Start) -> None:
    helped = start(("celeriq", "worker", "--help"))
    assert await wait_for(lambda: not helped.running)
    for option in (
        "--queues",
        "--concurrency",
        "--workers",
        "--threads",
        "--max-tasks-per-child",
        "--grace",
        "--app-dir",
        "--log-level",
    ):
        assert option in helped.output()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tests.engine",), "'tests.engine' names no broker: write module:broker"),
        (("tests.engine:broker", "-c", "0"), "'0' is no number from 1 on"),
        (("tests.engine:broker", "-c", "many"), "'many' is no number from 1 on"),
        (("tests.engine:broker", "-Q", "a,,b"), "'a,,b' has an empty name: write -Q mail,default"),
        (("tests.engine:broker", "--grace", "-1"), "'-1' is no number of seconds"),
        (("tests.engine:broker", "--concurency", "1"), "unrecognized arguments: --concurency"),
        ((), "the following arguments are required: module:broker"),
    ],
)
async def test_a_wrong_option_says_what_to_write(start: Start, arguments: tuple[str, ...], told: str) -> None:
    refused = start(("celeriq", "worker", *arguments))
    await wait_for(lambda: not refused.running)
    assert told in refused.output()
    assert refused.stop() == 2


@pytest.mark.parametrize(
    ("module", "told"),
    [
        ("broken", "cannot start: module 'broken' does not import"),
        ("missing", "cannot start: module 'missing' does not import"),
    ],
)
async def test_a_task_module_that_does_not_import_ends_the_worker_before_it_takes_anything(
    sender: RedisBroker, start: Start, tmp_path: Path, module: str, told: str
) -> None:
    """Taskiq's logs a warning and goes on without its tasks (F4)."""
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    await send(sender, "run", "a")
    refused = start((*ENGINE, module, "--workers", "2"), PYTHONPATH=str(tmp_path))
    await wait_for(lambda: not refused.running, within=60)
    assert told in refused.output()
    assert "nothing_of_this_name" in refused.output() or module == "missing"
    assert refused.stop() == CANNOT_START
    assert await sender._client.xlen(sender.keys.queue("default")) == 1


READS_A_HEADER = """
from typing import Annotated
from fastapi import Depends, Header
from celeriq import injected
from tests.engine import broker

def signature(x_signature: Annotated[str, Header()]) -> str:
    return x_signature

@broker.task(name="signed")
async def signed(_: Annotated[str, Depends(signature)] = injected) -> None: ...
"""


@pytest.mark.parametrize("command", ENGINE_WORKERS.values(), ids=ENGINE_WORKERS)
async def test_a_task_that_needs_a_request_ends_the_worker_before_it_takes_anything(
    sender: RedisBroker, start: Start, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Taskiq's says so with a traceback, and is tried again."""
    (tmp_path / "signing.py").write_text(READS_A_HEADER)
    await send(sender, "run", "a")
    refused = start((*command[:3], "signing", *command[3:]), PYTHONPATH=str(tmp_path))
    told = "task 'signed': its dependency signing.signature reads 'x_signature' from the request (Header)"
    await wait_for(lambda: told in refused.output(), within=60)
    if command[0] == "celeriq":
        await wait_for(lambda: not refused.running)
        assert f"celeriq worker cannot start: {told}" in refused.output()
        assert "Traceback" not in refused.output()
        assert refused.stop() == CANNOT_START
    else:
        assert "TaskDefinitionError" in refused.output()
        refused.kill()
    assert await sender._client.xlen(sender.keys.queue("default")) == 1


@pytest.mark.parametrize("place", ["tests.engine:nothing", "tests.engine:open_sessions"])
async def test_what_is_no_broker_is_told_as_such(start: Start, environment: dict[str, str], place: str) -> None:
    refused = start(("celeriq", "worker", place))
    await wait_for(lambda: not refused.running, within=60)
    assert f"{place!r} is no RedisBroker: name one as `module:broker`" in refused.output()
    assert refused.stop() == CANNOT_START


async def test_pools_that_the_database_has_no_room_for_are_refused_with_what_would_fit(
    sender: RedisBroker, start: Start
) -> None:
    """Whichever of the processes comes first; Taskiq's lower theirs, and say so."""
    await send(sender, "run", "a")
    refused = start((*ENGINE, "--workers", "2"), POOL_SIZE="100")
    await wait_for(lambda: not refused.running, within=60)
    assert "celeriq worker cannot start: 2 processes x 120 connections = 240; PostgreSQL" in refused.output()
    assert "allows 197: say --workers 1, or PoolAdvice(size=82), or raise max_connections" in refused.output()
    assert "Traceback" not in refused.output()
    assert refused.stop() == CANNOT_START
    assert await sender._client.xlen(sender.keys.queue("default")) == 1
    assert await sender.pools() == {}


async def test_pools_that_nobody_has_chosen_are_those_that_fit(
    sender: RedisBroker, start: Start, database_url: str
) -> None:
    worker = start((*ENGINE, "--workers", "2"), POOL_SIZE="")
    await wait_for(lambda: worker.output().count("Listening started") == 2, within=60)
    assert "100 tasks at a time share a pool of 41 connections" in worker.output()
    assert [list(pools.values()) for pools in (await sender.pools()).values()] == [[49], [49]]
    await send(sender, "run", "a")
    await wait_for(lambda: finished(database_url), within=60)
    assert worker.stop() == 0
    assert await sender.pools() == {}


async def test_the_processes_of_taskiqs_worker_share_what_there_is_and_say_so(
    sender: RedisBroker, start: Start
) -> None:
    worker = start(("taskiq", "worker", "tests.engine:broker", "--workers", "2"), POOL_SIZE="100")
    await wait_for(lambda: "this one takes what is left" in worker.output(), within=60)
    await wait_for(lambda: connections_are(sender, [76, 120]), within=60)
    assert "120 connections, and other workers have 120; PostgreSQL" in worker.output()


async def test_a_worker_that_was_killed_leaves_its_place_to_the_next(sender: RedisBroker, start: Start) -> None:
    killed = start(ENGINE, POOL_SIZE="150")
    await wait_for(lambda: connections_are(sender, [180]), within=60)
    killed.kill()
    assert await connections_are(sender, [180])
    following = start(ENGINE, POOL_SIZE="150")
    await wait_for(lambda: "Listening started" in following.output(), within=60)
    await wait_for(lambda: connections_are(sender, [180]))
    assert following.stop() == 0


async def connections_are(broker: RedisBroker, expected: list[int]) -> bool:
    return sorted(sum(pools.values()) for pools in (await broker.pools()).values()) == expected


async def test_a_redis_that_is_not_there_is_one_line_and_tried_again(start: Start) -> None:
    waiting = start(ENGINE, BROKER_URL="redis://127.0.0.1:1/0")
    await wait_for(lambda: "the next one starts in 2 s" in waiting.output(), within=60)
    assert waiting.output().count("cannot run without its servers: Error 111 connecting") == 2
    assert "Traceback" not in waiting.output()
    assert waiting.stop() == 0


async def test_children_end_with_their_parent_and_hand_back_what_they_hold(
    sender: RedisBroker, start: Start, redis: Redis, namespace: str, database_url: str
) -> None:
    """Taskiq's go on without anybody to stop them (W42)."""
    worker = start((*ENGINE, "--grace", "0"))
    await send(sender, "run", "a", 3600)
    await wait_for(lambda: started(database_url), within=60)
    process = child(worker)
    os.kill(worker.pid, signal.SIGKILL)
    await wait_for(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE)
    [summary] = await redis.xinfo_consumers(Keys(namespace).queue("default"), "celeriq")
    assert (summary["name"], summary["pending"]) == (b"released", 1)
    assert not await redis.exists(Keys(namespace).crashes, Keys(namespace).leaving, Keys(namespace).beats)


async def test_a_child_that_dies_is_replaced_and_the_others_go_on(
    sender: RedisBroker, start: Start, database_url: str
) -> None:
    """At growing intervals (W44)."""
    worker = start((*ENGINE, "--workers", "2"))
    await wait_for(lambda: worker.output().count("Listening started") == 2, within=60)
    first, second = psutil.Process(worker.pid).children()
    first.kill()
    await wait_for(lambda: "ended with code -9; the next one starts in 1 s" in worker.output())
    await wait_for(lambda: worker.output().count("Listening started") == 3, within=60)
    assert second in psutil.Process(worker.pid).children()
    await send(sender, "run", "a")
    await wait_for(lambda: finished(database_url), within=60)
    assert worker.stop() == 0


async def test_a_process_is_replaced_after_so_many_tasks(sender: RedisBroker, start: Start, database_url: str) -> None:
    """SHUT-07."""
    worker = start((*ENGINE, "--max-tasks-per-child", "2"))
    for name in "abcde":
        await send(sender, "run", name)
    await wait_for(lambda: _all_of(database_url, 5), within=60)
    assert await finished(database_url) == dict.fromkeys("abcde", 1)
    assert worker.output().count("Listening started") == 3
    assert "ended with code" not in worker.output()
    assert worker.stop() == 0


async def _all_of(database_url: str, count: int) -> bool:
    return len(await finished(database_url)) == count


async def test_a_stop_lets_tasks_end(sender: RedisBroker, start: Start, database_url: str) -> None:
    """SHUT-01: however often SIGTERM comes."""
    worker = start(ENGINE)
    await send(sender, "run", "a", 1.5)
    await wait_for(lambda: started(database_url), within=60)
    os.kill(worker.pid, signal.SIGTERM)
    await wait_for(lambda: "Waiting for 1 running tasks" in worker.output())
    assert worker.stop() == 0
    assert await finished(database_url) == {"a": 1}


async def test_a_stop_of_the_whole_group_lets_tasks_end_as_well(
    sender: RedisBroker, start: Start, database_url: str
) -> None:
    """As systemd stops a service: every process gets SIGTERM, and the supervisor hands on another one."""
    worker = start(ENGINE)
    await send(sender, "run", "a", 1.5)
    await wait_for(lambda: started(database_url), within=60)
    os.killpg(worker.pid, signal.SIGTERM)
    await wait_for(lambda: not worker.running, within=60)
    assert worker.stop() == 0
    assert await finished(database_url) == {"a": 1}


@pytest.mark.parametrize("grace", ["after the grace period", "at SIGQUIT", "at a second Ctrl-C"])
async def test_a_stop_that_will_not_wait_hands_tasks_back(
    sender: RedisBroker, start: Start, redis: Redis, namespace: str, database_url: str, grace: str
) -> None:
    """SHUT-02: they run elsewhere at once, and no crash is counted."""
    worker = start((*ENGINE, "--grace", "0.3") if grace == "after the grace period" else ENGINE)
    await send(sender, "run", "a", 3600)
    await wait_for(lambda: started(database_url), within=60)
    first, second = {
        "after the grace period": (signal.SIGQUIT, None),
        "at SIGQUIT": (signal.SIGTERM, signal.SIGQUIT),
        "at a second Ctrl-C": (signal.SIGINT, signal.SIGINT),
    }[grace]
    os.kill(worker.pid, first)
    if second is not None:
        await wait_for(lambda: "Waiting for 1 running tasks" in worker.output())
        os.kill(worker.pid, second)
    await wait_for(lambda: not worker.running)
    assert worker.stop() == 0
    assert not await redis.exists(Keys(namespace).crashes, Keys(namespace).leaving)
    start(ENGINE)
    await wait_for(lambda: ran_again(database_url), within=60)


async def ran_again(database_url: str) -> bool:
    return (await started(database_url))["a"] == 2


async def test_a_worker_that_is_killed_after_it_was_told_to_stop_has_not_crashed(
    sender: RedisBroker, start: Start, worker: tuple[str, ...], redis: Redis, namespace: str, database_url: str
) -> None:
    """The grace period of a container that was too short for a task must not make poison of it."""
    first = start(worker)
    await send(sender, "run", "a", 3600)
    await wait_for(lambda: started(database_url), within=60)
    os.kill(first.pid, signal.SIGTERM)
    await wait_for(lambda: redis.exists(Keys(namespace).leaving))
    first.kill()
    start(worker)
    await wait_for(lambda: ran_again(database_url), within=60)
    assert not await redis.exists(Keys(namespace).crashes, Keys(namespace).leaving)


async def test_a_worker_reads_the_queues_that_it_is_told_to(
    sender: RedisBroker, start: Start, database_url: str
) -> None:
    start((*ENGINE, "-Q", "mail,reports", "-c", "3"))

    @sender.task(name="run")
    async def run(name: str) -> None: ...

    for queue in ("default", "mail", "reports"):
        await run.apply_async((queue,), queue=queue)
    await wait_for(lambda: both(database_url), within=60)
    assert await sender._client.xlen(sender.keys.queue("default")) == 1


async def both(database_url: str) -> bool:
    return await finished(database_url) == {"mail": 1, "reports": 1}


async def test_the_interrupt_of_a_terminal_reaches_all_processes_and_counts_once(
    sender: RedisBroker, start: Start, database_url: str
) -> None:
    worker: Process = start(ENGINE)
    await send(sender, "run", "a", 1.0)
    await wait_for(lambda: started(database_url), within=60)
    os.killpg(worker.pid, signal.SIGINT)
    await wait_for(lambda: not worker.running, within=60)
    assert worker.stop() == 0
    assert await finished(database_url) == {"a": 1}


async def test_a_loop_that_is_blocked_for_too_long_ends_its_process(
    sender: RedisBroker, start: Start, database_url: str
) -> None:
    """Its beats would keep its messages for ever (W43); its stacks are written down, and another one is started."""
    worker = start(ENGINE, BLOCKED_LIMIT="1.5")
    await wait_for(lambda: listens(worker), within=60)
    await send(sender, "block", "a", 3.0, 0.0)
    await wait_for(lambda: "the event loop has been blocked for" in worker.output(), within=60)
    await wait_for(lambda: "ended with code 70" in worker.output())
    assert "time.sleep(seconds)" in worker.output() or "in block" in worker.output()
    await wait_for(lambda: worker.output().count("Listening started") == 2, within=60)
    assert listens(worker)
    assert await finished(database_url) == {}


@pytest.mark.parametrize(
    ("connected", "lines"),
    [
        ("after_setup_logger", ["set up by it", "[celeriq.receiver]"]),
        ("setup_logging", ["set up by us"]),
    ],
)
async def test_the_log_is_set_up_unless_somebody_else_does(
    start: Start, tmp_path: Path, connected: str, lines: list[str]
) -> None:
    """SIG-12."""
    own = connected == "setup_logging"
    (tmp_path / "logging_receiver.py").write_text(
        f"from celeriq import signals\n\n@signals.{connected}.connect\ndef told(loglevel, **_):\n"
        f"    print('set up by {'us' if own else 'it'}', loglevel, flush=True)\n"
    )
    worker = start((*ENGINE, "logging_receiver"), PYTHONPATH=str(tmp_path))
    await wait_for(lambda: all(line in worker.output() for line in lines), within=60)
    assert worker.stop() == 0
    assert ("[celeriq.receiver]" in worker.output()) is not own
