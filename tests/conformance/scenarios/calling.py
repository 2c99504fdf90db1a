"""Calling tasks: options, moments, ids, links."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from tests.conformance.observation import brief, outcome, plain, raised
from tests.conformance.scenario import App, Bound, Log, chain, error, long_ago, scenario, task, wait_for

log = Log("calling")


@task("calling.add")
async def add(x: int, y: int) -> int:
    return x + y


@task("calling.fail")
async def fail(text: str) -> None:
    raise ValueError(text)


@task("calling.note")
async def note(*args: Any, **kwargs: Any) -> Any:
    topic, *values = args
    await log.of(topic)(*values, *([kwargs] if kwargs else []))
    return topic


@task("calling.tell", bind=True)
async def tell(self: Bound, *names: str) -> Any:
    return {name: plain(getattr(self.request, name)) for name in names}


# -- arguments and options ---------------------------------------------------------------------------------------------


@scenario("CALL-01", "RES-01")
async def delay_is_apply_async_without_options(app: App) -> Any:
    sent = [await add.delay(2, 3), await add.apply_async((2, 3)), await add.apply_async((2,), {"y": 3})]
    return [[await each.get(), await each.state()] for each in sent]


@scenario("CALL-03")
async def arguments_are_a_list_and_a_mapping(app: App) -> Any:
    wrong: list[tuple[Any, Any]] = [("ab", None), ({"x": 1, "y": 2}, None), (5, None), ((1,), [("y", 2)])]
    queue = "calling.arguments"
    told = [await raised(add.apply_async(args, kwargs, queue=queue)) for args, kwargs in wrong]
    return {"told": told, "sent": await app.queued(queue), "a list": await (await add.apply_async([1, 2])).get()}


@scenario("CALL-18", "SEC-02")
async def a_task_gets_a_copy_in_the_form_of_json(app: App) -> Any:
    given: dict[str, Any] = {"tuple": (1, 2), "numbers": {1: "one"}, "list": [1]}
    sent = await note.delay("copied", given)
    given["list"].append(2)
    await sent.get()
    return await log.of("copied").entries()


@task("calling.optioned", bind=True, time_limit=60, soft_time_limit=50, priority=3, expires=100, default_retry_delay=0)
async def optioned(self: Bound) -> Any:
    return {
        "expires": self.request.expires is not None,
        "timelimit": self.request.timelimit,
        "priority": self.request.delivery_info["priority"],
    }


@scenario("CALL-02", "LIM-03", "RT-07")
async def the_call_wins_over_the_task(app: App) -> Any:
    by_task, by_call = (
        await optioned.delay(),
        await optioned.apply_async(time_limit=30, soft_time_limit=20, priority=6, expires=None),
    )
    return [await by_task.get(), await by_call.get()]


@scenario("CALL-02")
async def an_option_that_nobody_knows(app: App) -> Any:
    return await raised(add.apply_async((1, 2), colour="green"))


@scenario("CALL-08", "CALL-02")
async def a_task_is_sent_by_its_name_with_its_options(app: App) -> Any:
    return await (await app.send_task("calling.optioned")).get()


@scenario("CALL-08")
async def a_task_that_the_caller_does_not_know_is_sent_by_its_name(app: App) -> Any:
    sent = await app.send_task("calling.unknown_here", (1,), {"a": 2}, queue="calling.unknown")
    return [await app.queued("calling.unknown"), await sent.state()]


@task("calling.ignored", ignore_result=True)
async def ignored(topic: str) -> str:
    await log.of(topic)("ran")
    return topic


@scenario("CALL-08", "CALL-14", "ST-14")
async def whether_a_result_is_kept_is_said_by_call_or_task(app: App) -> Any:
    seen: dict[str, Any] = {}
    for name, sent in {
        "task": await ignored.delay("task"),
        "call against the task": await ignored.apply_async(("kept",), ignore_result=False),
        "call": await add.apply_async((1, 2), ignore_result=True),
        "by name": await app.send_task("calling.ignored", ("by name",)),
        "by name, call": await app.send_task("calling.ignored", ("by name, call",), ignore_result=False),
    }.items():
        await app.worker_is_idle()
        seen[name] = [await app.result(sent.id).state(), await brief(sent.get(timeout=0.3))]
    return seen


@scenario("CALL-14")
async def nobody_waits_for_a_result_that_is_not_kept(app: App) -> Any:
    sent = await add.apply_async((1, 2), ignore_result=True, queue="calling.never")
    began = time.monotonic()
    return [await sent.get(), time.monotonic() - began < 1, await sent.state()]


@scenario("CALL-15")
async def whoever_sends_listens_for_the_result(app: App) -> Any:
    counts = [await app.subscriptions()]
    sent = await add.apply_async((1, 2), queue="calling.never")
    counts.append(await app.subscriptions())
    await add.apply_async((1, 2), queue="calling.never", ignore_result=True)
    counts.append(await app.subscriptions())
    await sent.forget()
    counts.append(await app.subscriptions())
    return [count - counts[0] for count in counts]


# -- ids ---------------------------------------------------------------------------------------------------------------


@scenario("CALL-09", "ST-07")
async def an_id_may_be_used_twice(app: App) -> Any:
    task_id = str(uuid4())
    first = await note.apply_async(("twice", 1), task_id=task_id)
    await first.get()
    second = await note.apply_async(("twice", 2), task_id=task_id)
    entries = await log.of("twice").until(2)
    await app.worker_is_idle()
    return [first.id == task_id, second.id == task_id, entries, await app.result(task_id).state()]


@scenario("CALL-10")
async def a_task_may_be_shown_under_another_name(app: App) -> Any:
    return await (await tell.apply_async(("task", "shadow"), shadow="something.else")).get()


@task("calling.headed", bind=True, default_retry_delay=0, max_retries=1)
async def headed(self: Bound) -> Any:
    await log.of("headed")(plain(self.request.headers))
    if not self.request.retries:
        raise self.retry()
    return plain(self.request.headers)


@scenario("CALL-11", "RETRY-08")
async def headers_of_the_callers_own(app: App) -> Any:
    with_headers = await headed.apply_async(headers={"tenant": "acme", "trace": {"id": 7}})
    seen = [await with_headers.get(), await log.of("headed").entries()]
    return [*seen, await (await tell.delay("headers")).get()]


@task("calling.family", bind=True)
async def family(self: Bound, depth: int, topic: str) -> None:
    await log.of(topic)(self.request.id, self.request.root_id, self.request.parent_id)
    if depth:
        await family.delay(depth - 1, topic)


@scenario("CALL-12", "EXE-14")
async def a_task_knows_its_parent_and_its_root(app: App) -> Any:
    sent = await family.delay(2, "family")
    entries = await log.of("family").until(3)
    children = await sent.children()
    return {"told": entries, "children": [each.id for each in children or ()]}


@scenario("CALL-12")
async def a_call_from_outside_may_name_parent_and_root(app: App) -> Any:
    sent = await tell.apply_async(("root_id", "parent_id"), root_id="the root", parent_id="the parent")
    return await sent.get()


@task("calling.important", bind=True)
async def important(self: Bound, depth: int) -> int:
    await log.of("important")(self.request.delivery_info["priority"])
    if depth:
        await important.delay(depth - 1)
    return depth


@scenario("CALL-13", "RT-07")
async def priority_is_not_inherited(app: App) -> Any:
    await important.apply_async((1,), priority=6)
    return await log.of("important").until(2)


# -- moments -----------------------------------------------------------------------------------------------------------


@task("calling.clock", bind=True)
async def clock(self: Bound) -> Any:
    return [time.time(), self.request.eta is not None]


@scenario("CALL-04")
async def a_countdown_is_waited_for(app: App) -> Any:
    seen: dict[str, Any] = {}
    for countdown in (0, 0.7, None):
        since = time.time()
        ran, knew = await (await clock.apply_async(countdown=countdown)).get()
        seen[str(countdown)] = {"waited": ran - since >= (countdown or 0), "knew": knew}
    return seen


@scenario("CALL-04", "CALL-05")
async def a_countdown_and_an_eta(app: App) -> Any:
    later = datetime.now(UTC) + timedelta(hours=1)
    try:
        sent = await clock.apply_async(countdown=0.2, eta=later)
    except ValueError as error_:
        return type(error_).__name__
    return {"knew of a moment": (await sent.get())[1]}


@scenario("CALL-04")
async def a_countdown_beyond_all_measure(app: App) -> Any:
    return [await raised(clock.apply_async(countdown=countdown)) for countdown in (2**31, 2**40, -(2**31) - 1)]


@scenario("CALL-05")
async def a_moment_is_waited_for(app: App) -> Any:
    seen: dict[str, Any] = {}
    now = datetime.now(UTC)
    moments = {
        "past": now - timedelta(hours=1),
        "to come": now + timedelta(seconds=0.8),
        "elsewhere": (now + timedelta(seconds=0.8)).astimezone(),
        "without a zone": (now + timedelta(seconds=0.8)).replace(tzinfo=None),
    }
    for name, eta in moments.items():
        ran, knew = await (await clock.apply_async(eta=eta)).get()
        moment = eta if eta.tzinfo else eta.replace(tzinfo=UTC)
        seen[name] = {"not before": ran >= moment.timestamp(), "knew": knew}
    return seen


@scenario("CALL-06", "LIM-11")
async def a_call_may_expire(app: App) -> Any:
    now = datetime.now(UTC)
    calls: dict[str, dict[str, Any]] = {
        "in time": {"expires": 60},
        "in time, by a moment": {"expires": now + timedelta(seconds=60)},
        "over before it is sent": {"expires": long_ago()},
        "over while it waits": {"expires": 0.3, "countdown": 0.7},
    }
    seen: dict[str, Any] = {}
    for name, options in calls.items():
        sent = await note.apply_async(("expiring", name), **options)
        seen[name] = [await outcome(sent.get()), await sent.state()]
    return {**seen, "ran": await log.of("expiring").entries()}


@scenario("CALL-06", "LIM-11", longest=90)
async def what_expires_in_the_queue_never_runs(app: App) -> Any:
    sent = await note.apply_async(("expired in the queue",), queue="calling.expired", expires=0.2)
    began = time.monotonic()
    await wait_for(lambda: time.monotonic() > began + 0.5)
    async with app.worker("calling.expired"):
        told = await outcome(sent.get())
    return [told, await sent.state(), await log.of("expired in the queue").entries()]


# -- sending that fails ------------------------------------------------------------------------------------------------


@scenario("CALL-07", "ERR-09")
async def a_broker_that_is_away_is_tried_again_for_a_moment(app: App) -> Any:
    async with app.without_broker():
        began = time.monotonic()
        told = await raised(add.delay(1, 2))
        return {"raised": told, "at once": time.monotonic() - began < 0.5}


# -- links -------------------------------------------------------------------------------------------------------------


@task("calling.arrive", bind=True)
async def arrive(self: Bound, *args: Any, topic: str) -> None:
    await log.of(topic)(list(args), self.request.parent_id, self.request.root_id)


@scenario("CALL-16")
async def a_link_gets_the_result_in_front_of_its_arguments(app: App) -> Any:
    links = {
        "one": arrive.s("own", topic="one"),
        "immutable": arrive.si("own", topic="immutable"),
        "a chain": chain(add.s(10), arrive.s(topic="a chain")),
        "several": [arrive.s(number, topic=f"several {number}") for number in range(2)],
    }
    seen: dict[str, Any] = {}
    for name, link in links.items():
        sent = await add.apply_async((1, 2), link=link)
        await sent.get()
        topics = [name] if name != "several" else ["several 0", "several 1"]
        told = [(await log.of(topic).until(1))[0] for topic in topics]
        seen[name] = [[args, parent == sent.id, root == sent.id] for args, parent, root in told]
    return seen


@scenario("CALL-16")
async def a_link_follows_success_alone(app: App) -> Any:
    failed = await fail.apply_async(("no",), link=note.si("after a failure"))
    await raised(failed.get())
    await app.worker_is_idle()
    return await log.of("after a failure").entries()


@task("calling.new_style")
async def new_style(request: Any, exc: BaseException, traceback: Any) -> None:
    await log.of("new style")(request.id, plain(exc), traceback is not None)


@task("calling.new_style_with_more")
async def new_style_with_more(request: Any, exc: BaseException, traceback: Any, more: str) -> None:
    await log.of("new style")(request.id, plain(exc), more)


@task("calling.old_style", bind=True)
async def old_style(self: Bound, task_id: str, *more: str) -> None:
    await log.of("old style")(task_id, list(more), self.request.parent_id)


@task("calling.breaks")
async def breaks(request: Any, exc: BaseException, traceback: Any) -> None:
    await log.of("new style")("breaks")
    raise RuntimeError("the callback")


@scenario("CALL-17", "CERR-01", "CERR-04", "CERR-06")
async def a_callback_of_three_arguments_is_called_where_the_task_failed(app: App) -> Any:
    callbacks = [breaks.s(), new_style.s(), new_style_with_more.s("more")]
    sent = await fail.apply_async(("no",), link_error=callbacks)
    told = await outcome(sent.get())
    return [sent.id, told, await log.of("new style").until(3), await sent.state()]


@scenario("CALL-17", "CERR-02", "CERR-03")
async def a_callback_of_one_argument_is_sent_as_a_task(app: App) -> Any:
    sent = await fail.apply_async(("no",), link_error=[old_style.s("more"), note.si("immutable callback", "only this")])
    await raised(sent.get())
    return [
        sent.id,
        await log.of("old style").until(1),
        await log.of("immutable callback").until(1),
    ]


@task("calling.ends", bind=True, default_retry_delay=0, max_retries=1)
async def ends(self: Bound, how: str) -> None:
    if how == "ignored":
        raise error("Ignore")
    if how == "retried" and not self.request.retries:
        raise self.retry()


@scenario("CALL-17", "CERR-05")
async def error_callbacks_follow_failures_alone(app: App) -> Any:
    for how in ("fine", "ignored", "retried", "expired"):
        options: dict[str, Any] = {"expires": long_ago()} if how == "expired" else {}
        await ends.apply_async((how,), link_error=note.si("error callbacks", how), **options)
    await app.worker_is_idle()
    await raised((await fail.apply_async(("no",), link_error=note.si("error callbacks", "failed"))).get())
    return await log.of("error callbacks").until(1)
