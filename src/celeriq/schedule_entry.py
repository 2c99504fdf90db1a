"""Entries: which task a schedule calls, and with what. They are read from where people have written them.

That is Celery's `beat_schedule`, as it is (BEAT-01), and the option `schedule` of a task, in Taskiq's form or in ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from difflib import get_close_matches
from typing import Any, cast

from celeriq.cron import crontab
from celeriq.errors import ScheduleError
from celeriq.schedule import Interval, Once, Schedule, interval
from celeriq.ticks import DEFAULT_POLICY, POLICY_KEYS, TickPolicy

Scheduled = Schedule | float | timedelta | datetime | Mapping[str, Any]
"""One value of the option `schedule` of a task, which may have several."""

_HOUR = timedelta(hours=1)
_BEAT_KEYS = ("task", "schedule", "args", "kwargs", "options", "relative", *POLICY_KEYS)
_KINDS = ("cron", "interval", "time")
_LABEL_KEYS = (*_KINDS, "cron_offset", "args", "kwargs", "labels", "schedule_id", "options", *POLICY_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleEntry:
    """A task that is called each time its schedule is due."""

    name: str
    """Its own name, under which it is stored; a second entry of that name is the same one."""

    task: str
    """The name of the task."""

    schedule: Schedule

    args: tuple[Any, ...] = ()

    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])

    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of the call, as `apply_async` takes them: `queue`, `expires` …"""

    labels: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of the message, for Taskiq's middlewares."""

    policy: TickPolicy = DEFAULT_POLICY


def read_beat_schedule(table: Mapping[str, Mapping[str, Any]], *, tz: str | tzinfo = "UTC") -> list[ScheduleEntry]:
    """The entries of Celery's `beat_schedule` (BEAT-01); `tz`, Celery's `timezone`, is that of crontabs without one.

    An entry may also say what `TickPolicy` has: `misfire`, `grace`, `jitter` … Schedules may be Celery's own objects.
    Raises `ScheduleError`, which names the entry, the key and the remedy.
    """
    return [_told(f"entry {name!r}", _beat_entry, name, given, tz) for name, given in table.items()]


def read_task_schedules(task: str, given: object, *, tz: str | tzinfo = "UTC") -> list[ScheduleEntry]:
    """The entries of the option `schedule` of a task: one schedule or several, or labels in Taskiq's form.

    A label is `{"cron": "0 2 * * *", "cron_offset": "Europe/Berlin", "args": [...]}`, or has `interval` or `time` in
    place of `cron`. As in Taskiq, a cron that says both a day of the month and one of the week means either of them.
    Unlike Taskiq, an interval waits for its end before the first run (BEAT-03), and names stay the same when the
    scheduler is started anew: `schedule_id`, or else that of the task, with a number from the second on.

    Raises `ScheduleError`, which names the task, the key and the remedy.
    """
    several = cast("Sequence[object]", given) if isinstance(given, list | tuple) else [given]
    entries = [
        _told(f"task {task!r}, schedule {number}", _task_entry, task, number, one, tz)
        for number, one in enumerate(several, 1)
    ]
    names = [entry.name for entry in entries]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ScheduleError(f"task {task!r}: two schedules are named {twice!r}; give them a schedule_id each")
    return entries


def may_be_scheduled(given: object) -> bool:
    """Whether it is of a kind that `read_task_schedules` reads; what it says is read where the task's name is known."""
    if isinstance(given, list | tuple):
        several = cast("Sequence[object]", given)
        return all(not isinstance(one, list | tuple) and may_be_scheduled(one) for one in several)
    if isinstance(given, str | bool):
        return False
    kinds = (Mapping, int, float, timedelta, datetime, Schedule)
    return isinstance(given, kinds) or any(hasattr(given, name) for name in ("_orig_minute", "run_every"))


def taskiq_labels(given: object) -> list[Mapping[str, Any]]:
    """Those of the schedules of a task that Taskiq's own scheduler reads as they are meant."""
    several = cast("Sequence[object]", given) if isinstance(given, list | tuple) else [given]
    labels = [cast("Mapping[str, Any]", one) for one in several if isinstance(one, Mapping)]
    # It takes no part of a second.
    return [dict(label) for label in labels if not isinstance(label.get("interval"), float)]


def as_schedule(given: object, *, tz: str | tzinfo = "UTC") -> Schedule:
    """What people write for a schedule: one of ours or of Celery's, seconds, a `timedelta`, a moment.

    Raises `ScheduleError`, with the remedy, for anything else.
    """
    if isinstance(given, crontab):
        return given.in_zone(tz)
    if isinstance(given, timedelta) or (isinstance(given, int | float) and not isinstance(given, bool)):
        return interval(given)
    if isinstance(given, datetime):
        return _moment(given)
    # Celery's own objects are known by what they have, for Celery need not be there.
    if hasattr(given, "_orig_minute"):
        return _celery_crontab(given).in_zone(tz)
    if hasattr(given, "run_every"):
        return _celery_interval(given)
    if isinstance(given, Schedule):
        return given
    raise ScheduleError(f"schedule is {given!r}; {_remedy(given)}")


def _remedy(given: object) -> str:
    if isinstance(given, str):
        return f"for a line of cron, write crontab.from_string({given!r})"
    if hasattr(given, "event"):
        return "schedules by the sun are not there (BEAT-13): write a crontab, and let the task look at the sun"
    return "write seconds, a timedelta or a crontab: crontab(minute=0, hour=2)"


def _celery_crontab(given: Any) -> crontab:
    return crontab(
        given._orig_minute,  # noqa: SLF001 - Celery's attributes without an underscore have lost what was written
        given._orig_hour,  # noqa: SLF001
        given._orig_day_of_week,  # noqa: SLF001
        given._orig_day_of_month,  # noqa: SLF001
        given._orig_month_of_year,  # noqa: SLF001
    )


