"""Acknowledgement: what becomes of the message of a task that has failed (ACK-03)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from celeriq.errors import TaskDefinitionError, TimeLimitExceeded
from celeriq.hooks import Middleware
from celeriq.options import DeclaredOptions, Options, TaskOptions, is_bool, option
from celeriq.outcome import Failed, Outcome, Postponed

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.definition import Definition


@dataclass(frozen=True, slots=True, kw_only=True)
class AcknowledgementOptions(DeclaredOptions):
    """What `Acknowledgement` reads."""

    acks_on_failure: bool = option(True, is_bool, "it must be True or False")  # noqa: FBT003
    """False keeps the message of a task that has failed as a dead letter, to be sent again. Defaults to True."""

    acks_on_timeout: bool = option(True, is_bool, "it must be True or False")  # noqa: FBT003
    """False runs a task again that has reached its `time_limit`, without end. Defaults to True."""


class Acknowledgement(Middleware):
    """Keeps messages that others drop."""

    options = AcknowledgementOptions

    def concerns(self, options: Options) -> bool:
        return options[AcknowledgementOptions] != AcknowledgementOptions()

    def check(self, task: Definition) -> None:
        if self.concerns(task.options) and not task.options[TaskOptions].acks_late:
            raise TaskDefinitionError(
                f"task {task.name!r}: with acks_late=False its message is gone before it fails: leave acks_on_failure "
                "and acks_on_timeout out"
            )

    def decide(self, attempt: Attempt, error: BaseException) -> Outcome | None:
        if isinstance(error, TimeLimitExceeded) and not attempt.options[AcknowledgementOptions].acks_on_timeout:
            return Postponed(error, 0.0, counted=False)
        return None

    def settling(self, attempt: Attempt) -> None:
        failed = attempt.outcome
        kept = not attempt.options[AcknowledgementOptions].acks_on_failure
        if kept and isinstance(failed, Failed) and not failed.dead_because:
            attempt.outcome = replace(failed, dead_because="it failed, and its message is kept: acks_on_failure=False")
