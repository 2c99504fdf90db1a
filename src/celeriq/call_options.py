"""What one call may say, and what it is told when it says something else (CALL-02)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from celeriq.options import check_wait
from celeriq.routing import check_priority

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from celeriq.canvas import Call


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What one call may say beside its arguments (CALL-02)."""

    queue: str | None = None
    """Where it goes, whatever task and routes say (RT-02)."""

    priority: int | None = None
    """0, the highest, to 9 (RT-06)."""

    countdown: float | None = None
    """Seconds until it may run, by the clock of Redis (CALL-04)."""

    eta: datetime | None = None
    """The moment from which on it may run; one without a time zone is in UTC (CALL-05)."""

    task_id: str | None = None
    """Your own id, an idempotency key for one. Ids are not compared: two calls of one id share one result (CALL-09)."""

    link: Sequence[Call] = ()
    """What is sent when it has succeeded, with its result as the first argument (CALL-16)."""

    link_error: Sequence[Call] = ()
    """What is told when it has failed (CALL-17): see `celeriq.middleware.ErrorCallbacks`."""

    headers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Yours, to be read as `self.request.headers`; a retry keeps them (CALL-11)."""

    shadow: str | None = None
    """Another name, for those who look at it (CALL-10)."""

    argsrepr: str | None = None
    """What is shown of its arguments in place of them, as `self.request.argsrepr` (SEC-07)."""

    kwargsrepr: str | None = None
    """The same for the named ones."""

    root_id: str | None = None
    """The task with which it all began, by default the running task's (CALL-12)."""

    parent_id: str | None = None
    """The task that sends it, by default the one that runs here (CALL-12)."""

    session: AsyncSession | None = None
    """Whose transaction it joins: it is sent when that is committed, and never if it is rolled back."""

    declared: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What it says of the task's own options: `expires`, `ignore_result` and others that middlewares declare."""

    def __post_init__(self) -> None:
        if self.priority is not None:
            check_priority(self.priority)
        if self.countdown is not None and self.eta is not None:
            raise ValueError("countdown and eta say the same thing twice: give one of them")
        if self.countdown is not None:
            check_wait("countdown", self.countdown)

    def labels(self) -> dict[str, Any]:
        return {name: value for name in ("queue", "priority") if (value := getattr(self, name)) is not None}

    @property
    def at(self) -> float | None:
        """The moment that `eta` says, in seconds since 1970."""
        eta = self.eta
        return None if eta is None else (eta if eta.tzinfo else eta.replace(tzinfo=UTC)).timestamp()


NOTHING_SAID = CallOptions()

KNOWN_OPTIONS = tuple(name for name in CallOptions.__dataclass_fields__ if name != "declared")


def call_options(given: Mapping[str, Any], of_task: Sequence[str]) -> CallOptions:
    """`of_task`: the options of the task that a call may say. Raises `TypeError` for one that no call has."""
    declared = dict(given.get("declared", {}))
    options: dict[str, Any] = {}
    for name, value in given.items():
        if name in of_task:
            declared[name] = value
        elif name in KNOWN_OPTIONS:
            options[name] = value
        elif name != "declared":
            raise TypeError(_unknown_option(name, of_task))
    for name in ("link", "link_error"):
        options[name] = several(options.get(name))
    return CallOptions(**options, declared=declared)


def several(given: Any) -> tuple[Call, ...]:
    """Callbacks as they may be given: none, one, or a list of them."""
    return tuple(cast("Any", given)) if isinstance(given, list | tuple) else (given,) if given else ()


def _unknown_option(name: str, of_task: Sequence[str]) -> str:
    if name in WITHOUT_MEANING:
        return f"option {name!r} of a call: {WITHOUT_MEANING[name]}"
    known = sorted((*KNOWN_OPTIONS, *of_task))
    nearest = get_close_matches(name, known, n=1)
    remedy = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
    return f"unknown option {name!r} of a call; {remedy}"


_BROKER_DOES = "there is one way to do it here, which the broker is told: leave it out"
WITHOUT_MEANING = {
    "producer": _BROKER_DOES,
    "connection": _BROKER_DOES,
    "retry": "what Redis did not take is sent again three times: leave it out",
    "retry_policy": "what Redis did not take is sent again three times: leave it out",
    "exchange": "there are queues only: say queue=",
    "routing_key": "there are queues only: say queue=",
    "serializer": "messages are JSON: leave it out",
    "compression": "messages are not compressed: leave it out",
    "reply_to": "results are read with the task's id: leave it out",
    "delivery_mode": "every message is kept: leave it out",
    "mandatory": "a queue that nobody reads keeps its messages: leave it out",
}
"""Options of Celery's calls that are refused, with the remedy."""
