"""What happens around the body, and in which order."""

from __future__ import annotations

from typing import Any

from tests.conformance.observation import outcome, plain, raised
from tests.conformance.scenario import (
    App,
    Bound,
    Event,
    Gate,
    Log,
    Result,
    chain,
    chord,
    error,
    playing,
    receiver,
    scenario,
    task,
    wait_for,
)

log = Log("execution")


@task("execution.echo")
async def echo(value: Any) -> Any:
    return value


@task("execution.gather")
async def gather(values: Any) -> Any:
    return values


class Watching:
    """Tells of every handler, and what is stored of the task meanwhile."""

    async def before_start(self: Any, task_id: str, args: Any, kwargs: Any) -> None:
        await tell(self, task_id, "before_start", plain(args), plain(kwargs))

    async def on_success(self: Any, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        await tell(self, task_id, "on_success", plain(retval), plain(args), plain(kwargs))

    async def on_failure(self: Any, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        await tell(self, task_id, "on_failure", plain(exc), plain(args), plain(kwargs), einfo is not None)

    async def on_retry(self: Any, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        await tell(self, task_id, "on_retry", plain(exc), plain(args), plain(kwargs), einfo is not None)

    async def after_return(
        self: Any, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        await tell(self, task_id, "after_return", status, plain(retval), plain(args), plain(kwargs), einfo is not None)


async def tell(of: Any, task_id: str, what: str, *values: Any) -> None:
    await log.of(task_id)(what, await playing().stored_state(task_id), *values)


@task("execution.watched", bind=True, base=Watching, track_started=True, default_retry_delay=0, max_retries=1)
async def watched(self: Bound, how: str, more: int = 0) -> str:
    await tell(self, self.request.id, "body")
    if how == "fail":
        raise ValueError(how)
    if how == "retry" and not self.request.retries:
        raise self.retry(exc=KeyError("again"))
    if how == "ignore":
        raise error("Ignore")
    if how == "reject":
        raise error("Reject", "because", requeue=False)
    return how


@task("execution.linked")
async def linked(task_id: str) -> None:
    await log.of(f"linked {task_id}")("ran")


for signal in ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry"):

    @receiver(signal, of=watched)
    async def told(event: Event, signal: str = signal) -> None:
        task_id = event["task_id"] if "task_id" in event else playing().running_task().request.id
        of = {name: plain(event[name]) for name in ("state", "retval", "result", "exception") if name in event}
        await tell(None, task_id, signal, of)


async def run(app: App, how: str, **options: Any) -> list[Any]:
    """What was told of it, from its beginning to the end of its last run."""
    sent = await watched.apply_async((how,), {"more": 1}, **options)
    ends = 2 if how == "retry" else 1

    async def over() -> bool:
        return [entry[0] for entry in await log.of(sent.id).entries()].count("task_postrun") == ends

    await wait_for(over)
    return await log.of(sent.id).entries()


@scenario("EXE-01", "EXE-06", "SIG-03", "SIG-04", "EXE-15")
async def the_order_of_a_success(app: App) -> Any:
    return await run(app, "succeed")


@scenario("EXE-02", "EXE-06", "SIG-03", "SIG-05", "EXE-15")
async def the_order_of_a_failure(app: App) -> Any:
    return await run(app, "fail")


@scenario("EXE-03", "EXE-06", "SIG-03", "SIG-06", "EXE-15", "RETRY-07")
async def the_order_of_a_retry(app: App) -> Any:
    # Both runs are told of in one list, and the second one may begin before the first one has ended.
    entries = await run(app, "retry")
    first_end = [entry[0] for entry in entries].index("on_retry")
    return {
        "until the retry": [entry[0] for entry in entries[:3]],
        "on_retry": entries[first_end][2:],
        "told": sorted({entry[0] for entry in entries}),
        "postrun": [entry[2]["state"] for entry in entries if entry[0] == "task_postrun"],
        "after_return": [entry[2] for entry in entries if entry[0] == "after_return"],
    }


@task("execution.long_retry", bind=True, base=Watching)
async def long_retry(self: Bound) -> None:
    await tell(self, self.request.id, "body")
    raise self.retry(exc=KeyError("again"), countdown=100)


@receiver("task_retry", of=long_retry)
async def long_retried(event: Event) -> None:
    await tell(None, event["request"].id, "task_retry", sorted(set(event) - {"sender"}), str(event["reason"]))


@receiver("task_postrun", of=long_retry)
async def long_retry_is_over(event: Event) -> None:
    await tell(None, event["task_id"], "task_postrun", event["state"], type(event["retval"]).__name__)


@scenario("EXE-03", "RETRY-07", "SIG-06", "EXE-15")
async def the_order_of_a_run_that_asks_for_a_retry(app: App) -> Any:
    sent = await long_retry.delay()
    entries = await log.of(sent.id).until(5)
    await app.revoke(sent.id)
    return entries


@scenario("EXE-04", "ERR-08", "SIG-03", "EXE-15")
async def the_order_of_what_is_ignored(app: App) -> Any:
    entries = await run(app, "ignore")
    await app.worker_is_idle()
    return entries


@task("execution.ignores", bind=True)
async def ignores(self: Bound, topic: str) -> None:
    await log.of(topic)(self.request.id)
    raise error("Ignore")


@scenario("EXE-04", "ERR-08")
async def what_is_ignored_leaves_no_state_and_nothing_follows(app: App) -> Any:
    sent = await ignores.apply_async(("ignores",), link=linked.si("ignored"))
    last = await chain(ignores.si("ignores"), linked.si("after ignored")).apply_async()
    await log.of("ignores").until(2)
    await app.worker_is_idle()
    return {
        "state": await sent.state(),
        "next": await last.state(),
        "linked": [await log.of(f"linked {each}").entries() for each in ("ignored", "after ignored")],
        "timeout": await raised(sent.get(timeout=0.2)),
    }


@scenario("EXE-04", "CAN-11")
async def a_chord_with_a_part_that_is_ignored(app: App) -> Any:
    body = await chord([echo.s(1), ignores.si("ignored part")], gather.s()).apply_async()
    await log.of("ignored part").until(1)
    await app.worker_is_idle()
    return [await raised(body.get(timeout=0.5)), await body.state()]


@scenario("EXE-05", "ERR-08", "SIG-05", "EXE-15")
async def the_order_of_what_is_rejected(app: App) -> Any:
    sent = await watched.apply_async(("reject",), {"more": 1})
    told = await outcome(sent.get())
    await app.worker_is_idle()
    return [told, await sent.state(), await log.of(sent.id).entries()]


@task("execution.rejects", bind=True, acks_late=True)
async def rejects(self: Bound) -> Any:
    await log.of("rejects")("ran", self.request.delivery_info["redelivered"])
    if len(await log.of("rejects").entries()) < 3:
        raise error("Reject", "not now", requeue=True)
    return "at last"


@task("execution.behind")
async def behind() -> None:
    await log.of("rejects")("behind")


@scenario("EXE-05", "ERR-08", "ACK-10", "ACK-14")
async def what_is_rejected_may_go_back_to_the_queue(app: App) -> Any:
    sent = await rejects.apply_async(queue="execution.rejects")
    await behind.apply_async(queue="execution.rejects")
    async with app.worker("execution.rejects", worker_prefetch_multiplier=1):
        value = await sent.get()
    return [value, await sent.state(), await log.of("rejects").entries()]


# -- handlers that fail ------------------------------------------------------------------------------------------------


class FailsAfterwards:
    async def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        await log.of(task_id)("on_success")
        raise RuntimeError("on_success")

    async def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        await log.of(task_id)("after_return", status)
        raise RuntimeError("after_return")


@task("execution.fails_afterwards", base=FailsAfterwards)
async def fails_afterwards() -> str:
    return "done"


@scenario("EXE-08")
async def a_handler_that_fails_does_not_undo_a_success(app: App) -> Any:
    sent = await fails_afterwards.apply_async(link_error=linked.s())
    value = await sent.get()
    entries = await log.of(sent.id).until(2)
    await app.worker_is_idle()
    return [value, await app.result(sent.id).state(), entries, await log.of(f"linked {sent.id}").entries()]


class FailsBefore:
    async def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        raise LookupError("before")

    async def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        await log.of(task_id)("on_failure", plain(exc))


@task("execution.fails_before", base=FailsBefore)
async def fails_before() -> None:
    await log.of("fails before")("ran")


@scenario("EXE-07")
async def a_handler_that_fails_before_the_body_fails_the_task(app: App) -> Any:
    sent = await fails_before.delay()
    return [
        await outcome(sent.get()),
        await sent.state(),
        await log.of(sent.id).until(1),
        await log.of("fails before").entries(),
    ]


@task("execution.listened_to")
async def listened_to() -> str:
    return "done"


@receiver("task_prerun", of=listened_to)
async def breaks(event: Event) -> None:
    await log.of("breaks")("told")
    raise RuntimeError("a receiver")


@scenario("EXE-09")
async def a_receiver_that_fails_changes_nothing(app: App) -> Any:
    sent = await listened_to.delay()
    return [await outcome(sent.get()), await log.of("breaks").entries()]


# -- the end of the process --------------------------------------------------------------------------------------------


@task("execution.exits", base=Watching)
async def exits() -> None:
    raise SystemExit(3)


@receiver("task_failure", of=exits)
async def exited(event: Event) -> None:
    await log.of(event["task_id"])("task_failure", type(event["exception"]).__name__)


@scenario("EXE-10", "ERR-07")
async def a_body_that_exits(app: App) -> Any:
    async with app.worker("execution.exits"):
        sent = await exits.apply_async(queue="execution.exits")
        told = await raised(sent.get())
        await wait_for(lambda: _told(sent, "task_failure"))
    return [told, await sent.state(), [entry[0] for entry in await log.of(sent.id).entries()]]


async def _told(sent: Result, what: str) -> bool:
    return what in [entry[0] for entry in await log.of(sent.id).entries()]


# -- the request -------------------------------------------------------------------------------------------------------

FIELDS = (
    "id",
    "task",
    "args",
    "kwargs",
    "retries",
    "root_id",
    "parent_id",
    "group",
    "group_index",
    "chord",
    "chain",
    "callbacks",
    "errbacks",
    "eta",
    "expires",
    "timelimit",
    "is_eager",
    "called_directly",
    "reply_to",
    "correlation_id",
    "headers",
    "ignore_result",
    "shadow",
    "replaced_task_nesting",
    "stamped_headers",
    "stamps",
    "children",
    "utc",
)


async def requested(of: Bound) -> dict[str, Any]:
    fields = {name: plain(getattr(of.request, name, "none")) for name in FIELDS}
    # One of its own for each client.
    fields["reply_to"] = isinstance(fields["reply_to"], str)
    delivery = of.request.delivery_info
    names = ("exchange", "routing_key", "priority", "redelivered")
    fields["delivery_info"] = {name: plain(delivery.get(name)) for name in names}
    fields["hostname"] = isinstance(of.request.hostname, str)
    fields["origin"] = isinstance(of.request.origin, str)
    return fields


@task("execution.inspected", bind=True)
async def inspected(self: Bound, value: Any = None, *, more: Any = None) -> Any:
    return await requested(self)


@scenario("EXE-14")
async def what_a_task_knows_of_its_call(app: App) -> Any:
    return await (await inspected.apply_async((1,), {"more": "m"})).get()


@scenario("EXE-14", "CALL-02")
async def what_a_task_knows_of_a_call_with_options(app: App) -> Any:
    sent = await inspected.apply_async(
        (1,),
        countdown=0.1,
        expires=60,
        time_limit=30,
        soft_time_limit=20,
        headers={"tenant": "acme"},
        priority=3,
        shadow="shade",
        link=echo.s(),
        link_error=linked.s(),
    )
    known = await sent.get()
    names = ("id", "eta", "expires", "timelimit", "headers", "shadow", "delivery_info", "correlation_id")
    return {
        **{name: known[name] for name in names},
        "callbacks": len(known["callbacks"]),
        "errbacks": len(known["errbacks"]),
    }


@scenario("EXE-14", "CALL-12")
async def what_a_step_of_a_chain_knows(app: App) -> Any:
    last = await chain(inspected.s(), inspected.si(2)).apply_async()
    assert last.parent
    first = await last.parent.get()
    second = await last.get()
    names = ("id", "root_id", "parent_id", "args", "group", "chord")
    return [{**{name: each[name] for name in names}, "chain": len(each["chain"] or ())} for each in (first, second)]


@scenario("EXE-14", "CAN-05", "CAN-10")
async def what_a_part_of_a_chord_knows(app: App) -> Any:
    body = await chord([inspected.si(1), inspected.si(2)], gather.s()).apply_async()
    parts = await body.get()
    return [
        {
            "group": isinstance(each["group"], str),
            "group_index": each["group_index"],
            "chord": isinstance(each["chord"], dict),
            "root is itself": each["root_id"] == each["id"],
        }
        for each in parts
    ]


# -- what follows ------------------------------------------------------------------------------------------------------


@task("execution.parent")
async def parent() -> str:
    return "of the parent"


@receiver("before_task_publish", of="execution.told_of")
async def published(event: Event) -> None:
    await log.of("published")(await playing().stored_state(event["headers"]["parent_id"]))


@task("execution.told_of")
async def told_of(value: Any) -> None:
    pass


@scenario("EXE-11", "EXE-01", "CALL-16", "SIG-01")
async def a_link_is_sent_before_the_result_is_stored(app: App) -> Any:
    sent = await parent.apply_async(link=told_of.s())
    await sent.get()
    return await log.of("published").until(1)


# -- tidying up --------------------------------------------------------------------------------------------------------


@task("execution.first_of_two", bind=True)
async def first_of_two(self: Bound) -> Any:
    await log.of("two")(self.request.id)
    await Gate(f"execution.{self.request.id}").wait()
    return [self.request.id, playing().running_task().request.id]


@scenario("DEF-14", "EXE-14")
async def two_at_once_do_not_know_of_each_other(app: App) -> Any:
    sent = [await first_of_two.delay() for _ in range(2)]
    await log.of("two").until(2)
    for each in reversed(sent):
        await Gate(f"execution.{each.id}").open()
    return [await each.get() == [each.id, each.id] for each in sent]
