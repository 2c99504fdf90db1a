"""`taskiq scheduler` and `celeriq scheduler`: each tick once though they are killed; wrong options, and stopping."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from celeriq import RedisBroker
from celeriq.envelope import Envelope
from celeriq.schedule_calls import ScheduledCalls
from celeriq.supervisor import CANNOT_START
from tests import databases
from tests.acceptance.conftest import Start
from tests.conftest import PROVING, Figure
from tests.processes import ENGINE_SCHEDULERS, Process
from tests.waiting import wait_for

SECONDS = 60 if PROVING else 12
SCHEDULES = 10
SECOND = timedelta(seconds=1)
OWN = ENGINE_SCHEDULERS["celeriq"]


def every_second(count: int, **said: Any) -> str:
    """For BEAT: so many schedules, which make up for every tick that they miss."""
    entry = {"task": "run", "schedule": 1, "args": ["tick"], "misfire": "all", **said}
    return json.dumps({f"schedule {number}": entry for number in range(count)})


async def sent(sender: RedisBroker) -> list[str]:
    """The ids of the calls in the queue."""
    entries: Any = await sender._client.xrange(sender.keys.queue("default"))
    return [msgspec.json.decode(fields[b"data"], type=Envelope).id for _, fields in entries]


async def least(database_url: str) -> int:
    """Ticks of the schedule that has had the fewest."""
    return int(await databases.value_of(database_url, "select coalesce(min(runs), 0) from celeriq_schedules"))


async def reaches(database_url: str, runs: int) -> bool:
    return await least(database_url) >= runs


async def ticks(database_url: str) -> Iterator[tuple[str, Any]]:
    """All that there have been, by what the rows tell: each second from the beginning to the last one."""
    connection = await databases.connect(database_url)
    try:
        rows = await connection.fetch("select name, last_due, runs, missed, skipped, updated_at from celeriq_schedules")
    finally:
        await connection.close()
    assert all((row["missed"], row["skipped"]) == (0, 0) for row in rows)
    assert all(abs(row["last_due"] - row["runs"] * SECOND - row["updated_at"]) < SECOND for row in rows)
    return ((row["name"], row["last_due"] - back * SECOND) for row in rows for back in range(row["runs"]))


@pytest.mark.proof(of="transaction")
@pytest.mark.timeout(300 if PROVING else 120)
async def test_three_schedulers_that_are_killed_in_turn_send_each_tick_once(
    sender: RedisBroker, start: Start, database_url: str, figure: Figure
) -> None:
    beat = every_second(SCHEDULES)
    commands = cycle(ENGINE_SCHEDULERS.values())
    schedulers = [start(next(commands), BEAT=beat) for _ in range(3)]
    await wait_for(lambda: reaches(database_url, 1), within=60)
    kills = 0
    while (runs := await least(database_url)) < SECONDS:
        await wait_for(partial(reaches, database_url, runs + 1), within=60)
        schedulers.pop(0).kill()
        kills += 1
        schedulers.append(start(next(commands), BEAT=beat))
    await wait_for(lambda: reaches(database_url, SECONDS + 1), within=60)
    for scheduler in schedulers[1:]:
        scheduler.kill()
    await wait_for(lambda: nothing_waits(database_url), within=60)
    schedulers[0].kill()
    # Whatever it has left, the next one sends.
    last = start(OWN, BEAT=beat)
    await wait_for(lambda: "Startup completed" in last.output(), within=60)
    assert last.stop() == 0
    calls = ScheduledCalls(sender)
    expected = [calls.tick_id(name, tick) for name, tick in await ticks(database_url)]
    assert sorted(await sent(sender)) == sorted(expected)
    assert len(set(expected)) == len(expected) >= SECONDS * SCHEDULES
    figure(
        f"Three schedulers that are killed in turn, a tick each second: {len(expected)} ticks of {SCHEDULES} schedules, "
        f"{kills + 3} kills -9, each tick sent once, none missing"
    )


async def nothing_waits(database_url: str) -> bool:
    return not await databases.value_of(database_url, "select count(*) from celeriq_outbox")


@pytest.mark.parametrize("kind", ENGINE_SCHEDULERS)
async def test_a_scheduler_sends_what_is_due_until_it_is_stopped(
    sender: RedisBroker, start: Start, database_url: str, kind: str
) -> None:
    scheduler = start(ENGINE_SCHEDULERS[kind], BEAT=every_second(1))
    await wait_for(lambda: sent(sender), within=60)
    os.kill(scheduler.pid, signal.SIGTERM)
    assert scheduler.stop() == (0 if kind == "celeriq" else -signal.SIGTERM)
    assert "Traceback" not in scheduler.output()


async def test_the_interrupt_of_a_terminal_ends_it(sender: RedisBroker, start: Start) -> None:
    scheduler = start(OWN, BEAT=every_second(1))
    await wait_for(lambda: "Startup completed" in scheduler.output(), within=60)
    os.killpg(scheduler.pid, signal.SIGINT)
    await wait_for(lambda: not scheduler.running)
    assert scheduler.stop() == 0
    assert "Shutdown completed" in scheduler.output()


async def test_help_names_every_option(start: Start) -> None:
    helped = start(("celeriq", "scheduler", "--help"))
    await wait_for(lambda: not helped.running, within=60)
    for option in ("module:scheduler", "--app-dir", "--log-level"):
        assert option in helped.output()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("tests.engine",), "'tests.engine' names no scheduler: write module:scheduler, as in broker:scheduler"),
        (("tests.engine:scheduler", "--workers", "1"), "unrecognized arguments: --workers"),
        ((), "the following arguments are required: module:scheduler"),
    ],
)
async def test_a_wrong_option_says_what_to_write(start: Start, arguments: tuple[str, ...], told: str) -> None:
    refused = start(("celeriq", "scheduler", *arguments))
    await wait_for(lambda: not refused.running, within=60)
    assert told in refused.output()
    assert refused.stop() == 2


async def cannot_start(refused: Process, told: str) -> None:
    await wait_for(lambda: not refused.running, within=60)
    assert f"celeriq scheduler cannot start: {told}" in refused.output()
    assert refused.stop() == CANNOT_START


@pytest.mark.parametrize("module", ["broken", "missing"])
async def test_a_module_that_does_not_import_ends_it_before_it_deletes_anything(
    sender: RedisBroker, start: Start, tmp_path: Path, module: str
) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    await cannot_start(start((*OWN, module), PYTHONPATH=path), f"module {module!r} does not import")


async def test_what_is_no_scheduler_is_told_as_such(sender: RedisBroker, start: Start) -> None:
    refused = start(("celeriq", "scheduler", "tests.engine:broker"))
    await cannot_start(refused, "'tests.engine:broker' is no Scheduler: name one as `module:scheduler`")


async def test_a_schedule_of_an_unknown_task_is_told_with_the_nearest(sender: RedisBroker, start: Start) -> None:
    refused = start(OWN, BEAT=every_second(1, task="runs"))
    await cannot_start(refused, "entry 'schedule 0': there is no task 'runs'; did you mean 'run'?")


async def test_a_database_that_is_not_there_is_one_line_and_tried_again(start: Start, environment: Any) -> None:
    waiting = start(OWN, DB_URL="postgresql+asyncpg://nobody@127.0.0.1:1/none")
    await wait_for(lambda: "cannot run without its servers, next try in 2 s" in waiting.output(), within=60)
    assert "Traceback" not in waiting.output()
    assert waiting.stop() == 0
