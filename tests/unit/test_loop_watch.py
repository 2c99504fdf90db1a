from __future__ import annotations

import asyncio
import importlib
import logging
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import uvloop

from celeriq import loop_watch
from celeriq.loop_watch import LoopWatch
from tests.waiting import wait_for, wait_without_loop

LOGGER = "celeriq.loop_watch"
HERE = Path(__file__)


class Clocks:
    """The time, and when the loop turned last."""

    now = 100.0
    pulse = 100.0


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[int], list[str]]:
    caplog.set_level(logging.INFO, LOGGER)

    def at_level(level: int) -> list[str]:
        return [one.getMessage() for one in list(caplog.records) if one.name == LOGGER and one.levelno == level]

    return at_level


def watch_by(clocks: Clocks, name_of: Callable[[asyncio.Task[Any]], str | None] = lambda _: None) -> LoopWatch:
    loop = asyncio.get_running_loop()
    return LoopWatch(loop, lambda: clocks.pulse, name_of, limit=1.0, clock=lambda: clocks.now)


def look_from_outside(watch: LoopWatch) -> None:
    """In another thread; the loop's waits for it, and so is blocked here."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(watch.look).result()


def block(watch: LoopWatch, clocks: Clocks, seconds: float = 5.0) -> None:
    clocks.now += seconds
    look_from_outside(watch)


def line_of(text: str) -> int:
    lines = HERE.read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def run(main: Callable[[], Coroutine[Any, Any, None]], factory: Callable[[], Any] | None) -> None:
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())


either_loop = pytest.mark.parametrize("factory", [None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


@either_loop
def test_who_blocks_the_loop_is_named_with_the_line(
    factory: Any, clocks: Clocks, said: Callable[[int], list[str]]
) -> None:
    async def send_mail(watch: LoopWatch) -> None:
        block(watch, clocks)

    async def main() -> None:
        watch = watch_by(clocks, lambda task: f"mail.send[{task.get_name()}]")
        await asyncio.create_task(send_mail(watch), name="17")

    run(main, factory)
    (warning,) = said(logging.WARNING)
    assert "blocked for 5.0 s by task mail.send[17] at " in warning
    assert f"{HERE}:{line_of('thread.submit(watch.look)')} in look_from_outside" in warning


@either_loop
def test_a_task_that_is_none_of_ours_is_named_by_asyncios_name(
    factory: Any, clocks: Clocks, said: Callable[[int], list[str]]
) -> None:
    async def main() -> None:
        async def refresh() -> None:
            block(watch_by(clocks), clocks)

        await asyncio.create_task(refresh(), name="refresher")

    run(main, factory)
    assert "by asyncio task 'refresher' at" in said(logging.WARNING)[0]


SLOW_PACKAGE = """
def fetch(steps):
    steps.append("called")
    while "looked" not in steps:
        pass
"""


async def test_a_package_is_named_beside_the_line_that_calls_it(
    clocks: Clocks, said: Callable[[int], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake is in the application, which calls what blocks."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "slow_client.py").write_text(SLOW_PACKAGE)
    monkeypatch.syspath_prepend(folder)
    slow_client = importlib.import_module("slow_client")
    watch, steps = watch_by(clocks), list[str]()
    clocks.now += 5

    def look_inside() -> None:
        wait_without_loop(lambda: "called" in steps)
        watch.look()
        steps.append("looked")

    looking = threading.Thread(target=look_inside)
    looking.start()
    slow_client.fetch(steps)
    looking.join()
    (warning,) = said(logging.WARNING)
    assert f"at {HERE}:{line_of('slow_client.fetch(steps)')} in test_a_package_is_named" in warning
    assert f", inside {folder}/slow_client.py:" in warning


async def test_a_callback_that_blocks_is_named_too(clocks: Clocks, said: Callable[[int], list[str]]) -> None:
    watch = watch_by(clocks)
    asyncio.get_running_loop().call_soon(block, watch, clocks)
    await wait_for(lambda: said(logging.WARNING))
    assert "by a callback at" in said(logging.WARNING)[0]


async def test_it_is_said_once_and_again_when_it_is_over(clocks: Clocks, said: Callable[[int], list[str]]) -> None:
    watch = watch_by(clocks)
    for _ in range(5):
        block(watch, clocks)
    assert len(said(logging.WARNING)) == 1
    assert said(logging.INFO) == []
    clocks.pulse = clocks.now = 130.0
    look_from_outside(watch)
    assert len(said(logging.WARNING)) == 1
    (over,) = said(logging.INFO)
    assert over.startswith("the event loop was blocked for 30.0 s by asyncio task")
    block(watch, clocks)
    assert len(said(logging.WARNING)) == 2


async def test_a_loop_that_turns_is_not_blocked(clocks: Clocks, said: Callable[[int], list[str]]) -> None:
    watch = watch_by(clocks)
    for _ in range(5):
        clocks.pulse += 0.9
        block(watch, clocks, 0.9)
    assert said(logging.WARNING) == []


async def test_a_loop_that_has_ended_is_not_blocked(clocks: Clocks, said: Callable[[int], list[str]]) -> None:
    watch = watch_by(clocks)
    block(watch, clocks)
    clocks.pulse = math.inf
    block(watch, clocks)
    assert len(said(logging.WARNING)) == 1
    assert "was blocked for 10.0 s" in said(logging.INFO)[0]


@either_loop
def test_a_loop_that_waits_for_its_next_event_is_to_blame_for_nothing(
    factory: Any, clocks: Clocks, said: Callable[[int], list[str]]
) -> None:
    def look_when_idle(watch: LoopWatch, loop: asyncio.AbstractEventLoop) -> None:
        wait_without_loop(lambda: asyncio.current_task(loop) is None)
        watch.look()

    async def main() -> None:
        watch = watch_by(clocks)
        clocks.now += 5
        await asyncio.to_thread(look_when_idle, watch, asyncio.get_running_loop())

    run(main, factory)
    assert said(logging.WARNING) == []


STOPPED = """
import asyncio, logging, sys, time
from celeriq.loop_watch import LoopWatch

