"""From the code into the table: the schedules that are declared there, compared at each start of a scheduler."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from celeriq import schedule_rows as rows
from celeriq.errors import ScheduleError
from celeriq.options import TaskOptions
from celeriq.redis.streams import RedisBroker
from celeriq.schedule_calls import ScheduledCalls
from celeriq.schedule_entry import ScheduleEntry, read_task_schedules
from celeriq.schedule_rows import StoredSchedule
from celeriq.task import Task
from celeriq.ticks import beginning, continued, next_look

logger = logging.getLogger(__name__)


def declared_by_tasks(broker: RedisBroker, tz: str | tzinfo) -> list[ScheduleEntry]:
    """What the option `schedule` of its tasks says; raises `ScheduleError`."""
    entries: list[ScheduleEntry] = []
    for name, task in broker.get_all_tasks().items():
        # Under an alias it is the same task.
        if isinstance(task, Task) and task.task_name == name:
            entries += read_task_schedules(name, task.definition.options[TaskOptions].schedule, tz=tz)
    return entries


def checked(entries: Sequence[ScheduleEntry], calls: ScheduledCalls) -> dict[str, ScheduleEntry]:
    """By name. Raises `ScheduleError` for two of one name, and for a call that cannot be made."""
    by_name: dict[str, ScheduleEntry] = {}
    for entry in entries:
        if entry.name in by_name:
            raise ScheduleError(
                f"two schedules are named {entry.name!r}, of tasks {by_name[entry.name].task!r} and {entry.task!r}; "
                "give one of them another name"
            )
        try:
            calls.check(entry)
        except ScheduleError as error:
            raise ScheduleError(f"entry {entry.name!r}: {error}") from error
        by_name[entry.name] = entry
    return by_name


async def sync(
    session: AsyncSession, namespace: str, entries: Mapping[str, ScheduleEntry], calls: ScheduledCalls, now: datetime
) -> None:
    """Make the table say what the code declares (BEAT-10).

    What the code has changed is changed, whatever was edited by hand; what it has not changed stays as it was edited.
    Whether it is paused stays in any case, and so do its last tick and its numbers. What is not declared any more is
    deleted. Rows that `add` has made are left alone.
    """
    await rows.lock(session, namespace)
    stored = {row.name: row for row in await rows.all_of(session, namespace)}
    for name, entry in entries.items():
        if name not in stored:
            await _declare(session, namespace, entry, now)
    for row in stored.values():
        if row.declared is None and row.name in entries:
            logger.warning("schedule %r was made by add(): what the code says under this name is left out", row.name)
        if row.declared is not None and row.name not in entries:
            logger.info("schedule %r is not declared any more: deleted", row.name)
            await rows.remove(session, namespace, row.name)
        elif row.declared is not None and row.declared != rows.entry_values(entries[row.name]):
            await _redeclare(session, namespace, row, entries[row.name])
        elif row.error is not None:
            await _mend(session, namespace, row, calls)


async def _declare(session: AsyncSession, namespace: str, entry: ScheduleEntry, now: datetime) -> None:
    said = rows.entry_values(entry)
    last = beginning(entry.schedule, now)
    following = next_look(entry.name, entry.schedule, last, entry.policy)
    await rows.add(session, namespace, entry.name, {**said, "declared": said, "last_due": last, "next_due": following})


async def _redeclare(session: AsyncSession, namespace: str, row: StoredSchedule, entry: ScheduleEntry) -> None:
    said = rows.entry_values(entry)
    await rows.edit(session, namespace, row.name, {**said, "declared": said, **rescheduled(row, entry)})


async def _mend(session: AsyncSession, namespace: str, row: StoredSchedule, calls: ScheduledCalls) -> None:
    """What could not run may be able to by now: a module was forgotten, or a task takes what it did not."""
    try:
        entry = row.entry()
        calls.check(entry)
    except ScheduleError:
        return
    await rows.change(session, namespace, row.name, rescheduled(row, entry))


def rescheduled(row: StoredSchedule, entry: ScheduleEntry) -> dict[str, Any]:
    """What becomes of the ticks of a row that says something else from now on."""
    changed = row.schedule != entry.schedule.as_text()
    last = continued(entry.schedule, row.last_due) if changed else row.last_due
    return {"last_due": last, "next_due": next_look(row.name, entry.schedule, last, entry.policy), "error": None}
