"""Early ends: a task may say by an exception that it ends without a result, or refuses its message (ERR-08)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriq.hooks import Middleware
from celeriq.outcome import Failed, Ignore, Ignored, Outcome, Postponed, Reject

if TYPE_CHECKING:
    from celeriq.attempt import Attempt


class EarlyEnds(Middleware):
    """Understands `Ignore` (EXE-04) and `Reject` (EXE-05)."""

    def decide(self, attempt: Attempt, error: BaseException) -> Outcome | None:  # noqa: ARG002
        match error:
            case Ignore():
                return Ignored(error)
            case Reject(requeue=True):
                return Postponed(error, 0.0, counted=False)
            case Reject(reason=reason):
                return Failed(error, dead_because=f"rejected: {reason}")
            case _:
                return None
