"""Error callbacks: what a call says is to be told of its failure (CALL-17, CERR-01 to CERR-06)."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from celeriq.definition import Definition
from celeriq.envelope import Envelope, encode
from celeriq.error_callbacks import as_sent, is_called_where_it_failed
from celeriq.hooks import Middleware
from celeriq.outcome import Failed
from celeriq.request import of_attempt

if TYPE_CHECKING:
    from celeriq.attempt import Attempt

logger = logging.getLogger(__name__)


class ErrorCallbacks(Middleware):
    """Tells each `link_error` once when the task has failed, not when it is retried or called off (CERR-05).

    One of a single argument is sent as a task, with the id of what failed, when the failure is stored: both or none. A
    function of `(request, exc, traceback)` is called in this worker afterwards, and lost if the worker dies before.
    """

    reads_link_error = True

    def settling(self, attempt: Attempt) -> None:
        failed = attempt.envelope
        if failed.link_error and isinstance(attempt.outcome, Failed):
            callbacks = [one for one in failed.link_error if self._called(one) is None]
            sent = [message for one in callbacks for message in as_sent(one, failed)]
            attempt.next_steps += [(one, encode(one, attempt.engine.max_payload)) for one in sent]

    def after(self, attempt: Attempt) -> Awaitable[None] | None:
        if not attempt.envelope.link_error or not isinstance(attempt.outcome, Failed):
            return None
        return self._call_those_here(attempt, attempt.outcome.error)

    async def _call_those_here(self, attempt: Attempt, error: BaseException) -> None:
        told = of_attempt(attempt), error, "".join(traceback.format_exception(error))
        for callback in attempt.envelope.link_error:
            definition = self._called(callback)
            if definition is not None:
                try:
                    args = () if callback.immutable else told
                    await definition.call(attempt, (*args, *callback.args), callback.kwargs)
                except Exception:
                    logger.exception("error callback %s raised; nothing is changed by it (CERR-01)", callback.task)

    def _called(self, callback: Envelope) -> Definition | None:
        """The function that is called here; None for what is sent, and for what this worker does not know."""
        known = getattr(self.broker.find_task(callback.task), "definition", None)
        if not isinstance(known, Definition) or callback.chain or callback.members:
            return None
        given: tuple[Sequence[Any], Mapping[str, Any]] = (
            ((), {}) if callback.immutable else (callback.args, callback.kwargs)
        )
        return known if is_called_where_it_failed(known, *given) else None
