"""When a message is given up, and what becomes of it if its process, its worker or its connection dies."""

from __future__ import annotations

import asyncio
from functools import partial
from time import monotonic
from typing import Any
from uuid import uuid4

from tests.conformance.observation import outcome, raised
from tests.conformance.scenario import (
    App,
    Bound,
    Event,
    Gate,
    Log,
    Result,
    die,
    due,
    given_up,
    pause,
    playing,
    receiver,
    scenario,
    task,
    wait_for,
)

log = Log("acknowledgement")

SHORT: dict[str, Any] = {"broker_transport_options": {"visibility_timeout": 1}}
"""A worker that takes a message for lost after a second."""


async def until_taken_for_lost(since: float) -> None:
    await wait_for(lambda: monotonic() > since + 1.5)


@task("acknowledgement.mark")
async def mark() -> str:
    return "marked"


async def passed_through(queue: str) -> None:
    """Whatever was in the queue before has been taken by a worker."""
    await (await mark.apply_async(queue=queue)).get()


# -- early and late ----------------------------------------------------------------------------------------------------


def body_with(topic: str) -> Any:
    async def body(self: Bound, fails: bool = False) -> str:
        await log.of(topic)(self.request.id, self.request.delivery_info["redelivered"])
        await Gate(f"{topic} {self.request.id}").wait()
        if fails:
            raise ValueError("no")
        return "done"

    return body


by_default = task("acknowledgement.by_default", bind=True)(body_with("by default"))
early = task("acknowledgement.early", bind=True, acks_late=False)(body_with("early"))
late = task("acknowledgement.late", bind=True, acks_late=True)(body_with("late"))
TASKS = {"by default": by_default, "early": early, "late": late}


@scenario("ACK-01", "ACK-02")
async def when_a_message_is_acknowledged(app: App) -> Any:
    seen: dict[str, Any] = {}
    for name, each in TASKS.items():
        for fails in (False, True):
            sent = await each.delay(fails=fails)
            await wait_for(partial(_began, name, sent))
            if name != "late":
                await _whatever_is_given_up(app, sent)
            during = await app.held(sent.id)
            await Gate(f"{name} {sent.id}").open()
            told = await raised(sent.get())
            await app.worker_is_idle()
            seen[f"{name}, {told}"] = {"during": during, "after": await app.held(sent.id)}
    return seen


async def _began(name: str, sent: Result) -> bool:
    return sent.id in [entry[0] for entry in await log.of(name).entries()]


async def _whatever_is_given_up(app: App, sent: Result) -> None:
    """Acknowledging goes on beside the body: wait for it, though not for ever."""
    deadline = monotonic() + 2

    async def over() -> bool:
        return monotonic() > deadline or not await app.held(sent.id)

    await wait_for(over)


@scenario("ACK-01", "ACK-02", "ACK-07", "ACK-10", longest=120)
async def a_worker_that_is_killed(app: App) -> Any:
    seen: dict[str, Any] = {}
    for name, each in TASKS.items():
        queue = f"acknowledgement.killed {name}"
        async with app.worker(queue, **SHORT) as worker:
            sent = await each.apply_async(queue=queue)
            began = monotonic()
            await wait_for(partial(_began, name, sent))
            if name != "late":
                await _whatever_is_given_up(app, sent)
            await worker.kill()
        seen[name] = {"state": await app.result(sent.id).state()}
        await until_taken_for_lost(began)
        await Gate(f"{name} {sent.id}").open()
        async with app.worker(queue, **SHORT):
            await passed_through(queue)
            if name == "late":
                await sent.get()
        runs = [entry[1] for entry in await log.of(name).entries() if entry[0] == sent.id]
        seen[name].update(redelivered=runs, then=await app.result(sent.id).state())
    return seen


@scenario("ACK-13")
async def how_many_messages_a_worker_takes(app: App) -> Any:
    seen: dict[str, Any] = {}
    for name, each in (("early", early), ("late", late)):
        for multiplier in (1, 4):
            queue = f"acknowledgement.prefetch {name} {multiplier}"
            sent = [await each.apply_async(queue=queue) for _ in range(10)]
            async with app.worker(queue, worker_prefetch_multiplier=multiplier):
                await wait_for(partial(_began, name, sent[0]))
                seen[f"{name}, {multiplier}"] = await _left(app, queue)
    return seen


