from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from celeriq import (
    AsyncResult,
    BoundTask,
    CurrentTask,
    RedisBroker,
    SoftTimeLimitExceeded,
    TaskDefinitionError,
    TaskRevokedError,
    TaskSession,
    TimeLimitExceeded,
    UnsupportedOptionError,
    WorkerLostError,
    injected,
    shared,
)
from celeriq.middleware import ProcessPool, TimeLimits, standard
from tests import process_tasks as tasks
from tests.integration.conftest import MakeBroker
from tests.processes import is_alive
from tests.waiting import wait_for
from tests.workers import running

WAIT = 60
"""Seconds; a process takes its time to start."""

SHORT = 0.2


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    return lambda name: str(tmp_path / name)


async def pid_in(file: str) -> int:
    """Of who wrote it there; waits for it."""
    await wait_for(Path(file).exists, within=WAIT)
    return pid_written(file)


def pid_written(file: str) -> int:
    return int(Path(file).read_text())


def touch(file: str) -> None:
    Path(file).touch()


def remove(file: str) -> None:
    Path(file).unlink()


async def test_a_task_runs_in_a_process_that_is_kept_for_the_next(make_broker: MakeBroker) -> None:
    broker = make_broker().with_middlewares(ProcessPool(1))
    pid = broker.task(pool="process")(tasks.pid)
    called = broker.task(pool="process")(tasks.call_with)
    threads: list[str] = []

    @broker.task(pool="thread")
    def in_thread() -> int:
        threads.append(threading.current_thread().name)
        return os.getpid()

    async with running(broker):
        first = await (await pid.delay()).get(timeout=WAIT)
        assert first == await (await pid.delay()).get(timeout=WAIT) != os.getpid()
        assert await (await called.delay(1, two=[2])).get(timeout=WAIT) == ([1], {"two": [2]})
        assert await (await in_thread.delay()).get(timeout=WAIT) == os.getpid()
        assert is_alive(first)
    assert not is_alive(first)
    assert threads[0].startswith("celeriq-task")


async def test_an_error_is_that_of_the_task_and_is_decided_in_the_worker(
    make_broker: MakeBroker, file: Callable[[str], str]
) -> None:
    broker = make_broker().with_middlewares(ProcessPool(1))
    divide = broker.task(pool="process")(tasks.divide)
    asking = broker.task(pool="process", max_retries=1)(tasks.retry_until)
    async with running(broker):
        failed = await divide.delay(1, 0)
        with pytest.raises(ZeroDivisionError):
            await failed.get(timeout=WAIT)
        assert "in divide" in str(await failed.traceback())
        assert await (await asking.delay(file("asked"))).get(timeout=WAIT) == "ran again"


async def test_a_process_keeps_soft_and_hard_limits(make_broker: MakeBroker, file: Callable[[str], str]) -> None:
    """LIM-01, LIM-02: it may catch the soft one; at the hard one it is killed and replaced, and there is no retry."""
    broker = make_broker().with_middlewares(ProcessPool(1))
    pid = broker.task(pool="process")(tasks.pid)
    tidy = broker.task(pool="process", soft_time_limit=SHORT, time_limit=WAIT)(tasks.cleaned_up_for)
    hang = broker.task(pool="process", autoretry_for=(Exception,), default_retry_delay=0)(tasks.hang)
    untidy = broker.task(name="untidy", pool="process", soft_time_limit=SHORT)(tasks.hang)
    async with running(broker):
        assert await (await tidy.delay(0.0)).get(timeout=WAIT) == "cleaned up"
        first = await (await pid.delay()).get(timeout=WAIT)
        with pytest.raises(TimeLimitExceeded, match=r"0\.2"):
            await (await hang.apply_async((file("hard"),), time_limit=SHORT)).get(timeout=WAIT)
        assert not is_alive(first)
        second = await (await pid.delay()).get(timeout=WAIT)
        assert second != first
        with pytest.raises(SoftTimeLimitExceeded):
            await (await untidy.delay(file("soft"))).get(timeout=WAIT)
        assert await (await pid.delay()).get(timeout=WAIT) == second


