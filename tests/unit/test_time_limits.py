"""Soft and hard limits around a coroutine, wherever it waits."""

from __future__ import annotations

import asyncio
import inspect
import logging
import pickle
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import anyio
import pytest

from celeriq import record, time_limits
from celeriq.errors import SoftTimeLimitExceeded, TimeLimitExceeded
from celeriq.session import uninterrupted
from celeriq.time_limits import within
from tests.waiting import wait_for

TICK = 0.001
SHORT = 0.005
LONG = 20.0

Body = Callable[[], Coroutine[Any, Any, Any]]


@dataclass
class Ended:
    value: Any
    error: BaseException | None
    cancelling: int
    """What the task still counts afterwards."""


async def limited(work: Coroutine[Any, Any, Any], soft: float | None, hard: float | None, **options: Any) -> Ended:
    """How `work` ended under its limits."""
    value, error = None, None
    try:
        value = await within(work, soft, hard, **options)
    except BaseException as raised:  # noqa: BLE001 - it is what is looked at
        error = raised
    return Ended(value, error, current_task().cancelling())


def current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def run(work: Coroutine[Any, Any, Any], soft: float | None, hard: float | None, **options: Any) -> Ended:
    """The same in a task of its own, which leaves no other one behind, and no timer."""
    before = asyncio.all_tasks()
    ended = await asyncio.create_task(limited(work, soft, hard, **options))
    await wait_for(lambda: asyncio.all_tasks() == before)
    assert timers() == []
    return ended


def timers() -> list[asyncio.TimerHandle]:
    loop: Any = asyncio.get_running_loop()
    return [timer for timer in loop._scheduled if "_pass_" in repr(timer) and not timer.cancelled()]


