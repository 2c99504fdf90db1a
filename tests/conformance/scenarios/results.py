"""Results: waiting for them, asking them, and those of chains, groups and chords."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

from tests.conformance.observation import outcome, plain, raised
from tests.conformance.scenario import (
    App,
    Bound,
    Gate,
    Log,
    Result,
    chain,
    chord,
    due,
    ended,
    group,
    kind,
    playing,
    scenario,
    task,
    wait_for,
)

log = Log("results")


@task("results.add")
async def add(x: int, y: int) -> int:
    return x + y


@task("results.echo")
async def echo(value: Any) -> Any:
    return value


@task("results.fail")
async def fail(text: str) -> None:
    raise ValueError(text)


@task("results.fail_after")
async def fail_after(value: Any) -> None:
    raise ValueError(f"after {value}")


@task("results.gated")
async def gated(gate: str) -> str:
    await log.of(gate)("began")
    await Gate(gate).wait()
    return gate


async def revoked(app: App) -> Result:
    """One that expired before it could run."""
    return await ended(await echo.apply_async((1,), countdown=0.4, expires=0.1))


# -- one result --------------------------------------------------------------------------------------------------------


@scenario("RES-01", "ERR-02")
async def who_waits_in_vain_gets_a_timeout(app: App) -> Any:
    seen: dict[str, Any] = {}
    for name, sent in {
        "unknown": app.result(str(uuid4())),
        "waiting": await echo.apply_async((1,), queue="results.never"),
    }.items():
        try:
            await sent.get(timeout=0.3)
        except kind("TimeoutError") as error:
            seen[name] = [playing().name_of(type(error)), await sent.state()]
    return seen


@scenario("RES-01", "ERR-02")
async def a_timeout_leaves_the_task_alone(app: App) -> Any:
    sent = await gated.delay("results.timeout")
    told = await raised(sent.get(timeout=0.2))
    await Gate("results.timeout").open()
    return [told, await sent.get()]


@scenario("RES-01", "ERR-03", "LIM-11")
async def what_was_called_off_raises_that(app: App) -> Any:
    sent = await revoked(app)
    return [await outcome(sent.get()), await sent.state(), plain(await sent.info())]


@scenario("RES-02")
async def a_failure_may_be_taken_as_a_value(app: App) -> Any:
    failed, off = await fail.delay("no"), await revoked(app)
    return [await outcome(each.get(propagate=False)) for each in (failed, off, await echo.delay("fine"))]


@task("results.waits_inside")
async def waits_inside(options: dict[str, Any]) -> Any:
    sent = await add.delay(1, 2)
    return [await outcome(sent.get(timeout=10, **options))]


@scenario("RES-04")
async def a_task_does_not_wait_for_another_unless_it_insists(app: App) -> Any:
    asked = await (await waits_inside.delay({})).get()
    insisting = await (await waits_inside.delay({"disable_sync_subtasks": False})).get()
    return [asked[0]["raised"], insisting]


@scenario("RES-05")
async def what_a_result_tells(app: App) -> Any:
    seen: list[Any] = []
    for sent in (await add.delay(1, 2), await fail.delay("no")):
        before = await ended(sent)
        seen.append(
            {
                "id": sent.id == before.id,
                "state": await sent.state(),
                "info": plain(await sent.info()),
                "traceback": await sent.traceback() is not None,
                "date_done": plain(await sent.date_done()),
                "children": await sent.children(),
                "parent": sent.parent,
                "name": await sent.detail("name"),
            }
        )
    return seen


@scenario("RES-05")
async def what_has_ended_is_not_asked_for_again(app: App) -> Any:
    sent = await ended(await echo.delay("kept"))
    await sent.get()
    await app.result(sent.id).forget()
    return [await sent.state(), await sent.get(), await app.result(sent.id).state()]


async def asked(sent: Result) -> list[bool]:
    return [await sent.ready(), await sent.successful(), await sent.failed()]


@scenario("RES-06")
async def ready_successful_failed(app: App) -> Any:
    return {
        "pending": await asked(app.result(str(uuid4()))),
        "succeeded": await asked(await ended(await echo.delay(1))),
        "failed": await asked(await ended(await fail.delay("no"))),
        "revoked": await asked(await revoked(app)),
    }


@scenario("RES-16")
async def a_result_is_known_by_its_id(app: App) -> Any:
    last = await chain(echo.s(1), add.s(2)).apply_async()
    await last.get()
    again = app.result(last.id)
    return [await again.get(), await again.state(), again.parent is None, last.parent is None]


@scenario("RES-19")
async def without_a_place_for_results_tasks_are_sent_all_the_same(app: App) -> Any:
    async with app.configured(result_backend=None) as configured:
        sent = await echo.apply_async((1,), queue="results.unstored")
        return {
            "sent": await configured.queued("results.unstored"),
            "get": await raised(sent.get(timeout=1)),
            "state": await raised(sent.state()),
            "chord": await raised(chord([echo.s(1)], echo.s()).apply_async()),
        }


@scenario("RES-17")
async def whoever_waits_is_told(app: App) -> Any:
    sent = await gated.delay("results.waited")
    waiting = asyncio.create_task(sent.get(timeout=20))
    await log.of("results.waited").until(1)
    await Gate("results.waited").open()
    return await waiting


# -- chains ------------------------------------------------------------------------------------------------------------


@scenario("RES-10", "CAN-03")
async def the_result_of_a_chain_is_the_last_ones(app: App) -> Any:
    last = await chain(add.s(1, 2), add.s(10), add.s(100)).apply_async()
    second = last.parent
    assert second
    first = second.parent
    assert first
    value = await last.get()
    return [value, await second.get(), await first.get(), first.parent, len({last.id, second.id, first.id})]


@scenario("RES-10", "CAN-03")
async def the_steps_of_a_chain_have_their_ids_before_they_run(app: App) -> Any:
    last = await chain(gated.s("results.steps"), echo.s()).apply_async()
    assert last.parent
    before = [last.parent.id, last.id]
    await Gate("results.steps").open()
    await last.get()
    return [before, [await app.result(each).get() for each in before]]


@scenario("RES-03", "CERR-07")
async def who_waits_for_a_chain_is_told_of_the_step_that_failed(app: App) -> Any:
    seen: dict[str, Any] = {}
    for name, options in {"followed": {}, "not followed": {"follow_parents": False}}.items():
        last = await chain(fail.si("first"), echo.si(2), echo.si(3)).apply_async()
        assert last.parent
        told = await outcome(last.get(**options))
        seen[name] = [told, await (await ended(last)).state(), await (await ended(last.parent)).state()]
    return seen


@scenario("RES-03", "CERR-08", "CERR-09", "ERR-05")
async def who_waits_for_a_chord_is_told_of_the_part_that_failed(app: App) -> Any:
    body = await chord([echo.s(1), fail.s("part")], echo.s()).apply_async()
    followed = await outcome(body.get())
    await ended(body)
    own = await outcome(app.result(body.id).get())
    return {
        "followed": followed,
        "not followed": (await outcome(body.get(follow_parents=False)))["raised"],
        "by its id": own,
        "state": await body.state(),
    }


# -- groups ------------------------------------------------------------------------------------------------------------


@scenario("RES-11", "CAN-05")
async def the_result_of_a_group_counts_its_members(app: App) -> Any:
    members = await group(echo.s(1), fail.s("no"), gated.s("results.members")).apply_async()
    for each in members.results[:2]:
        await ended(each)
    early = [await members.ready(), await members.waiting(), await members.completed_count()]
    await Gate("results.members").open()
    for each in members.results:
        await ended(each)
    late = [await members.ready(), await members.waiting(), await members.completed_count()]
    fine = await group(echo.s(1), echo.s(2)).apply_async()
    await fine.get()
    return {
        "early": early,
        "late": late,
        "verdict": [await members.successful(), await members.failed()],
        "of a fine one": [await fine.successful(), await fine.failed(), len(fine.results)],
    }


@scenario("RES-12", "CAN-05")
async def the_values_of_a_group_come_in_its_order(app: App) -> Any:
    first = await group(gated.s("results.slow"), echo.s("fast"), add.s(1, 1)).apply_async()
    await ended(first.results[1])
    await Gate("results.slow").open()
    failing = group(echo.s(1), fail.s("member"), echo.s(3))
    return [
        await first.get(),
        await outcome((await failing.apply_async()).get()),
        await outcome((await failing.apply_async()).get(propagate=False)),
        await (await group().apply_async()).get(),
    ]


@scenario("RES-12")
async def a_failed_member_is_told_of_before_the_others_end(app: App) -> Any:
    members = await group(gated.s("results.late"), fail.s("early")).apply_async()
    told = await outcome(members.get())
    running = await members.results[0].state()
    await Gate("results.late").open()
    return [told, running]


@scenario("RES-13")
async def who_waits_for_a_group_has_one_timeout_for_all(app: App) -> Any:
    members = await group(gated.s("results.held"), gated.s("results.held")).apply_async()
    told = [await raised(members.get(timeout=seconds)) for seconds in (0.3, 0)]
    await Gate("results.held").open()
    return [told, await members.get()]


@scenario("RES-14")
async def a_group_may_be_kept_and_found_again(app: App) -> Any:
    members = await group(echo.s(1), echo.s(2)).apply_async()
    unsaved = await app.restored_group(members.id)
    await members.save()
    found = await app.restored_group(members.id)
    assert found
    values = await found.get()
    await found.delete()
    return [unsaved, values, found.id == members.id, await app.restored_group(members.id)]


@scenario("RES-14", "ST-21")
async def a_group_is_forgotten_as_a_whole(app: App) -> Any:
    members = await group(echo.s(1), echo.s(2)).apply_async()
    await members.get()
    await members.forget()
    return [await app.result(each.id).state() for each in members.results]


@scenario("RES-14", "LIM-15")
async def a_group_is_called_off_as_a_whole(app: App) -> Any:
    members = await group(echo.s(1).set(countdown=30), echo.s(2).set(countdown=30)).apply_async()
    for each in members.results:
        await due(each.id)
    await members.revoke()
    return [await outcome(each.get()) for each in members.results]


# -- elsewhere ---------------------------------------------------------------------------------------------------------


@scenario("RES-09")
async def a_result_may_be_kept_elsewhere_as_plain_data(app: App) -> Any:
    last = await chain(add.s(1, 2), add.s(10)).apply_async()
    await last.get()
    told = plain(await last.as_tuple())
    again = await app.restored(told)
    assert again.parent
    members = await group(echo.s(1), echo.s(2)).apply_async()
    again_members = await app.restored(await members.as_tuple())
    return {
        "told": told,
        "values": [await again.get(), await again.parent.get()],
        "of a group": await again_members.get(),
    }


@task("results.branch", bind=True)
async def branch(self: Bound, depth: int) -> int:
    if depth:
        await branch.delay(depth - 1)
    return depth


@scenario("RES-08", "CALL-12")
async def what_came_of_a_task_is_a_tree(app: App) -> Any:
    sent = await branch.delay(2)
    await sent.get()
    children = await sent.children()
    assert children
    await wait_for(children[0].ready)
    return {"children": [await each.get() for each in children], "collected": await sent.collect()}
