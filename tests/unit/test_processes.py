"""Real processes, really killed."""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest

from celeriq import child
from celeriq.errors import (
    EncodeError,
    SoftTimeLimitExceeded,
    TaskDefinitionError,
    TimeLimitExceeded,
    WorkerLostError,
)
from celeriq.processes import Processes, check
from tests import process_tasks as tasks
from tests.processes import is_alive
from tests.waiting import wait_for, wait_without_loop

LONG = 600.0
"""Seconds that nothing here takes."""

LIMIT = 3.0
"""Seconds in which a process that is there certainly answers."""


def running_children() -> set[int]:
    """What multiprocessing spawned for us; its own resource tracker stays for the next pool."""
    children: set[int] = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "spawn_main" in " ".join(process.cmdline()) and is_alive(process.pid):
                children.add(process.pid)
    return children


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    left = running_children()
    for pid in left:  # or the tests that follow fail as well
        os.kill(pid, signal.SIGKILL)
    assert left == set()


@pytest.fixture
async def make_pool() -> AsyncIterator[Callable[..., Processes]]:
    """Pools that are closed with the test, however it ends."""
    pools: list[Processes] = []

    def make(*args: Any, **options: Any) -> Processes:
        pools.append(Processes(*args, **options))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close(0)


@pytest.fixture
def processes(make_pool: Callable[..., Processes]) -> Processes:
    return make_pool(2)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    return lambda name: str(tmp_path / name)


def touch(file: str) -> None:
    Path(file).touch()


def remove(file: str) -> None:
    Path(file).unlink()


def pid_written(file: str) -> int:
    return int(Path(file).read_text())


async def pid_in(file: str) -> int:
    """Of who wrote it there; waits for it."""
    await wait_for(Path(file).exists, within=60)
    return pid_written(file)


# -- calls -------------------------------------------------------------------------------------------------------------


async def test_a_call_runs_in_another_process_with_its_arguments(processes: Processes) -> None:
    assert await processes.run(tasks.pid) != os.getpid()
    assert await processes.run(tasks.call_with, (1, "two"), {"three": [3]}) == ((1, "two"), {"three": [3]})


async def test_a_static_method_can_run_in_a_process(processes: Processes) -> None:
    assert await processes.run(tasks.Shop.opening_hours) == "always"


MODULE = """
from celeriq import RedisBroker

broker = RedisBroker("redis://localhost")

@broker.task
def tripled(number):
    return 3 * number
"""


