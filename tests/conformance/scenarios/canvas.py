"""Chains, groups, chords, and what becomes of them when something fails."""

from __future__ import annotations

from typing import Any

from tests.conformance.observation import brief, outcome, plain, raised
from tests.conformance.scenario import (
    App,
    Bound,
    Call,
    Gate,
    Log,
    Result,
    chain,
    chord,
    ended,
    error,
    group,
    scenario,
    task,
)

log = Log("canvas")


@task("canvas.add")
async def add(x: Any, y: Any) -> Any:
    return x + y


@task("canvas.echo")
async def echo(value: Any) -> Any:
    return value


@task("canvas.note")
async def note(topic: Any, *values: Any) -> Any:
    await log.of(topic)(*values)
    return values


@task("canvas.total")
async def total(values: list[Any]) -> Any:
    return sum(values)


@task("canvas.fail")
async def fail(text: str) -> None:
    raise ValueError(text)


@task("canvas.fail_after")
async def fail_after(value: Any) -> None:
    raise ValueError(f"after {value}")


@task("canvas.gated")
async def gated(gate: str, value: Any) -> Any:
    await Gate(gate).wait()
    return value


@task("canvas.told")
async def told(request: Any, exc: BaseException, traceback: Any, topic: str) -> None:
    await log.of(topic)(request.id, type(exc).__name__, plain(exc.args))


# -- signatures --------------------------------------------------------------------------------------------------------


@scenario("CAN-01", "CAN-02")
async def a_call_may_be_completed_when_it_is_made(app: App) -> Any:
    immutable = Call("canvas.add", (1, 2), immutable=True)
    return {
        "whole": await (await add.s(1, 2).apply_async()).get(),
        "in front": await (await add.s("b").apply_async(("a",))).get(),
        "named": await (await add.s(y="b").apply_async(("a",))).get(),
        "immutable": await (await immutable.apply_async(())).get(),
        "options": await (await add.s(1, 2).set(countdown=0.1).apply_async()).get(),
    }


@scenario("CAN-22", "CAN-01")
async def a_call_may_have_its_id_beforehand(app: App) -> Any:
    call = echo.s(1).set(task_id="canvas-chosen-id")
    sent = await call.apply_async()
    return [sent.id, await sent.get()]


# -- chains ------------------------------------------------------------------------------------------------------------


@scenario("CAN-03", "CAN-02")
async def each_step_gets_the_result_of_the_one_before(app: App) -> Any:
    values = [
        await (await made.apply_async()).get()
        for made in (
            chain(add.s(1, 2), add.s(10), add.s(100)),
            chain(add.s("a", "b"), echo.si("alone"), add.s("!")),
            chain(chain(add.s(1, 2), add.s(3)), add.s(4)),
            chain(echo.s("one")),
        )
    ]
    nothing = await chain().apply_async()
    partial = await chain(add.s("b"), add.s("c")).apply_async(("a",))
    return [values, await partial.get(), plain(nothing)]


@scenario("CAN-04")
async def options_of_a_chain_are_its_first_steps(app: App) -> Any:
    made = chain(note.si("chain options", 1), note.si("chain options", 2))
    last = await made.apply_async(queue="canvas.first", link=note.si("chain options", "linked"))
    waiting = await app.queued("canvas.first")
    async with app.worker("canvas.first"):
        await last.get()
        return [waiting, await log.of("chain options").until(3)]


@scenario("CAN-04", "CERR-07", "CERR-05")
async def the_error_callback_of_a_chain_is_called_for_the_step_that_fails(app: App) -> Any:
    made = chain(echo.si(1), fail.si("second"), echo.si(3)).on_error(told.s("chain error"))
    last = await made.apply_async()
    assert last.parent
    told_of = await outcome(last.get())
    entries = await log.of("chain error").until(1)
    await app.worker_is_idle()
    return {
        "told": told_of,
        "of the second": entries[0][0] == last.parent.id,
        "entries": [entry[1:] for entry in await log.of("chain error").entries()],
    }


@scenario("CERR-07")
async def all_steps_behind_the_one_that_fails_fail_with_it(app: App) -> Any:
    last = await chain(echo.si(1), fail.si("second"), echo.si(3), note.si("behind", "ran")).apply_async()
    steps: list[Result] = []
    step: Result | None = last
    while step is not None:
        steps.insert(0, await ended(step))
        step = step.parent
    seen = [[await each.state(), (await brief(app.result(each.id).get()))] for each in steps]
    return [seen, await steps[-1].traceback() == await steps[1].traceback(), await log.of("behind").entries()]


@task("canvas.family", bind=True)
async def family(self: Bound, *args: Any) -> Any:
    return [self.request.id, self.request.root_id, self.request.parent_id]


