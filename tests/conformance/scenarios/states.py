"""States, and what is stored of a task."""

from __future__ import annotations

import sys
from typing import Any
from uuid import uuid4

from tests.conformance.observation import outcome, plain, raised
from tests.conformance.scenario import App, Bound, Gate, Log, Result, chord, ended, scenario, task, wait_for

log = Log("states")


@task("states.echo")
async def echo(value: Any) -> Any:
    return value


@task("states.gather")
async def gather(values: Any) -> Any:
    return values


class TooOdd(Exception):  # noqa: N818 - any name will do
    pass


class Needy(Exception):  # noqa: N818
    """It does not survive pickling: its one argument is not what its constructor takes."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class Plain:
    def __repr__(self) -> str:
        return "<plain>"


@task("states.fail")
async def fail(how: str) -> None:
    match how:
        case "own":
            raise TooOdd("odd", 1)
        case "inner":
            raise Outer.Inner("inside")
        case "unserialisable":
            raise ValueError("text", Plain(), {"a": 1})
        case "needy":
            raise Needy("salt", "pepper")
        case _:
            raise ValueError(how)


class Outer:
    class Inner(Exception):  # noqa: N818
        pass


# -- states ------------------------------------------------------------------------------------------------------------


@scenario("ST-01")
async def there_are_certain_states(app: App) -> Any:
    return await app.state_sets()


@scenario("ST-01")
async def of_two_states_one_wins(app: App) -> Any:
    order = ["SUCCESS", "FAILURE", "PROGRESS", "REVOKED", "STARTED", "RECEIVED", "REJECTED", "RETRY", "PENDING"]
    wins = [await app.higher_state(one, other) for one in order for other in order if one != other]
    return sorted(order, key=wins.count, reverse=True)


@scenario("ST-02")
async def what_nobody_knows_is_pending(app: App) -> Any:
    unknown = app.result(str(uuid4()))
    waiting = await echo.apply_async((1,), queue="states.never")
    seen = [
        [await each.state(), await each.exists(), plain(await each.info()), await each.ready()]
        for each in (unknown, waiting)
    ]
    return {"unknown": seen[0], "waiting": seen[1], "record": await app.record(waiting.id)}


@task("states.tracked", track_started=True)
async def tracked() -> str:
    await Gate("states.tracked").wait()
    return "done"


@task("states.untracked")
async def untracked() -> str:
    return "done"


@scenario("ST-03", "EXE-01")
async def a_start_is_told_if_the_task_says_so(app: App) -> Any:
    task_id = str(uuid4())
    async with app.states(task_id) as states:
        sent = await tracked.apply_async(task_id=task_id)
        await states.until("STARTED")
        seen = {"state": await sent.state(), "info": sorted(await sent.info()), "ready": await sent.ready()}
        await Gate("states.tracked").open()
        seen["states"] = await states.until("SUCCESS")
    return seen


@scenario("ST-03", "EXE-01")
async def else_it_is_not_told(app: App) -> Any:
    task_id = str(uuid4())
    async with app.states(task_id) as states:
        await untracked.apply_async(task_id=task_id)
        return await states.until("SUCCESS")


@task("states.progress", bind=True)
async def progress(self: Bound) -> str:
    for number in range(3):
        await self.update_state(state="PROGRESS", meta={"current": number, "total": 3})
    await Gate("states.progress").wait()
    return "done"


@scenario("ST-04", "ST-05")
async def a_task_tells_of_its_progress(app: App) -> Any:
    task_id = str(uuid4())
    async with app.states(task_id) as states:
        sent = await progress.apply_async(task_id=task_id)
        await wait_for(lambda: _tells(sent, 2))
        seen = {"state": await sent.state(), "info": await sent.info(), "ready": await sent.ready()}
        record = await app.record(task_id)
        assert record
        seen["record"] = {name: record[name] for name in ("status", "result", "date_done")}
        await Gate("states.progress").open()
        seen["states"] = await states.until("SUCCESS")
    return {**seen, "value": await sent.get()}


async def _tells(sent: Result, current: int) -> bool:
    info = await sent.info()
    return isinstance(info, dict) and info.get("current") == current


@task("states.meddle", bind=True)
async def meddle(self: Bound, task_id: str) -> None:
    await self.update_state(task_id=task_id, state="MEDDLED", meta={"by": "another"})


@scenario("ST-04")
async def a_task_tells_of_another(app: App) -> Any:
    other = str(uuid4())
    await (await meddle.delay(other)).get()
    return [await app.result(other).state(), await app.result(other).info()]


@scenario("ST-07")
async def success_stays_and_failure_does_not(app: App) -> Any:
    seen: list[Any] = []
    for sent in (await echo.delay("kept"), await fail.delay("lost")):
        await ended(sent)
        await (await meddle.delay(sent.id)).get()
        again = app.result(sent.id)
        seen.append([await again.state(), plain(await again.info())])
    return seen


# -- records -----------------------------------------------------------------------------------------------------------


@scenario("ST-05")
async def what_is_stored(app: App) -> Any:
    seen: list[Any] = []
    for sent in (await echo.delay({"a": [1, None]}), await fail.delay("no")):
        await ended(sent)
        record = await app.record(sent.id)
        assert record
        assert record["task_id"] == sent.id
        seen.append(
            {
                "fields": sorted(record),
                "status": record["status"],
                "result": record["result"],
                "children": record["children"],
                "date_done": isinstance(record["date_done"], str) and "+00:00" in record["date_done"],
                "traceback": isinstance(record["traceback"], str),
            }
        )
        left = await app.time_to_live(sent.id)
        seen[-1]["a day"] = left is not None and 86_300 < left <= 86_400
    return seen


@scenario("ST-06", "RES-05")
async def more_is_stored_if_the_worker_is_told_so(app: App) -> Any:
    details = ("name", "args", "kwargs", "retries", "queue")
    async with app.worker("states.extended", result_extended=True):
        sent = await ended(await echo.apply_async(("x",), queue="states.extended"))
    record = await app.record(sent.id)
    assert record
    return {
        "fields": sorted(record),
        "details": {name: plain(await sent.detail(name)) for name in details},
        "worker": isinstance(await sent.detail("worker"), str),
    }


@scenario("ST-19")
async def how_long_it_is_stored(app: App) -> Any:
    async with app.worker("states.kept", result_expires=None, result_failure_expires=500):
        kept, failed = [await ended(await each.apply_async(("x",), queue="states.kept")) for each in (echo, fail)]
    left = await app.time_to_live(failed.id)
    return [await app.time_to_live(kept.id), left is not None and 400 < left <= 500]


@scenario("ST-21")
async def what_is_forgotten_is_pending_again(app: App) -> Any:
    sent = await ended(await echo.delay(1))
    await sent.forget()
    again = app.result(sent.id)
    return [await again.state(), await again.exists(), await app.record(sent.id)]


# -- exceptions --------------------------------------------------------------------------------------------------------


@scenario("ST-08")
async def an_exception_is_stored_by_class_and_arguments(app: App) -> Any:
    seen: dict[str, Any] = {}
    for how in ("plain", "own", "inner", "unserialisable"):
        sent = await ended(await fail.delay(how))
        record = await app.record(sent.id)
        assert record
        seen[how] = record["result"]
    return seen


@scenario("ST-09", "ERR-01")
async def an_exception_is_made_again_from_what_is_stored(app: App) -> Any:
    seen: dict[str, Any] = {}
    for how in ("plain", "own", "inner", "unserialisable"):
        seen[how] = await outcome((await fail.delay(how)).get())
    try:
        await (await fail.delay("own")).get()
    except TooOdd as error:
        seen["the class itself"] = list(error.args)
    return seen


@scenario("ST-09")
async def an_exception_that_cannot_be_pickled(app: App) -> Any:
    sent = await ended(await fail.delay("needy"))
    record = await app.record(sent.id)
    assert record
    return [record["result"]["exc_type"], await raised(sent.get())]


def failure_with(**stored: Any) -> dict[str, Any]:
    return {
        "status": "FAILURE",
        "result": stored,
        "traceback": None,
        "children": [],
        "date_done": "2026-01-01T00:00:00+00:00",
        "task_id": str(uuid4()),
    }


@scenario("ST-09", "SEC-06")
async def what_is_stored_may_name_anything(app: App) -> Any:
    here = __name__
    stored = {
        "a module that is not there": {"exc_type": "Lost", "exc_message": ["gone"], "exc_module": "nowhere.at_all"},
        "a class that is not there": {"exc_type": "Lost", "exc_message": ["gone"], "exc_module": here},
        "a module that is not imported": {"exc_type": "Error", "exc_message": ["x"], "exc_module": "wave"},
        "no exception": {"exc_type": "Plain", "exc_message": [], "exc_module": here},
        "a function": {"exc_type": "system", "exc_message": ["true"], "exc_module": "os"},
        "other arguments": {"exc_type": "Needy", "exc_message": ["one"], "exc_module": here},
    }
    seen: dict[str, Any] = {}
    for name, result in stored.items():
        record = failure_with(**result)
        await app.store(record)
        seen[name] = await raised(app.result(record["task_id"]).get(timeout=5))
    return {**seen, "imported": "wave" in sys.modules}


@scenario("ST-10", "SEC-03")
async def results_may_be_pickled(app: App) -> Any:
    settings: dict[str, Any] = {"result_serializer": "pickle", "accept_content": ["json", "pickle"]}
    try:
        async with app.worker("states.pickled", **settings), app.configured(**settings):
            return [
                await outcome((await fail.apply_async(("own",), queue="states.pickled")).get()),
                await raised((await fail.apply_async(("needy",), queue="states.pickled")).get()),
            ]
    except ValueError as refused:
        return type(refused).__name__


@scenario("ST-11", "RES-05")
async def the_traceback_is_text(app: App) -> Any:
    failed, fine = await ended(await fail.delay("no")), await ended(await echo.delay(1))
    text = await failed.traceback()
    assert text
    lines = text.strip().splitlines()
    return [lines[0], lines[-1], await fine.traceback()]


# -- values ------------------------------------------------------------------------------------------------------------


class Telling:
    async def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        await log.of(task_id)("on_failure", type(exc).__name__)


@task("states.unstorable", bind=True, base=Telling)
async def unstorable(self: Bound) -> Any:
    await log.of(self.request.id)("ran")
    return Plain()


@task("states.linked")
async def linked() -> None:
    await log.of("linked")("ran")


@scenario("ST-12", "EXE-02")
async def a_value_that_cannot_be_stored_is_a_failure(app: App) -> Any:
    sent = await unstorable.delay()
    return [await raised(sent.get()), await sent.state(), await log.of(sent.id).until(2)]


@scenario("ST-12", "CALL-16")
async def a_link_of_a_value_that_cannot_be_stored(app: App) -> Any:
    sent = await unstorable.apply_async(link=linked.si())
    told = await raised(sent.get())
    await app.worker_is_idle()
    return [told, await log.of("linked").entries()]


@task("states.ignored", bind=True, ignore_result=True, max_retries=1, default_retry_delay=0, track_started=True)
async def ignored(self: Bound, how: str) -> None:
    await log.of(how)(self.request.retries)
    if how == "ignored failure":
        raise ValueError(how)
    if how == "ignored retry" and not self.request.retries:
        raise self.retry()


@task("states.tells_and_is_ignored", bind=True, ignore_result=True)
async def tells_and_is_ignored(self: Bound) -> str:
    await self.update_state(state="PROGRESS", meta=1)
    return "not kept"


@scenario("ST-14", "ST-04")
async def what_is_ignored_may_tell_of_its_progress(app: App) -> Any:
    sent = await tells_and_is_ignored.delay()
    await wait_for(lambda: app.record(sent.id))
    await app.worker_is_idle()
    return [await app.result(sent.id).state(), await app.result(sent.id).info()]


@task("states.ignored_but_errors", ignore_result=True, store_errors_even_if_ignored=True)
async def ignored_but_errors(fails: bool) -> str:
    if fails:
        raise ValueError("kept")
    return "not kept"


@scenario("ST-14", "CALL-14")
async def what_is_ignored_leaves_no_record(app: App) -> Any:
    seen: dict[str, Any] = {}
    for how, runs in (("ignored failure", 1), ("ignored retry", 2)):
        task_id = str(uuid4())
        async with app.states(task_id) as states:
            sent = await ignored.apply_async((how,), task_id=task_id)
            await log.of(how).until(runs)
            await app.worker_is_idle()
            seen[how] = [await sent.state(), await sent.get(timeout=1), await states.until_now()]
    return seen


@scenario("ST-14")
async def errors_may_be_stored_though_results_are_not(app: App) -> Any:
    failed, fine = await ignored_but_errors.delay(True), await ignored_but_errors.delay(False)
    await wait_for(lambda: app.record(failed.id))
    await app.worker_is_idle()
    return [await app.result(failed.id).state(), await app.result(fine.id).state()]


@scenario("ST-14", "CAN-11")
async def a_chord_counts_parts_whose_results_are_ignored(app: App) -> Any:
    body = await chord([ignored_but_errors.s(fails=False), echo.s(2)], gather.s()).apply_async()
    return await outcome(body.get(timeout=10))


@task("states.hands_on")
async def hands_on() -> Any:
    return await echo.delay("of another")


@scenario("ST-13")
async def a_result_may_be_the_handle_of_another(app: App) -> Any:
    sent = await hands_on.delay()
    told = plain(await sent.get())
    children = await sent.children()
    return [told, [each.id for each in children or ()], await (await app.restored(told)).get()]


# -- what no worker knows ----------------------------------------------------------------------------------------------


@scenario("ST-20", "ERR-06")
async def a_task_that_the_worker_does_not_know_fails(app: App) -> Any:
    sent = await app.send_task(
        "states.nobody_knows",
        (1,),
    )
    told = await outcome(sent.get(timeout=10))
    return [told, await sent.state()]
