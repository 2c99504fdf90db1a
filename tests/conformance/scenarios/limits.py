"""Limits of time, rate and number; what is called off."""

from __future__ import annotations

import time
from itertools import pairwise
from time import monotonic
from typing import Any
from uuid import uuid4

from tests.conformance.observation import outcome, plain, raised
from tests.conformance.scenario import (
    App,
    Bound,
    Event,
    Gate,
    Log,
    chain,
    chord,
    due,
    kind,
    long_ago,
    pause,
    receiver,
    scenario,
    task,
    wait_for,
)

log = Log("limits")


@task("limits.echo")
async def echo(value: Any) -> Any:
    return value


@task("limits.gather")
async def gather(values: Any) -> Any:
    return values


@task("limits.note")
async def note(topic: str, *values: Any) -> str:
    await log.of(topic)(*values)
    return topic


@task("limits.gated", bind=True)
async def gated(self: Bound, gate: str) -> str:
    await log.of(gate)(self.request.id)
    await Gate(f"limits {gate}").wait()
    return gate


class Telling:
    async def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        await log.of(task_id)("on_failure", type(exc).__name__)

    async def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        await log.of(task_id)("after_return", status)


# -- time --------------------------------------------------------------------------------------------------------------


@task("limits.slow", bind=True, base=Telling)
async def slow(self: Bound, how: str, seconds: float = 20) -> str:
    try:
        await pause(seconds)
    except kind("SoftTimeLimitExceeded"):
        if how == "catches":
            return "tidied up"
        raise
    return "to the end"


@task("limits.told")
async def told(request: Any, exc: BaseException, traceback: Any) -> None:
    await log.of(request.id)("link_error", type(exc).__name__)


@receiver("task_failure", of=slow)
async def failed(event: Event) -> None:
    await log.of(event["task_id"])("task_failure", type(event["exception"]).__name__)


@scenario("LIM-01", "ERR-07", "EXE-02")
async def a_soft_limit_is_raised_inside_the_task(app: App) -> Any:
    seen: dict[str, Any] = {}
    for how in ("catches", "does not"):
        sent = await slow.apply_async((how,), soft_time_limit=0.5, link_error=told.s())
        value = await raised(sent.get()) or await sent.get()
        await app.worker_is_idle()
        seen[how] = [value, await sent.state(), await log.of(sent.id).entries()]
    return seen


@scenario("LIM-02", "ERR-07", "CERR-05", "SIG-05", longest=90)
async def a_hard_limit_ends_the_task(app: App) -> Any:
    sent = await slow.apply_async(("catches",), time_limit=1, link_error=told.s())
    told_of = await outcome(sent.get())
    await app.worker_is_idle()
    entries = await log.of(sent.id).settled()
    record = await app.record(sent.id)
    assert record
    after = await (await echo.delay("goes on")).get()
    return {
        "told": told_of,
        "state": record["status"],
        "traceback": record["traceback"],
        "entries": sorted(entries),
        "after": after,
    }


@task("limits.slow_as_told", soft_time_limit=0.4)
async def slow_as_told() -> str:
    await pause(1.2)
    return "to the end"


@scenario("LIM-03")
async def the_limit_of_the_call_wins_over_the_tasks_and_that_over_the_workers(app: App) -> Any:
    async with app.worker("limits.precedence", task_soft_time_limit=0.4):
        queue: dict[str, Any] = {"queue": "limits.precedence"}
        return {
            "worker": await raised((await slow.apply_async(("does not", 1.2), **queue)).get()),
            "task": await raised((await slow_as_told.delay()).get()),
            "call over worker": await raised((await slow.apply_async(("", 1), soft_time_limit=9, **queue)).get()),
            "call over task": await raised((await slow_as_told.apply_async(soft_time_limit=9)).get()),
        }


@task("limits.absurd", soft_time_limit=20, time_limit=10)
async def absurd() -> None:
    pass


@scenario("LIM-03")
async def a_soft_limit_beyond_the_hard_one(app: App) -> Any:
    return {
        "of the task": await raised(absurd.apply_async(queue="limits.never")),
        "of the call": await raised(echo.apply_async((1,), soft_time_limit=20, time_limit=10, queue="limits.never")),
    }


