"""Signals of tasks: who has connected to one is told of every task (SIG-01 to SIG-07)."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

from celeriq import signals
from celeriq.hooks import Middleware
from celeriq.outcome import Failed, Ignore, Ignored, Outcome, Postponed, Reject, Retry, Retrying, Revoked, Succeeded
from celeriq.request import of_attempt
from celeriq.signals import Signal
from celeriq.states import FAILURE, IGNORED, REJECTED, RETRY, REVOKED, SUCCESS

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.envelope import Envelope


class Signals(Middleware):
    """Sends the signals of `celeriq.signals` that are about tasks."""

    async def publishing(self, envelope: Envelope) -> None:
        if signals.before_task_publish:
            told = _published(envelope)
            await signals.before_task_publish.send(envelope.task, **told)
            envelope.headers = {name: value for name, value in told["headers"].items() if name not in _OWN_HEADERS}

    async def published(self, envelope: Envelope) -> None:
        if signals.after_task_publish:
            await signals.after_task_publish.send(envelope.task, **_published(envelope))

    def before(self, attempt: Attempt) -> Awaitable[None] | None:
        attempt.announced = True
        return self._tell_of_beginning(attempt) if signals.task_received or signals.task_prerun else None

    def after(self, attempt: Attempt) -> Awaitable[None] | None:
        signal = _SIGNALS.get(type(attempt.outcome))
        return self._tell_outcome(attempt, signal) if signal else None

    def last(self, attempt: Attempt) -> Awaitable[None] | None:
        return self._tell_of_end(attempt) if signals.task_postrun and attempt.announced else None

    async def _tell_of_beginning(self, attempt: Attempt) -> None:
        await signals.task_received.send(attempt.delivery.worker, request=of_attempt(attempt))
        await signals.task_prerun.send(_task(attempt), task=_task(attempt), **_call(attempt))

    async def _tell_outcome(self, attempt: Attempt, signal: Signal) -> None:
        told: dict[str, Any] = {}
        outcome = attempt.outcome
        match outcome:
            case Succeeded(value):
                told = {"result": value, "runtime": attempt.runtime}
            case Failed(error):
                trace = error.__traceback__
                told = {**_call(attempt), "exception": error, "traceback": trace, "einfo": _format(error)}
            case Retrying(error=error):
                reason = outcome.asked or Retry(exc=error, countdown=outcome.delay)
                told = {"request": of_attempt(attempt), "reason": reason, "einfo": _format(error or reason)}
            case Revoked(error):
                why = str(error)
                told = {
                    "request": of_attempt(attempt),
                    "terminated": why == "terminated",
                    "signum": None,
                    "expired": why == "expired",
                }
            case _:
                pass
        await signal.send(_task(attempt), **told)

    async def _tell_of_end(self, attempt: Attempt) -> None:
        if ended := _ended(attempt.outcome):
            state, value = ended
            call = _call(attempt)
            await signals.task_postrun.send(_task(attempt), task=_task(attempt), **call, retval=value, state=state)


_SIGNALS: dict[type[Any], Signal] = {
    Succeeded: signals.task_success,
    Failed: signals.task_failure,
    Retrying: signals.task_retry,
    Revoked: signals.task_revoked,
}


def _ended(outcome: Outcome | None) -> tuple[str, Any] | None:
    """State and value of an attempt that has run (EXE-15)."""
    ended: tuple[str, Any] | None = None
    match outcome:
        case Succeeded(value):
            ended = SUCCESS, value
        case Failed(Reject() as error) | Postponed(Reject() as error):
            ended = REJECTED, error
        case Failed(error):
            ended = FAILURE, error
        case Retrying(error):
            ended = RETRY, Retry(exc=error)
        case Ignored():
            ended = IGNORED, Ignore()
        case Revoked(error):
            ended = REVOKED, error
        case _:
            pass
    return ended


def _task(attempt: Attempt) -> Any:
    assert attempt.definition is not None
    return attempt.definition.instance


def _call(attempt: Attempt) -> dict[str, Any]:
    call = attempt.envelope
    return {"task_id": call.id, "args": tuple(call.args), "kwargs": call.kwargs}


_OWN_HEADERS = frozenset({"id", "task", "root_id", "parent_id"})


def _published(envelope: Envelope) -> dict[str, Any]:
    """With Celery's names; of `headers`, those that are not of the message itself may be changed."""
    own = {
        "id": envelope.id,
        "task": envelope.task,
        "root_id": envelope.root or envelope.id,
        "parent_id": envelope.parent or None,
    }
    return {
        "body": (envelope.args, envelope.kwargs, {}),
        "headers": {**envelope.headers, **own},
        "exchange": "",
        "routing_key": envelope.queue,
        "properties": {"priority": envelope.priority},
    }


def _format(error: BaseException | None) -> str:
    return "" if error is None else "".join(traceback.format_exception(error))