async def test_the_limits_for_all_tasks_reach_a_process(make_broker: MakeBroker, file: Callable[[str], str]) -> None:
    broker = make_broker().with_middlewares(ProcessPool(1), TimeLimits(time_limit=SHORT))
    hang = broker.task(pool="process")(tasks.hang)
    async with running(broker):
        with pytest.raises(TimeLimitExceeded):
            await (await hang.delay(file("started"))).get(timeout=WAIT)


async def test_a_process_that_dies_fails_its_own_task_alone(
    make_broker: MakeBroker, file: Callable[[str], str], tmp_path: Path
) -> None:
    """ACK-04: whatever `autoretry_for` covers, only its name makes it a reason to run again."""
    broker = make_broker().with_middlewares(ProcessPool(2))
    wait = broker.task(pool="process")(tasks.wait_for_file)
    task: Any = broker.task
    declare = partial(task, pool="process", max_retries=1, default_retry_delay=0)
    fragile = declare(name="fragile", autoretry_for=(Exception,))(tasks.note_and_kill_oneself)
    stubborn = declare(name="stubborn", autoretry_for=(WorkerLostError,))(tasks.note_and_kill_oneself)
    folders = [tmp_path / "fragile", tmp_path / "stubborn"]
    async with running(broker):
        other = await wait.delay(file("started"), file("go"))
        survivor = await pid_in(file("started"))
        for each, folder in zip((fragile, stubborn), folders, strict=True):
            folder.mkdir()
            sent = await each.delay(str(folder))
            with pytest.raises(WorkerLostError, match=r"Worker exited prematurely: signal 9 \(SIGKILL\)\."):
                await sent.get(timeout=WAIT)
            assert await sent.state() == "FAILURE"
        assert [len(list(folder.iterdir())) for folder in folders] == [1, 2]
        touch(file("go"))
        assert await other.get(timeout=WAIT) == survivor


async def test_a_task_that_is_terminated_takes_its_process_along(
    make_broker: MakeBroker, file: Callable[[str], str]
) -> None:
    """LIM-14."""
    broker = make_broker().with_middlewares(ProcessPool(1))
    hang, pid = broker.task(pool="process")(tasks.hang), broker.task(pool="process")(tasks.pid)
    async with running(broker):
        sent = await hang.delay(file("started"))
        process = await pid_in(file("started"))
        await sent.revoke(terminate=True)
        with pytest.raises(TaskRevokedError, match="terminated"):
            await sent.get(timeout=WAIT)
        await wait_for(lambda: not is_alive(process))
        assert await (await pid.delay()).get(timeout=WAIT) != process


async def test_a_worker_that_does_not_wait_any_longer_kills_what_runs_and_hands_it_back(
    make_broker: MakeBroker, file: Callable[[str], str]
) -> None:
    first, second = make_broker(), make_broker()
    wait = first.task(name="wait", pool="process")(tasks.wait_for_file)
    second.task(name="wait", pool="process")(tasks.wait_for_file)
    async with running(first, patience=0.1):
        sent = await wait.delay(file("started"), file("go"))
        process = await pid_in(file("started"))
    assert not is_alive(process)
    remove(file("started"))
    async with running(second):
        process = await pid_in(file("started"))
        touch(file("go"))
        again: AsyncResult[int] = AsyncResult(sent.id, broker=second)
        assert await again.get(timeout=WAIT) == process


async def test_a_worker_that_stops_waits_for_what_runs(make_broker: MakeBroker, file: Callable[[str], str]) -> None:
    """SHUT-01."""
    broker, caller = make_broker(), make_broker()
    wait = broker.task(pool="process")(tasks.wait_for_file)
    worker = running(broker, patience=WAIT)
    await worker.__aenter__()
    sent = await wait.delay(file("started"), file("go"))
    process = await pid_in(file("started"))
    leaving = asyncio.create_task(worker.__aexit__(None, None, None))
    await asyncio.sleep(0)
    assert is_alive(process)
    touch(file("go"))
    await leaving
    result: AsyncResult[int] = AsyncResult(sent.id, broker=caller)
    assert await result.get(timeout=WAIT) == process


