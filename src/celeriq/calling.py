"""Calling a task: one call or thousands of the same, at once or later, alone or with others behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, Unpack, cast, runtime_checkable

from msgspec.structs import replace as with_fields
from taskiq.abc.broker import AsyncBroker
from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.kicker import AsyncKicker
from taskiq.labels import prepare_label
from taskiq.utils import maybe_awaitable

from celeriq.attempt import Attempt
from celeriq.envelope import VERSION, Envelope, chained, of_message
from celeriq.errors import SendError
from celeriq.hooks import SendingHooks
from celeriq.keywords import CallKeywords
from celeriq.options import Options
from celeriq.result import AsyncResult
from celeriq.routing import check_priority

if TYPE_CHECKING:
    from celeriq.task import Task

P = ParamSpec("P")
R = TypeVar("R")

Arguments = Sequence[Any] | Mapping[str, Any]
"""The arguments of one of many calls: a tuple of positional ones, or a mapping of named ones."""


@runtime_checkable
class Sends(Protocol):
    """A broker that takes envelopes."""

    async def send(self, envelope: Envelope, *, at: float | None = None) -> None: ...

    def sending_hooks(self) -> SendingHooks: ...

    async def send_many(self, envelopes: Sequence[Envelope]) -> list[Exception | None]: ...


class Kicker(AsyncKicker[P, R], Generic[P, R]):
    """Taskiq's way to change a call before it is sent: `task.kicker().with_labels(queue="slow").kiq(1)`."""

    task_options: Options | None = None
    """None for a task that is not registered here."""

    async def kiq(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Send the call. Raises `SendError`, which is a `SendTaskError`, with the reason."""
        if not _takes_envelopes(type(self.broker)):
            return await super().kiq(*args, **kwargs)
        envelope = await self.envelope(args, kwargs)
        await self.send(envelope)
        return await self.sent(envelope)

    async def envelope(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any] | None = None
    ) -> Envelope:
        """The call as it is sent, when the middlewares have seen it; `options`: what it says of the task's.

        Raises `TypeError` or `TaskDefinitionError` for options that are not legal.
        """
        hooks = [one.pre_send for one in self.broker.middlewares if type(one).pre_send is not TaskiqMiddleware.pre_send]
        if hooks:
            message = self._prepare_message(*args, **kwargs)
            for hook in hooks:
                message = await maybe_awaitable(hook(message))
            envelope = of_message(message)
        else:
            envelope = self._envelope(args, kwargs)
        self._stamp(envelope, options or {})
        return envelope

    async def send(self, envelope: Envelope, at: float | None = None) -> None:
        """Send what `envelope` made of a call, or of several. Raises `SendError`."""
        broker = sending(self.broker)
        for publishing in broker.sending_hooks().publishing:
            await publishing(envelope)
        await broker.send(envelope, at=at)

    def _envelope(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Envelope:
        """Without a message of Taskiq's between, which would be validated and copied."""
        labels = {name: prepare_label(value) for name, value in self.labels.items()}
        return Envelope(
            v=VERSION,
            id=self.custom_task_id or self.broker.id_generator(),
            task=self.task_name,
            args=list(args),
            kwargs=dict(kwargs),
            labels={name: text for name, (text, _) in labels.items()},
            labels_types={name: kind for name, (_, kind) in labels.items()},
        )

    def _stamp(self, envelope: Envelope, given: Mapping[str, Any]) -> None:
        """Write where it comes from, and what middlewares want to know where it runs."""
        sender = Attempt.current_or_none()
        if sender is not None:
            envelope.root, envelope.parent = sender.envelope.root or sender.envelope.id, sender.envelope.id
        if given:
            envelope.options = dict(given)
        if self.task_options is not None:
            options = self.task_options.changed_by_call(given) if given else self.task_options
            for stamp in sending(self.broker).sending_hooks().stamp:
                stamp(envelope, options)

    async def sent(self, envelope: Envelope) -> AsyncResult[Any]:
        for middleware in reversed(self.broker.middlewares):
            if type(middleware).post_send is not TaskiqMiddleware.post_send:
                await maybe_awaitable(middleware.post_send(envelope.message()))
        for published in sending(self.broker).sending_hooks().published:
            await published(envelope)
        sender = Attempt.current_or_none()
        if sender is not None:
            sender.children.append(envelope.id)
        return self.result_of(envelope)

    def result_of(self, envelope: Envelope, parent: AsyncResult[Any] | None = None) -> AsyncResult[Any]:
        own = self.task_options
        ignored = envelope.options.get("ignore_result", own is not None and own.get("ignore_result"))
        kind = cast("Any", self.return_type)
        return AsyncResult(envelope.id, None, kind, broker=self.broker, parent=parent, ignored=bool(ignored))


async def kiq_many(task: Task[Any, Any], calls: Iterable[Arguments]) -> list[AsyncResult[Any]]:
    """Send many calls in few round trips; see `Task.kiq_many`."""
    kicker = task.kicker()
    envelopes: list[Envelope] = []
    for number, call in enumerate(calls):
        args, kwargs = _arguments(call)
        task.check_arguments(args, kwargs, number)
        envelopes.append(await kicker.envelope(args, kwargs))
    broker = sending(kicker.broker)
    for publishing in broker.sending_hooks().publishing:
        for envelope in envelopes:
            await publishing(envelope)
    outcomes = await broker.send_many(envelopes)
    unsent = tuple(number for number, error in enumerate(outcomes) if error is not None)
    results = [await kicker.sent(sent) for number, sent in enumerate(envelopes) if outcomes[number] is None]
    if unsent:
        count, first = f"{len(unsent)} of {len(envelopes)}", outcomes[unsent[0]]
        raise SendError(reason=f"{count} calls of {task.task_name!r} were not sent: {first}", unsent=unsent)
    return results


def _arguments(call: Arguments) -> tuple[Sequence[Any], Mapping[str, Any]]:
    return ((), call) if isinstance(call, Mapping) else (call, {})


class Remote:
    """A task that is called by its name: what it takes, whoever runs it knows (CALL-08)."""

    def __init__(
        self, broker: AsyncBroker, name: str, kicker: Kicker[Any, Any] | None = None, per_call: Sequence[str] = ()
    ) -> None:
        self.broker = broker
        self.task_name = name
        self.per_call = per_call
        """What a call may say of its options, if they are known here."""
        self._kicker: Kicker[Any, Any] = kicker or Kicker(task_name=name, broker=broker, labels={})

    def kicker(self) -> Kicker[Any, Any]:
        return self._kicker

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """There is nothing to compare them with."""


def sending(broker: AsyncBroker) -> Sends:
    """`broker`, if it takes envelopes; raises `TypeError` otherwise."""
    if not _takes_envelopes(type(broker)):
        raise TypeError(f"{type(broker).__name__} takes no chains, links or bulk: it needs a RedisBroker")
    return cast("Sends", broker)


@cache
def _takes_envelopes(kind: type[AsyncBroker]) -> bool:
    """Of the class, for a protocol's check costs more than a message."""
    return issubclass(kind, Sends)


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

    link: Sequence[Signature[Any] | Chain] = ()
    """What is sent when it has succeeded, with its result as the first argument (CALL-16)."""

    headers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Yours, to be read as `self.request.headers`; a retry keeps them (CALL-11)."""

    shadow: str | None = None
    """Another name, for those who look at it (CALL-10)."""

    root_id: str | None = None
    """The task with which it all began, by default the running task's (CALL-12)."""

    parent_id: str | None = None
    """The task that sends it, by default the one that runs here (CALL-12)."""

    declared: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What it says of the task's own options: `expires`, `ignore_result` and others that middlewares declare."""

    def __post_init__(self) -> None:
        if self.priority is not None:
            check_priority(self.priority)
        if self.countdown is not None and self.eta is not None:
            raise ValueError("countdown and eta say the same thing twice: give one of them")
        if self.countdown is not None and not 0 <= self.countdown < 2**31:
            raise ValueError(f"countdown is {self.countdown!r}; it must be seconds, 0 or more and less than 2**31")

    def labels(self) -> dict[str, Any]:
        return {name: value for name in ("queue", "priority") if (value := getattr(self, name)) is not None}

    @property
    def at(self) -> float | None:
        """The moment that `eta` says, in seconds since 1970."""
        eta = self.eta
        return None if eta is None else (eta if eta.tzinfo else eta.replace(tzinfo=UTC)).timestamp()


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
    link: Any = options.get("link") or ()
    options["link"] = tuple(cast("Any", link)) if isinstance(link, list | tuple) else (link,)
    return CallOptions(**options, declared=declared)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature(Generic[R]):
    """A call that is not made yet (CAN-01); `a.s(1) | b.s(2)` is a chain."""

    task: Task[Any, R] | Remote
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    options: CallOptions = CallOptions()
    immutable: bool = False
    """It takes nothing from the step before it (CAN-02)."""

    def set(self, **options: Unpack[CallKeywords]) -> Signature[R]:
        """The same with other options: see `CallOptions`."""
        given = {name: getattr(self.options, name) for name in (*KNOWN_OPTIONS, "declared")}
        return replace(self, options=call_options({**given, **options}, self.task.per_call))

    def __or__(self, other: Signature[Any] | Chain) -> Chain:
        return chain(self, other)

    async def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        return await self.apply_async(args, kwargs)

    async def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]
    ) -> AsyncResult[Any]:
        """Send it; arguments given here come before those that it has (CAN-02)."""
        call = self.completed(args, kwargs).set(**options)
        envelope = await call.envelope()
        await call.send(envelope)
        return await call.kicker().sent(envelope)

    def completed(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Signature[R]:
        """With more arguments, in front of its own; nothing is added to an immutable one."""
        if self.immutable:
            return self
        return replace(self, args=(*args, *self.args), kwargs={**self.kwargs, **(kwargs or {})})

    async def send(self, envelope: Envelope) -> None:
        """Send what `envelope` made of it, at the moment that its options say."""
        await self.kicker().send(envelope, self.options.at)

    async def envelope(self, *, fed: bool = False) -> Envelope:
        """The call as it is sent, links included; `fed`: a result will come in front of its arguments.

        Raises `TypeError` for arguments that do not fit (DEF-09).
        """
        if fed and self.options.eta is not None:
            raise TypeError(f"a later step of {self.task.task_name!r} cannot have an eta: give it a countdown")
        takes = () if not fed or self.immutable else (None,)
        self.task.check_arguments((*takes, *self.args), self.kwargs)
        said = self.options
        envelope = await self.kicker().envelope(self.args, self.kwargs, said.declared)
        return with_fields(
            envelope,
            delay=said.countdown or 0.0,
            eta=said.at,
            immutable=self.immutable,
            headers=dict(said.headers),
            shadow=said.shadow or "",
            root=said.root_id or envelope.root,
            parent=said.parent_id or envelope.parent,
            link=[await link.envelope(fed=True) for link in said.link],
        )

    def kicker(self) -> Kicker[Any, Any]:
        kicker = copy(self.task.kicker())
        kicker.labels = {**kicker.labels, **self.options.labels()}
        kicker.custom_task_id = self.options.task_id
        return kicker


@dataclass(frozen=True, slots=True)
class Chain:
    """Calls one after the other, each with the result of the one before it as its first argument (CAN-03)."""

    steps: tuple[Signature[Any], ...]

    def __or__(self, other: Signature[Any] | Chain) -> Chain:
        return chain(self, other)

    async def envelope(self, *, fed: bool = False) -> Envelope:
        """The first step as it is sent, with the others; `fed`: a result will come in front of its arguments."""
        return chained(await self.envelopes(fed=fed))

    async def envelopes(self, *, fed: bool) -> list[Envelope]:
        """All steps as they are sent."""
        return [await step.envelope(fed=fed or number > 0) for number, step in enumerate(self.steps)]

    async def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[Any] | None:
        return await self.apply_async(args, kwargs)

    async def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]
    ) -> AsyncResult[Any] | None:
        """Send the first step, which bears the others; the result of the last, None for a chain of nothing.

        Options are those of the first step, a `link` is the last one's (CAN-04).
        """
        if not self.steps:
            return None
        link = options.pop("link", ())
        steps = [self.steps[0].completed(args, kwargs).set(**options), *self.steps[1:]]
        if link:
            steps[-1] = steps[-1].set(link=link)
        envelopes = await Chain(tuple(steps)).envelopes(fed=False)
        await steps[0].send(chained(envelopes))
        await steps[0].kicker().sent(envelopes[0])
        result: AsyncResult[Any] | None = None
        for step, envelope in zip(steps, envelopes, strict=True):
            result = step.kicker().result_of(envelope, result)
        return result


def chain(*steps: Signature[Any] | Chain) -> Chain:
    """`chain(a.s(1), b.s())`, or `a.s(1) | b.s()`."""
    return Chain(tuple(one for step in steps for one in (step.steps if isinstance(step, Chain) else (step,))))