@scenario("LIM-04")
async def limits_of_a_task_in_a_thread(app: App) -> Any:
    seen: dict[str, Any] = {}
    async with app.worker("limits.threads", worker_pool="threads"):
        for limit in ("soft_time_limit", "time_limit"):
            options: dict[str, Any] = {"queue": "limits.threads", limit: 0.3}
            sent = await slow.apply_async(("does not", 0.9), **options)
            seen[limit] = [await raised(sent.get()), await sent.state()]
    return seen


class SlowAfterwards:
    async def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        await log.of("afterwards")("on_success")
        await pause(10)
        await log.of("afterwards")("to the end")


@task("limits.slow_afterwards", base=SlowAfterwards, time_limit=1)
async def slow_afterwards() -> str:
    return "done"


@scenario("LIM-05", "ST-07", longest=90)
async def a_limit_covers_the_handlers(app: App) -> Any:
    sent = await slow_afterwards.delay()
    await sent.get()
    await app.worker_is_idle()
    return [await app.result(sent.id).state(), await log.of("afterwards").entries()]


@scenario("LIM-05")
async def a_limit_does_not_cover_the_queue(app: App) -> Any:
    sent = await echo.apply_async(("in time",), time_limit=1, soft_time_limit=0.9, queue="limits.queue")
    began = monotonic()
    await wait_for(lambda: monotonic() > began + 1.1)
    async with app.worker("limits.queue"):
        return await outcome(sent.get())


# -- rate and number ---------------------------------------------------------------------------------------------------


@task("limits.limited", rate_limit="4/s")
async def limited() -> None:
    await log.of("limited")(time.time())


@scenario("LIM-06")
async def tasks_of_a_limited_rate_come_one_by_one(app: App) -> Any:
    async with app.worker("limits.rate", concurrency=4):
        for _ in range(4):
            await limited.apply_async(queue="limits.rate")
        began = time.time()
        moments = [entry[0] for entry in await log.of("limited").until(4)]
    gaps = [after - before for before, after in pairwise(moments)]
    return {
        "the first one at once": moments[0] - began < 0.2,
        "apart": all(gap > 0.15 for gap in gaps),
        "not slower": moments[-1] - moments[0] < 2,
    }


@scenario("LIM-06", "DEF-07")
async def a_rate_that_cannot_be_read(app: App) -> Any:
    return [await raised(app.rate_of(rate)) for rate in ("10/s", "10/m", 2, None, "often")]


@scenario("LIM-08")
async def a_worker_runs_so_many_at_once(app: App) -> Any:
    seen: list[int] = []
    for concurrency in (1, 3):
        queue = f"limits.concurrency{concurrency}"
        async with app.worker(queue, concurrency=concurrency):
            sent = [await gated.apply_async((queue,), queue=queue) for _ in range(5)]
            seen.append(len(await log.of(queue).settled()))
            await Gate(f"limits {queue}").open()
            for each in sent:
                await each.get()
    return seen


# -- later -------------------------------------------------------------------------------------------------------------


@scenario("LIM-10", "ACK-13", longest=120)
async def what_waits_for_its_moment_does_not_keep_others_from_running(app: App) -> Any:
    queue = "limits.later"
    short: dict[str, Any] = {"broker_transport_options": {"visibility_timeout": 1}, "worker_prefetch_multiplier": 1}
    async with app.worker(queue, **short) as worker:
        later = [await echo.apply_async((number,), queue=queue, countdown=100) for number in range(8)]
        for each in later:
            await due(each.id)
        taken_at = monotonic()
        seen = {"left": len(await app.queued(queue)), "value": await (await echo.apply_async((1,), queue=queue)).get()}
        await worker.kill()
    await wait_for(lambda: monotonic() > taken_at + 1.5)
    async with app.worker(queue, **short):
        for each in later:
            await due(each.id)
    return {**seen, "states": sorted({await each.state() for each in later})}


