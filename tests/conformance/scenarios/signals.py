"""Signals: who is told of what, and with which arguments."""

from __future__ import annotations

from typing import Any

from tests.conformance.observation import plain, raised
from tests.conformance.scenario import App, Bound, Event, Log, long_ago, receiver, scenario, task

log = Log("signals")


def arguments(event: Event) -> list[str]:
    return sorted(set(event) - {"sender"})


# -- sending -----------------------------------------------------------------------------------------------------------


@task("signals.published", bind=True)
async def published(self: Bound, x: int, y: int = 0) -> Any:
    return [x, y, plain(self.request.headers)]


@receiver("before_task_publish", of=published)
async def before(event: Event) -> None:
    event["headers"]["injected"] = "by a receiver"
    args, kwargs, _ = event["body"]
    await log.of("published")("before", event["sender"], event["headers"]["id"], plain(args), plain(kwargs))
    await log.of("arguments")("before", [name for name in arguments(event) if name in KNOWN])


@receiver("after_task_publish", of=published)
async def after(event: Event) -> None:
    await log.of("published")("after", event["sender"], event["headers"]["id"])
    await log.of("arguments")("after", [name for name in arguments(event) if name in KNOWN])


KNOWN = ("body", "exchange", "routing_key", "headers", "properties", "declare", "retry_policy")


@scenario("SIG-01", "CALL-11")
async def who_sends_is_told_before_and_after_and_may_add_headers(app: App) -> Any:
    sent = await published.delay(1, y=2)
    return {
        "id": sent.id,
        "value": await sent.get(),
        "told": await log.of("published").until(2),
        "arguments": await log.of("arguments").until(2),
    }


# -- tasks -------------------------------------------------------------------------------------------------------------


@task("signals.told", bind=True, default_retry_delay=0, max_retries=1)
async def told(self: Bound, how: str) -> str:
    if how == "fail":
        raise ValueError(how)
    if how == "retry" and not self.request.retries:
        raise self.retry(exc=KeyError("again"))
    return how


@task("signals.received")
async def received() -> None:
    pass


@receiver("task_received", of=received)
async def was_received(event: Event) -> None:
    await log.of("received")(arguments(event), event["request"].id, event["request"].name)


@task("signals.plain")
async def plain_task() -> None:
    pass


def observed(signal: str) -> None:
    @receiver(signal, of=told)
    async def observe(event: Event) -> None:
        known = {name: plain(event[name]) for name in ("task_id", "args", "kwargs", "state", "result") if name in event}
        await log.of(signal)(arguments(event), event["sender"].name, known)


for each in ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry"):
    observed(each)


@scenario("SIG-02")
async def a_worker_tells_what_it_has_received(app: App) -> Any:
    sent = await received.delay()
    return [sent.id, await log.of("received").until(1)]


@scenario("SIG-03", "SIG-04", "SIG-05", "SIG-06")
async def what_signals_of_a_task_bear(app: App) -> Any:
    for how in ("fine", "fail", "retry"):
        await raised((await told.delay(how=how)).get())
    await app.worker_is_idle()
    seen: dict[str, Any] = {}
    for signal in ("task_prerun", "task_postrun", "task_success", "task_failure", "task_retry"):
        entries = await log.of(signal).entries()
        seen[signal] = {"arguments": entries[0][0], "sender": entries[0][1]}
        known = [{name: known[name] for name in known if name != "task_id"} for _, _, known in entries]
        seen[signal]["known"] = sorted(known, key=str)
    return seen


@task("signals.revoked")
async def revoked() -> None:
    pass


@receiver("task_revoked", of=revoked)
async def was_revoked(event: Event) -> None:
    flags = {name: plain(event[name]) for name in ("terminated", "signum", "expired")}
    await log.of("revoked")(arguments(event), event["request"].id, flags)


@scenario("SIG-07", "LIM-11")
async def a_worker_tells_what_it_did_not_run(app: App) -> Any:
    sent = await revoked.apply_async(expires=long_ago())
    await raised(sent.get())
    return [sent.id, await log.of("revoked").until(1)]


@receiver("task_unknown", worker="signals.unknown")
async def unknown(event: Event) -> None:
    await log.of("unknown")(arguments(event), event["name"], event["id"])


@scenario("SIG-08", "ST-20")
async def a_worker_tells_what_it_does_not_know(app: App) -> Any:
    async with app.worker("signals.unknown", name="signals.unknown"):
        sent = await app.send_task("signals.nobody_knows", queue="signals.unknown")
        return [sent.id, await log.of("unknown").until(1)]


# -- the log -----------------------------------------------------------------------------------------------------------


def logs(signal: str, worker: str) -> None:
    @receiver(signal, worker=worker)
    async def tell(event: Event) -> None:
        await log.of(worker)(signal)


for each in ("after_setup_logger", "after_setup_task_logger"):
    logs(each, "signals.logging")
for each in ("setup_logging", "after_setup_logger", "after_setup_task_logger"):
    logs(each, "signals.own_logging")


@scenario("SIG-12")
async def a_worker_sets_up_its_log_unless_somebody_else_does(app: App) -> Any:
    seen: dict[str, Any] = {}
    for name in ("signals.logging", "signals.own_logging"):
        async with app.worker(name, name=name):
            seen[name] = sorted({entry[0] for entry in await log.of(name).entries()})
    return seen


# -- workers -----------------------------------------------------------------------------------------------------------

LIFE = (
    "celeryd_init",
    "celeryd_after_setup",
    "worker_init",
    "worker_ready",
    "worker_shutting_down",
    "worker_shutdown",
)


def lives(signal: str, topic: str) -> None:
    @receiver(signal, worker="signals.life")
    async def live(event: Event) -> None:
        await log.of(topic)(signal, arguments(event))


for each in LIFE:
    lives(each, "life")
for each in ("worker_process_init", "worker_process_shutdown"):
    lives(each, "processes")


@scenario("SIG-10", "SIG-11", "SHUT-01")
async def a_worker_tells_of_its_life(app: App) -> Any:
    async with app.worker("signals.life", name="signals.life", concurrency=2) as worker:
        await (await plain_task.apply_async(queue="signals.life")).get()
        await worker.tell_to_stop()
        code = await worker.stopped()
    processes = [entry[0] for entry in await log.of("processes").entries()]
    return {
        "life": [entry[0] for entry in await log.of("life").entries()],
        "arguments": {
            name: [each for each in given if each != "signal"] for name, given in await log.of("life").entries()
        },
        "processes begun": processes.count("worker_process_init"),
        "code": code,
    }
