"""Defining tasks: names, options, the task itself as an object."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from pydantic import BaseModel

from tests.conformance.observation import outcome, plain, raised
from tests.conformance.scenario import App, Bound, Log, Task, playing, scenario, task, wait_for

log = Log("definition")


@task("definition.add")
async def add(x: int, y: int) -> int:
    return x + y


# -- the object --------------------------------------------------------------------------------------------------------


class Counting:
    calls = 0


@task("definition.count", bind=True, base=Counting)
async def count(self: Bound) -> int:
    self.calls += 1
    return int(self.calls)


@scenario("DEF-01")
async def a_task_is_one_object_in_its_process(app: App) -> Any:
    async with app.worker("definition.one"):
        return [await (await count.apply_async(queue="definition.one")).get() for _ in range(3)]


async def shared(x: int) -> int:
    return 2 * x


@scenario("DEF-02")
async def a_shared_task_belongs_to_every_application(app: App) -> Any:
    before = app.blank()
    before.share(shared, name="definition.shared")
    after = app.blank()
    return {
        "names": ["definition.shared" in each.names() for each in (before, after)],
        "values": [await each.call("definition.shared", 4) for each in (before, after)],
    }


# -- names -------------------------------------------------------------------------------------------------------------


async def unnamed() -> None:
    """A function of this module."""


async def of_the_program() -> None:
    """A function of the module that is run."""


of_the_program.__module__ = "__main__"


@scenario("DEF-03")
async def a_task_without_a_name_gets_its_modules_and_its_functions(app: App) -> Any:
    return {
        "of a module": app.blank().define(unnamed),
        "of the program": app.blank("shop").define(of_the_program),
        "given": app.blank("shop").define(unnamed, name="some.other"),
    }


async def first() -> str:
    return "first"


async def second() -> str:
    return "second"


@scenario("DEF-04")
async def a_name_that_is_taken_is_warned_of(app: App) -> Any:
    async def seen(*steps: Callable[[], Any]) -> Any:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for step in steps:
                step()
        return [each.category.__name__ for each in warned if "definition.taken" in str(each.message)]

    functions, classes = app.blank(), app.blank()
    warned = [
        await seen(
            lambda: functions.define(first, name="definition.taken"),
            lambda: functions.define(second, name="definition.taken"),
        ),
        await seen(
            lambda: classes.define_class("definition.taken", first),
            lambda: classes.define_class("definition.taken", second),
        ),
    ]
    return {
        "warned": [sorted(set(each)) for each in warned],
        "left": [await each.call("definition.taken") for each in (functions, classes)],
    }


@scenario("DEF-13")
async def tasks_are_found_by_the_name_of_their_module(app: App) -> Any:
    sys.modules.pop("tests.conformance.discovered.tasks", None)
    finding = app.blank()
    before = set(finding.names())
    finding.discover("tests.conformance.discovered")
    found = sorted(set(finding.names()) - before)
    return {"found": found, "works": [await finding.call(name, "you") for name in found]}


# -- bound tasks and base classes --------------------------------------------------------------------------------------


@task("definition.bound", bind=True)
async def bound(self: Bound, x: int) -> Any:
    return [self.name, self.request.id, self.request.retries, x]


@scenario("DEF-05")
async def a_bound_task_knows_itself(app: App) -> Any:
    sent = await bound.delay(7)
    return [sent.id, await sent.get()]


class Watching:
    async def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        await log("before_start", task_id)

    async def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        await log("on_success", task_id, retval)


class WatchingMore(Watching):
    async def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        await log("after_return", task_id, status)


@task("definition.watched", base=WatchingMore)
async def watched() -> str:
    return "done"


@scenario("DEF-06")
async def a_base_class_brings_handlers_and_inherits_them(app: App) -> Any:
    sent = await watched.delay()
    await sent.get()

    async def of_this_one() -> list[Any]:
        return [entry for entry in await log.entries() if entry[1] == sent.id]

    await wait_for(lambda: _has(of_this_one, 3))
    return await of_this_one()


async def _has(entries: Callable[[], Any], count: int) -> bool:
    return len(await entries()) >= count


class Wrapping:
    async def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ["wrapped", await self.run(*args, **kwargs)]


@task("definition.wrapped", base=Wrapping)
async def wrapped(x: int) -> int:
    return x + 1


@scenario("DEF-06")
async def a_base_class_may_stand_around_the_body(app: App) -> Any:
    return await (await wrapped.delay(1)).get()


# -- options -----------------------------------------------------------------------------------------------------------

OPTIONS = (
    "max_retries",
    "default_retry_delay",
    "ignore_result",
    "store_errors_even_if_ignored",
    "track_started",
    "acks_late",
    "reject_on_worker_lost",
    "time_limit",
    "soft_time_limit",
    "rate_limit",
    "throws",
    "expires",
    "priority",
)


@task(
    "definition.optioned",
    max_retries=7,
    default_retry_delay=9,
    ignore_result=True,
    track_started=True,
    acks_late=True,
    reject_on_worker_lost=True,
    time_limit=20,
    soft_time_limit=10,
    rate_limit="10/s",
    expires=30,
    priority=4,
)
async def optioned() -> None:
    pass


async def options_of(app: App, of: Task) -> dict[str, Any]:
    return {name: plain(await app.option(of, name)) for name in OPTIONS}


@scenario("DEF-07", "LIM-03")
async def a_task_has_options_and_each_has_a_default(app: App) -> Any:
    return {"plain": await options_of(app, add), "optioned": await options_of(app, optioned)}


@scenario("DEF-07")
async def what_a_task_does_not_say_is_said_by_the_configuration(app: App) -> Any:
    settings = {"task_track_started": True, "task_ignore_result": True, "task_time_limit": 100}
    async with app.configured(**settings) as configured:
        return {"plain": await options_of(configured, add), "optioned": await options_of(configured, optioned)}


@scenario("DEF-08")
async def the_configuration_may_say_options_of_tasks(app: App) -> Any:
    annotations = {"*": {"max_retries": 9}, "definition.add": {"default_retry_delay": 5}}
    async with app.configured(task_annotations=annotations) as configured:
        of_all, of_one = await options_of(configured, loose), await options_of(configured, add)
    names = ("max_retries", "default_retry_delay")
    return [{name: each[name] for name in names} for each in (of_all, of_one)]


# -- arguments ---------------------------------------------------------------------------------------------------------


@task("definition.loose", typing=False)
async def loose(x: int) -> int:
    return x


@scenario("DEF-09")
async def arguments_that_do_not_fit_are_refused_before_anything_is_sent(app: App) -> Any:
    queue: dict[str, Any] = {"queue": "definition.never"}
    return {
        "missing": await raised(add.apply_async((1,), **queue)),
        "too many": await raised(add.apply_async((1, 2, 3), **queue)),
        "unknown": await raised(add.apply_async((1,), {"z": 1}, **queue)),
        "delay": await raised(add.delay(1)),
        "sent": await app.queued("definition.never"),
    }


@scenario("DEF-09")
async def unchecked_arguments_fail_in_the_worker(app: App) -> Any:
    by_name, unchecked = await app.send_task("definition.add", (1,)), await loose.apply_async((1, 2))
    told = [await raised(each.get()) for each in (by_name, unchecked)]
    return [told, await by_name.state(), await unchecked.state()]


@task("definition.direct", bind=True)
async def direct(self: Bound, x: int) -> Any:
    return [x, self.request.id, self.request.called_directly, self.request.retries, self.request.is_eager]


@task("definition.direct_failure")
async def direct_failure() -> None:
    raise KeyError("direct")


@scenario("DEF-10")
async def a_task_that_is_called_runs_here_and_now(app: App) -> Any:
    return [plain(await direct(3)), await outcome(direct_failure())]


class Order(BaseModel):
    number: int
    items: list[str] = []


@task("definition.ship", pydantic=True)
async def ship(order: Order, fast: bool = False) -> Order:
    return Order(number=order.number + 1, items=[*order.items, type(order).__name__, str(fast)])


@scenario("DEF-11")
async def a_model_is_made_from_its_fields_and_back(app: App) -> Any:
    given = await ship.delay({"number": "4", "items": ["pen"]}, fast=True)
    passed = await ship.delay(Order(number=5))
    wrong = await ship.delay({"number": "four"})
    return [await outcome(given.get()), await outcome(passed.get()), await raised(wrong.get()), await wrong.state()]


# -- expected errors ---------------------------------------------------------------------------------------------------


class Telling:
    async def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        await log("on_failure", task_id, type(exc).__name__)


@task("definition.expected", throws=(LookupError,), base=Telling)
async def expected(surprise: bool) -> None:
    if surprise:
        raise ValueError("nobody knew")
    raise KeyError("as usual")


@scenario("DEF-12")
async def an_expected_error_is_a_failure_that_is_told_of_quietly(app: App) -> Any:
    seen: dict[str, Any] = {}
    for surprise in (False, True):
        sent = await expected.delay(surprise)
        told = await outcome(sent.get())
        handled = await wait_for(partial(_of, sent.id))
        logged = await wait_for(partial(_told, app, sent.id))
        seen[str(surprise)] = [told, await sent.state(), handled, logged]
    return seen


async def _of(task_id: str) -> Any:
    return [entry for entry in await log.entries() if entry[1] == task_id]


async def _told(app: App, task_id: str) -> Any:
    """Once the log has the end of it, and not only its beginning."""
    told = await app.logged(task_id)
    return told if told.pop("lines") > 1 else None


# -- the running task --------------------------------------------------------------------------------------------------


@task("definition.unbound")
async def unbound() -> Any:
    running = playing().running_task()
    return [running.name, running.request.id]


@scenario("DEF-14")
async def the_running_task_is_known_to_what_it_calls(app: App) -> Any:
    sent = await unbound.delay()
    return [sent.id, await sent.get()]


# -- transactions ------------------------------------------------------------------------------------------------------


@scenario("DEF-15")
async def a_task_may_be_sent_when_the_transaction_is_committed(app: App) -> Any:
    seen: dict[str, Any] = {}
    async with app.configured(task_default_queue="definition.committed") as configured:
        async with configured.transaction() as transaction:
            returned = await configured.delay_on_commit(add, transaction, 1, 2)
            seen["before"] = await configured.queued("definition.committed")
        await wait_for(lambda: configured.queued("definition.committed"))
        seen["after"] = await configured.queued("definition.committed")
        with suppress(LookupError):
            async with configured.transaction() as transaction:
                await configured.delay_on_commit(add, transaction, 3, 4)
                raise LookupError
        seen["after a rollback"] = await configured.queued("definition.committed")
    return {**seen, "returned": returned is not None}


# -- aborting ----------------------------------------------------------------------------------------------------------


@task("definition.patient", bind=True)
async def patient(self: Bound) -> Any:
    await log("patient", self.request.id)
    for _ in range(1000):
        if await playing().is_aborted(self):
            return "aborted"
        await playing().pause(0.02)
    return "never told"


@scenario("DEF-16")
async def a_task_may_look_whether_it_is_to_stop(app: App) -> Any:
    sent = await patient.delay()
    await wait_for(lambda: _of(sent.id))
    await sent.abort()
    return [await sent.get(), await sent.state()]
