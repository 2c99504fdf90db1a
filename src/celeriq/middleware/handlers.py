"""Handlers: the methods of a task's base class that are told how it ends (EXE-01 to EXE-08)."""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any

from taskiq.utils import maybe_awaitable

from celeriq.errors import WorkerLostError
from celeriq.hooks import Middleware
from celeriq.options import Options, TaskOptions
from celeriq.outcome import Failed, Outcome, Reject, Retrying, Succeeded
from celeriq.states import FAILURE, SUCCESS

if TYPE_CHECKING:
    from celeriq.attempt import Attempt

logger = logging.getLogger(__name__)


class Handlers(Middleware):
    """Calls `before_start`, `on_success`, `on_failure`, `on_retry` and `after_return` of `base=`."""

    def concerns(self, options: Options) -> bool:
        return options[TaskOptions].base is not None

    async def before(self, attempt: Attempt) -> Outcome | None:
        try:
            await maybe_awaitable(_task(attempt).before_start(*_call(attempt)))
        except Exception as error:  # noqa: BLE001 - it fails the task, whatever it is
            return Failed(error)
        return None

    async def after(self, attempt: Attempt) -> None:
        if _is_lost(attempt):
            return
        task, call = _task(attempt), _call(attempt)
        match attempt.outcome:
            case Succeeded(value):
                await _told(task.on_success, value, *call)
            case Failed(error) if not isinstance(error, Reject):
                await _told(task.on_failure, error, *call, _format(error))
            case Retrying(error):
                await _told(task.on_retry, error, *call, "" if error is None else _format(error))
            case _:
                pass

    async def last(self, attempt: Attempt) -> None:
        if _is_lost(attempt):
            return
        match attempt.outcome:
            case Succeeded(value):
                await _told(_task(attempt).after_return, SUCCESS, value, *_call(attempt), None)
            case Failed(error) if not isinstance(error, Reject):
                await _told(_task(attempt).after_return, FAILURE, error, *_call(attempt), None)
            case _:
                pass


def _is_lost(attempt: Attempt) -> bool:
    """Whether nobody asks the task: it failed because its worker died (ACK-04), or another attempt has done it all."""
    return attempt.repeated or (
        isinstance(attempt.outcome, Failed) and isinstance(attempt.outcome.error, WorkerLostError)
    )


def _task(attempt: Attempt) -> Any:
    assert attempt.definition is not None
    return attempt.definition.instance


def _call(attempt: Attempt) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    call = attempt.envelope
    return call.id, tuple(call.args), call.kwargs


async def _told(handler: Any, *told: Any) -> None:
    """One that raises changes nothing, and keeps no other from being called (EXE-08)."""
    try:
        await maybe_awaitable(handler(*told))
    except Exception:
        logger.exception("%s raised; the task's outcome stays", getattr(handler, "__qualname__", handler))


def _format(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