async def _left(app: App, queue: str) -> int:
    """How many still wait when no more are taken."""
    same, before = 0, -1
    while same < 10:
        left = len(await app.queued(queue))
        same, before = (same + 1 if left == before else 0), left
        await asyncio.sleep(0.05)
    return before


@task("acknowledgement.in_order")
async def in_order(number: int) -> None:
    await log.of("in order")(number)


@scenario("ACK-14")
async def messages_are_taken_in_the_order_of_sending(app: App) -> Any:
    for number in range(8):
        await in_order.apply_async((number,), queue="acknowledgement.in_order")
    async with app.worker("acknowledgement.in_order"):
        return await log.of("in order").until(8)


@task("acknowledgement.fails_unacknowledged", bind=True, acks_late=True, acks_on_failure=False)
async def fails_unacknowledged(self: Bound) -> None:
    await log.of("unacknowledged")("ran")
    raise ValueError("no")


@scenario("ACK-03")
async def a_failure_may_be_left_unacknowledged(app: App) -> Any:
    async with app.worker("acknowledgement.unacknowledged"):
        sent = await fails_unacknowledged.apply_async(queue="acknowledgement.unacknowledged")
        told = await outcome(sent.get())
        await passed_through("acknowledgement.unacknowledged")
        held = await app.held(sent.id)
    return {"told": told, "held": held, "runs": await log.of("unacknowledged").entries()}


@task("acknowledgement.times_out", bind=True, acks_late=True, acks_on_timeout=False, time_limit=1)
async def times_out(self: Bound) -> str:
    await log.of("times out")(self.request.delivery_info["redelivered"])
    if not self.request.delivery_info["redelivered"]:
        await pause(30)
    return "at last"


@scenario("ACK-03", "LIM-02")
async def what_takes_too_long_may_be_left_unacknowledged(app: App) -> Any:
    async with app.worker("acknowledgement.times_out"):
        sent = await times_out.apply_async(queue="acknowledgement.times_out")
        await log.of("times out").until(2)
        value = await wait_for(lambda: _succeeded(app, sent.id))
    return [value, await log.of("times out").entries()]


async def _succeeded(app: App, task_id: str) -> str | None:
    """Looked at anew: a failure that was stored before is no end of it."""
    return "SUCCESS" if await app.result(task_id).state() == "SUCCESS" else None


# -- a process that dies -----------------------------------------------------------------------------------------------


class Telling:
    async def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        await log.of(task_id)("on_failure")

    async def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        await log.of(task_id)("after_return")


@task("acknowledgement.dies", bind=True, base=Telling, acks_late=True)
async def dies(self: Bound) -> None:
    await log.of(self.request.id)("ran")
    await die()


@task("acknowledgement.dies_early", bind=True, base=Telling, acks_late=False)
async def dies_early(self: Bound) -> None:
    await log.of(self.request.id)("ran")
    await die()


for dying in (dies, dies_early):

    @receiver("task_failure", of=dying)
    async def lost(event: Event) -> None:
        await log.of(event["task_id"])("task_failure", type(event["exception"]).__name__)


@task("acknowledgement.told")
async def told(task_id: str) -> None:
    await log.of(task_id)("link_error")


@scenario("ACK-04", "ERR-07", "CERR-05", "SIG-05", longest=240)
async def a_process_that_dies_fails_its_task(app: App) -> Any:
    seen: dict[str, Any] = {}
    async with app.worker("acknowledgement.dies"):
        for name, each in (("late", dies), ("early", dies_early)):
            sent = await each.apply_async(queue="acknowledgement.dies", link_error=told.s())
            raising = await raised(sent.get(timeout=60))
            # Signal, link and acknowledgement come in the main process, after the record.
            entries = await log.of(sent.id).settled()
            await given_up(sent.id)
            seen[name] = [raising, sorted({entry[0] for entry in entries}), await app.stored_state(sent.id)]
    return seen


@task("acknowledgement.dies_and_returns", bind=True, acks_late=True, reject_on_worker_lost=True)
async def dies_and_returns(self: Bound) -> str:
    redelivered = self.request.delivery_info["redelivered"]
    await log.of("returns")(redelivered)
    if not redelivered:
        await die()
    return "alive"