# -- expired -----------------------------------------------------------------------------------------------------------


@scenario("LIM-11", "ERR-03", "CERR-05", "SIG-07")
async def what_has_expired_is_called_off(app: App) -> Any:
    last = await chain(note.si("expired", "ran").set(expires=long_ago()), note.si("expired", "next")).apply_async(
        link_error=told.s()
    )
    first = last.parent
    assert first
    told_of = await outcome(first.get())
    await app.worker_is_idle()
    return {
        "told": told_of,
        "state": await first.state(),
        "failed": await first.failed(),
        "next": await last.state(),
        "ran": await log.of("expired").entries(),
        "error callbacks": await log.of(first.id).entries(),
        "signals": await log.of(f"revoked {first.id}").entries(),
    }


for signalled in (note, gated, echo):

    @receiver("task_revoked", of=signalled)
    async def revoked(event: Event) -> None:
        told_of = {name: event[name] for name in ("terminated", "expired")}
        await log.of(f"revoked {event['request'].id}")(told_of)


# -- called off --------------------------------------------------------------------------------------------------------


@scenario("LIM-12", "LIM-13", "LIM-15", "ERR-03", "SIG-07")
async def what_waits_is_called_off_at_once_and_never_runs(app: App) -> Any:
    queue = "limits.revoked"
    async with app.worker(queue):
        running = await gated.apply_async(("busy",), queue=queue)
        await log.of("busy").until(1)
        waiting = await note.apply_async(("called off", "ran"), queue=queue)
        await waiting.revoke()
        told_of = await outcome(waiting.get())
        after = await note.apply_async(("called off", "after"), queue=queue)
        await Gate("limits busy").open()
        await after.get()
        await running.get()
        signals = await log.of(f"revoked {waiting.id}").until(1)
    return {
        "told": told_of,
        "state": await waiting.state(),
        "ran": await log.of("called off").entries(),
        "signals": signals[:1],
    }


@scenario("LIM-12", "LIM-10")
async def what_waits_for_its_moment_is_called_off(app: App) -> Any:
    sent = await note.apply_async(("not in time", "ran"), countdown=0.8)
    await due(sent.id)
    await app.revoke(sent.id)
    told_of = await outcome(sent.get())
    signals = await log.of(f"revoked {sent.id}").until(1)
    return [told_of, await log.of("not in time").entries(), signals]


@scenario("LIM-12", longest=90)
async def a_worker_that_starts_later_knows_what_was_called_off(app: App) -> Any:
    sent = await note.apply_async(("later worker", "ran"), queue="limits.later_worker")
    await app.revoke(sent.id)
    before = await outcome(sent.get())
    async with app.worker("limits.later_worker"):
        await (await echo.apply_async((1,), queue="limits.later_worker")).get()
    return [before, await log.of("later worker").entries(), await app.result(sent.id).state()]


@task("limits.tracked", bind=True, track_started=True)
async def tracked(self: Bound, how: str) -> str:
    if how == "custom":
        await self.update_state(state="PROGRESS", meta={})
    await log.of(f"tracked {how}")("began")
    await Gate(f"limits tracked {how}").wait()
    return "done"


@scenario("LIM-13")
async def what_runs_goes_on_though_it_is_called_off(app: App) -> Any:
    seen: dict[str, Any] = {}
    for how in ("started", "custom"):
        sent = await tracked.delay(how)
        await log.of(f"tracked {how}").until(1)
        await app.revoke(sent.id)
        # It is broadcast: another one that is revoked tells that this one was, too.
        marker = str(uuid4())
        await app.revoke(marker)
        await raised(app.result(marker).get())
        during = await app.result(sent.id).state()
        await Gate(f"limits tracked {how}").open()
        seen[how] = [during, await outcome(sent.get()), await sent.state()]
    return seen


@scenario("LIM-13", "LIM-15")
async def what_nobody_knows_may_be_called_off(app: App) -> Any:
    ids = [str(uuid4()) for _ in range(2)]
    for each in ids:
        await app.revoke(each)
    finished = await echo.delay("done")
    await finished.get()
    await app.revoke(finished.id)
    told_of = [await outcome(app.result(each).get()) for each in ids]
    return [told_of, await app.result(finished.id).state()]


