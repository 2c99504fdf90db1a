"""Calls that are not made yet, alone, behind and beside each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, Union, Unpack, cast
from uuid import uuid4

from msgspec.structs import replace as with_fields
from taskiq.abc.broker import AsyncBroker

from celeriq.call_options import KNOWN_OPTIONS, NOTHING_SAID, CallOptions, call_options, several
from celeriq.calling import Kicker, dispatch, sending
from celeriq.envelope import Chord as WhatFollows
from celeriq.envelope import Envelope
from celeriq.error_callbacks import TOLD, is_called_where_it_failed
from celeriq.errors import UnsupportedOptionError
from celeriq.group_result import GroupResult
from celeriq.keywords import CallKeywords
from celeriq.remote import Remote
from celeriq.result import AsyncResult
from celeriq.steps import chained, grouped, is_empty, messages

if TYPE_CHECKING:
    from celeriq.task import Task

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature(Generic[R]):
    """A call that is not made yet (CAN-01); `a.s(1) | b.s(2)` is a chain."""

    task: Task[Any, R] | Remote
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    options: CallOptions = NOTHING_SAID
    immutable: bool = False
    """It takes nothing from the step before it (CAN-02)."""

    def set(self, **options: Unpack[CallKeywords]) -> Signature[R]:
        """The same with other options: see `CallOptions`."""
        given = {name: getattr(self.options, name) for name in (*KNOWN_OPTIONS, "declared")}
        return replace(self, options=call_options({**given, **options}, self.task.per_call))

    def on_error(self, *callbacks: Call) -> Signature[R]:
        """The same with more to be told when it has failed (CALL-17)."""
        return self.set(link_error=(*self.options.link_error, *callbacks))

    def linked(self, links: Sequence[Call]) -> Signature[R]:
        """The same with more to be sent when it has succeeded (CALL-16)."""
        return self.set(link=(*self.options.link, *links)) if links else self

    def __or__(self, other: Call) -> Chain:
        return chain(self, other)

    @property
    def broker(self) -> AsyncBroker:
        return self.task.broker

    async def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[Any]:
        return await self.apply_async(args, kwargs)

    async def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]
    ) -> AsyncResult[Any]:
        """Send it; arguments given here come before those that it has (CAN-02)."""
        call = self.prepared(args, kwargs, options)
        envelope = await call.envelope()
        return await call.kicker().sent(envelope, await call.send(envelope))

    def prepared(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None, options: CallKeywords) -> Signature[R]:
        """As it is to be sent: with what is said when it is called."""
        return self.completed(args, kwargs).set(**options)

    def result(self, envelope: Envelope, parent: Result | None = None) -> AsyncResult[Any]:
        """The handle of what was sent."""
        return self.kicker().result_of(envelope, parent)

    def completed(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Signature[R]:
        """With more arguments, in front of its own; nothing is added to an immutable one."""
        if self.immutable:
            return self
        return replace(self, args=(*args, *self.args), kwargs={**self.kwargs, **(kwargs or {})})

    async def send(self, envelope: Envelope) -> str:
        """Send what `envelope` made of it; see `Kicker.send`."""
        return await self.kicker().send(envelope, self.options.session)

    async def envelope(self, *, fed: int = 0) -> Envelope:
        """The call as it is sent, links included; `fed`: how many values will come in front of its arguments.

        Raises `TypeError` for arguments that do not fit (DEF-09).
        """
        if fed and self.options.eta is not None:
            raise TypeError(f"a later step of {self.task.task_name!r} cannot have an eta: give it a countdown")
        takes = () if self.immutable else (None,) * fed
        self.task.check_arguments((*takes, *self.args), self.kwargs)
        said = self.options
        if said.link_error and not sending(self.broker).sending_hooks().reads_link_error:
            raise UnsupportedOptionError("a link_error needs the middleware ErrorCallbacks, which is not there: add it")
        envelope = await self.kicker().envelope(self.args, self.kwargs, said.declared)
        return with_fields(
            envelope,
            delay=said.countdown or 0.0,
            eta=time.time() + said.countdown if said.countdown else said.at,
            immutable=self.immutable,
            headers=dict(said.headers),
            shadow=said.shadow or "",
            argsrepr=said.argsrepr,
            kwargsrepr=said.kwargsrepr,
            root=said.root_id or envelope.root,
            parent=said.parent_id or envelope.parent,
            link=[await link.envelope(fed=1) for link in said.link],
            link_error=[await callback.as_error_callback() for callback in said.link_error],
        )

    async def as_error_callback(self) -> Envelope:
        """As it is sent beside the call whose failure it is told of."""
        if isinstance(self.task, Remote):
            return await self.envelope(fed=1)
        definition = self.task.definition
        given: tuple[Sequence[Any], Mapping[str, Any]] = ((), {}) if self.immutable else (self.args, self.kwargs)
        is_called = is_called_where_it_failed(definition, *given)
        if is_called and not definition.needs_nothing({}):
            raise TypeError(
                f"error callback {definition.name!r} takes more than one argument, so it is a plain function where the "
                "task fails, and nothing is injected: let it take one, the id of what failed"
            )
        return await self.envelope(fed=len(TOLD) if is_called else 1)

    def kicker(self) -> Kicker[Any, Any]:
        kicker = copy(self.task.kicker())
        kicker.labels = {**kicker.labels, **self.options.labels()}
        kicker.custom_task_id = self.options.task_id
        return kicker


@dataclass(frozen=True, slots=True)
class Chain:
    """Calls one after the other, each with the result of the one before it as its first argument (CAN-03)."""

    steps: tuple[Call, ...]
    """The last one alone may be a group or a chord: what follows it belongs to it."""

    def __or__(self, other: Call) -> Chain:
        return chain(self, other)

    def on_error(self, *callbacks: Call) -> Chain:
        """The same with more to be told when a step has failed (CALL-17); those behind it fail with it, untold."""
        return Chain(tuple(step.on_error(*callbacks) for step in self.steps))

    @property
    def broker(self) -> AsyncBroker | None:
        return self.steps[0].broker if self.steps else None

    async def delay(self, *args: Any, **kwargs: Any) -> Any:
        return await self.apply_async(args, kwargs)

    async def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]
    ) -> Any:
        """Send the first step, which bears the others; the result of the last, None for a chain of nothing.

        Options are those of the first step (CAN-04); `task_id` is the last one's, and so is a `link`, beside those that
        it has, as `link_error` is each one's.
        """
        return await _send(self, args, kwargs, options) if self.steps else None

    def prepared(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None, options: CallKeywords) -> Chain:
        if not self.steps:
            return self
        of_first, of_last = _parted(options)
        first, *later = self.steps
        steps = Chain((first.prepared(args, kwargs, of_first), *later)).on_error(*several(options.get("link_error")))
        return steps.linked(several(options.get("link"))).with_last(lambda last: last.prepared((), None, of_last))

    def linked(self, links: Sequence[Call]) -> Chain:
        return self.with_last(lambda last: last.linked(links))

    def with_last(self, change: Callable[[Call], Call]) -> Chain:
        return Chain((*self.steps[:-1], change(self.steps[-1])))

    async def envelope(self, *, fed: int = 0) -> Envelope:
        """The first step as it is sent, with the others; `fed`: how many values will come in front of its arguments."""
        return chained([await step.envelope(fed=1 if number else fed) for number, step in enumerate(self.steps)])

    async def as_error_callback(self) -> Envelope:
        """Its first step takes the id of what failed; one of a single step is that."""
        return await (self.envelope(fed=1) if self.steps[1:] else self.steps[0].as_error_callback())

    def result(self, envelope: Envelope, parent: Result | None = None) -> Any:
        found = parent
        for step, sent in zip(self.steps, [envelope, *envelope.chain], strict=True):
            found = step.result(sent, found)
        return found


@dataclass(frozen=True, slots=True)
class Group:
    """Calls beside each other, each with the arguments that the group gets (CAN-05)."""

    calls: tuple[Call, ...]
    id: str = ""
    """Yours, or made when it is sent."""

    def __or__(self, other: Call) -> Chord:
        """What follows all of them gets the list of their results (CAN-07)."""
        return Chord(self, other)

    def on_error(self, *callbacks: Call) -> Group:
        """The same with more to be told of each call that has failed (CERR-14)."""
        return replace(self, calls=tuple(call.on_error(*callbacks) for call in self.calls))

    @property
    def broker(self) -> AsyncBroker | None:
        return next((call.broker for call in self.calls if call.broker is not None), None)

    async def delay(self, *args: Any, **kwargs: Any) -> GroupResult:
        return await self.apply_async(args, kwargs)

    async def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]
    ) -> GroupResult:
        """Send all of them, in one round trip. Options are each one's, except for `task_id`, which is the group's.

        Raises `SendError` if some were not sent; its `unsent` has their positions.
        """
        return cast("GroupResult", await _send(self, args, kwargs, options))

    def prepared(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None, options: CallKeywords) -> Group:
        """Raises `TypeError` for links, which nobody would know whose they are."""
        for name in ("link", "link_error"):
            if options.get(name):
                raise TypeError(f"a group takes no {name}: make it a chord, or say it of each of its calls")
        given = options.copy()
        group_id = given.pop("task_id", None) or self.id
        return Group(tuple(call.prepared(args, kwargs, given.copy()) for call in self.calls), group_id)

    def linked(self, links: Sequence[Call]) -> Group:
        return self.prepared((), None, {"link": links}) if links else self

    async def envelope(self, *, fed: int = 0) -> Envelope:
        return grouped(self.id or uuid4().hex, [await call.envelope(fed=fed) for call in self.calls])

    async def as_error_callback(self) -> Envelope:
        return await self.envelope(fed=1)

    def result(self, envelope: Envelope, parent: Result | None = None) -> GroupResult:
        members = zip(self.calls, envelope.members or (), strict=True)
        return GroupResult(envelope.id, [call.result(sent) for call, sent in members], parent, broker=self.broker)


@dataclass(frozen=True, slots=True)
class Chord:
    """A group and what follows when all of it has succeeded, with the list of its results (CAN-10)."""

    header: Group
    body: Call

    def __or__(self, other: Call) -> Chord:
        """What follows it follows its body (CAN-15)."""
        return Chord(self.header, chain(self.body, other))

    def on_error(self, *callbacks: Call) -> Chord:
        """The same with more to be told when its body has failed, or cannot run (CERR-12)."""
        return replace(self, body=self.body.on_error(*callbacks))

    @property
    def broker(self) -> AsyncBroker | None:
        return self.header.broker or self.body.broker

    async def delay(self, *args: Any, **kwargs: Any) -> Any:
        return await self.apply_async(args, kwargs)

    async def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]
    ) -> Any:
        """Send the header; the result of the body, whose `parent` is the header's.

        Options are the header's (CAN-16), except for `link`, `link_error` and `task_id`, which are the body's: links
        beside those that it has.
        """
        return await _send(self, args, kwargs, options)

    def prepared(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None, options: CallKeywords) -> Chord:
        of_header, of_body = _parted(options)
        body = self.body.on_error(*several(options.get("link_error"))).linked(several(options.get("link")))
        return Chord(self.header.prepared(args, kwargs, of_header), body.prepared((), None, of_body))

    def linked(self, links: Sequence[Call]) -> Chord:
        return replace(self, body=self.body.linked(links))

    async def envelope(self, *, fed: int = 0) -> Envelope:
        header = await self.header.envelope(fed=fed)
        parts = header.members or []
        if any(is_empty(part) for part in parts):
            raise TypeError("a part of a header ends with a group of nothing, so that nothing would tell of its end")
        return with_fields(header, chord=WhatFollows(len(parts), await self.body.envelope(fed=1)))

    async def as_error_callback(self) -> Envelope:
        return await self.envelope(fed=1)

    def result(self, envelope: Envelope, parent: Result | None = None) -> Any:
        assert envelope.chord is not None
        return self.body.result(envelope.chord.body, self.header.result(envelope, parent))


Call: TypeAlias = Union[Signature[Any], Chain, Group, Chord]  # noqa: UP007 - the classes above name it
Result: TypeAlias = Union[AsyncResult[Any], GroupResult]  # noqa: UP007


def chain(*calls: Call) -> Chain:
    """`chain(a.s(1), b.s())`, or `a.s(1) | b.s()`. A group with something behind it is a chord (CAN-07)."""
    steps: list[Call] = []
    for step in _flat(calls):
        if steps and isinstance(steps[-1], Group | Chord):
            steps[-1] = steps[-1] | step
        else:
            steps.append(step)
    return Chain(tuple(steps))


def _flat(calls: Iterable[Call]) -> Iterator[Call]:
    """Chains in a chain are one, and a group of one call is that call (CAN-08)."""
    for call in calls:
        if isinstance(call, Chain):
            yield from call.steps
        elif isinstance(call, Group) and len(call.calls) == 1:
            yield from _flat(call.calls)
        else:
            yield call


def group(*calls: Call | Iterable[Call]) -> Group:
    """`group(a.s(1), b.s(2))`, or of a list or a generator; groups in it are one with it (CAN-06)."""
    given = [
        each for call in calls for each in ([call] if isinstance(call, Signature | Chain | Group | Chord) else call)
    ]
    return Group(tuple(each for call in given for each in (call.calls if isinstance(call, Group) else (call,))))


def chord(header: Group | Iterable[Call], body: Call) -> Chord:
    """`chord([a.s(1), b.s(2)], c.s())`, or `group(a.s(1), b.s(2)) | c.s()`."""
    return Chord(group(header), body)


def _parted(options: CallKeywords) -> tuple[CallKeywords, CallKeywords]:
    """What is said of the beginning, and of the end; callbacks are said of each as it has them."""
    of_first, of_last = options.copy(), CallKeywords()
    of_first.pop("link", None)
    of_first.pop("link_error", None)
    if task_id := of_first.pop("task_id", None):
        of_last["task_id"] = task_id
    return of_first, of_last


async def _send(
    whole: Chain | Group | Chord, args: Sequence[Any], kwargs: Mapping[str, Any] | None, options: CallKeywords
) -> Any:
    session = options.pop("session", None)
    call = whole.prepared(args, kwargs, options)
    if isinstance(call, Chain) and len(call.steps) == 1:
        # Another call may stand for it.
        return await call.steps[0].apply_async(session=session)
    envelope = await call.envelope()
    first = call.steps[0] if isinstance(call, Chain) else None
    if isinstance(first, Signature):
        # As any call of its task, which may be unique.
        await first.kicker().sent(envelope, await first.kicker().send(envelope, session))
    elif call.broker is not None:
        await dispatch(call.broker, messages(envelope), session)
    return call.result(envelope)