@scenario("ACK-05", "ACK-10", longest=120)
async def a_task_may_go_back_to_the_queue_when_its_process_dies(app: App) -> Any:
    async with app.worker("acknowledgement.returns"):
        sent = await dies_and_returns.apply_async(queue="acknowledgement.returns")
        return [await outcome(sent.get(timeout=60)), await log.of("returns").entries()]


class DiesAfterwards:
    async def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        await log.of("afterwards")("on_success")
        await die()


@task("acknowledgement.dies_afterwards", base=DiesAfterwards, acks_late=True)
async def dies_afterwards() -> str:
    return "done"


@scenario("ACK-06", longest=120)
async def a_process_that_dies_after_its_task_succeeded(app: App) -> Any:
    async with app.worker("acknowledgement.afterwards"):
        sent = await dies_afterwards.apply_async(queue="acknowledgement.afterwards")
        await log.of("afterwards").until(1)
        await given_up(sent.id)
        await passed_through("acknowledgement.afterwards")
        return [await app.result(sent.id).state(), await log.of("afterwards").entries()]


# -- a worker that is taken for dead -----------------------------------------------------------------------------------


@scenario("ACK-08", longest=120)
async def a_worker_that_lives_and_takes_long(app: App) -> Any:
    queue = "acknowledgement.long"
    async with app.worker(queue, name="long1", worker_prefetch_multiplier=1, **SHORT):
        sent = await late.apply_async(queue=queue)
        began = monotonic()
        await wait_for(lambda: _began("late", sent))
        await until_taken_for_lost(began)
        async with app.worker(queue, name="long2", concurrency=2, **SHORT):
            await passed_through(queue)
            runs = [entry[1] for entry in await log.of("late").settled() if entry[0] == sent.id]
            await Gate(f"late {sent.id}").open()
            return {"redelivered": runs, "value": await sent.get()}


class StoresAndWaits:
    """Its result is there before its message is acknowledged."""

    async def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        await Gate(f"stored {task_id}").wait()


@task("acknowledgement.stored", bind=True, base=StoresAndWaits, acks_late=True)
async def stored(self: Bound) -> str:
    await log.of(self.request.id)("ran")
    return "done"


@scenario("ACK-09", "ST-07", longest=120)
async def what_has_succeeded_may_run_again(app: App) -> Any:
    seen: dict[str, Any] = {}
    for deduplicates in (False, True):
        queue = f"acknowledgement.stored {deduplicates}"
        async with app.worker(queue, **SHORT) as worker:
            sent = await stored.apply_async(queue=queue)
            began = monotonic()
            await sent.get()
            await worker.kill()
        await until_taken_for_lost(began)
        await Gate(f"stored {sent.id}").open()
        async with app.worker(queue, worker_deduplicate_successful_tasks=deduplicates, **SHORT):
            await given_up(sent.id)
            await passed_through(queue)
        seen[str(deduplicates)] = [len(await log.of(sent.id).entries()), await app.result(sent.id).state()]
    return seen


# -- messages that nobody can read -------------------------------------------------------------------------------------


@receiver("task_rejected", of=None, worker="acknowledgement.bad")
async def rejected(event: Event) -> None:
    await log.of("bad")("task_rejected")


@scenario("ACK-11", "SEC-01", "SIG-08")
async def messages_that_nobody_can_read_are_dropped(app: App) -> Any:
    queue = "acknowledgement.bad"
    ids = [str(uuid4()) for _ in range(3)]
    await app.put(queue, "application/json", '{"not": "a task"}', {})
    await app.put(queue, "application/json", "[[1", {"task": "acknowledgement.mark", "id": ids[0], "lang": "py"})
    await app.put(queue, "application/x-unheard-of", "x", {"task": "acknowledgement.mark", "id": ids[1], "lang": "py"})
    await app.put(
        queue,
        "application/json",
        "[[], {}, null]",
        {"task": "acknowledgement.mark", "id": ids[2], "lang": "py", "eta": "yesterday or so"},
    )
    async with app.worker(queue, name="acknowledgement.bad") as worker:
        await passed_through(queue)
        return {
            "left": await app.queued(queue),
            "states": [await app.result(each).state() for each in ids],
            "held": [await app.held(each) for each in ids],
            "told": await log.of("bad").entries(),
            "running": worker.running,
        }


# -- connections -------------------------------------------------------------------------------------------------------


