"""The tables of docs/leaving-celery.md: what differs on purpose, and what has no counterpart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.conformance.rows import Difference, differences, rows

PAGE = Path(__file__).parents[2] / "docs" / "leaving-celery.md"
LONGEST = 40


def written(page: str) -> str:
    """The page with its tables as they are today."""
    for name, table in (("differences", of_differences()), ("without-counterpart", of_rows_without_meaning())):
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        between = "\n".join([begin, *table, end])
        before, rest = page.split(begin)
        page = before + between + rest.split(end)[1]
    return page


def of_differences() -> Iterator[str]:
    """One line for each reason in each scenario; values are shown where there is one place of it, and room."""
    titles = rows()
    yield from ("| Row | What | Seen | In Celery | Here | Why |", "|---|---|---|---|---|---|")
    grouped: dict[tuple[str, str, str], list[Difference]] = {}
    for one in differences():
        grouped.setdefault((one.row, one.scenario, one.reason), []).append(one)
    order = list(titles)
    for (row, scenario, reason), places in sorted(grouped.items(), key=lambda group: order.index(group[0][0])):
        seen = scenario.partition(".")[2].replace("_", " ")
        yield f"| {row} | {titles[row].title} | {seen} | {_values(places, 'celery')} | {_values(places, 'celeriq')} | {reason} |"


def _values(places: Iterable[Difference], whose: str) -> str:
    values = {repr(getattr(place, whose)) for place in places}
    only = values.pop() if len(values) == 1 else ""
    if only.startswith("{'broken'"):
        return "not there"
    return f"`{only}`".replace("|", "\\|") if only and len(only) <= LONGEST else ""


def of_rows_without_meaning() -> Iterator[str]:
    yield from ("| Row | What | Why there is none |", "|---|---|---|")
    for row in rows().values():
        if row.without_meaning:
            yield f"| {row.id} | {row.title} | {row.without_meaning} |"