async def test_the_function_of_a_task_is_found_though_its_folder_is_not_on_the_path_any_more(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decorator has put the task in its place, and Taskiq's worker takes the folder away after its imports."""
    package = tmp_path / "shop_of_this_test" / "prices"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def lowest():\n    return 1.5\n")
    (package / "tasks.py").write_text(MODULE)
    with monkeypatch.context() as path:
        path.syspath_prepend(tmp_path)
        prices = importlib.import_module("shop_of_this_test.prices")
        registered = importlib.import_module("shop_of_this_test.prices.tasks").tripled
    check(registered.definition.function)
    assert await processes.run(prices.lowest) == 1.5
    assert await processes.run(registered.definition.function, (3,)) == 9


async def test_nothing_starts_before_the_first_call_and_a_child_is_kept_for_the_next(processes: Processes) -> None:
    assert processes.pids == []
    first = await processes.run(tasks.pid)
    assert processes.pids == [first]
    assert [await processes.run(tasks.pid) for _ in range(5)] == [first] * 5


async def test_there_are_never_more_children_than_said(processes: Processes, file: Callable[[str], str]) -> None:
    running = [asyncio.create_task(processes.run(tasks.wait_for_file, (file(str(n)), file("go")))) for n in range(4)]
    await wait_for(lambda: sum(Path(file(str(n))).exists() for n in range(4)) == 2, within=60)
    assert len(running_children()) == len(processes.pids) == 2
    touch(file("go"))
    assert len(set(await asyncio.gather(*running))) == 2


# -- errors ------------------------------------------------------------------------------------------------------------


async def test_an_error_is_raised_with_its_traceback_in_the_child_as_the_cause(processes: Processes) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        await processes.run(tasks.divide, (1, 0))
    assert isinstance(raised.value.__cause__, child.RemoteTraceback)
    assert "in divide\n    return number / by" in str(raised.value.__cause__)


async def test_an_error_with_a_constructor_of_its_own_arrives_whole(processes: Processes) -> None:
    with pytest.raises(tasks.OddError, match="code 7") as raised:
        await processes.run(tasks.raise_odd_error)
    assert raised.value.code == 7


async def test_an_error_that_cannot_be_pickled_arrives_as_a_result_would_store_it(processes: Processes) -> None:
    with pytest.raises(tasks.UnpicklableError, match="it hurts"):
        await processes.run(tasks.raise_unpicklable_error)
    with pytest.raises(Exception, match="from here") as raised:
        await processes.run(tasks.raise_local_error)
    assert type(raised.value).__name__.endswith("LocalError")


async def test_what_cannot_be_pickled_is_refused_with_the_remedy(processes: Processes) -> None:
    with pytest.raises(EncodeError, match=r"arguments of call_with cannot be sent .*; send plain data"):
        await processes.run(tasks.call_with, (threading.Lock(),))
    with pytest.raises(EncodeError, match=r"return value cannot be sent .*; return plain data"):
        await processes.run(tasks.return_lambda)
    with pytest.raises(EncodeError, match=r"return value cannot be read .*; return plain data"):
        await processes.run(tasks.return_what_cannot_be_read)
    assert len(processes.pids) == 1


@pytest.mark.parametrize(
    ("function", "remedy"),
    [
        (lambda: None, "write it with `def` at the top level of a module"),
        ([].append, "write it with `def` at the top level of a module"),
        (tasks.coroutine, "for a process write `def`"),
    ],
    ids=["lambda", "nameless", "coroutine"],
)
async def test_what_no_process_could_run_is_refused(
    processes: Processes, function: Callable[[], Any], remedy: str
) -> None:
    with pytest.raises(TaskDefinitionError, match=remedy):
        check(function)
    with pytest.raises(TaskDefinitionError, match=remedy):
        await processes.run(function)
    assert processes.pids == []


def test_a_function_inside_another_is_refused() -> None:
    def inside() -> None: ...

    with pytest.raises(TaskDefinitionError, match=r"<locals>\.inside.* cannot run in a process"):
        check(inside)


def test_a_function_of_a_module_passes() -> None:
    check(tasks.pid)


async def test_a_function_that_is_not_where_its_name_says_is_refused(processes: Processes) -> None:
    with pytest.raises(TaskDefinitionError, match="no function 'nobody_is_called_this'"):
        await processes.run(tasks.renamed)


def test_without_pebble_the_import_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pebble", None)
    monkeypatch.delitem(sys.modules, "celeriq.processes")
    with pytest.raises(ImportError, match=r"pip install 'celeriq\[processes\]'"):
        importlib.import_module("celeriq.processes")


# -- death -------------------------------------------------------------------------------------------------------------


DEATHS: tuple[tuple[Callable[..., Any], tuple[Any, ...], str], ...] = (
    (tasks.kill_oneself, (), r"signal 9 \(SIGKILL\)"),
    (tasks.crash, (), r"signal 11 \(SIGSEGV\)"),
    (tasks.exit_at_once, (0,), "exitcode 0"),
    (tasks.exit_at_once, (3,), "exitcode 3"),
    (tasks.ask_to_exit, (None,), "exitcode 0"),
    (tasks.ask_to_exit, ("good bye",), "exitcode 1"),
    (tasks.crash_while_answering, (200,), r"signal 9 \(SIGKILL\)"),
)


async def test_a_child_that_dies_fails_its_call_and_no_other(processes: Processes, file: Callable[[str], str]) -> None:
    other = asyncio.create_task(processes.run(tasks.wait_for_file, (file("other"), file("go"))))
    survivor = await pid_in(file("other"))
    for function, args, how in DEATHS:
        with pytest.raises(WorkerLostError, match=rf"Worker exited prematurely: {how}\."):
            await processes.run(function, args)
        assert processes.pids == [survivor]
    assert await processes.run(tasks.pid) != survivor
    touch(file("go"))
    assert await other == survivor


async def test_a_death_that_pebble_never_tells_of_is_seen(
    processes: Processes, file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells nothing of a call that reaches it at the moment of the death."""
    lost = asyncio.create_task(processes.run(tasks.hang, (file("lost"),)))
    cancelled = asyncio.create_task(processes.run(tasks.hang, (file("cancelled"),)))
    pids = [await pid_in(file("lost")), await pid_in(file("cancelled"))]
    with monkeypatch.context() as silent:
        silent.setattr("pebble.pool.process.TaskManager.task_done", lambda *_: None)
        os.kill(pids[0], signal.SIGKILL)
        cancelled.cancel()
        with pytest.raises(WorkerLostError, match="SIGKILL"):
            await lost
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    assert await processes.run(tasks.pid) not in pids


async def test_a_child_that_was_killed_while_it_was_idle_is_replaced(processes: Processes) -> None:
    idle = await processes.run(tasks.pid)
    os.kill(idle, signal.SIGKILL)
    await wait_for(lambda: not is_alive(idle))
    assert await processes.run(tasks.pid) != idle


async def test_a_child_that_cannot_be_started_fails_the_call(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as system:
        system.setattr("multiprocessing.spawn._python_exe", b"/nowhere/python")
        with pytest.raises(WorkerLostError):
            await processes.run(tasks.pid)
    assert await processes.run(tasks.pid) in processes.pids


# -- cancellation and limits -------------------------------------------------------------------------------------------


async def test_a_cancelled_call_kills_its_child_and_no_other(processes: Processes, file: Callable[[str], str]) -> None:
    other = asyncio.create_task(processes.run(tasks.wait_for_file, (file("other"), file("go"))))
    cancelled = asyncio.create_task(processes.run(tasks.hang, (file("cancelled"),)))
    victim, survivor = await pid_in(file("cancelled")), await pid_in(file("other"))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    assert not is_alive(victim)
    touch(file("go"))
    assert await other == survivor


async def test_a_call_that_is_cancelled_before_its_turn_kills_nobody(
    make_pool: Callable[..., Processes], file: Callable[[str], str]
) -> None:
    pool = make_pool(1)
    running = asyncio.create_task(pool.run(tasks.wait_for_file, (file("started"), file("go"))))
    survivor = await pid_in(file("started"))
    waiting = asyncio.create_task(pool.run(tasks.pid))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    touch(file("go"))
    assert await running == survivor == await pool.run(tasks.pid)


async def test_a_call_that_is_cancelled_while_its_child_starts_leaves_nothing_behind(processes: Processes) -> None:
    for turns in range(6):
        starting = asyncio.create_task(processes.run(tasks.pid))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert processes.pids == []
    assert await processes.run(tasks.pid) in processes.pids


async def test_a_call_beyond_its_hard_limit_is_killed(processes: Processes, file: Callable[[str], str]) -> None:
    pid = await processes.run(tasks.pid)
    with pytest.raises(TimeLimitExceeded) as raised:
        await processes.run(tasks.hang, (file("started"),), hard=0.3)
    assert raised.value.args == (0.3,)
    assert not is_alive(pid)
    assert await processes.run(tasks.pid) != pid


async def test_c_code_that_keeps_the_interpreter_to_itself_is_killed_too(
    processes: Processes, file: Callable[[str], str]
) -> None:
    pid = await processes.run(tasks.pid)
    with pytest.raises(TimeLimitExceeded):
        await processes.run(tasks.hang_holding_the_interpreter, (file("started"),), hard=0.3)
    assert not is_alive(pid)


async def test_a_call_within_its_limits_is_left_alone(processes: Processes) -> None:
    first = await processes.run(tasks.pid, hard=LONG, soft=LONG)
    assert await processes.run(tasks.pid, hard=LONG, soft=LONG) == first


SLOW_TO_IMPORT = """
from pathlib import Path
from time import sleep

HERE = Path(__file__).parent
(HERE / "importing").touch()
while not (HERE / "go").exists():
    sleep(0.01)

def answer():
    return 42
"""


async def test_the_limits_do_not_run_while_a_child_starts_and_imports(
    processes: Processes, tmp_path: Path, file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a task whose imports take longer than its limit could never run."""
    (tmp_path / "slow_to_import.py").write_text(SLOW_TO_IMPORT)
    touch(file("go"))
    monkeypatch.syspath_prepend(tmp_path)
    answer = importlib.import_module("slow_to_import").answer
    remove(file("go"))
    remove(file("importing"))
    running = asyncio.create_task(processes.run(answer, hard=LIMIT))
    await wait_for(Path(file("importing")).exists, within=60)
    began = monotonic()
    await wait_for(lambda: monotonic() - began > LIMIT)
    touch(file("go"))
    assert await running == 42


async def test_the_soft_limit_is_raised_inside_the_task(processes: Processes, file: Callable[[str], str]) -> None:
    pid = await processes.run(tasks.pid)
    with pytest.raises(SoftTimeLimitExceeded) as raised:
        await processes.run(tasks.hang, (file("started"),), soft=0.3)
    assert "in hang" in str(raised.value.__cause__)
    assert await processes.run(tasks.pid) == pid


async def test_a_task_may_catch_its_soft_limit_and_return(processes: Processes, file: Callable[[str], str]) -> None:
    assert await processes.run(tasks.cleaned_up_at_the_soft_limit, (file("started"),), soft=0.3) == "cleaned up"


async def test_a_soft_limit_that_comes_before_the_task_has_begun_is_told_again(
    processes: Processes, file: Callable[[str], str]
) -> None:
    """What it is given may take longer to read than the limit."""
    with pytest.raises(SoftTimeLimitExceeded):
        await processes.run(tasks.hang_with, (tasks.SlowToRead(file("read")),), soft=0.001)
    remove(file("read"))


async def test_a_task_that_cleans_up_is_told_its_soft_limit_once(processes: Processes) -> None:
    assert await processes.run(tasks.cleaned_up_for, (1.0,), soft=0.1) == "cleaned up"


async def test_a_soft_limit_that_comes_after_the_task_is_nothing_to_the_child(processes: Processes) -> None:
    idle = await processes.run(tasks.pid)
    for _ in range(20):
        os.kill(idle, child.SOFT_LIMIT)
        assert await processes.run(tasks.pid) == idle


# -- recycling ---------------------------------------------------------------------------------------------------------


async def test_a_child_is_replaced_after_so_many_calls(make_pool: Callable[..., Processes]) -> None:
    pool = make_pool(1, max_tasks_per_child=2)
    pids = [await pool.run(tasks.pid) for _ in range(5)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


async def test_a_child_is_replaced_when_it_has_kept_too_much_memory(make_pool: Callable[..., Processes]) -> None:
    usual = await make_pool(1).run(child.resident_memory)
    pool = make_pool(1, max_memory_per_child=usual + 75 * 1024)
    first = [await pool.run(tasks.use_for_a_while, (150,)), await pool.run(tasks.keep, (150,))]
    assert first[0] == first[1], "what it has given back does not count"
    assert await pool.run(tasks.pid) != first[0]


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_a_closed_pool_has_no_processes_and_starts_again(processes: Processes) -> None:
    first = await processes.run(tasks.pid)
    await processes.close()
    assert not is_alive(first)
    assert processes.pids == []
    assert await processes.run(tasks.pid) != first


async def test_closing_waits_for_what_runs(processes: Processes, file: Callable[[str], str]) -> None:
    running = asyncio.create_task(processes.run(tasks.wait_for_file, (file("started"), file("go"))))
    pid = await pid_in(file("started"))
    closing = asyncio.create_task(processes.close())
    await asyncio.sleep(0)
    assert not closing.done()
    touch(file("go"))
    await closing
    assert await running == pid
    assert not is_alive(pid)


async def test_a_pool_whose_closing_was_cancelled_goes_on(processes: Processes, file: Callable[[str], str]) -> None:
    running = asyncio.create_task(processes.run(tasks.wait_for_file, (file("started"), file("go"))))
    pid = await pid_in(file("started"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(processes.close(), 0.1)
    other = await processes.run(tasks.pid)
    touch(file("go"))
    assert await running == pid != other


async def test_closing_kills_what_runs_on_and_refuses_what_waits(
    make_pool: Callable[..., Processes], file: Callable[[str], str]
) -> None:
    pool = make_pool(1)
    running = asyncio.create_task(pool.run(tasks.hang, (file("started"),)))
    pid = await pid_in(file("started"))
    waiting = asyncio.create_task(pool.run(tasks.pid))
    await asyncio.sleep(0)
    await asyncio.gather(pool.close(0.1), pool.close(0.1))
    assert not is_alive(pid)
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        await running
    with pytest.raises(WorkerLostError, match="was closed before it could begin"):
        await waiting


async def test_a_pool_leaves_no_threads_and_no_open_files(processes: Processes) -> None:
    """But for the pipe to multiprocessing's resource tracker."""

    def held() -> tuple[int, int]:
        gc.collect()
        return threading.active_count(), psutil.Process().num_fds()

    await processes.run(tasks.pid)
    await processes.close()
    before = await wait_for(held)
    for _ in range(3):
        await processes.run(tasks.pid)
        await processes.close()
    await wait_for(lambda: held() <= before)


# -- signals and parents -----------------------------------------------------------------------------------------------


async def test_signals_that_are_meant_for_the_worker_do_not_end_a_child(
    processes: Processes, file: Callable[[str], str]
) -> None:
    """A terminal sends Ctrl-C to all, a service manager SIGTERM."""
    running = asyncio.create_task(processes.run(tasks.wait_for_file, (file("started"), file("go"))))
    pid = await pid_in(file("started"))
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(pid, number)
    touch(file("go"))
    assert await running == pid == await processes.run(tasks.pid)


async def test_what_a_task_starts_can_be_terminated(processes: Processes) -> None:
    """Ignored and blocked signals are inherited, so SIGTERM is neither."""
    assert await processes.run(tasks.handlers) == {"SIGINT": True, "SIGHUP": True, "SIGTERM": False, "blocked": 0}


PARENT = """
import asyncio, sys
from celeriq.processes import Processes
from tests import process_tasks as tasks

async def main(hanging, idle):
    pool = Processes(2)
    hang = asyncio.create_task(pool.run(tasks.hang_holding_the_interpreter, (hanging,)))
    await pool.run(tasks.pid_written_to, (idle,))
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
"""


def test_children_die_with_a_worker_that_is_killed(file: Callable[[str], str]) -> None:
    """At once, whatever they do."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, file("hanging"), file("idle")])
    try:
        wait_without_loop(lambda: Path(file("hanging")).exists() and Path(file("idle")).exists(), within=60)
        pids = [pid_written(file(name)) for name in ("hanging", "idle")]
        assert all(map(is_alive, pids))
    finally:
        parent.kill()
        parent.wait()
    wait_without_loop(lambda: not any(map(is_alive, pids)))


FORGETFUL = """
import asyncio
from celeriq.processes import Processes
from tests import process_tasks as tasks

pool = Processes(1)

async def main():
    print(await pool.run(tasks.pid))

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_pool_that_nobody_closes_does_not_keep_the_interpreter_from_ending() -> None:
    ended = subprocess.run([sys.executable, "-W", "error", "-c", FORGETFUL], check=True, capture_output=True, text=True)
    assert ended.stderr == ""
    assert not is_alive(int(ended.stdout))
