"""Exceptions that a caller or a task may see."""

from __future__ import annotations

import builtins
from typing import Any

from tests.conformance.observation import outcome, raised
from tests.conformance.scenario import App, Bound, Log, error, kind, scenario, task

log = Log("errors")

NAMES = (
    "TimeoutError",
    "TaskRevokedError",
    "MaxRetriesExceededError",
    "ChordError",
    "NotRegistered",
    "SoftTimeLimitExceeded",
    "TimeLimitExceeded",
    "WorkerLostError",
    "Ignore",
    "Reject",
    "Retry",
    "OperationalError",
    "EncodeError",
)


@scenario("ERR-02", "ERR-03", "ERR-04", "ERR-05", "ERR-06", "ERR-07", "ERR-08", "ERR-09")
async def what_kind_of_exception_each_is(app: App) -> Any:
    """Of the classes that every program knows, for those are what a task may be catching already."""
    every = vars(builtins).values()
    return {
        name: sorted(one.__name__ for one in kind(name).__mro__ if one in every and one is not object) for name in NAMES
    }


@scenario("ERR-10")
async def rarer_exceptions(app: App) -> Any:
    seen: dict[str, Any] = {}
    names = ("ImproperlyConfigured", "QueueNotFound", "InvalidTaskError", "BackendStoreError", "SecurityError")
    for name in names:
        try:
            seen[name] = issubclass(kind(name), Exception)
        except NotImplementedError:
            seen[name] = False
    return seen


@task("errors.raises", bind=True)
async def raises(self: Bound, name: str) -> None:
    await log.of(name)("ran")
    raise error(name, "by hand")


@scenario("ERR-01", "ERR-07")
async def a_task_may_raise_what_the_system_raises(app: App) -> Any:
    names = ("TimeoutError", "SoftTimeLimitExceeded", "MaxRetriesExceededError")
    return {name: await outcome((await raises.delay(name)).get()) for name in names}


@task("errors.retries_by_hand", bind=True, default_retry_delay=0)
async def retries_by_hand(self: Bound) -> int:
    if not self.request.retries:
        raise error("Retry")
    return int(self.request.retries)


@scenario("ERR-08", "RETRY-06")
async def a_retry_that_is_raised_by_hand(app: App) -> Any:
    sent = await retries_by_hand.delay()
    await app.worker_is_idle()
    return [await raised(sent.get(timeout=0.5)), await sent.state()]


@task("errors.revoked_by_hand")
async def revoked_by_hand() -> None:
    raise error("TaskRevokedError", "by hand")


@scenario("ERR-03")
async def a_task_that_says_that_it_was_revoked(app: App) -> Any:
    sent = await revoked_by_hand.delay()
    return [await outcome(sent.get()), await sent.state()]


@task("errors.grouped")
async def grouped() -> None:
    raise ExceptionGroup("both", [ValueError("one"), KeyError("two")])


@scenario("ERR-01", "ST-08", "ST-09")
async def a_group_of_exceptions(app: App) -> Any:
    sent = await grouped.delay()
    return [await raised(sent.get()), await sent.state()]


def fail_inside() -> None:
    raise KeyError("cause")


@task("errors.caused")
async def caused() -> None:
    try:
        fail_inside()
    except KeyError as cause:
        raise ValueError("effect") from cause


@scenario("ERR-01", "ST-11")
async def what_caused_an_exception_stays_in_the_traceback(app: App) -> Any:
    sent = await caused.delay()
    told = await outcome(sent.get())
    text = await sent.traceback()
    assert text
    effect = await sent.get(propagate=False)
    return [told, "KeyError" in text, "ValueError: effect" in text, effect.__cause__]
