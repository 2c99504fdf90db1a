"""Calls that are not made yet, alone or with others behind them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack

from msgspec.structs import replace as with_fields
from taskiq.abc.broker import AsyncBroker

from celeriq.call_options import KNOWN_OPTIONS, NOTHING_SAID, CallOptions, call_options
from celeriq.calling import Kicker
from celeriq.envelope import Envelope, chained
from celeriq.error_callbacks import TOLD, is_called_where_it_failed
from celeriq.keywords import CallKeywords
from celeriq.result import AsyncResult

if TYPE_CHECKING:
    from celeriq.task import Task

R = TypeVar("R")


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

    def on_error(self, *callbacks: Signature[Any] | Chain) -> Signature[R]:
        """The same with more to be told when it has failed (CALL-17)."""
        return self.set(link_error=(*self.options.link_error, *callbacks))

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
        return await call.kicker().sent(envelope, await call.send(envelope))

    def completed(self, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Signature[R]:
        """With more arguments, in front of its own; nothing is added to an immutable one."""
        if self.immutable:
            return self
        return replace(self, args=(*args, *self.args), kwargs={**self.kwargs, **(kwargs or {})})

    async def send(self, envelope: Envelope) -> str:
        """Send what `envelope` made of it, at the moment that its options say; see `Kicker.send`."""
        return await self.kicker().send(envelope, self.options.at)

    async def envelope(self, *, fed: int = 0) -> Envelope:
        """The call as it is sent, links included; `fed`: how many values will come in front of its arguments.

        Raises `TypeError` for arguments that do not fit (DEF-09).
        """
        if fed and self.options.eta is not None:
            raise TypeError(f"a later step of {self.task.task_name!r} cannot have an eta: give it a countdown")
        takes = () if self.immutable else (None,) * fed
        self.task.check_arguments((*takes, *self.args), self.kwargs)
        said = self.options
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
        if isinstance(self.task, Remote) or self.immutable:
            return await self.envelope(fed=1)
        definition = self.task.definition
        is_called = is_called_where_it_failed(definition)
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

    steps: tuple[Signature[Any], ...]

    def __or__(self, other: Signature[Any] | Chain) -> Chain:
        return chain(self, other)

    def on_error(self, *callbacks: Signature[Any] | Chain) -> Chain:
        """The same with more to be told when a step has failed (CALL-17); those behind it fail with it, untold."""
        return Chain(tuple(step.on_error(*callbacks) for step in self.steps))

    async def envelope(self, *, fed: int = 0) -> Envelope:
        """The first step as it is sent, with the others; `fed`: how many values will come in front of its arguments."""
        return chained(await self.envelopes(fed=fed))

    async def as_error_callback(self) -> Envelope:
        """Its first step takes the id of what failed."""
        return await self.envelope(fed=1)

    async def envelopes(self, *, fed: int) -> list[Envelope]:
        """All steps as they are sent."""
        return [await step.envelope(fed=1 if number else fed) for number, step in enumerate(self.steps)]

    async def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[Any] | None:
        return await self.apply_async(args, kwargs)

    async def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]
    ) -> AsyncResult[Any] | None:
        """Send the first step, which bears the others; the result of the last, None for a chain of nothing.

        Options are those of the first step, a `link` is the last one's (CAN-04), and `link_error` is each one's.
        """
        if not self.steps:
            return None
        link, told = options.pop("link", ()), options.pop("link_error", ())
        steps = [self.steps[0].completed(args, kwargs).set(**options), *self.steps[1:]]
        if told:
            steps = [step.set(link_error=told).on_error(*step.options.link_error) for step in steps]
        if link:
            steps[-1] = steps[-1].set(link=link)
        envelopes = await Chain(tuple(steps)).envelopes(fed=0)
        await steps[0].kicker().sent(envelopes[0], await steps[0].send(chained(envelopes)))
        result: AsyncResult[Any] | None = None
        for step, envelope in zip(steps, envelopes, strict=True):
            result = step.kicker().result_of(envelope, result)
        return result


def chain(*steps: Signature[Any] | Chain) -> Chain:
    """`chain(a.s(1), b.s())`, or `a.s(1) | b.s()`."""
    return Chain(tuple(one for step in steps for one in (step.steps if isinstance(step, Chain) else (step,))))
