"""What a running task can know of its message (EXE-14)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from celeriq.envelope import Envelope

if TYPE_CHECKING:
    from celeriq.attempt import Attempt


@dataclass(frozen=True, slots=True)
class Request:
    """The call that is running, with Celery's names. Called directly, a task has no message: all is empty then."""

    id: str | None = None
    task: str = ""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    retries: int = 0
    """How often the task was retried before this attempt; 0 in the first."""
    root_id: str | None = None
    parent_id: str | None = None
    eta: datetime | None = None
    expires: datetime | None = None
    timelimit: tuple[float | None, float | None] = (None, None)
    """Hard and soft limit in seconds, in this order."""
    hostname: str = ""
    """The worker."""
    delivery_info: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """`routing_key`: the queue; `priority`; `redelivered`: whether it came back, from a worker that died or a run that
    gave it back (ACK-10)."""
    group: str | None = None
    """The id of the group that it belongs to."""
    group_index: int | None = None
    chord: Mapping[str, Any] | None = None
    """The message of the body behind its group."""
    origin: str | None = None
    """A message does not say which process has sent it."""
    headers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The caller's own (CALL-11)."""
    shadow: str | None = None
    argsrepr: str = "()"
    """What may be shown of the arguments: their repr, or what the call says (SEC-07)."""
    kwargsrepr: str = "{}"
    ignore_result: bool = False
    chain: tuple[Envelope, ...] = ()
    """The steps behind this one, the next one first."""
    callbacks: tuple[Envelope, ...] = ()
    errbacks: tuple[Envelope, ...] = ()
    children: tuple[str, ...] = ()
    """Ids of the tasks that it has sent so far."""
    called_directly: bool = True
    is_eager: bool = False

    @property
    def name(self) -> str:
        """The same as `task`."""
        return self.task

    @property
    def correlation_id(self) -> str | None:
        """The same as `id`."""
        return self.id

    @property
    def time_limit(self) -> float | None:
        """Seconds."""
        return self.timelimit[0]

    @property
    def soft_time_limit(self) -> float | None:
        """Seconds."""
        return self.timelimit[1]


def of_attempt(attempt: Attempt) -> Request:
    call, delivery = attempt.envelope, attempt.delivery
    said = attempt.options.as_dict()
    return Request(
        id=call.id,
        task=call.task,
        args=tuple(call.args),
        kwargs=call.kwargs,
        retries=attempt.retries,
        root_id=call.root or call.id,
        parent_id=call.parent or None,
        eta=_moment(call.eta),
        expires=_moment(call.expires),
        timelimit=(said.get("time_limit"), said.get("soft_time_limit")),
        hostname=delivery.worker,
        delivery_info={
            "exchange": "",
            "routing_key": delivery.queue,
            "priority": delivery.priority,
            "redelivered": call.redelivered or delivery.crashes > 0,
        },
        group=call.group or None,
        group_index=call.group_index,
        chord=None if call.chord is None else msgspec.to_builtins(call.chord.body),
        headers=call.headers,
        shadow=call.shadow or None,
        argsrepr=repr(tuple(call.args)) if call.argsrepr is None else call.argsrepr,
        kwargsrepr=repr(call.kwargs) if call.kwargsrepr is None else call.kwargsrepr,
        ignore_result=bool(said.get("ignore_result")),
        chain=tuple(call.chain),
        callbacks=tuple(call.link),
        errbacks=tuple(call.link_error),
        children=tuple(attempt.children),
        called_directly=False,
    )


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
