"""The rows of Celery's behaviour, what is recorded of it, and where celeriq differs on purpose."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.conformance.scenario import SCENARIOS

HERE = Path(__file__).parent
ROWS = HERE / "rows.toml"
DIFFERENCES = HERE / "differences.toml"
RECORDING = HERE / "celery.json"

FIRST = ("DEF", "CALL", "RETRY", "ST", "RES", "EXE", "ACK", "SHUT", "LIM", "RT", "SIG", "ERR", "SEC")
"""The chapters that the scenarios are about; the others are shown in passing."""


@dataclass(frozen=True)
class Row:
    """One thing that Celery does."""

    id: str
    title: str
    weight: str
    without_meaning: str = ""

    @property
    def chapter(self) -> str:
        return self.id.partition("-")[0]


@dataclass(frozen=True)
class Difference:
    """A place in the observation of a scenario where celeriq gives something else on purpose."""

    scenario: str
    row: str
    at: tuple[str, ...]
    celery: Any
    celeriq: Any
    reason: str


class StaleDifferenceError(ValueError):
    """A difference names what Celery does not do: a place that is not there, or another value."""


def rows() -> dict[str, Row]:
    return {row: Row(row, **told) for row, told in tomllib.loads(ROWS.read_text()).items()}


def differences() -> list[Difference]:
    """Values are written as JSON, which has null and may be nested; `at` is a path of keys and positions."""
    told: list[dict[str, str]] = tomllib.loads(DIFFERENCES.read_text()).get("difference", [])
    return [
        Difference(
            each["scenario"],
            each["row"],
            tuple(each["at"].split("/")) if each["at"] else (),
            json.loads(each["celery"]),
            json.loads(each["celeriq"]),
            each["reason"],
        )
        for each in told
    ]


def recorded() -> dict[str, Any]:
    """What each scenario saw when Celery played."""
    observations: dict[str, Any] = json.loads(RECORDING.read_text())["observations"]
    return observations


def expected(observation: Any, of_this: Iterable[Difference]) -> Any:
    """What celeriq is to give where Celery gave `observation`."""
    changed: Any = {"": deepcopy(observation)}
    for difference in of_this:
        _replace(changed, ("", *difference.at), difference)
    return changed[""]


def _replace(inside: Any, path: tuple[str, ...], difference: Difference) -> None:
    *way, last = path
    try:
        for step in way:
            inside = inside[_key(inside, step)]
        key = _key(inside, last)
        found = inside[key]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise StaleDifferenceError(f"{difference.scenario}: there is nothing at {'/'.join(difference.at)!r}") from error
    if found != difference.celery:
        raise StaleDifferenceError(
            f"{difference.scenario}: at {'/'.join(difference.at)!r} Celery gives {json.dumps(found)}, "
            f"not {json.dumps(difference.celery)}"
        )
    inside[key] = deepcopy(difference.celeriq)


def _key(inside: Any, step: str) -> Any:
    return int(step) if isinstance(inside, list) else step


def load_scenarios() -> None:
    """Afterwards `SCENARIOS` has them all."""
    for path in sorted((HERE / "scenarios").glob("[!_]*.py")):
        import_module(f"tests.conformance.scenarios.{path.stem}")


@dataclass(frozen=True)
class Verdict:
    """How celeriq compares with Celery in one scenario."""

    scenario: str
    agrees: bool
    on_purpose: int
    """In how many places it differs as is written down."""
    expected: Any
    given: Any


def compare(given: Mapping[str, Any]) -> dict[str, Verdict]:
    """Of each scenario that celeriq played, and that shows a row with a meaning: the verdict."""
    load_scenarios()
    verdicts: dict[str, Verdict] = {}
    idle = {row.id for row in rows().values() if row.without_meaning}
    by_scenario: dict[str, list[Difference]] = {}
    for difference in differences():
        by_scenario.setdefault(difference.scenario, []).append(difference)
    for name, observation in recorded().items():
        if name in given and not idle.issuperset(SCENARIOS[name].rows):
            mine = by_scenario.get(name, [])
            wanted = expected(observation, mine)
            verdicts[name] = Verdict(name, wanted == given[name], len(mine), wanted, given[name])
    return verdicts


def of_scenarios() -> dict[str, list[str]]:
    """For each row the scenarios that show it."""
    shown: dict[str, list[str]] = {row: [] for row in rows()}
    for scenario in SCENARIOS.values():
        for row in scenario.rows:
            shown[row].append(scenario.name)
    return shown
