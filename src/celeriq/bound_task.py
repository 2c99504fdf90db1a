"""The running task, as its own body sees it."""

from __future__ import annotations

from typing import Annotated, Any

from taskiq_dependencies import Depends

from celeriq.attempt import Attempt
from celeriq.record import Record


class BoundTask:
    """Who the running task is, and how it tells of its progress."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    @property
    def id(self) -> str:
        return self._attempt.message.task_id

    @property
    def name(self) -> str:
        return self._attempt.message.task_name

    @property
    def retries(self) -> int:
        """How often the task was retried before this attempt; 0 in the first."""
        return self._attempt.retries

    async def update_state(self, state: str, meta: Any = None) -> None:
        """Store `state` and `meta`, at once and outside of the transaction (ST-04).

        What a part of the task tells after the task has ended is dropped.
        """
        if self._attempt.outcome is not None:
            return
        await self._attempt.engine.store(Record(status=state, result=meta, task_id=self.id), self._attempt)


def bound_task() -> BoundTask:
    return BoundTask(Attempt.current())


CurrentTask = Annotated[BoundTask, Depends(bound_task)]
"""The running task: `task: CurrentTask = injected`."""
