"""Expiry: a task that comes too late does not run (CALL-06, LIM-11)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from celeriq.errors import TaskRevokedError
from celeriq.hooks import Middleware
from celeriq.options import DeclaredOptions, Options, is_time, option
from celeriq.outcome import Outcome, Revoked

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.definition import Definition
    from celeriq.envelope import Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiryOptions(DeclaredOptions):
    """What `Expiry` reads."""

    expires: float | datetime | None = option(
        None,
        lambda given: given is None or isinstance(given, datetime) or is_time(given),
        "it must be seconds from the call on, or a datetime",
        per_call=True,
    )
    """Seconds from the call on, or the moment, after which it does not run; one without a time zone is in UTC.
    Defaults to never."""


class Expiry(Middleware):
    """Ends as REVOKED what is started after its time; retries keep the moment (RETRY-21)."""

    options = ExpiryOptions

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._now = now

    def stamp(self, envelope: Envelope, options: Options, task: Definition | None) -> None:  # noqa: ARG002
        envelope.options.pop("expires", None)
        match options[ExpiryOptions].expires:
            case None:
                pass
            case datetime() as moment:
                envelope.expires = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
            case seconds:
                envelope.expires = self._now() + seconds

    def before(self, attempt: Attempt) -> Outcome | None:
        expires = attempt.envelope.expires
        return Revoked(TaskRevokedError("expired")) if expires is not None and expires <= self._now() else None
