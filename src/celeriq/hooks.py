"""What a middleware of celeriq's can do: decide how an attempt goes, in named places around the body.

Taskiq's own hooks (`pre_send`, `pre_execute`, …) work beside these, and see a message; these see the attempt.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from taskiq.abc.middleware import TaskiqMiddleware

from celeriq.options import DeclaredOptions, Options, names_of

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.definition import Definition
    from celeriq.envelope import Envelope
    from celeriq.outcome import Outcome, Succeeded


class Middleware(TaskiqMiddleware):
    """One of Celery's behaviours. What it does not override costs nothing; `before`, `after` and `last` may be `def`
    or `async def`.
    """

    options: ClassVar[type[DeclaredOptions] | None] = None
    """The options that it reads; without the middleware they are unknown."""

    reads_link_error: ClassVar[bool] = False
    """Whether it tells those that a call names of its failure; where none does, such a call is refused."""

    def check(self, task: Definition) -> None:
        """Raise `TaskDefinitionError` for options that contradict each other or the function; called at import."""

    def concerns(self, options: Options) -> bool:  # noqa: ARG002 - for those that override it
        """Whether a task, or a call, with these options needs it at all."""
        return True

    def stamp(self, envelope: Envelope, options: Options, task: Definition | None) -> None:
        """Write into a message what is to be known where it runs; called where it is sent, with the task if it is
        registered there. Raise `TaskDefinitionError` for options of the call that cannot work.
        """

    async def publishing(self, envelope: Envelope) -> None:
        """A call is about to be sent; its headers may still be changed."""

    async def send(self, envelope: Envelope, task: Definition) -> str:
        """Send a call of a task that it concerns, in place of the broker; the id of the call that stands for it."""
        raise NotImplementedError

    async def published(self, envelope: Envelope) -> None:
        """It was sent."""

    def before(self, attempt: Attempt) -> Awaitable[Outcome | None] | Outcome | None:
        """Before anything is opened for the body; an outcome ends the attempt here."""

    def call(
        self, attempt: Attempt, definition: Definition, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Awaitable[Any]:
        """Run the function elsewhere than on the loop or in a thread; of several middlewares the first one does."""
        raise NotImplementedError

    def around(self, attempt: Attempt, body: Awaitable[Any]) -> Awaitable[Any]:
        """The body, inside of something; awaited exactly once."""
        raise NotImplementedError

    async def committing(self, attempt: Attempt, value: Any) -> Succeeded | None:
        """The body has returned `value`, which can be stored, and nothing is committed yet; an outcome rolls back, and
        is the attempt's.
        """

    def decide(self, attempt: Attempt, error: BaseException) -> Awaitable[Outcome | None] | Outcome | None:
        """What an exception makes of the attempt; None leaves it to the next one, and at last it has failed."""

    async def burying(self, attempt: Attempt) -> Succeeded | None:
        """Nobody can make it any more, and its message is to be a dead letter; an outcome says that it was made."""

    def settling(self, attempt: Attempt) -> None:
        """The outcome is known and encoded: what is stored may still be changed."""

    def after(self, attempt: Attempt) -> Awaitable[None] | None:
        """The attempt is settled. What this raises is logged, and changes nothing (EXE-08, EXE-09)."""

    def last(self, attempt: Attempt) -> Awaitable[None] | None:
        """The same, when everybody's `after` is over."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks that concern one task: before the body in the order of the middlewares, after it in the reverse one,
    and around it the first is the outermost.
    """

    before: tuple[Callable[[Attempt], Awaitable[Outcome | None] | Outcome | None], ...] = ()
    call: tuple[Callable[[Attempt, Definition, tuple[Any, ...], dict[str, Any]], Awaitable[Any]], ...] = ()
    around: tuple[Callable[[Attempt, Awaitable[Any]], Awaitable[Any]], ...] = ()
    committing: tuple[Callable[[Attempt, Any], Awaitable[Succeeded | None]], ...] = ()
    decide: tuple[Callable[[Attempt, BaseException], Awaitable[Outcome | None] | Outcome | None], ...] = ()
    burying: tuple[Callable[[Attempt], Awaitable[Succeeded | None]], ...] = ()
    settling: tuple[Callable[[Attempt], None], ...] = ()
    after: tuple[Callable[[Attempt], Awaitable[None] | None], ...] = ()
    """`after` of all, then `last` of all."""


NO_HOOKS = Hooks()


def hooks_of(middlewares: Iterable[TaskiqMiddleware], options: Options) -> Hooks:
    """What is to be called for a task with these options: hooks that nobody overrides are left out."""
    mine = [one for one in middlewares if isinstance(one, Middleware) and one.concerns(options)]

    named = partial(_overridden, mine)

    after = (*named("after")[::-1], *named("last")[::-1])
    return Hooks(
        before=named("before"),
        call=named("call"),
        around=named("around")[::-1],
        committing=named("committing"),
        decide=named("decide"),
        burying=named("burying"),
        settling=named("settling"),
        after=after,
    )


@dataclass(frozen=True, slots=True)
class SendingHooks:
    """The hooks of a call that is sent."""

    stamp: tuple[Callable[[Envelope, Options, Definition | None], None], ...] = ()
    publishing: tuple[Callable[[Envelope], Awaitable[None]], ...] = ()
    senders: tuple[Middleware, ...] = ()
    """Those with a `send` of their own."""
    published: tuple[Callable[[Envelope], Awaitable[None]], ...] = ()
    reads_link_error: bool = False


def sending_hooks(middlewares: Iterable[TaskiqMiddleware]) -> SendingHooks:
    mine = [one for one in middlewares if isinstance(one, Middleware)]
    senders = tuple(one for one in mine if type(one).send is not Middleware.send)
    return SendingHooks(
        _overridden(mine, "stamp"),
        _overridden(mine, "publishing"),
        senders,
        _overridden(mine, "published"),
        any(one.reads_link_error for one in mine),
    )


def _overridden(middlewares: Iterable[Middleware], name: str) -> tuple[Any, ...]:
    base = getattr(Middleware, name)
    return tuple(getattr(one, name) for one in middlewares if getattr(type(one), name) is not base)


def kinds_of(middlewares: Iterable[TaskiqMiddleware]) -> list[type[DeclaredOptions]]:
    """The classes of options that the middlewares declare."""
    return [one.options for one in middlewares if isinstance(one, Middleware) and one.options is not None]


def readers(kinds: Iterable[type[Middleware]]) -> dict[str, str]:
    """Option names, and the middleware that reads each."""
    return {name: kind.__name__ for kind in kinds if kind.options is not None for name in names_of(kind.options)}
