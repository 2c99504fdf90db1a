"""Signals of tasks: who has connected to one is told of every task (SIG-01 to SIG-07)."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any

from celeriq import signals
from celeriq.hooks import Middleware
from celeriq.outcome import Failed, Ignore, Ignored, Outcome, Postponed, Reject, Retry, Retrying, Revoked, Succeeded
from celeriq.request import of_attempt
from celeriq.states import FAILURE, IGNORED, REJECTED, RETRY, REVOKED, SUCCESS

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.envelope import Envelope


class Signals(Middleware):
    """Sends the signals of `celeriq.signals` that are about tasks."""

    async def publishing(self, envelope: Envelope) -> None:
        if signals.before_task_publish:
            await signals.before_task_publish.send(envelope.task, **_published(envelope))

    async def published(self, envelope: Envelope) -> None:
        if signals.after_task_publish:
            await signals.after_task_publish.send(envelope.task, **_published(envelope))

    async def before(self, attempt: Attempt) -> Outcome | None:
        attempt.announced = True
        if signals.task_prerun:
            await signals.task_prerun.send(_task(attempt), task=_task(attempt), **_call(attempt))
        return None

    async def after(self, attempt: Attempt) -> None:
        task = _task(attempt)
        match attempt.outcome:
            case Succeeded(value) if signals.task_success:
                await signals.task_success.send(task, result=value, runtime=attempt.runtime)
            case Failed(error) if signals.task_failure:
                call, trace = _call(attempt), error.__traceback__
                await signals.task_failure.send(task, **call, exception=error, traceback=trace, einfo=_format(error))
            case Retrying(error) if signals.task_retry:
                await signals.task_retry.send(
                    task, request=of_attempt(attempt), reason=Retry(exc=error), einfo=_format(error)
                )
            case Revoked(error) if signals.task_revoked:
                request, why = of_attempt(attempt), str(error)
                ended, late = why == "terminated", why == "expired"
                await signals.task_revoked.send(task, request=request, terminated=ended, expired=late)
            case _:
                pass

    async def last(self, attempt: Attempt) -> None:
        if attempt.announced and signals.task_postrun and (ended := _ended(attempt.outcome)):
            state, value = ended
            call = _call(attempt)
            await signals.task_postrun.send(_task(attempt), task=_task(attempt), **call, retval=value, state=state)


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


def _published(envelope: Envelope) -> dict[str, Any]:
    body = (envelope.args, envelope.kwargs)
    return {"task_id": envelope.id, "body": body, "headers": envelope.headers}


def _format(error: BaseException | None) -> str:
    return "" if error is None else "".join(traceback.format_exception(error))
