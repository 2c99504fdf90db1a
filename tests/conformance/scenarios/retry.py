"""Running again: asked for by the task, or by itself."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from tests.conformance.observation import outcome, plain, raised
from tests.conformance.scenario import (
    App,
    Bound,
    Log,
    Task,
    chain,
    chord,
    die,
    due,
    error,
    in_state,
    kind,
    pause,
    scenario,
    task,
    wait_for,
)

log = Log("retry")


@task("retry.echo")
async def echo(value: Any) -> Any:
    await log.of("echo")(value)
    return value


@task("retry.gather")
async def gather(values: Any) -> Any:
    return values


@task("retry.told")
async def told(topic: str) -> None:
    await log.of(topic)("told")


async def waits_in(app: App, task_id: str, name: str) -> int:
    """Seconds from the run that asked for a retry to the next one, which is then called off."""
    then = await due(task_id)
    asked = [float(at) for of, at in await log.of(name).entries() if of == task_id]
    await app.revoke(task_id)
    return round(then - asked[0])


# -- asked for by the task ---------------------------------------------------------------------------------------------


@task("retry.again", bind=True, default_retry_delay=0)
async def again(self: Bound, name: str, times: int, word: str = "") -> str:
    await log.of(name)(self.request.id, self.request.root_id, self.request.retries, word)
    if self.request.retries < times:
        raise self.retry()
    return f"after {self.request.retries}"


@scenario("RETRY-01")
async def a_retry_has_the_same_id_and_arguments_and_one_retry_more(app: App) -> Any:
    sent = await again.delay("same", 2, word="kept")
    return {"id": sent.id, "value": await sent.get(), "runs": await log.of("same").entries()}


@task("retry.other", bind=True, default_retry_delay=0)
async def other(self: Bound, x: int, y: int = 0) -> Any:
    if not self.request.retries:
        raise self.retry(args=(x + 1,), kwargs={"y": y + 1})
    return [x, y]


@scenario("RETRY-01")
async def a_retry_may_have_other_arguments(app: App) -> Any:
    return await (await other.delay(1, y=1)).get()


@task("retry.not_raised", bind=True, default_retry_delay=0)
async def not_raised(self: Bound) -> int:
    if not self.request.retries:
        self.retry()
        await log.of("not raised")("went on")
    return int(self.request.retries)


@scenario("RETRY-01")
async def a_retry_that_is_not_raised_ends_the_body_all_the_same(app: App) -> Any:
    return [await (await not_raised.delay()).get(), await log.of("not raised").entries()]


@task("retry.endless", bind=True, default_retry_delay=0)
async def by_default(self: Bound) -> None:
    await log.of("by default")(self.request.retries)
    raise self.retry()


@scenario("RETRY-02", "RETRY-05", "ERR-04")
async def without_more_words_a_task_runs_four_times(app: App) -> Any:
    sent = await by_default.delay()
    return [await outcome(sent.get()), await sent.state(), await log.of("by default").entries()]


@task("retry.without_end", bind=True, default_retry_delay=0, max_retries=None)
async def without_end(self: Bound) -> int:
    if self.request.retries < 6:
        raise self.retry()
    return int(self.request.retries)


@task("retry.never", bind=True, default_retry_delay=0, max_retries=0)
async def never(self: Bound) -> None:
    raise self.retry()


@scenario("RETRY-02")
async def a_task_says_how_often(app: App) -> Any:
    return [await outcome((await each.delay()).get()) for each in (without_end, never)]


@task("retry.as_told", bind=True, default_retry_delay=0, max_retries=2)
async def as_told(self: Bound, name: str, options: dict[str, Any]) -> None:
    await log.of(name)(self.request.retries)
    raise self.retry(**options)


@scenario("RETRY-02")
async def a_call_of_retry_says_how_often(app: App) -> Any:
    seen: dict[str, Any] = {}
    for name, options in {"one": {"max_retries": 1}, "four": {"max_retries": 4}, "none": {"max_retries": None}}.items():
        seen[name] = [await raised((await as_told.delay(name, options)).get()), await log.of(name).entries()]
    return seen


@task("retry.by_the_default_delay", bind=True)
async def by_the_default_delay(self: Bound) -> None:
    await log.of("default delay")(self.request.id, time.time())
    raise self.retry()


@task("retry.by_its_own_delay", bind=True, default_retry_delay=40)
async def by_its_own_delay(self: Bound, options: dict[str, Any]) -> None:
    await log.of("own delay")(self.request.id, time.time())
    raise self.retry(**options)


@scenario("RETRY-03")
async def a_retry_waits_three_minutes_unless_somebody_says_otherwise(app: App) -> Any:
    plain_one = await by_the_default_delay.delay()
    of_the_task, of_the_call = await by_its_own_delay.delay({}), await by_its_own_delay.delay({"countdown": 70})
    return [
        await waits_in(app, plain_one.id, "default delay"),
        await waits_in(app, of_the_task.id, "own delay"),
        await waits_in(app, of_the_call.id, "own delay"),
    ]


def fail_before() -> None:
    raise KeyError("before")


@task("retry.with_reason", bind=True, max_retries=0)
async def with_reason(self: Bound, inside: bool) -> None:
    if not inside:
        raise self.retry(exc=ValueError("the reason"))
    try:
        fail_before()
    except KeyError:
        raise self.retry(exc=ValueError("the reason")) from None


@scenario("RETRY-04")
async def with_a_reason_the_reason_is_raised_in_the_end(app: App) -> Any:
    return [await outcome((await with_reason.delay(inside)).get()) for inside in (False, True)]


@task("retry.without_reason", bind=True, max_retries=0)
async def without_reason(self: Bound, x: int, y: int = 0) -> None:
    try:
        fail_before()
    except KeyError:
        raise self.retry()  # noqa: B904 - as most tasks have it


@scenario("RETRY-05", "ERR-04")
async def without_a_reason_the_end_is_an_error_of_its_own(app: App) -> Any:
    sent = await without_reason.delay(1, y=2)
    return [sent.id, await outcome(sent.get())]


@task("retry.described", bind=True)
async def described(self: Bound, options: dict[str, Any], reason: str | None) -> Any:
    if self.request.retries:
        return None
    if reason is not None:
        options = {**options, "exc": KeyError(reason)}
    try:
        raise self.retry(**options)
    except kind("Retry") as asked:
        return [str(asked), plain(asked.exc), plain(asked.when), isinstance(asked, Exception)]  # type: ignore[attr-defined]


@scenario("RETRY-06")
async def what_is_raised_tells_when_and_why(app: App) -> Any:
    seen: list[Any] = []
    for options, reason in (({"countdown": 60}, "k"), ({"countdown": 60}, None)):
        sent = await described.delay(options, reason)
        seen.append(await sent.get())
        await app.revoke(sent.id)
    return seen


@task("retry.much_later", bind=True)
async def much_later(self: Bound, reason: str | None) -> None:
    raise self.retry(countdown=120, exc=ValueError(reason) if reason else None)


@scenario("RETRY-07", "ST-05", "ST-08")
async def the_state_of_what_waits_for_a_retry(app: App) -> Any:
    seen: list[Any] = []
    for reason in ("not yet", None):
        sent = await much_later.apply_async((reason,), link_error=told.si("waiting for a retry"))
        await in_state(sent, "RETRY")
        record = await app.record(sent.id)
        assert record
        seen.append(
            {
                "status": record["status"],
                "result": record["result"],
                "traceback": isinstance(record["traceback"], str),
                "date_done": record["date_done"],
                "ready": await sent.ready(),
                "info": plain(await sent.info()),
            }
        )
        await app.revoke(sent.id)
    return {"seen": seen, "error callbacks": await log.of("waiting for a retry").entries()}


@task("retry.carried", bind=True, default_retry_delay=0)
async def carried(self: Bound) -> None:
    of = self.request
    await log.of("carried")(
        {
            "id": of.id,
            "root": of.root_id,
            "queue": of.delivery_info["routing_key"],
            "priority": of.delivery_info["priority"],
            "headers": of.headers,
            "expires": of.expires is not None,
            "timelimit": of.timelimit,
            "links": len(of.callbacks or ()),
            "error links": len(of.errbacks or ()),
            "correlation_id": of.correlation_id,
            "shadow": of.shadow,
        }
    )
    if not of.retries:
        raise self.retry()


@scenario("RETRY-08", "CALL-11", "RT-07")
async def a_retry_keeps_what_the_call_said(app: App) -> Any:
    async with app.worker("retry.carried"):
        sent = await carried.apply_async(
            queue="retry.carried",
            priority=6,
            headers={"tenant": "acme"},
            expires=60,
            time_limit=50,
            soft_time_limit=40,
            link=told.si("linked to a retry"),
            link_error=told.si("linked to the failure of a retry"),
            shadow="something.else",
        )
        await sent.get()
        return [sent.id, await log.of("carried").until(2)]


@task("retry.parentage", bind=True, default_retry_delay=0)
async def parentage(self: Bound) -> Any:
    if not self.request.retries:
        raise self.retry()
    return [self.request.id, self.request.parent_id, self.request.root_id]


@scenario("RETRY-09")
async def who_is_the_parent_of_a_retry(app: App) -> Any:
    return await (await parentage.delay()).get()


@task("retry.goes_on", bind=True, default_retry_delay=0)
async def goes_on(self: Bound) -> str:
    await log.of("goes on")(self.request.retries)
    if not self.request.retries:
        self.retry(throw=False, countdown=0.5)
    return f"run {self.request.retries}"


@scenario("RETRY-10")
async def a_retry_may_be_asked_for_on_the_way(app: App) -> Any:
    sent = await goes_on.delay()
    told = await outcome(sent.get())
    return [told, await log.of("goes on").until(2), await sent.get()] if "value" in told else [told]


@task("retry.unsendable", bind=True, default_retry_delay=0)
async def unsendable(self: Bound) -> None:
    raise self.retry(args=(object(),))


@scenario("RETRY-11")
async def a_retry_that_cannot_be_sent_is_a_failure(app: App) -> Any:
    sent = await unsendable.delay()
    return [await raised(sent.get()), await sent.state()]


@task("retry.by_itself", bind=True)
async def by_itself(self: Bound) -> None:
    raise self.retry()


@scenario("RETRY-12")
async def in_a_direct_call_nothing_is_retried(app: App) -> Any:
    async with app.configured(task_default_queue="retry.direct") as configured:
        return {
            "without a reason": await raised(by_itself()),
            "with a reason": await outcome(with_reason(inside=False)),
            "sent": await configured.queued("retry.direct"),
        }


@task("retry.half", bind=True, default_retry_delay=0)
async def half(self: Bound, a: int, b: int = 0, c: int = 0) -> Any:
    if self.request.retries:
        return [a, b, c]
    raise self.retry(**({"args": (10,)} if c == 3 else {"kwargs": {"a": 20}}))


@scenario("RETRY-13")
async def a_retry_may_have_some_other_arguments(app: App) -> Any:
    return [
        await outcome((await half.apply_async((), {"a": 1, "b": 2, "c": 3})).get()),
        await outcome((await half.apply_async((1, 2), {"c": 4})).get()),
    ]


# -- without being asked -----------------------------------------------------------------------------------------------


@task("retry.flaky", bind=True, autoretry_for=(LookupError,), default_retry_delay=0, max_retries=2)
async def flaky(self: Bound, name: str, until: int, what: str) -> str:
    await log.of(name)(self.request.retries)
    if self.request.retries >= until:
        return "at last"
    raise {"subclass": KeyError, "other": ValueError}[what](what)


@scenario("RETRY-14")
async def certain_errors_are_retried_and_their_subclasses(app: App) -> Any:
    seen: dict[str, Any] = {}
    for name, until, what in (("recovers", 1, "subclass"), ("gives up", 9, "subclass"), ("not covered", 9, "other")):
        sent = await flaky.delay(name, until, what)
        seen[name] = [await outcome(sent.get()), await sent.state(), await log.of(name).entries()]
    return seen


@task(
    "retry.excepted",
    bind=True,
    autoretry_for=(Exception,),
    dont_autoretry_for=(KeyError,),
    default_retry_delay=0,
    max_retries=1,
)
async def excepted(self: Bound, name: str) -> None:
    await log.of(name)(self.request.retries)
    if name == "excepted":
        raise KeyError(name)
    if name == "ignored":
        raise error("Ignore")
    if name == "asked":
        raise self.retry(exc=RuntimeError("asked"))
    raise ValueError(name)


@scenario("RETRY-14")
async def some_errors_are_not_retried_though_others_are(app: App) -> Any:
    seen: dict[str, Any] = {}
    for name in ("excepted", "covered", "asked"):
        seen[name] = [await outcome((await excepted.delay(name)).get()), await log.of(name).entries()]
    ignored = await excepted.delay("ignored")
    seen["ignored"] = [await log.of("ignored").until(1), await ignored.state()]
    return seen


class Tenacious:
    autoretry_for = (ValueError,)
    max_retries = 1
    default_retry_delay = 0


@task("retry.inherits", bind=True, base=Tenacious)
async def inherits(self: Bound, name: str) -> None:
    await log.of(name)(self.request.retries)
    raise ValueError(name)


@task("retry.inherits_less", bind=True, base=Tenacious, autoretry_for=())
async def inherits_less(self: Bound, name: str) -> None:
    await log.of(name)(self.request.retries)
    raise ValueError(name)


@scenario("RETRY-14")
async def what_is_retried_may_be_said_by_a_base_class(app: App) -> Any:
    for name, each in {"inherited": inherits, "not inherited": inherits_less}.items():
        await raised((await each.delay(name)).get())
    return [await log.of("inherited").entries(), await log.of("not inherited").entries()]


@task("retry.slow_by_default", bind=True, autoretry_for=(ValueError,))
async def slow_by_default(self: Bound) -> None:
    await log.of("slow")(self.request.id, time.time())
    raise ValueError


@task("retry.as_fast_as_told", bind=True, autoretry_for=(ValueError,), retry_kwargs={"countdown": 50, "max_retries": 5})
async def as_fast_as_told(self: Bound) -> None:
    await log.of("fast")(self.request.id, time.time())
    raise ValueError


@scenario("RETRY-15")
async def without_backoff_it_waits_three_minutes(app: App) -> Any:
    slow, fast = await slow_by_default.delay(), await as_fast_as_told.delay()
    return [await waits_in(app, slow.id, "slow"), await waits_in(app, fast.id, "fast")]


@task(
    "retry.five_at_most",
    bind=True,
    autoretry_for=(ValueError,),
    retry_kwargs={"countdown": 0, "max_retries": 5},
)
async def five_at_most(self: Bound) -> None:
    await log.of("five")(self.request.retries)
    raise ValueError


@scenario("RETRY-15", "RETRY-14")
async def how_often_may_be_said_with_the_delay(app: App) -> Any:
    return [await raised((await five_at_most.delay()).get()), await log.of("five").entries()]


def backing_off(name: str, **options: Any) -> Task:
    topic = f"backoff {name}"

    @task(
        f"retry.{topic}", bind=True, autoretry_for=(ValueError,), max_retries=50, **{"retry_jitter": False, **options}
    )
    async def body(self: Bound) -> None:
        await log.of(topic)(self.request.id, time.time())
        raise ValueError

    return body


BACKOFFS = {
    "true": backing_off("true", retry_backoff=True),
    "5": backing_off("5", retry_backoff=5),
    "a half": backing_off("a half", retry_backoff=0.5),
    "2.9": backing_off("2.9", retry_backoff=2.9),
}


async def backoffs(app: App, name: str, of: Task, retries: tuple[int, ...]) -> dict[str, int]:
    """What it waits after so many retries."""
    waits: dict[str, int] = {}
    for number in retries:
        sent = await app.send_retried(of, number)
        waits[str(number)] = await waits_in(app, sent.id, f"backoff {name}")
    return waits


@scenario("RETRY-16")
async def with_backoff_each_wait_is_twice_the_one_before(app: App) -> Any:
    return {name: await backoffs(app, name, of, (4, 5, 6, 9, 10, 20)) for name, of in BACKOFFS.items()}


BESIDE = backing_off("beside a countdown", retry_backoff=3, retry_kwargs={"countdown": 100})


@scenario("RETRY-16", "RETRY-15")
async def backoff_beside_a_countdown(app: App) -> Any:
    return await backoffs(app, "beside a countdown", BESIDE, (4, 9))


@task("retry.by_hand", bind=True, autoretry_for=(ValueError,), retry_backoff=2, retry_jitter=False, max_retries=50)
async def by_hand(self: Bound) -> None:
    await log.of("by hand")(self.request.id, time.time())
    raise self.retry()


@scenario("RETRY-16", "RETRY-03")
async def backoff_is_not_for_a_retry_that_is_asked_for(app: App) -> Any:
    sent = await app.send_retried(by_hand, 3)
    return await waits_in(app, sent.id, "by hand")


CAPPED = backing_off("capped", retry_backoff=100, retry_backoff_max=1000)
FAR = backing_off("far", retry_backoff=3600)


@scenario("RETRY-17")
async def no_wait_is_longer_than_the_longest(app: App) -> Any:
    return [await backoffs(app, "capped", CAPPED, (0, 3, 4, 9)), await backoffs(app, "far", FAR, (0, 5))]


JITTERY = backing_off("jittery", retry_backoff=300, retry_jitter=True)


@scenario("RETRY-18")
async def jitter_takes_any_wait_up_to_that(app: App) -> Any:
    # The smallest of many is far below the middle: the jitter is not a part of the wait, but all of it.
    waits: list[int] = []
    for _ in range(25):
        sent = await app.send_retried(JITTERY, 4)
        then = await wait_for(partial(_due_or_over, app, sent))
        waits.append(round(then - (await log.of("backoff jittery").entries())[-1][1]))
        await app.revoke(sent.id)
    return {
        "within": all(0 <= wait <= 600 for wait in waits),
        "many": len(set(waits)) > 5,
        "below the middle": min(waits) < 200,
        "above the middle": max(waits) > 400,
    }


async def _due_or_over(app: App, sent: Any) -> float | None:
    """When it is due; a wait of none is as good as over."""
    if then := await app.due_at(sent.id):
        return then
    entries = [at for of, at in await log.of("backoff jittery").entries() if of == sent.id]
    return float(entries[0]) if len(entries) > 1 else None


@scenario("RETRY-18")
async def there_is_jitter_unless_somebody_says_otherwise(app: App) -> Any:
    by_default = backing_off_by_default
    seen: set[int] = set()
    for _ in range(12):
        sent = await app.send_retried(by_default, 30)
        seen.add(await waits_in(app, sent.id, "jitter by default"))
    return len(seen) > 1


@task("retry.jitter_by_default", bind=True, autoretry_for=(ValueError,), retry_backoff=True, max_retries=50)
async def backing_off_by_default(self: Bound) -> None:
    await log.of("jitter by default")(self.request.id, time.time())
    raise ValueError


class FailsBefore:
    async def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        await log.of("before")(task_id)
        raise ValueError("before it began")


@task("retry.fails_before", base=FailsBefore, autoretry_for=(Exception,), default_retry_delay=0)
async def fails_before() -> None:
    await log.of("before")("ran")


@task(
    "retry.too_slow", bind=True, autoretry_for=(Exception,), default_retry_delay=0, max_retries=1, soft_time_limit=0.5
)
async def too_slow(self: Bound) -> None:
    await log.of("too slow")(self.request.retries)
    await pause(20)


@scenario("RETRY-19", "EXE-07")
async def what_fails_before_the_body_is_not_retried(app: App) -> Any:
    sent = await fails_before.delay()
    return [await outcome(sent.get()), await log.of("before").entries()]


@scenario("RETRY-19", "LIM-01")
async def a_soft_time_limit_is_retried_like_any_error(app: App) -> Any:
    sent = await too_slow.delay()
    return [await raised(sent.get()), await log.of("too slow").entries()]


# -- in company --------------------------------------------------------------------------------------------------------


@scenario("RETRY-20")
async def a_chain_waits_for_the_retry_of_a_step(app: App) -> Any:
    last = await chain(again.s("in a chain", 2), echo.s()).apply_async()
    value = await last.get()
    return [value, [entry[2] for entry in await log.of("in a chain").entries()], await log.of("echo").entries()]


@scenario("RETRY-20")
async def a_chord_waits_for_the_retry_of_a_part(app: App) -> Any:
    body = await chord([again.s("in a chord", 1), gather.s(5)], gather.s()).apply_async()
    return await body.get()


@task("retry.later", bind=True)
async def later(self: Bound, name: str, countdown: float) -> str:
    await log.of(name)(self.request.retries)
    if not self.request.retries:
        raise self.retry(countdown=countdown)
    return "ran again"


@scenario("RETRY-21", "LIM-11")
async def a_retry_does_not_outlive_the_call(app: App) -> Any:
    sent = await later.apply_async(("expiring", 1.5), expires=0.8)
    return [await outcome(sent.get()), await sent.state(), await log.of("expiring").entries()]


@scenario("RETRY-21", "LIM-12", "LIM-13")
async def what_waits_for_a_retry_can_be_called_off(app: App) -> Any:
    sent = await later.delay("called off", 1.0)
    await in_state(sent, "RETRY")
    await app.revoke(sent.id)
    return [await outcome(sent.get()), await sent.state(), await log.of("called off").entries()]


@task("retry.dies", bind=True, retry_on_worker_lost=True, default_retry_delay=0, max_retries=2)
async def dies(self: Bound, deaths: int) -> str:
    await log.of(f"dies {deaths}")(self.request.retries)
    if self.request.retries < deaths:
        await die()
    return "alive"


@scenario("RETRY-22", longest=120)
async def a_task_may_be_retried_when_its_process_dies(app: App) -> Any:
    seen: list[Any] = []
    async with app.worker("retry.dies"):
        for deaths in (1, 9):
            sent = await dies.apply_async((deaths,), queue="retry.dies")
            seen.append([await raised(sent.get(timeout=100)), await log.of(f"dies {deaths}").entries()])
    return seen
