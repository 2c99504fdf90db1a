"""Revocation: tasks that were called off do not run, and those that run can be ended (LIM-12 to LIM-17)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celeriq.errors import TaskRevokedError, UnsupportedOptionError
from celeriq.hooks import Middleware
from celeriq.outcome import Outcome, Revoked

if TYPE_CHECKING:
    from celeriq.attempt import Attempt

WEEK = 7 * 86_400.0


class Revocation(Middleware):
    """Looks whether a task was called off before it begins; `broker.revoke(...)` does so.

    `remember`: seconds for which that holds, also for workers that start later.
    """

    def __init__(self, *, remember: float = WEEK) -> None:
        super().__init__()
        if remember <= 0:
            raise UnsupportedOptionError(f"remember is {remember!r}; it must be seconds, more than 0")
        self.remember = remember

    def before(self, attempt: Attempt) -> Outcome | None:
        return Revoked(TaskRevokedError("revoked")) if attempt.engine.is_revoked(attempt.envelope) else None

    def terminate(self, attempt: Attempt) -> bool:
        """Let an attempt that is cancelled now end as terminated (LIM-14); False if it has begun to end by itself."""
        if attempt.outcome is not None:
            return False
        attempt.called_off = Revoked(TaskRevokedError("terminated"))
        return True
