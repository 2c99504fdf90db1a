"""Where a message goes, and which one comes first."""

from __future__ import annotations

import re
from typing import Any

from tests.conformance.observation import plain, raised
from tests.conformance.scenario import App, Bound, Log, scenario, task

log = Log("routing")


@task("routing.where", bind=True)
async def where(self: Bound) -> Any:
    delivery = self.request.delivery_info
    return {name: plain(delivery[name]) for name in ("exchange", "routing_key", "priority")}


@task("routing.one")
async def one(value: int = 0) -> int:
    return value


@task("routing.other")
async def other() -> None:
    pass


@task("routing.bound_for", queue="routing.of_the_task", priority=5)
async def bound_for() -> None:
    pass


@task("routing.note")
async def note(topic: str, *values: Any) -> None:
    await log.of(topic)(*values)


@scenario("RT-01")
async def without_more_words_a_task_goes_to_the_default_queue(app: App) -> Any:
    known = await (await where.delay()).get()
    async with app.configured(task_default_queue="routing.another") as configured:
        await one.delay()
        sent = await configured.queued("routing.another")
    return {
        "default": known["routing_key"] == app.default_queue,
        "exchange": known["exchange"],
        "priority": known["priority"],
        "another default": sent,
    }


async def landed(app: App, *queues: str) -> dict[str, list[str]]:
    return {queue.removeprefix("routing."): found for queue in queues if (found := await app.queued(queue))}


@scenario("RT-02", "CALL-02")
async def the_call_wins_over_task_route_and_default(app: App) -> Any:
    queues = ["routing.of_the_call", "routing.of_the_task", "routing.of_the_route", "routing.default"]
    routes = {name: {"queue": "routing.of_the_route"} for name in ("routing.one", "routing.bound_for")}
    async with app.configured(task_routes=routes, task_default_queue="routing.default") as configured:
        await one.apply_async(queue="routing.of_the_call")
        await bound_for.apply_async(queue="routing.of_the_call")
        await bound_for.delay()
        await one.delay()
        await other.delay()
        return await landed(configured, *queues)


CALLS: list[dict[str, Any]] = [{}, {"queue": "routing.by_the_call"}, {"priority": 3}]


@scenario("RT-02", "RT-07")
async def each_option_of_a_route_is_taken_by_itself(app: App) -> Any:
    routes = {"routing.where": {"queue": "routing.by_itself", "priority": 6}}
    async with app.configured(task_routes=routes), app.worker("routing.by_itself", "routing.by_the_call"):
        return [await (await where.apply_async(**options)).get() for options in CALLS]


def by_name(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **more: Any) -> Any:
    return {"queue": "routing.by_function"} if name.endswith(".other") else None


@scenario("RT-03")
async def routes_come_in_many_forms(app: App) -> Any:
    forms: dict[str, Any] = {
        "a queue's name": {"routing.one": "routing.a"},
        "a glob": {"routing.o*": {"queue": "routing.a"}},
        "a pattern": {re.compile(r"routing\.(one|two)"): {"queue": "routing.a"}},
        "a function": by_name,
        "several": [by_name, {"routing.*": "routing.a"}],
        "an exact name first": {"routing.*": "routing.a", "routing.one": "routing.b"},
        "the first pattern first": {"routing.o*": "routing.a", "routing.*": "routing.b"},
    }
    seen: dict[str, Any] = {}
    for number, (name, routes) in enumerate(forms.items()):
        queues = ["routing.a", "routing.b", "routing.by_function", f"routing.default{number}"]
        before = await landed(app, *queues)
        async with app.configured(task_routes=routes, task_default_queue=f"routing.default{number}"):
            await one.delay()
            await other.delay()
        after = await landed(app, *queues)
        new = {queue: found[len(before.get(queue, [])) :] for queue, found in after.items()}
        seen[name] = {re.sub(r"\d", "", queue): found for queue, found in new.items() if found}
    return seen


@scenario("RT-04", "ERR-10")
async def a_queue_that_nobody_named(app: App) -> Any:
    await one.apply_async(queue="routing.made_up")
    async with app.configured(task_create_missing_queues=False):
        refused = await raised(one.apply_async(queue="routing.made_up_as_well"))
    return [await app.queued("routing.made_up"), refused, await app.queued("routing.made_up_as_well")]


@scenario("RT-11")
async def a_broker_may_have_several_addresses(app: App) -> Any:
    async with app.with_a_dead_address_first() as several:
        await one.apply_async(queue="routing.several")
        return await several.queued("routing.several")


@scenario("RT-05")
async def a_worker_reads_the_queues_that_it_is_told(app: App) -> Any:
    async with app.worker("routing.read", "routing.read_too"):
        unread = await one.apply_async((3,), queue="routing.unread")
        values = [await (await one.apply_async((each,), queue=queue)).get() for each, queue in _read()]
        return {"values": values, "unread": [await app.queued("routing.unread"), await unread.state()]}


def _read() -> list[tuple[int, str]]:
    return [(1, "routing.read"), (2, "routing.read_too")]


@scenario("RT-06", "ACK-14")
async def a_high_priority_comes_first_and_is_a_low_number(app: App) -> Any:
    queue = "routing.priorities"
    for priority in (9, 6, 5, 3, 2, 0, None, 9, 0):
        await note.apply_async(("priorities", priority), queue=queue, priority=priority)
    async with app.worker(queue, worker_prefetch_multiplier=1):
        return await log.of("priorities").until(9)


@scenario("RT-06")
async def queues_take_turns(app: App) -> Any:
    queues = ["routing.turn1", "routing.turn2"]
    for queue in queues:
        for number in range(4):
            await note.apply_async(("turns", queue, number), queue=queue)
    async with app.worker(*queues, worker_prefetch_multiplier=1):
        entries = await log.of("turns").until(8)
    return {queue: [number for of, number in entries if of == queue] for queue in queues} | {
        "both before either is empty": len({of for of, _ in entries[:4]}) == 2
    }


@scenario("RT-07")
async def priority_of_the_call_and_by_default(app: App) -> Any:
    async with app.configured(task_default_priority=3):
        by_default, by_call = await where.delay(), await where.apply_async(priority=6)
        return [(await each.get())["priority"] for each in (by_default, by_call)]