async def main():
    last = [time.monotonic()]
    LoopWatch(asyncio.get_running_loop(), lambda: last[0], str, limit=0.6).start()
    while True:
        last[0] = time.monotonic()
        await asyncio.sleep(0.05)
        sys.stdout.write(".")
        sys.stdout.flush()

logging.basicConfig(level=logging.INFO, stream=sys.stdout)
asyncio.run(main())
"""


def test_nobody_is_blamed_when_the_whole_process_stood_still(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def turned() -> int:
        return log.read_text().count(".")

    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", STOPPED], stdout=output, stderr=output)
    try:
        wait_without_loop(lambda: turned() > 5)
        process.send_signal(signal.SIGSTOP)
        began = monotonic()
        wait_without_loop(lambda: monotonic() - began > 1.5)
        before = turned()
        process.send_signal(signal.SIGCONT)
        wait_without_loop(lambda: turned() > before + 10)
    finally:
        process.kill()
        process.wait()
    assert "blocked" not in log.read_text()


@pytest.mark.parametrize(("late", "worked", "stood_still"), [(0.0, 0.0, False), (3.0, 2.9, False), (3.0, 0.1, True)])
def test_c_code_that_keeps_the_interpreter_to_itself_works_meanwhile(
    late: float, worked: float, stood_still: bool
) -> None:
    assert loop_watch._stood_still(late, worked) is stood_still


async def test_a_loop_that_turned_while_it_was_looked_at_is_not_blocked(
    clocks: Clocks, said: Callable[[int], list[str]]
) -> None:
    pulses = iter([100.0, 104.9])
    watch = LoopWatch(asyncio.get_running_loop(), lambda: next(pulses), str, limit=1.0, clock=lambda: 105.0)
    look_from_outside(watch)
    assert said(logging.WARNING) == []


async def test_a_look_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    looks: list[int] = []

    def pulse() -> float:
        looks.append(1)
        raise LookupError("no pulse")

    watch = LoopWatch(asyncio.get_running_loop(), pulse, str, limit=0.01)
    watch.start()
    await wait_for(lambda: len(looks) > 2)
    await asyncio.to_thread(watch.stop)
    assert not watch.is_alive()
    assert "could not look at the event loop" in caplog.text


async def keep_pulse(clocks: Clocks) -> None:
    while True:
        clocks.pulse = monotonic()
        await asyncio.sleep(0.05)


@pytest.fixture
def warned(said: Callable[[int], list[str]]) -> Callable[[str], bool]:
    return lambda name: any(name in one for one in said(logging.WARNING))


@either_loop
def test_a_thread_watches_a_real_loop(
    factory: Any, clocks: Clocks, said: Callable[[int], list[str]], warned: Callable[[str], bool]
) -> None:
    async def block_after_a_pulse() -> None:
        last = clocks.pulse
        await wait_for(lambda: clocks.pulse != last)
        began = monotonic()
        wait_without_loop(lambda: warned("block_for_real") or monotonic() - began > 3)

    async def block_for_real() -> None:
        while not warned("block_for_real"):
            await block_after_a_pulse()

    async def main() -> None:
        watch = LoopWatch(asyncio.get_running_loop(), lambda: clocks.pulse, lambda _: None, limit=0.3)
        keeping = asyncio.create_task(keep_pulse(clocks))
        watch.start()
        await asyncio.create_task(block_for_real(), name="block_for_real")
        await wait_for(lambda: any("block_for_real" in one for one in said(logging.INFO)))
        await asyncio.to_thread(watch.stop)
        keeping.cancel()

    run(main, factory)
    assert [thread for thread in threading.enumerate() if thread.name == "celeriq-loop-watch"] == []
