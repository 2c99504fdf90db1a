"""Sending a task: one call, or thousands of the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast, runtime_checkable

from msgspec.structs import replace as with_fields
from taskiq.abc.broker import AsyncBroker
from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.kicker import AsyncKicker
from taskiq.labels import prepare_label
from taskiq.utils import maybe_awaitable

from celeriq.attempt import Attempt
from celeriq.definition import Definition
from celeriq.envelope import VERSION, Claim, Envelope, of_message
from celeriq.errors import SendError
from celeriq.hooks import Middleware, SendingHooks
from celeriq.options import Options
from celeriq.result import AsyncResult
from celeriq.steps import bodies

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from celeriq.group_result import GroupResult
    from celeriq.task import Task

P = ParamSpec("P")
R = TypeVar("R")

Arguments = Sequence[Any] | Mapping[str, Any]
"""The arguments of one of many calls: a tuple of positional ones, or a mapping of named ones."""


@runtime_checkable
class Sends(Protocol):
    """A broker that takes envelopes."""

    async def send(self, envelope: Envelope, *, session: AsyncSession | None = None) -> None: ...

    def sending_hooks(self) -> SendingHooks: ...

    async def send_many(
        self, envelopes: Sequence[Envelope], *, session: AsyncSession | None = None
    ) -> list[Exception | None]: ...

    async def send_unique(self, envelope: Envelope, claim: Claim, *, replace: bool) -> str: ...


class Kicker(AsyncKicker[P, R], Generic[P, R]):
    """Taskiq's way to change a call before it is sent: `task.kicker().with_labels(queue="slow").kiq(1)`."""

    definition: Definition | None = None
    """None for a task that is not registered here."""
    options: Options | None = None
    """Of such a task, what is taken for its options."""

    async def kiq(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Send the call. Raises `SendError`, which is a `SendTaskError`, with the reason."""
        if not _takes_envelopes(type(self.broker)):
            return await super().kiq(*args, **kwargs)
        envelope = await self.envelope(args, kwargs)
        return await self.sent(envelope, await self.send(envelope))

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

    async def send(self, envelope: Envelope, session: AsyncSession | None = None) -> str:
        """Send what `envelope` made of a call, or of several; the id of the call that stands for it, its own or an
        earlier one's. With a `session` it joins the transaction, and is sent when that is committed.

        Raises `SendError`, and `DuplicateCallError` if the task says so.
        """
        broker = sending(self.broker)
        for publishing in broker.sending_hooks().publishing:
            await publishing(envelope)
        sender = self._sender(session)
        if sender is not None and self.definition is not None:
            return await sender.send(envelope, self.definition)
        await broker.send(envelope, session=session)
        return envelope.id

    async def send_all(
        self, envelopes: Sequence[Envelope], session: AsyncSession | None = None
    ) -> list[str | Exception]:
        """What `send` answers with for each, or why it was not sent."""
        if self._sender(session) is not None:
            return [await self._try_to_send(envelope) for envelope in envelopes]
        broker = sending(self.broker)
        for publishing in broker.sending_hooks().publishing:
            for envelope in envelopes:
                await publishing(envelope)
        errors = await broker.send_many(envelopes, session=session)
        return [error or envelope.id for envelope, error in zip(envelopes, errors, strict=True)]

    async def _try_to_send(self, envelope: Envelope) -> str | Exception:
        try:
            return await self.send(envelope)
        except Exception as error:  # noqa: BLE001 - a key of the user's may raise anything; what was sent is told
            return error

    def _sender(self, session: AsyncSession | None) -> Middleware | None:
        """Who sends calls of this task, if not the broker. What waits for a transaction is not sent yet."""
        if self.definition is None or session is not None or _writes_into_outbox():
            return None
        options, senders = self.definition.options, sending(self.broker).sending_hooks().senders
        return next((one for one in senders if one.concerns(options)), None)

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
        own = self.options if self.definition is None else self.definition.options
        if own is not None:
            options = own.changed_by_call(given) if given else own
            for stamp in sending(self.broker).sending_hooks().stamp:
                stamp(envelope, options, self.definition)

    async def sent(self, envelope: Envelope, task_id: str) -> AsyncResult[Any]:
        """Tell of it, unless another call stands for it, `task_id`; the result of the one that does."""
        if task_id != envelope.id:
            return self.result_of(with_fields(envelope, id=task_id))
        await _tell_sent(self.broker, envelope)
        return self.result_of(envelope)

    def result_of(self, envelope: Envelope, parent: AsyncResult[Any] | GroupResult | None = None) -> AsyncResult[Any]:
        own = None if self.definition is None else self.definition.options
        ignored = envelope.options.get("ignore_result", own is not None and own.get("ignore_result"))
        kind = cast("Any", self.return_type)
        return AsyncResult(envelope.id, None, kind, broker=self.broker, parent=parent, ignored=bool(ignored))


def _writes_into_outbox() -> bool:
    sender = Attempt.current_or_none()
    return sender is not None and sender.outgoing is not None


async def kiq_many(
    task: Task[Any, Any], calls: Iterable[Arguments], session: AsyncSession | None = None
) -> list[AsyncResult[Any]]:
    """Send many calls in few round trips; see `Task.kiq_many`."""
    kicker = task.kicker()
    envelopes: list[Envelope] = []
    for number, call in enumerate(calls):
        args, kwargs = _arguments(call)
        task.check_arguments(args, kwargs, number)
        envelopes.append(await kicker.envelope(args, kwargs))
    outcomes = await kicker.send_all(envelopes, session)
    unsent = tuple(number for number, sent in enumerate(outcomes) if isinstance(sent, Exception))
    results = [
        await kicker.sent(envelope, sent)
        for envelope, sent in zip(envelopes, outcomes, strict=True)
        if isinstance(sent, str)
    ]
    _complain(envelopes, unsent, outcomes)
    return results


async def dispatch(broker: AsyncBroker, envelopes: Sequence[Envelope], session: AsyncSession | None = None) -> None:
    """Send what was made of several calls, with a `session` when that is committed.

    Raises `SendError` if some were not sent, with their positions.
    """
    taking = sending(broker)
    for publishing in taking.sending_hooks().publishing:
        for envelope in (*envelopes, *bodies(envelopes)):
            await publishing(envelope)
    outcomes = await taking.send_many(envelopes, session=session)
    for envelope, error in zip(envelopes, outcomes, strict=True):
        if error is None:
            await _tell_sent(broker, envelope)
    unsent = tuple(number for number, error in enumerate(outcomes) if error is not None)
    _complain(envelopes, unsent, outcomes)


def _complain(envelopes: Sequence[Envelope], unsent: tuple[int, ...], outcomes: Sequence[object]) -> None:
    if unsent:
        names = " and ".join(repr(name) for name in dict.fromkeys(envelopes[number].task for number in unsent))
        first = outcomes[unsent[0]]
        reason = f"{len(unsent)} of {len(envelopes)} calls of {names} were not sent: {first}"
        raise SendError(reason=reason, unsent=unsent)


async def _tell_sent(broker: AsyncBroker, envelope: Envelope) -> None:
    for middleware in reversed(broker.middlewares):
        if type(middleware).post_send is not TaskiqMiddleware.post_send:
            await maybe_awaitable(middleware.post_send(envelope.message()))
    for published in sending(broker).sending_hooks().published:
        await published(envelope)
    sender = Attempt.current_or_none()
    if sender is not None:
        sender.children.append(envelope.id)


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
