"""The calls that schedules make: whether they can be made as they are written, and making them."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from difflib import get_close_matches
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from sqlalchemy.ext.asyncio import AsyncSession

from celeriq.call_options import call_options
from celeriq.canvas import Signature
from celeriq.errors import ScheduleError, TaskDefinitionError
from celeriq.redis.streams import RedisBroker
from celeriq.result import AsyncResult
from celeriq.schedule_entry import ScheduleEntry
from celeriq.task import Task

HOUR = 3600.0
NOT_OF_A_SCHEDULE = {
    "task_id": "each tick has an id of its own: leave it out",
    "session": "a tick has a transaction of its own: leave it out",
    "eta": "it is one moment, and a schedule has many: say countdown=",
    "link": "let the task send what follows it: leave it out",
    "link_error": "let the task send what follows it: leave it out",
}
"""Options of calls that a schedule cannot say, with the remedy."""


class ScheduledCalls:
    """Makes the calls of schedules over a broker; `tasks_elsewhere` allows for tasks that are not registered here."""

    def __init__(self, broker: RedisBroker, *, tasks_elsewhere: bool = False) -> None:
        self._broker = broker
        self._tasks_elsewhere = tasks_elsewhere

    @property
    def tasks(self) -> Collection[str] | None:
        """The names of those that can be called; None is all."""
        return None if self._tasks_elsewhere else sorted(self._broker.get_all_tasks())

    def knows(self, task: str) -> bool:
        return self._tasks_elsewhere or self._broker.find_task(task) is not None

    def check(self, entry: ScheduleEntry) -> None:
        """Raise `ScheduleError`, with the remedy, for a call that cannot be made."""
        if not self.knows(entry.task):
            raise ScheduleError(f"there is no task {entry.task!r}; {self._remedy(entry.task)}")
        for name, remedy in NOT_OF_A_SCHEDULE.items():
            if name in entry.options:
                raise ScheduleError(f"option {name!r} of a schedule: {remedy}")
        task = self._registered(entry.task)
        try:
            declared = call_options(entry.options, () if task is None else task.per_call).declared
            if task is not None:
                task.check_arguments(entry.args, entry.kwargs)
                task.definition.options.changed_by_call(declared)
        except (TypeError, ValueError, TaskDefinitionError) as error:
            raise ScheduleError(str(error)) from error

    async def send(
        self, entry: ScheduleEntry, session: AsyncSession | None, tick: datetime | None = None
    ) -> AsyncResult[Any]:
        """Write the call into the outbox of `session`. That of a `tick` has the tick's id, so that it is known again.

        Raises what `apply_async` does.
        """
        called = self._broker.named(entry.task)
        # As Taskiq's scheduler does; the header is that of Celery's (BEAT-12).
        called.kicker().with_labels(**entry.labels, schedule_id=entry.name)
        call: Signature[Any] = Signature(task=called, args=entry.args, kwargs=dict(entry.kwargs))
        options: dict[str, Any] = dict(entry.options)
        options["headers"] = {"celery_beat_task": True, **options.get("headers", {})}
        if entry.policy.overlap == "skip" and "ignore_result" in called.per_call:
            # Nobody could tell otherwise whether it has ended.
            options["ignore_result"] = False
        if tick is not None:
            options["task_id"] = self.tick_id(entry.name, tick)
        return await call.apply_async(**options, session=session)

    def tick_id(self, name: str, tick: datetime) -> str:
        """The id of what a tick calls: the same one wherever and however often it is computed."""
        return uuid5(NAMESPACE_URL, f"celeriq:{self._broker.namespace}\n{name}\n{tick.isoformat()}").hex

    def longest_run(self, entry: ScheduleEntry) -> float:
        """Seconds that a run counts as running of which no end is known."""
        task = self._registered(entry.task)
        own = None if task is None else task.definition.options.get("time_limit")
        return float(entry.policy.max_overlap or entry.options.get("time_limit") or own or HOUR)

    async def has_ended(self, task_id: str) -> bool:
        """Whether the end of a call is known."""
        return await self._broker.result_backend.is_result_ready(task_id)

    def _registered(self, name: str) -> Task[Any, Any] | None:
        task = self._broker.find_task(name)
        return task if isinstance(task, Task) else None

    def _remedy(self, task: str) -> str:
        nearest = get_close_matches(task, self._broker.get_all_tasks(), n=1)
        did_you_mean = f"did you mean {nearest[0]!r}? " if nearest else ""
        return (
            f"{did_you_mean}Name the module that registers it when the scheduler is started, or say "
            "Scheduler(..., tasks_elsewhere=True) if only workers have it"
        )
