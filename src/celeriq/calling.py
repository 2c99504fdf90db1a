"""Sending a task: one call, or thousands of the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

from taskiq.abc.broker import AsyncBroker
from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.kicker import AsyncKicker
from taskiq.labels import prepare_label
from taskiq.utils import maybe_awaitable

from celeriq.attempt import Attempt
from celeriq.envelope import VERSION, Envelope, of_message
from celeriq.errors import SendError
from celeriq.hooks import SendingHooks
from celeriq.options import Options
from celeriq.result import AsyncResult

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


def sending(broker: AsyncBroker) -> Sends:
    """`broker`, if it takes envelopes; raises `TypeError` otherwise."""
    if not _takes_envelopes(type(broker)):
        raise TypeError(f"{type(broker).__name__} takes no chains, links or bulk: it needs a RedisBroker")
    return cast("Sends", broker)


@cache
def _takes_envelopes(kind: type[AsyncBroker]) -> bool:
    """Of the class, for a protocol's check costs more than a message."""
    return issubclass(kind, Sends)
