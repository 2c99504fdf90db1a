"""Results: whether those of a task are stored at all (ST-14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from celeriq import record
from celeriq.hooks import Middleware
from celeriq.options import DeclaredOptions, Options, is_bool, option
from celeriq.outcome import Failed, Retrying

if TYPE_CHECKING:
    from celeriq.attempt import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultOptions(DeclaredOptions):
    """What `Results` reads."""

    ignore_result: bool = option(False, is_bool, "it must be True or False", per_call=True)  # noqa: FBT003
    """Store no state and no result (ST-14); `get()` then answers None at once (CALL-14). Defaults to False."""

    store_errors_even_if_ignored: bool = option(False, is_bool, "it must be True or False")  # noqa: FBT003
    """Of an ignored result, store a failure or a retry all the same (ST-14). Defaults to False."""


class Results(Middleware):
    """Leaves out what nobody will ask for; `extended` stores the call beside its result (ST-06)."""

    options = ResultOptions

    def __init__(self, *, extended: bool = False) -> None:
        super().__init__()
        self._extended = extended

    def concerns(self, options: Options) -> bool:
        return self._extended or options[ResultOptions].ignore_result

    def settling(self, attempt: Attempt) -> None:
        mine = attempt.options[ResultOptions]
        told_anyway = mine.store_errors_even_if_ignored and isinstance(attempt.outcome, Failed | Retrying)
        if mine.ignore_result and not told_anyway:
            attempt.stored = b""
        elif self._extended and attempt.stored:
            attempt.stored = record.extended(
                attempt.stored,
                name=attempt.envelope.task,
                args=attempt.envelope.args,
                kwargs=attempt.envelope.kwargs,
                worker=attempt.delivery.worker,
                retries=attempt.retries,
                queue=attempt.delivery.queue,
            )