def _celery_interval(given: Any) -> Interval:
    _refuse_relative(getattr(given, "relative", False))
    return interval(given.run_every)


def _refuse_relative(relative: object) -> None:
    if relative:
        raise ScheduleError(
            "relative is True, which rounds an interval to the clock: write what is meant as a crontab, "
            "crontab(minute=0) for each full hour"
        )


def _beat_entry(name: str, given: object, tz: str | tzinfo) -> ScheduleEntry:
    entry = _known(given, _BEAT_KEYS)
    for key in ("task", "schedule"):
        if key not in entry:
            raise ScheduleError(
                f"it has no {key!r}; write {{'task': 'mail.send', 'schedule': crontab(hour=2, minute=0)}}"
            )
    task = entry["task"]
    if not isinstance(task, str) or not task:
        raise ScheduleError(f"task is {task!r}; it must be the name of a task, 'mail.send'")
    schedule = as_schedule(entry["schedule"], tz=tz)
    _refuse_relative(entry.get("relative"))
    return ScheduleEntry(name=name, task=task, schedule=schedule, **_call(entry))


def _task_entry(task: str, number: int, given: object, tz: str | tzinfo) -> ScheduleEntry:
    name = task if number == 1 else f"{task}#{number}"
    if not isinstance(given, Mapping):
        return ScheduleEntry(name=name, task=task, schedule=as_schedule(given, tz=tz))
    label = _known(cast("object", given), _LABEL_KEYS)
    if not isinstance(label.get("schedule_id", name), str):
        raise ScheduleError(f"schedule_id is {label['schedule_id']!r}; it must be text")
    return ScheduleEntry(
        name=label.get("schedule_id", name),
        task=task,
        schedule=_label_schedule(label, tz),
        labels=_mapping(label, "labels"),
        **_call(label),
    )


def _label_schedule(label: Mapping[str, Any], tz: str | tzinfo) -> Schedule:
    kinds = [kind for kind in _KINDS if label.get(kind) is not None]
    if len(kinds) != 1:
        said = " and ".join(kinds) or "none"
        raise ScheduleError(f"it needs one of 'cron', 'interval' and 'time', and has {said}; write one label for each")
    kind, given = kinds[0], label[kinds[0]]
    if kind == "cron":
        return _label_cron(given, label.get("cron_offset"), tz)
    if label.get("cron_offset") is not None:
        raise ScheduleError(f"cron_offset is for 'cron', not for {kind!r}; leave it out")
    if kind == "time":
        return _moment(given)
    if isinstance(given, bool) or not isinstance(given, int | float | timedelta):
        raise ScheduleError(f"interval is {given!r}; it must be seconds or a timedelta")
    return interval(given)


def _label_cron(line: object, offset: object, tz: str | tzinfo) -> crontab:
    if not isinstance(line, str):
        raise ScheduleError(f"cron is {line!r}; it must be text, '0 2 * * *', or write schedule=[crontab(...)]")
    read = crontab.from_string(line, tz=_zone_of(offset) if offset else tz)
    both_said = "*" not in read.day_of_month and "*" not in read.day_of_week
    return crontab.from_string(line, tz=read.tz, either_day=True) if both_said else read


def _zone_of(offset: object) -> str:
    """Taskiq's `cron_offset`: the name of a zone, or how far its clock is ahead of UTC."""
    if isinstance(offset, str):
        return offset
    if isinstance(offset, timedelta) and not offset % _HOUR and -12 * _HOUR <= offset <= 14 * _HOUR:
        # Zones with a fixed offset have names, which count westwards.
        return f"Etc/GMT{-(offset // _HOUR):+d}"
    raise ScheduleError(f"cron_offset is {offset!r}; write the name of a time zone: cron_offset='Asia/Kolkata'")


def _moment(given: object) -> Once:
    """One without a time zone is in UTC, as in Taskiq and in `apply_async(eta=)` (CALL-05)."""
    if not isinstance(given, datetime):
        raise ScheduleError(f"time is {given!r}; write a datetime: datetime(2027, 1, 1, tzinfo=UTC)")
    return Once(given if given.tzinfo else given.replace(tzinfo=UTC))


def _call(entry: Mapping[str, Any]) -> dict[str, Any]:
    args: object = entry.get("args") or ()
    if not isinstance(args, list | tuple):
        raise ScheduleError(f"args is {args!r}; it must be a list or tuple: write ({args!r},)")
    return {
        "args": tuple(cast("Sequence[Any]", args)),
        "kwargs": _mapping(entry, "kwargs"),
        "options": _mapping(entry, "options"),
        "policy": TickPolicy(**{key: entry[key] for key in POLICY_KEYS if key in entry}),
    }


def _mapping(entry: Mapping[str, Any], key: str) -> dict[str, Any]:
    given: object = entry.get(key) or {}
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in cast("Mapping[object, Any]", given)):
        raise ScheduleError(f"{key} is {given!r}; it must be a mapping of names to values")
    return dict(cast("Mapping[str, Any]", given))


def _known(given: object, keys: Collection[str]) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise ScheduleError(f"it is {given!r}; it must be a mapping with {', '.join(keys)}")
    for key in cast("Mapping[object, Any]", given):
        if key not in keys:
            nearest = get_close_matches(str(key), keys, n=1)
            remedy = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(keys)}"
            raise ScheduleError(f"unknown key {key!r}; {remedy}")
    return cast("Mapping[str, Any]", given)


def _told(where: str, read: Callable[..., ScheduleEntry], *given: object) -> ScheduleEntry:
    try:
        return read(*given)
    except ScheduleError as error:
        raise ScheduleError(f"{where}: {error}") from error