@scenario("SHUT-05", longest=120)
async def a_worker_outlives_its_connections(app: App) -> Any:
    queue = "acknowledgement.broken"
    async with app.worker(queue, name="broken", breakable=True) as worker:
        running = await early.apply_async(queue=queue)
        await wait_for(lambda: _began("early", running))
        await worker.break_connections()
        await Gate(f"early {running.id}").open()
        after = await mark.apply_async(queue=queue)
        return [await running.get(), await after.get(), worker.running]


@scenario("ACK-12", longest=120)
async def what_runs_while_the_connection_breaks(app: App) -> Any:
    queue = "acknowledgement.lost"
    async with app.worker(queue, name="lost", concurrency=3, breakable=True) as worker:
        sent = await late.apply_async(queue=queue)
        await wait_for(lambda: _began("late", sent))
        await worker.break_connections()
        await passed_through(queue)
        runs = [entry[1] for entry in await log.of("late").settled() if entry[0] == sent.id]
        await Gate(f"late {sent.id}").open()
        return {"redelivered": runs, "value": await sent.get()}


# -- stopping ----------------------------------------------------------------------------------------------------------


@scenario("SHUT-01", "LIM-10", longest=120)
async def a_worker_that_is_told_to_stop_ends_what_it_runs(app: App) -> Any:
    queue = "acknowledgement.stopped"
    async with app.worker(queue) as worker:
        running = await late.apply_async(queue=queue)
        await wait_for(lambda: _began("late", running))
        waiting, much_later = await mark.apply_async(queue=queue), await mark.apply_async(queue=queue, countdown=100)
        await due(much_later.id)
        await worker.tell_to_stop()
        await worker.tell_to_stop()
        await Gate(f"late {running.id}").open()
        code = await worker.stopped()
    states = [await app.result(each.id).state() for each in (running, waiting, much_later)]
    kept = len(await app.queued(queue)) + (await app.due_at(much_later.id) is not None)
    held = [await app.held(each.id) for each in (running, waiting)]
    async with app.worker(queue):
        return {
            "code": code,
            "states": states,
            "kept": kept,
            "held": held,
            "then": await outcome(waiting.get()),
        }


@task("acknowledgement.started", bind=True, acks_late=True, track_started=True)
async def started(self: Bound) -> str:
    await log.of("started")(self.request.id)
    await Gate(f"started {self.request.id}").wait()
    return "done"


@scenario("SHUT-02", "ACK-01", longest=120)
async def a_worker_that_is_told_to_stop_at_once_gives_back_what_is_not_acknowledged(app: App) -> Any:
    seen: dict[str, Any] = {}
    for name, each in (("started", started), ("early", early)):
        queue = f"acknowledgement.cancelled {name}"
        async with app.worker(queue) as worker:
            sent = await each.apply_async(queue=queue)
            await wait_for(partial(_began, name, sent))
            if name == "early":
                await _whatever_is_given_up(app, sent)
            await worker.tell_to_cancel()
            await worker.stopped()
        seen[name] = {"back": await app.queued(queue), "state": await app.result(sent.id).state()}
        await Gate(f"{name} {sent.id}").open()
        async with app.worker(queue):
            await passed_through(queue)
            if name == "started":
                await sent.get()
        seen[name]["then"] = await app.result(sent.id).state()
    return seen


@scenario("SHUT-03", longest=120)
async def a_worker_may_be_given_time_to_end_what_it_runs(app: App) -> Any:
    queue = "acknowledgement.soft"
    seen: dict[str, Any] = {}
    for patient in (True, False):
        async with app.worker(queue, worker_soft_shutdown_timeout=3 if patient else 0.5) as worker:
            sent = await late.apply_async(queue=queue)
            await wait_for(partial(_began, "late", sent))
            await worker.tell_to_cancel()
            if patient:
                await Gate(f"late {sent.id}").open()
            await worker.stopped()
        seen[str(patient)] = [await app.result(sent.id).state(), await app.queued(queue)]
    return seen


@task("acknowledgement.process")
async def process() -> Any:
    return await playing().process()


@scenario("SHUT-07")
async def a_process_may_be_replaced_after_some_tasks(app: App) -> Any:
    queue = "acknowledgement.process"
    async with app.worker(queue, worker_max_tasks_per_child=2):
        processes = [await (await process.apply_async(queue=queue)).get() for _ in range(4)]
    return [processes.index(each) for each in processes]