@scenario("CAN-26", "CALL-12")
async def parents_and_roots_in_a_canvas(app: App) -> Any:
    last = await chain(family.s(), family.si(), family.si()).apply_async()
    assert last.parent
    assert last.parent.parent
    steps = [await each.get() for each in (last.parent.parent, last.parent, last)]
    members = await (await group(family.s(), family.s()).apply_async()).get()
    body = await chord([family.s()], family.si()).apply_async()
    own = await body.get()
    assert body.parent
    part = await body.parent.results[0].get()
    return {
        "chain": steps,
        "each member is its own root": [root == own_id for own_id, root, _ in members],
        "the body's parent is a part": own[2] == part[0],
    }


# -- groups ------------------------------------------------------------------------------------------------------------


@scenario("CAN-05")
async def all_members_of_a_group_get_what_the_group_gets(app: App) -> Any:
    members = await group(add.s("b"), add.s("c")).apply_async(("a",))
    return [await members.get(), len(members.results)]


@scenario("CAN-05", "CAN-24")
async def a_group_takes_no_link_at_the_call(app: App) -> Any:
    made = group(echo.s(1), echo.s(2))
    return {
        "link": await raised(made.apply_async(link=note.si("group link", 1))),
        "link_error": await raised(made.apply_async(link_error=note.si("group link", 2))),
    }


@scenario("CAN-06")
async def groups_in_groups_are_one(app: App) -> Any:
    nested = await group(echo.s(1), group(echo.s(2), group(echo.s(3)))).apply_async()
    in_chain = await group(echo.s(1), chain(echo.s(2), group(add.s(10), add.s(20)))).apply_async()
    return [await nested.get(), await in_chain.get()]


@scenario("CAN-07", "CAN-08")
async def a_group_then_a_task_is_a_chord(app: App) -> Any:
    several = await chain(group(echo.s(1), echo.s(2)), total.s()).apply_async()
    one = await chain(group(echo.s(1)), echo.s()).apply_async()
    return [await several.get(), await one.get()]


@scenario("CAN-09")
async def a_task_then_a_group(app: App) -> Any:
    last = await chain(echo.s(1), group(add.s(10), add.s(20))).apply_async()
    return [await last.get(), len(last.results)]


@scenario("CERR-14")
async def the_error_callback_of_a_group_is_called_for_each_member_that_fails(app: App) -> Any:
    members = await group(fail.s("one"), echo.s(2), fail.s("three")).on_error(told.s("group error")).apply_async()
    for each in members.results:
        await ended(each)
    return sorted([entry[1:] for entry in await log.of("group error").until(2)])


# -- chords ------------------------------------------------------------------------------------------------------------


@scenario("CAN-10", "CAN-11")
async def the_body_of_a_chord_gets_the_results_in_order(app: App) -> Any:
    body = await chord([gated.s("canvas.slow", 1), echo.s(2), echo.s(3)], note.s("more")).apply_async(())
    assert body.parent
    await ended(body.parent.results[1])
    await Gate("canvas.slow").open()
    await ended(body)
    return [[await each.get() for each in body.parent.results], await body.state()]


@scenario("CAN-10")
async def a_chord_has_one_result(app: App) -> Any:
    body = await chord([echo.s(number) for number in range(5)], total.s()).apply_async()
    assert body.parent
    return [await body.get(), len(body.parent.results), await body.parent.get()]


@scenario("CAN-13")
async def a_chord_of_nothing(app: App) -> Any:
    return await (await chord([], total.s()).apply_async()).get()


@scenario("CAN-15", "CAN-07")
async def tasks_behind_a_chord(app: App) -> Any:
    behind = await chain(chord([echo.s(1), echo.s(2)], total.s()), add.s(10)).apply_async()
    pairs = await chain(group(echo.s(1), echo.s(2)), group(total.s(), echo.s()), echo.s()).apply_async()
    return [await behind.get(), await pairs.get()]


@scenario("CAN-17", "CAN-11")
async def a_chain_is_one_part_of_a_chord(app: App) -> Any:
    body = await chord([chain(echo.s(1), add.s(10)), echo.s(5)], total.s()).apply_async()
    failing = await chord([chain(echo.s(1), fail_after.s(), echo.s()), echo.s(5)], total.s()).apply_async()
    await ended(failing)
    return [await body.get(), await raised(app.result(failing.id).get())]


@scenario("CAN-18", "CAN-11")
async def a_chord_is_one_part_of_a_chord(app: App) -> Any:
    inner = chord([echo.s(1), echo.s(2)], total.s())
    body = await chord([inner, echo.s(10)], total.s()).apply_async()
    return await body.get()


@scenario("CAN-16")
async def a_chord_that_begins_later(app: App) -> Any:
    body = await chord([echo.s(1), echo.s(2)], total.s()).apply_async(countdown=0.5)
    assert body.parent
    early = [await each.state() for each in body.parent.results]
    return [early, await body.get()]