async def test_a_process_is_replaced_after_so_many_tasks(make_broker: MakeBroker) -> None:
    """SHUT-07."""
    broker = make_broker().with_middlewares(ProcessPool(1, max_tasks_per_child=2))
    pid = broker.task(pool="process")(tasks.pid)
    async with running(broker):
        pids = [await (await pid.delay()).get(timeout=WAIT) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


async def injecting(session: TaskSession = injected) -> None: ...


def given_the_task(number: int, task: CurrentTask = injected) -> None: ...


def bound(self: BoundTask) -> None: ...


def plain() -> None: ...


class Around(BoundTask):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


async def test_a_shared_task_runs_in_a_process(make_broker: MakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no broker."""
    monkeypatch.setattr(shared, "_shared", [])
    monkeypatch.setattr(shared, "_brokers", WeakSet[Any]())
    task: Any = import_module("tests.shared_process_task").shared_pid
    monkeypatch.setattr(shared, "_shared", [task])
    broker = make_broker()
    async with running(broker):
        assert await (await broker.send_task("shared_pid")).get(timeout=WAIT) != os.getpid()


@pytest.mark.parametrize(
    ("function", "options", "says"),
    [
        (injecting, {"pool": "process"}, "'session' is injected, which a process cannot be sent: pass plain data"),
        (given_the_task, {"pool": "process"}, "'task' is injected, which a process cannot be sent: pass plain data"),
        (bound, {"pool": "process", "bind": True}, "bind=True passes the running task.*: leave bind out"),
        (
            plain,
            {"pool": "process", "base": Around},
            r"Around.__call__ stands around its body and stays in the worker",
        ),
        (tasks.coroutine, {"pool": "process"}, "is `async def` and runs on the event loop: for a process write `def`"),
        (lambda: None, {"pool": "process"}, "write it with `def` at the top level of a module"),
        (tasks.coroutine, {"pool": "thread"}, 'pool="thread" is for `def`.*: write `def`, or leave pool out'),
        (plain, {"pool": "gevent"}, 'pool is \'gevent\'; it must be "thread" or "process"'),
        (plain, {"pool": "thread", "time_limit": 5}, 'time_limit=5 cannot end a thread.*`async def`, or pool="proc'),
        (plain, {"soft_time_limit": 0.5}, 'soft_time_limit=0.5 cannot end a thread.*`async def`, or pool="process"'),
        (plain, {"pool": "process", "soft_time_limit": 9, "time_limit": 5}, "soft_time_limit=9 comes after time_lim"),
    ],
)
def test_what_cannot_work_is_refused_at_import(
    function: Callable[..., Any], options: dict[str, Any], says: str
) -> None:
    declare: Any = RedisBroker("redis://localhost:1").task
    with pytest.raises(TaskDefinitionError, match=f"task 'mail.send': .*{says}"):
        declare(name="mail.send", **options)(function)


@pytest.mark.parametrize("option", ["size", "max_tasks_per_child", "max_memory_per_child"])
def test_a_pool_of_nothing_is_refused(option: str) -> None:
    make: Any = ProcessPool
    with pytest.raises(UnsupportedOptionError, match=f"{option} is 0; it must be 1 or more"):
        make(**{option: 0})


def test_without_the_extra_the_remedy_is_told_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pebble", None)
    monkeypatch.delitem(sys.modules, "celeriq.processes", raising=False)
    broker = RedisBroker("redis://localhost:1")
    broker.task(tasks.pid)
    with pytest.raises(ImportError, match=r"pip install 'celeriq\[processes\]'"):
        broker.task(name="in a process", pool="process")(tasks.pid)


def test_without_the_middleware_there_is_no_such_option() -> None:
    broker = RedisBroker(
        "redis://localhost:1", middlewares=[one for one in standard() if not isinstance(one, ProcessPool)]
    )
    with pytest.raises(TaskDefinitionError, match="unknown option 'pool'; ProcessPool reads it"):
        broker.task(pool="process")
