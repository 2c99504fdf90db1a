"""STARTED: a state that tells where a task runs (ST-03)."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celeriq.hooks import Middleware
from celeriq.middleware.results import ResultOptions
from celeriq.options import DeclaredOptions, Options, is_bool, option
from celeriq.outcome import Outcome
from celeriq.record import Record
from celeriq.states import STARTED

if TYPE_CHECKING:
    from celeriq.attempt import Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedOptions(DeclaredOptions):
    """What `TrackStarted` reads."""

    track_started: bool = option(False, is_bool, "it must be True or False")  # noqa: FBT003
    """Store STARTED with process id and host name before the body (ST-03). Defaults to False."""


class TrackStarted(Middleware):
    """Tells that a task has begun."""

    options = StartedOptions

    def concerns(self, options: Options) -> bool:
        ignored = ResultOptions in options and options[ResultOptions].ignore_result
        return options[StartedOptions].track_started and not ignored

    async def before(self, attempt: Attempt) -> Outcome | None:
        where = {"pid": os.getpid(), "hostname": socket.gethostname()}
        await attempt.engine.store(Record(status=STARTED, result=where, task_id=attempt.envelope.id), attempt)
        return None
