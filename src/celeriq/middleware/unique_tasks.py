"""Unique tasks: of the calls with one key one waits or runs, and what becomes of another the task says."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import msgspec
from msgspec.structs import replace

from celeriq import record
from celeriq.calling import sending
from celeriq.envelope import Claim
from celeriq.errors import DuplicateCallError, EncodeError, SendError, TaskRevokedError
from celeriq.hooks import Middleware
from celeriq.middleware.kinds import KEY, Key, check_key, is_key, kind_of
from celeriq.options import DeclaredOptions, Options, is_time, option
from celeriq.outcome import Failed, Outcome, Revoked

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.definition import Definition
    from celeriq.envelope import Envelope

INSTEAD: Final = ("skip", "replace", "raise")
UNTIL: Final = ("end", "period")


@dataclass(frozen=True, slots=True, kw_only=True)
class UniqueOptions(DeclaredOptions):
    """What `UniqueTasks` reads."""

    unique: Literal["skip", "replace", "raise"] | None = option(
        None,
        lambda given: given is None or given in INSTEAD,
        'it must say what becomes of a second call: write "skip", "replace" or "raise"',
    )
    """What becomes of a call while another one with its key waits or runs: the first one stands for it, it takes the
    place of the first one, or `DuplicateCallError` is raised. Defaults to nothing: calls are not compared."""

    unique_key: Key | None = option(None, is_key, KEY)
    """Which calls are the same, as with `rate_limit_key`. Defaults to those with the same arguments."""

    unique_period: float = option(
        86_400.0, lambda given: is_time(given) and given > 0, "it must be seconds, more than 0"
    )
    """Seconds that a call has its key at most, from when it is due; waiting for a retry starts them anew.
    Defaults to a day."""

    unique_until: Literal["end", "period"] = option(
        "end", lambda given: given in UNTIL, 'it must say when a key is free again: write "end" or "period"'
    )
    """Whether the key is free when the task has ended, or not before the period is over. Defaults to the end."""


class UniqueTasks(Middleware):
    """Has a call take its key in the step that sends it; the settlement of its end gives the key back.

    A later step of a chain, a link, the members of a group or a header, and what was sent by name from where the task
    is not registered take theirs when they begin.
    """

    options = UniqueOptions

    def concerns(self, options: Options) -> bool:
        # A task that was registered without this middleware has none of its options.
        return UniqueOptions in options and options[UniqueOptions].unique is not None

    def check(self, task: Definition) -> None:
        mine = task.options[UniqueOptions]
        check_key(task, "unique_key", mine.unique_key, "unique", mine.unique)

    async def send(self, envelope: Envelope, task: Definition) -> str:
        mode = task.options[UniqueOptions].unique
        envelope.claim = _waiting(_claim(task, _as_it_arrives(envelope)), envelope)
        first = await sending(self.broker).send_unique(envelope, envelope.claim, replace=mode == "replace")
        # Nobody stands for a call whose place another has taken before.
        first = first or envelope.id
        # What would follow it were never sent, if the first one stood for it.
        if first != envelope.id and (mode == "raise" or envelope.chain or envelope.link):
            raise _duplicate(task, envelope.claim, first)
        return first

    def before(self, attempt: Attempt) -> Awaitable[Outcome | None] | None:
        claim, expires = attempt.envelope.claim, attempt.envelope.expires
        has_key = claim is not None and (expires is None or not claim.until_end)
        return None if has_key and attempt.options[UniqueOptions].unique != "replace" else self._admit(attempt)

    async def _admit(self, attempt: Attempt) -> Outcome | None:
        task, call = attempt.definition, attempt.envelope
        assert task is not None
        mode, period = task.options[UniqueOptions].unique, task.options[UniqueOptions].unique_period
        # A retry may have other arguments, but it is the same call.
        claim = _claim(task, call) if call.claim is None else replace(call.claim, period=period)
        # What has had its key already is not the later one.
        first = await attempt.engine.claim(call, claim, replace=mode == "replace" and call.claim is None)
        if first == call.id:
            call.claim = claim
            return None
        if mode == "raise":
            return Failed(_duplicate(task, claim, first))
        return Revoked(TaskRevokedError("replaced" if mode == "replace" else "duplicate"))


def _claim(task: Definition, call: Envelope) -> Claim:
    mine = task.options[UniqueOptions]
    kind = _kind_of_arguments(task, call) if mine.unique_key is None else kind_of(task, call, mine.unique_key)
    return Claim(kind, mine.unique_period, mine.unique_until == "end")


def _waiting(claim: Claim, call: Envelope) -> Claim:
    """The claim of a call that has not begun: what has expired will not run, though its message stays."""
    if call.expires is None or not claim.until_end:
        return claim
    return replace(claim, period=max(0.0, min(claim.period, call.expires - time.time())))


def _kind_of_arguments(task: Definition, call: Envelope) -> str:
    bound = task.signature.bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    arguments = msgspec.json.encode(record.as_read(bound.arguments), order="sorted")
    return f"{task.name}:{hashlib.sha256(arguments).hexdigest()[:32]}"


def _as_it_arrives(call: Envelope) -> Envelope:
    """With the arguments that a worker reads, so that the key is the same there; raises `SendError`."""
    try:
        return replace(call, args=record.as_read(call.args), kwargs=record.as_read(call.kwargs))
    except EncodeError as error:
        raise SendError(reason=f"task {call.task!r} was not sent: {error}") from error


def _duplicate(task: Definition, claim: Claim, first: str) -> DuplicateCallError:
    error = DuplicateCallError(
        f"task {task.name!r} with the key {claim.key!r} waits or runs already, as {first!r}: wait for that one"
    )
    error.first = first
    return error