def spin(seconds: float) -> None:
    """Block the loop: every timer that falls due meanwhile is called in its next turn, in order.

    Not by `time.sleep`, which may not be called below the library.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while loop.time() < until:
        pass


async def tell(body: Body) -> str:
    """Catch the soft limit inside, clean up, and return."""
    try:
        await body()
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0)
        return "cleaned up"
    return "not reached"


# -- where a body may wait ---------------------------------------------------------------------------------------------


async def forever() -> None:
    await asyncio.sleep(LONG)


async def in_a_bare_future() -> None:
    await asyncio.get_running_loop().create_future()


async def in_turns_of_the_loop() -> None:
    while True:  # noqa: ASYNC110 - it is the loop's turns that are waited for
        await asyncio.sleep(0)


async def in_an_event() -> None:
    await asyncio.Event().wait()


async def in_a_queue() -> None:
    await asyncio.Queue[int]().get()


async def in_a_lock() -> None:
    lock = asyncio.Lock()
    async with lock, lock:
        pass


async def in_a_condition() -> None:
    condition = asyncio.Condition()
    async with condition:
        await condition.wait()


async def in_a_task() -> None:
    await asyncio.create_task(forever())


async def in_gather() -> None:
    await asyncio.gather(forever(), forever())


async def at_the_end_of_a_task_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(forever())
        group.create_task(forever())


async def in_a_timeout() -> None:
    async with asyncio.timeout(LONG):
        await forever()


async def in_wait_for() -> None:
    await asyncio.wait_for(forever(), LONG)


async def in_wait() -> None:
    waited_for = asyncio.create_task(forever())
    try:
        await asyncio.wait({waited_for})
    finally:
        waited_for.cancel()


async def in_an_anyio_scope() -> None:
    with anyio.fail_after(LONG), anyio.CancelScope():
        await anyio.sleep(LONG)


async def at_the_end_of_an_anyio_task_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(forever)
        group.start_soon(forever)


async def in_an_anyio_lock() -> None:
    lock = anyio.Lock()
    await asyncio.create_task(lock.acquire())
    await lock.acquire()


async def in_an_async_generator() -> None:
    async def generate() -> AsyncIterator[int]:
        async with asyncio.TaskGroup() as group:
            group.create_task(forever())
        yield 1

    async for _ in generate():
        pass


async def in_a_context_manager() -> None:
    @asynccontextmanager
    async def opened() -> AsyncGenerator[None]:
        await asyncio.wait_for(forever(), LONG)
        yield

    async with opened():
        pass


class AwaitedInAnotherWay:
    def __await__(self) -> Generator[Any, None, None]:
        return at_the_end_of_a_task_group().__await__()


async def in_an_awaitable_of_ones_own() -> None:
    await AwaitedInAnotherWay()


class Yielding:
    def __await__(self) -> Generator[Any, None, None]:
        yield from in_wait_for().__await__()


async def in_a_generator() -> None:
    await Yielding()


PLACES: list[Body] = [
    forever,
    in_a_bare_future,
    in_turns_of_the_loop,
    in_an_event,
    in_a_queue,
    in_a_lock,
    in_a_condition,
    in_a_task,
    in_gather,
    at_the_end_of_a_task_group,
    in_a_timeout,
    in_wait_for,
    in_wait,
    in_an_anyio_scope,
    at_the_end_of_an_anyio_task_group,
    in_an_anyio_lock,
    in_an_async_generator,
    in_a_context_manager,
    in_an_awaitable_of_ones_own,
    in_a_generator,
]

everywhere = pytest.mark.parametrize("body", PLACES, ids=lambda place: place.__name__)


@everywhere
async def test_a_body_catches_its_soft_limit_cleans_up_and_returns(body: Body) -> None:
    assert await run(tell(body), SHORT, None) == Ended("cleaned up", None, 0)


@everywhere
async def test_a_soft_limit_that_is_not_caught_leaves_as_that(body: Body) -> None:
    ended = await run(body(), SHORT, LONG)
    assert type(ended.error) is SoftTimeLimitExceeded
    assert ended.cancelling == 0


@everywhere
async def test_a_hard_limit_cancels_the_body(body: Body) -> None:
    ended = await run(tell(body), None, SHORT)
    assert type(ended.error) is TimeLimitExceeded
    assert ended.error.args == (SHORT,)
    assert ended.cancelling == 0


@everywhere
async def test_whoever_else_cancels_is_obeyed(body: Body) -> None:
    task = asyncio.create_task(limited(tell(body), LONG, LONG))
    await asyncio.sleep(SHORT)
    task.cancel()
    ended = await task
    assert type(ended.error) is asyncio.CancelledError
    assert ended.cancelling == 1


# -- what is usual -----------------------------------------------------------------------------------------------------


async def test_a_body_in_time_returns_its_value() -> None:
    async def body() -> int:
        await asyncio.sleep(0)
        return 7

    assert await run(body(), LONG, LONG) == Ended(7, None, 0)


async def test_an_error_of_the_bodys_own_passes() -> None:
    error = ValueError("on purpose")

    async def body() -> None:
        await asyncio.sleep(0)
        raise error

    ended = await run(body(), LONG, LONG)
    assert ended.error is error
    assert error.__cause__ is error.__context__ is None


async def test_a_cancelled_future_that_the_body_awaits_is_its_own_affair() -> None:
    async def body() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    ended = await run(body(), LONG, LONG)
    assert type(ended.error) is asyncio.CancelledError
    assert ended.cancelling == 0


async def test_the_soft_limit_comes_once() -> None:
    async def body() -> str:
        await tell(forever)
        await asyncio.sleep(5 * SHORT)
        return "went on"

    assert (await run(body(), SHORT, LONG)).value == "went on"


async def test_the_soft_limit_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await run(tell(forever), SHORT, None)
    logged = [message for logger, _, message in caplog.record_tuples if logger == "celeriq.time_limits"]
    assert logged == [f"the soft time limit of {SHORT} s has passed in tell"]


async def test_a_limit_is_spent_when_the_body_is_done() -> None:
    await within(asyncio.sleep(0), SHORT, SHORT)
    await asyncio.sleep(3 * SHORT)


async def test_a_body_that_is_closed_is_closed_inside() -> None:
    body = forever()

    async def by_hand() -> None:
        work = within(body, LONG, LONG)
        work.send(None)
        work.close()

    await asyncio.create_task(by_hand())
    assert inspect.getcoroutinestate(body) == inspect.CORO_CLOSED


# -- groups and exceptions ---------------------------------------------------------------------------------------------


async def wait_inside_a_task_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(forever())
        await forever()


async def wait_inside_an_anyio_task_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(forever)
        await forever()


async def at_the_end_of_nested_task_groups() -> None:
    async with asyncio.TaskGroup() as outer:
        outer.create_task(forever())
        async with asyncio.TaskGroup() as inner:
            inner.create_task(forever())


IN_GROUPS: list[Body] = [
    wait_inside_a_task_group,
    wait_inside_an_anyio_task_group,
    at_the_end_of_a_task_group,
    at_the_end_of_nested_task_groups,
    at_the_end_of_an_anyio_task_group,
]

groups = pytest.mark.parametrize("body", IN_GROUPS, ids=lambda place: place.__name__)


@groups
async def test_except_star_catches_the_soft_limit_wherever_a_group_waits(body: Body) -> None:
    async def catching() -> str:
        try:
            await body()
        except* SoftTimeLimitExceeded:
            await asyncio.sleep(0)
        return "cleaned up"

    assert await run(catching(), SHORT, None) == Ended("cleaned up", None, 0)


@groups
async def test_a_soft_limit_leaves_a_group_as_itself(body: Body) -> None:
    ended = await run(body(), SHORT, None)
    assert type(ended.error) is SoftTimeLimitExceeded
    assert ended.cancelling == 0


async def test_a_group_that_has_other_errors_too_stays_a_group() -> None:
    async def fail_when_cancelled() -> None:
        try:
            await forever()
        finally:
            raise ValueError("on purpose")

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail_when_cancelled())
            await forever()

    ended = await run(body(), SHORT, None)
    assert isinstance(ended.error, ExceptionGroup)
    assert ended.error.subgroup(ValueError)


async def test_what_a_cancelled_child_raised_is_the_context_of_the_soft_limit() -> None:
    async def fail_when_cancelled() -> None:
        try:
            await forever()
        finally:
            raise ValueError("on purpose")

    async def body() -> None:
        await asyncio.create_task(fail_when_cancelled())

    ended = await run(body(), SHORT, None)
    assert type(ended.error) is SoftTimeLimitExceeded
    assert ended.error.__cause__
    assert isinstance(ended.error.__cause__.__context__, ValueError)


async def test_a_child_that_swallows_its_cancellation_does_not_hide_the_soft_limit() -> None:
    async def stubborn() -> None:
        with suppress(asyncio.CancelledError):
            await forever()

    async def body() -> None:
        await asyncio.create_task(stubborn())

    assert await run(tell(body), SHORT, None) == Ended("cleaned up", None, 0)


async def test_what_is_caught_is_stored_as_the_soft_limit_and_seen_as_a_cancellation() -> None:
    """`raise self.retry(exc=error)` stores it; a database driver needs to see that it was cancelled."""
    caught: list[BaseException] = []

    async def body() -> None:
        try:
            await forever()
        except SoftTimeLimitExceeded as error:
            caught.append(error)

    await run(body(), SHORT, None)
    assert isinstance(caught[0], asyncio.CancelledError)
    assert record.encode_exception(caught[0]) == record.encode_exception(SoftTimeLimitExceeded())
    assert type(pickle.loads(pickle.dumps(caught[0]))) is SoftTimeLimitExceeded


async def test_what_must_not_be_interrupted_is_not() -> None:
    ended: list[str] = []

    async def commit() -> None:
        await asyncio.sleep(5 * SHORT)
        ended.append("committed")

    async def body() -> str:
        await uninterrupted(commit())
        return ended[0]

    assert await run(body(), SHORT, None) == Ended("committed", None, 0)


# -- nothing is lost that others wait for ------------------------------------------------------------------------------


async def test_a_semaphore_that_is_given_when_the_limit_passes_is_given_back() -> None:
    semaphore = asyncio.Semaphore(1)
    await semaphore.acquire()
    asyncio.get_running_loop().call_later(TICK, semaphore.release)

    async def body() -> None:
        spin(4 * TICK)
        async with semaphore:
            await forever()

    assert (await run(tell(body), 2 * TICK, None)).value == "cleaned up"
    await asyncio.wait_for(semaphore.acquire(), 10)


async def test_a_lock_that_is_given_when_the_limit_passes_is_given_to_the_next() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_later(TICK, lock.release)

    async def body() -> None:
        spin(4 * TICK)
        async with lock:
            await forever()

    task = asyncio.create_task(limited(tell(body), 2 * TICK, None))
    await asyncio.sleep(0)
    await asyncio.wait_for(lock.acquire(), 10)
    assert (await task).value == "cleaned up"


# -- limits and cancellations in the same turn of the loop -------------------------------------------------------------


moments = pytest.mark.parametrize("moment", [TICK, 3 * TICK], ids=["before", "after"])


@moments
@pytest.mark.parametrize("limits", [(2 * TICK, None), (None, 2 * TICK), (2 * TICK, 2 * TICK)])
@everywhere
async def test_who_cancels_in_the_turn_of_a_limit_is_obeyed(
    body: Body, limits: tuple[float | None, float | None], moment: float
) -> None:
    async def late() -> Any:
        spin(5 * TICK)
        return await tell(body)

    async def cancelled() -> Ended:
        asyncio.get_running_loop().call_later(moment, current_task().cancel)
        return await limited(late(), *limits)

    ended = await asyncio.create_task(cancelled())
    assert type(ended.error) is asyncio.CancelledError
    assert ended.cancelling == 1


async def test_a_cancellation_that_comes_while_the_body_cleans_up_passes() -> None:
    cleaning = asyncio.Event()

    async def body() -> None:
        try:
            await forever()
        except SoftTimeLimitExceeded:
            cleaning.set()
            await forever()

    task = asyncio.create_task(limited(body(), SHORT, None))
    await cleaning.wait()
    task.cancel()
    ended = await task
    assert type(ended.error) is asyncio.CancelledError
    assert ended.cancelling == 1


async def test_a_cancellation_that_a_task_group_swallows_leaves_its_count() -> None:
    """A group that is being left, by the soft limit here, does not look who cancels meanwhile."""
    cleaning = asyncio.Event()

    async def clean_up() -> None:
        try:
            await forever()
        finally:
            cleaning.set()
            await asyncio.sleep(SHORT)

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(clean_up())

    task = asyncio.create_task(limited(body(), SHORT, None))
    await cleaning.wait()
    task.cancel()
    ended = await task
    assert type(ended.error) is SoftTimeLimitExceeded
    assert ended.cancelling == 1


async def test_a_body_that_is_being_cancelled_is_not_told_of_its_soft_limit() -> None:
    """Its way out would become a failure of its own."""
    cleaned: list[str] = []

    async def body() -> None:
        asyncio.get_running_loop().call_soon(current_task().cancel)
        try:
            await forever()
        finally:
            spin(2 * TICK)
            await asyncio.sleep(TICK)
            cleaned.append("up")

    ended = await asyncio.create_task(limited(body(), TICK, None))
    assert type(ended.error) is asyncio.CancelledError
    assert (cleaned, ended.cancelling) == (["up"], 1)


@moments
async def test_a_timeout_in_the_turn_of_the_soft_limit_fires_and_the_limit_follows(moment: float) -> None:
    told: list[str] = []

    async def body() -> None:
        try:
            async with asyncio.timeout(moment):
                spin(5 * TICK)
                await forever()
        except TimeoutError:
            told.append("timeout")
        try:
            await forever()
        except SoftTimeLimitExceeded:
            told.append("soft")

    assert await run(body(), 2 * TICK, None) == Ended(None, None, 0)
    assert told == ["timeout", "soft"]


async def test_an_anyio_deadline_in_the_turn_of_the_soft_limit_does_not_hide_it() -> None:
    told: list[str] = []

    async def body() -> None:
        with anyio.move_on_after(TICK) as scope:
            spin(25 * TICK)
            await forever()
        told.append("deadline" if scope.cancelled_caught else "none")
        try:
            await forever()
        except SoftTimeLimitExceeded:
            told.append("soft")

    assert await run(body(), 20 * TICK, None) == Ended(None, None, 0)
    assert told == ["deadline", "soft"]


async def test_a_child_that_fails_in_the_turn_of_the_soft_limit_does_not_hide_it() -> None:
    told: list[str] = []

    async def fail() -> None:
        raise ValueError("on purpose")

    async def body() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                spin(5 * TICK)
                await forever()
        except* ValueError:
            told.append("error")
        told.append(await tell(forever))

    assert await run(body(), TICK, None) == Ended(None, None, 0)
    assert told == ["error", "cleaned up"]


async def test_both_limits_in_one_turn_are_the_hard_one() -> None:
    async def late() -> Any:
        spin(5 * TICK)
        return await tell(forever)

    ended = await run(late(), TICK, 2 * TICK)
    assert type(ended.error) is TimeLimitExceeded
    assert ended.cancelling == 0


# -- the hard limit ----------------------------------------------------------------------------------------------------


async def test_a_body_that_swallows_the_hard_limit_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limits, "PATIENCE", SHORT)
    swallowed: list[int] = []

    async def body() -> None:
        for _ in range(3):
            try:
                await forever()
            except asyncio.CancelledError:
                swallowed.append(1)
        await forever()

    ended = await run(body(), None, SHORT)
    assert type(ended.error) is TimeLimitExceeded
    assert isinstance(ended.error.__cause__, asyncio.CancelledError)
    assert (len(swallowed), ended.cancelling) == (3, 0)


async def test_a_body_that_returns_in_spite_of_the_hard_limit_is_too_late() -> None:
    async def body() -> str:
        with suppress(asyncio.CancelledError):
            await forever()
        return "value"

    ended = await run(body(), None, SHORT)
    assert type(ended.error) is TimeLimitExceeded
    assert ended.error.args == (SHORT,)


async def test_an_error_after_the_hard_limit_is_its_cause() -> None:
    async def body() -> None:
        try:
            await forever()
        finally:
            raise ValueError("on purpose")

    ended = await run(body(), None, SHORT)
    assert type(ended.error) is TimeLimitExceeded
    assert isinstance(ended.error.__cause__, ValueError)


async def test_the_hard_limit_ends_a_body_that_its_soft_limit_did_not() -> None:
    async def body() -> None:
        await tell(forever)
        await forever()

    ended = await run(body(), SHORT, 2 * SHORT)
    assert type(ended.error) is TimeLimitExceeded
    assert ended.cancelling == 0


async def test_who_cancels_after_the_hard_limit_is_obeyed() -> None:
    hit = asyncio.Event()

    async def body() -> None:
        try:
            await forever()
        finally:
            hit.set()
            await forever()

    task = asyncio.create_task(limited(body(), None, SHORT))
    await hit.wait()
    task.cancel()
    ended = await task
    assert type(ended.error) is asyncio.CancelledError
    assert ended.cancelling == 1


async def test_the_end_of_the_process_is_no_matter_of_limits() -> None:
    class Ending(SystemExit): ...

    async def body() -> None:
        try:
            await forever()
        finally:
            raise Ending

    async def by_hand() -> None:
        work = within(body(), None, TICK)
        work.send(None)
        with suppress(asyncio.CancelledError):
            await forever()
        with pytest.raises(Ending):
            work.throw(asyncio.CancelledError)

    await asyncio.create_task(by_hand())


# -- the point of no return --------------------------------------------------------------------------------------------


async def test_no_limit_fires_once_the_body_is_shielded() -> None:
    async def body() -> str:
        await asyncio.sleep(4 * SHORT)
        return "committed"

    assert await run(body(), SHORT, 2 * SHORT, shielded=lambda: True) == Ended("committed", None, 0)


async def test_a_body_that_committed_after_its_hard_limit_has_succeeded() -> None:
    committed: list[bool] = []

    async def body() -> str:
        with suppress(asyncio.CancelledError):
            await forever()
        committed.append(True)
        return "committed"

    ended = await run(body(), None, SHORT, shielded=lambda: bool(committed))
    assert ended == Ended("committed", None, 0)


async def test_a_body_that_failed_after_its_hard_limit_has_not() -> None:
    ended = await run(forever(), None, SHORT, shielded=iter([False, True]).__next__)
    assert type(ended.error) is TimeLimitExceeded


async def test_a_soft_limit_that_had_to_wait_does_not_fire_once_the_body_is_shielded() -> None:
    committed: list[bool] = []

    async def body() -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(TICK):
                spin(5 * TICK)
                await forever()
        committed.append(True)
        await asyncio.sleep(0)
        return "committed"

    ended = await run(body(), 2 * TICK, None, shielded=lambda: bool(committed))
    assert ended == Ended("committed", None, 0)


# -- counts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [(SHORT, None), (None, SHORT)])
async def test_a_task_that_was_cancelled_before_keeps_its_count(limits: tuple[float | None, float | None]) -> None:
    async def cancelled_before() -> Ended:
        with suppress(asyncio.CancelledError):
            await forever()
        return await limited(tell(forever), *limits)

    task = asyncio.create_task(cancelled_before())
    await asyncio.sleep(0)
    task.cancel()
    ended = await task
    assert ended.cancelling == 1
    assert ended.value == "cleaned up" if limits[0] else type(ended.error) is TimeLimitExceeded


@pytest.mark.parametrize("seed", range(40))
async def test_limits_at_any_instant_leave_nothing_behind(seed: int) -> None:
    """Whatever falls together with what: one of the known ends, every count right, and no task left."""
    chance = random.Random(seed)
    place = chance.choice([*PLACES, *IN_GROUPS])
    asked: list[bool] = []

    async def body() -> str:
        for _ in range(chance.randrange(3)):
            spin(chance.choice([0, 5 * TICK]))
            with suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0, 5 * TICK)):
                    await place()
        try:
            await place()
        except* SoftTimeLimitExceeded:
            await asyncio.sleep(0)
        return "cleaned up"

    before = asyncio.all_tasks()
    task = asyncio.create_task(limited(body(), chance.uniform(0, 5 * TICK), chance.uniform(0, 10 * TICK)))
    if chance.random() < 0.5:
        asyncio.get_running_loop().call_later(chance.uniform(0, 10 * TICK), lambda: asked.append(task.cancel()))
    ended = await task
    assert type(ended.error) in {type(None), SoftTimeLimitExceeded, TimeLimitExceeded, asyncio.CancelledError}
    assert ended.value == ("cleaned up" if ended.error is None else None)
    assert ended.cancelling == asked.count(True)
    # A task group that is being left already swallows cancellations.
    assert isinstance(ended.error, asyncio.CancelledError) == (True in asked) or place in IN_GROUPS
    await wait_for(lambda: asyncio.all_tasks() == before)
