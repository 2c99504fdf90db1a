"""Worker loss: whether a task whose worker died runs again (ACK-05, RETRY-22)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from celeriq.errors import TaskDefinitionError, WorkerLostError
from celeriq.hooks import Middleware
from celeriq.middleware.retries import RetryOptions
from celeriq.options import DeclaredOptions, Options, is_bool, option
from celeriq.outcome import Failed, Outcome, Retrying

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.definition import Definition


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLossOptions(DeclaredOptions):
    """What `WorkerLoss` reads."""

    reject_on_worker_lost: bool = option(True, is_bool, "it must be True or False")  # noqa: FBT003
    """Run it again, at once, as often as the broker's `max_crashes` says; False fails it with `WorkerLostError`.
    Defaults to True."""

    retry_on_worker_lost: bool = option(False, is_bool, "it must be True or False")  # noqa: FBT003
    """Count it as a retry in place of that, which waits and is limited as others are (RETRY-22). Defaults to False."""


class WorkerLoss(Middleware):
    """Decides about messages that a worker held when it died."""

    options = WorkerLossOptions

    def concerns(self, options: Options) -> bool:
        return options[WorkerLossOptions] != WorkerLossOptions()

    def check(self, task: Definition) -> None:
        if task.options[WorkerLossOptions].retry_on_worker_lost and RetryOptions not in task.options:
            raise TaskDefinitionError(
                f"task {task.name!r}: retry_on_worker_lost needs the middleware Retries, which is not there: add it"
            )

    def before(self, attempt: Attempt) -> Outcome | None:
        if not attempt.delivery.crashes:
            return None
        mine, error = attempt.options[WorkerLossOptions], WorkerLostError("its worker died while it ran")
        if mine.retry_on_worker_lost:
            retries = attempt.options[RetryOptions]
            left = retries.max_retries is None or attempt.retries < retries.max_retries
            return Retrying(error, retries.default_retry_delay) if left else Failed(error)
        return None if mine.reject_on_worker_lost else Failed(error)
