"""Workers that are killed, stopped, blocked or poisoned: real processes, Taskiq's and ours."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis

from celeriq import RedisBroker
from celeriq.redis.keys import Keys
from tests.acceptance.conftest import LEASE, Start
from tests.acceptance.observing import Command, child, ended, finished, is_empty, listens, send, started, state
from tests.conftest import Figure
from tests.processes import ROOT, is_alive
from tests.waiting import wait_for

ENGINE = ROOT / "tests" / "engine.py"
FULL = bool(os.environ.get("PROVE"))
BLOCKED, AFTERWARDS = (20.0, 40.0) if FULL else (4.0, 0.0)
"""Seconds that a task blocks its loop, and that it goes on."""
GIL = 20.0 if FULL else 2.5
INNOCENT = 0.5 if FULL else 0.1
pytestmark = [pytest.mark.proof(of="engine"), pytest.mark.timeout(400 if FULL else 120)]
TOO_LATE = ("runs elsewhere by now: it is given up", "another worker has taken it over; nothing is written")


async def test_a_killed_workers_message_runs_elsewhere_though_its_queue_is_idle(
    sender: RedisBroker, start: Start, worker: Command, kind: str, figure: Figure, database_url: str
) -> None:
    """Taskiq looks for it only after another message has come (W3)."""
    first = start(worker)
    await send(sender, "run", "a", 3600)
    await wait_for(lambda: started(database_url), within=60)
    second = start(worker)
    await wait_for(lambda: listens(second), within=60)
    first.kill()
    killed = monotonic()
    await wait_for(lambda: ran_twice(database_url), within=60)
    figure(
        f"Killed {kind} worker, idle queue, lease {LEASE:g} s: its message ran elsewhere {monotonic() - killed:.1f} s later"
    )


async def ran_twice(database_url: str) -> bool:
    return (await started(database_url))["a"] == 2


async def test_a_loop_that_is_blocked_for_longer_than_the_lease_keeps_its_message(
    sender: RedisBroker, start: Start, worker: Command, kind: str, figure: Figure, database_url: str
) -> None:
    workers = [start(worker) for _ in range(2)]
    task_id = await send(sender, "block", "a", BLOCKED, AFTERWARDS)
    await wait_for(lambda: finished(database_url), within=BLOCKED + AFTERWARDS + 60)
    await wait_for(lambda: ended(sender, task_id))
    assert await started(database_url) == {"a": 1}
    assert any(f"by task block[{task_id}] at {ENGINE}:" in one.output() for one in workers)
    seconds = f"{BLOCKED + AFTERWARDS:g} s, of which its loop is blocked for {BLOCKED:g} s"
    figure(f"Task of {seconds}, lease {LEASE:g} s, {kind} worker: ran once")


async def test_a_process_that_runs_a_task_dies_with_its_worker_and_the_task_runs_elsewhere(
    sender: RedisBroker, start: Start, worker: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "processes"
    folder.mkdir()

    def pids() -> set[int]:
        return {int(file.name.removeprefix("pid-")) for file in folder.glob("pid-*")}

    program = start(worker)
    task_id = await send(sender, "in_process", str(folder))
    first = await wait_for(pids, within=60)
    child(program).kill()
    await wait_for(lambda: not any(map(is_alive, first)))
    await wait_for(lambda: pids() > first, within=60)
    (folder / "go").touch()
    await wait_for(lambda: ended(sender, task_id), within=60)
    assert {(await sender.result_backend.get_result(task_id)).return_value} == pids() - first


async def test_a_call_that_holds_the_interpreter_settles_once_however_often_it_ran(
    sender: RedisBroker,
    start: Start,
    worker: Command,
    kind: str,
    figure: Figure,
    database_url: str,
    redis: Redis,
    namespace: str,
) -> None:
    """Nobody beats meanwhile, so others take the message; where all of them fall silent with it, it is poison."""
    for _ in range(2):
        start(worker)
    task_id = await send(sender, "hold_gil", "a", GIL)
    await wait_for(lambda: ended(sender, task_id), within=100 + 8 * GIL)
    await wait_for(lambda: is_empty(redis, namespace), within=100)
    end, runs = await state(sender, task_id), (await started(database_url))["a"]
    letters = await redis.xlen(Keys(namespace).dead("default"))
    assert (end, letters) in {("SUCCESS", 0), ("FAILURE", 1)}
    assert 1 <= runs <= 3
    held = f"The interpreter held for {GIL:g} s, lease {LEASE:g} s, two {kind} workers"
    figure(f"{held}: started {runs} times, settled once, {end}")


async def test_the_late_settlement_of_a_stopped_worker_writes_nothing(
    sender: RedisBroker, start: Start, worker: Command, kind: str, figure: Figure, database_url: str
) -> None:
    first = start(worker)
    task_id = await send(sender, "run", "a", 3 * LEASE)
    await wait_for(lambda: started(database_url), within=60)
    stopped = child(first)
    os.kill(stopped.pid, signal.SIGSTOP)
    start(worker)
    await wait_for(lambda: ended(sender, task_id), within=60)
    results: Any = sender.result_backend
    record = await results.find(task_id)
    os.kill(stopped.pid, signal.SIGCONT)
    await wait_for(lambda: any(told in first.output() for told in TOO_LATE), within=30)
    assert await results.find(task_id) == record
    assert await started(database_url) == {"a": 2}


async def test_a_poison_message_among_innocents_becomes_a_dead_letter_alone(
    sender: RedisBroker,
    start: Start,
    worker: Command,
    kind: str,
    figure: Figure,
    database_url: str,
    redis: Redis,
    namespace: str,
) -> None:
    victim = start(worker)
    await wait_for(lambda: listens(victim), within=60)
    innocents = {
        await send(sender, "run", f"innocent {number}", INNOCENT): f"innocent {number}" for number in range(50)
    }
    task_id = await send(sender, "poison", "poison")
    innocents |= {await send(sender, "run", f"later {number}", INNOCENT): f"later {number}" for number in range(50)}
    await wait_for(lambda: ended(sender, task_id), within=110)
    assert await state(sender, task_id) == "FAILURE"
    await wait_for(lambda: is_empty(redis, namespace), within=60)
    assert set(await finished(database_url)) == set(innocents.values())
    letters: Any = await redis.xrange(Keys(namespace).dead("default"))
    [(_, letter)] = letters
    assert b'"task":"poison"' in letter[b"data"]
    assert letter[b"reason"] == b"3 workers died while they ran it"
