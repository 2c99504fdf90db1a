"""The clock on the wall of a time zone: which moments a reading means on the days when it is changed.

A reading is a `datetime` without a zone. Most come once; in spring some never come, in autumn some come twice.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from difflib import get_close_matches
from zoneinfo import ZoneInfo, available_timezones

from celeriq.errors import ScheduleError

_SECOND = timedelta(seconds=1)


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC; raises `ScheduleError` for one that does not know its time zone."""
    if moment.utcoffset() is None:
        raise ScheduleError(f"{moment!r} has no time zone: write datetime(..., tzinfo=UTC)")
    return moment.astimezone(UTC)


def zone_name(given: str | tzinfo) -> str:
    """The name of an IANA time zone; raises `ScheduleError`, with the remedy, for what is none."""
    if given is UTC:
        return "UTC"
    name = given.key if isinstance(given, ZoneInfo) else given
    if not isinstance(name, str):
        raise ScheduleError(f"tz is {given!r}, which has no name; write that of an IANA zone, such as 'Europe/Berlin'")
    try:
        return ZoneInfo(name).key
    except (KeyError, ValueError, OSError) as error:
        raise ScheduleError(f"there is no time zone {name!r}; {_remedy(name)}") from error


def _remedy(name: str) -> str:
    known = available_timezones()
    if not known:
        return "this system has none at all: install the package tzdata"
    nearest = get_close_matches(name, known, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else "write a name such as 'Europe/Berlin'"


def moments_of(reading: datetime, zone: ZoneInfo) -> tuple[datetime, ...]:
    """When the clock shows `reading`, in UTC: once, twice or never."""
    first, second = (_as_shown(reading, zone, fold) for fold in (0, 1))
    if first == second:
        return (first,)
    # A reading that never comes has its later moment for fold=0 (PEP 495).
    return (first, second) if first < second else ()


def after_the_gap(reading: datetime, zone: ZoneInfo) -> datetime:
    """The first moment, in UTC, after the readings that never come, of which `reading` is one."""
    return _change(zone, _as_shown(reading, zone, 1), _as_shown(reading, zone, 0))


def set_back_after(moment: datetime, zone: ZoneInfo) -> datetime | None:
    """When the reading at `moment` comes for the first time of two: the moment at which the clock is set back."""
    here = moment.astimezone(zone)
    shown = moments_of(here.replace(tzinfo=None, fold=0), zone)
    return _change(zone, moment, shown[1]) if here.fold == 0 and len(shown) > 1 else None


def _as_shown(reading: datetime, zone: ZoneInfo, fold: int) -> datetime:
    return reading.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def _change(zone: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """The moment between two at which the clock is changed, by halving: `zoneinfo` keeps it to itself."""
    before, after = before.replace(microsecond=0), after.replace(microsecond=0)
    offset = before.astimezone(zone).utcoffset()
    while after - before > _SECOND:
        middle = before + (after - before) // _SECOND // 2 * _SECOND
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after