@scenario("CERR-08", "CERR-10", "CERR-05")
async def a_part_that_fails_fails_the_body_when_all_parts_have_ended(app: App) -> Any:
    header = [fail.s("one"), gated.s("canvas.last", 2), fail.s("three")]
    body = await chord(header, note.s("body ran").set(link_error=told.s("body error"))).apply_async()
    assert body.parent
    await ended(body.parent.results[0])
    await ended(body.parent.results[2])
    early = await app.result(body.id).state()
    await Gate("canvas.last").open()
    await ended(app.result(body.id))
    entries = await log.of("body error").until(1)
    await app.worker_is_idle()
    first = body.parent.results[0].id
    return {
        "early": early,
        "told": await outcome(app.result(body.id).get()),
        "of the first": first,
        "entries": [[entry[0] == body.id, entry[1]] for entry in entries],
        "times": len(await log.of("body error").entries()),
        "ran": await log.of("body ran").entries(),
        "parts": [await each.state() for each in body.parent.results],
    }


@scenario("CERR-12")
async def the_error_callback_of_a_chord_is_its_bodys(app: App) -> Any:
    made = chord([fail.s("one"), fail.s("two")], total.s()).on_error(told.s("chord error"))
    body = await made.apply_async()
    await ended(app.result(body.id))
    entries = await log.of("chord error").until(1)
    await app.worker_is_idle()
    return [[entry[1] for entry in entries], len(await log.of("chord error").entries())]


@scenario("CERR-13")
async def what_is_behind_a_chord_that_fails(app: App) -> Any:
    last = await chain(chord([fail.s("part"), echo.s(1)], total.s()), add.s(1), add.s(2)).apply_async()
    assert last.parent
    await ended(app.result(last.id))
    return [await raised(app.result(each.id).get()) for each in (last.parent, last)]


@scenario("CERR-15")
async def a_body_that_fails(app: App) -> Any:
    body = await chord([echo.s(1), echo.s(2)], fail_after.s().set(link_error=told.s("failing body"))).apply_async()
    assert body.parent
    told_of = await outcome(body.get())
    await log.of("failing body").until(1)
    await app.worker_is_idle()
    return [told_of, await body.parent.get(), len(await log.of("failing body").entries())]


@scenario("CERR-19", "ST-20")
async def a_part_that_no_worker_knows(app: App) -> Any:
    body = await chord([echo.s(1), Call("canvas.nobody_knows")], total.s()).apply_async()
    assert body.parent
    states = [await (await ended(each)).state() for each in body.parent.results]
    await app.worker_is_idle()
    return [states, await brief(app.result(body.id).get(timeout=0.5)), await app.result(body.id).state()]


# -- many as one -------------------------------------------------------------------------------------------------------


@scenario("CAN-20")
async def many_arguments_for_one_message(app: App) -> Any:
    mapped = await app.send_many_as_one(echo, [1, 2, 3], "map")
    starred = await app.send_many_as_one(add, [(1, 2), (3, 4)], "starmap")
    failing = await app.send_many_as_one(add, [(1, 2), (3, None)], "starmap")
    return [await mapped.get(), await starred.get(), await raised(failing.get())]


@scenario("CAN-19")
async def many_arguments_for_some_messages(app: App) -> Any:
    chunks = await app.send_many_as_one(add, [(number, number) for number in range(7)], "chunks", size=3)
    return await chunks.get()


# -- made by tasks -----------------------------------------------------------------------------------------------------


@task("canvas.starts", bind=True)
async def starts(self: Bound, gate: str) -> str:
    await chain(gated.s(gate, 1), note.si("started", 2)).apply_async()
    return "did not wait"


@scenario("CAN-27")
async def a_task_does_not_wait_for_what_it_starts(app: App) -> Any:
    value = await (await starts.delay("canvas.started")).get()
    await Gate("canvas.started").open()
    return value


@task("canvas.replaced", bind=True)
async def replaced(self: Bound, how: str) -> Any:
    await log.of(f"replaced {how}")(self.request.id, self.request.replaced_task_nesting)
    if how == "task":
        return await self.replace(add.s("in its ", "place"))
    if how == "chain":
        return await self.replace(chain(add.s(1, 2), add.s(10)))
    if how == "group":
        return await self.replace(group(echo.s(1), echo.s(2)))
    raise error("Ignore")


@scenario("REP-01", "REP-02")
async def a_task_may_put_another_in_its_place(app: App) -> Any:
    seen: dict[str, Any] = {}
    for how in ("task", "chain", "group"):
        sent = await replaced.delay(how)
        seen[how] = [await sent.get(), len(await log.of(f"replaced {how}").entries())]
    last = await chain(replaced.s("task"), add.s("!")).apply_async()
    return {**seen, "in a chain": await last.get()}
