"""`python -m tests.conformance report`: how much of Celery's behaviour is shown, and in how much celeriq agrees."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tests.conformance.rows import FIRST, Row, compare, differences, of_scenarios, recorded, rows

WEIGHTS = ("H", "M", "L")


def lines(given: Mapping[str, Any]) -> Iterator[str]:
    """`given`: what celeriq did; nothing if it has not played."""
    agreeing = {name for name, verdict in compare(given).items() if verdict.agrees}
    every, shown = rows(), of_scenarios()
    counted = {row for row, scenarios in shown.items() if scenarios and agreeing.issuperset(scenarios)}
    first = [row for row in every.values() if row.chapter in FIRST]

    yield f"{tally(every.values(), counted)} · differences {len(differences())}"
    yield f"chapters {', '.join(FIRST)}: {tally(first, counted)}"
    yield f"shown by scenarios there: {tally(first, {row for row, scenarios in shown.items() if scenarios})}"
    idle = [row for row in first if row.without_meaning]
    yield f"without meaning there: {len(idle)} of {len(first)} rows, {len(idle) / len(first):.1%}"
    unshown = [row.id for row in first if not shown[row.id] and not row.without_meaning]
    yield f"without a scenario there: {', '.join(unshown) or 'none'}"
    yield f"{len(recorded())} scenarios are recorded; celeriq played {len(given)}, and agrees in {len(agreeing)}"


def tally(of: Iterable[Row], counted: set[str]) -> str:
    """For each weight: how many rows count, of how many that have a meaning."""
    with_meaning = [row for row in of if not row.without_meaning]
    return " · ".join(
        f"{weight} {sum(row.id in counted for row in with_meaning if row.weight == weight)}"
        f"/{sum(row.weight == weight for row in with_meaning)}"
        for weight in WEIGHTS
    )


def quarrels(given: Mapping[str, Any]) -> Iterator[str]:
    """Where celeriq gives what nobody has written down."""
    for verdict in compare(given).values():
        if not verdict.agrees:
            yield verdict.scenario
            for at, expected, found in unlike(verdict.expected, verdict.given):
                yield f"  at {at!r}: expected {json.dumps(expected)}, given {json.dumps(found)}"


def unlike(expected: Any, given: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The places where two observations are not the same, as `differences.toml` names them."""
    if isinstance(expected, dict) and isinstance(given, dict) and expected.keys() == given.keys():
        for name, value in expected.items():
            yield from unlike(value, given[name], f"{at}/{name}".lstrip("/"))
    elif isinstance(expected, list) and isinstance(given, list) and len(expected) == len(given):
        for number, (value, other) in enumerate(zip(expected, given, strict=True)):
            yield from unlike(value, other, f"{at}/{number}".lstrip("/"))
    elif expected != given:
        yield at, expected, given
