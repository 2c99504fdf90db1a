"""Results: whether those of a task are stored at all (ST-14)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    """Leaves out what nobody will ask for."""

    options = ResultOptions

    def concerns(self, options: Options) -> bool:
        return options[ResultOptions].ignore_result

    def settling(self, attempt: Attempt) -> None:
        told_anyway = attempt.options[ResultOptions].store_errors_even_if_ignored
        if not (told_anyway and isinstance(attempt.outcome, Failed | Retrying)):
            attempt.stored = b""