# Where a start is not told, every other worker takes the task for one that waits, and says that it was revoked.
@task("limits.terminated", bind=True, base=Telling, track_started=True)
async def terminated(self: Bound, gate: str) -> str:
    await log.of(gate)(self.request.id)
    await pause(20)
    return "to the end"


@receiver("task_revoked", of=terminated)
async def was_terminated(event: Event) -> None:
    await log.of(event["request"].id)("task_revoked", {name: event[name] for name in ("terminated", "expired")})


@receiver("task_postrun", of=terminated)
async def was_over(event: Event) -> None:
    await log.of(event["task_id"])("task_postrun", event["state"])


@scenario("LIM-14", "LIM-15", "ERR-03", "ERR-07", "SIG-07", longest=90)
async def what_runs_may_be_terminated(app: App) -> Any:
    async with app.worker("limits.terminated"):
        queue: dict[str, Any] = {"queue": "limits.terminated"}
        sent = await terminated.apply_async(("terminated",), link_error=told.s(), **queue)
        await log.of("terminated").until(1)
        await sent.revoke(terminate=True)
        told_of = await outcome(sent.get())
        entries = await log.of(sent.id).settled()
        after = await (await echo.apply_async(("goes on",), **queue)).get()
    return {"told": told_of, "state": await sent.state(), "entries": entries, "after": after}


@scenario("LIM-14", longest=90)
async def what_waits_may_be_terminated(app: App) -> Any:
    async with app.worker("limits.waiting"):
        queue: dict[str, Any] = {"queue": "limits.waiting"}
        running = await gated.apply_async(("waiting",), **queue)
        await log.of("waiting").until(1)
        sent = await note.apply_async(("terminated before", "ran"), **queue)
        await wait_for(lambda: _taken(app, "limits.waiting"))
        await sent.revoke(terminate=True)
        told_of = await outcome(sent.get())
        await Gate("limits waiting").open()
        await running.get()
        after = await (await echo.apply_async(("goes on",), **queue)).get()
    return [told_of, await log.of("terminated before").entries(), after]


async def _taken(app: App, queue: str) -> bool:
    """What is not in the queue any more; a system that takes nothing beforehand leaves it there."""
    return not await app.queued(queue) or not app.takes_beforehand


@scenario("LIM-16", "CERR-11", "CERR-08")
async def a_chord_with_a_part_that_is_called_off(app: App) -> Any:
    body = await chord([echo.s(1), note.si("part", "ran").set(expires=long_ago())], gather.s()).apply_async()
    await wait_for(lambda: app.result(body.id).ready())
    by_id = await outcome(app.result(body.id).get())
    return {
        "body": [by_id["raised"], "TaskRevokedError" in by_id["args"][0]],
        "followed": await raised(body.get()),
        "ran": await log.of("part").entries(),
    }


@scenario("LIM-17")
async def what_bears_a_stamp_may_be_called_off_together(app: App) -> Any:
    one = await app.send_stamped(note, ("stamped", "acme"), {"tenant": "acme"}, countdown=0.8)
    other = await app.send_stamped(note, ("stamped", "umbrella"), {"tenant": "umbrella"}, countdown=0.8)
    for each in (one, other):
        await due(each.id)
    await app.revoke_by_stamps({"tenant": "acme"})
    return [await outcome(one.get()), await outcome(other.get()), await log.of("stamped").entries()]


@task("limits.parent", bind=True)
async def parent(self: Bound) -> None:
    child = await note.apply_async(("child", "ran"), countdown=0.6)
    await log.of("parent")(child.id)
    await Gate("limits parent").wait()


@scenario("LIM-16")
async def children_are_not_called_off_with_their_parent(app: App) -> Any:
    sent = await parent.delay()
    await log.of("parent").until(1)
    await app.revoke(sent.id)
    ran = await log.of("child").until(1)
    await Gate("limits parent").open()
    await sent.get()
    return plain(ran)
