"""Play scenarios, one after the other, and keep what they saw."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import Iterable
from typing import Any

from tests.conformance.observation import normalised
from tests.conformance.scenario import App, NotThereYetError, Scenario

Observations = dict[str, Any]


async def play(app: App, scenarios: Iterable[Scenario]) -> Observations:
    """The observation of each; of one that broke, what broke it, under the key `broken`."""
    seen: Observations = {}
    for each in scenarios:
        began = time.monotonic()
        seen[each.name] = await _played(app, each)
        trouble = seen[each.name].get("broken", "") if isinstance(seen[each.name], dict) else ""
        print(f"{each.name} ({time.monotonic() - began:.1f} s) {trouble}", flush=True)  # noqa: T201 - a long run
    return seen


async def _played(app: App, scenario: Scenario) -> Any:
    try:
        async with asyncio.timeout(scenario.longest):
            return normalised(await scenario.play(app))
    except NotThereYetError as missing:
        return {"broken": f"not there yet: {missing}"}
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the others are played all the same
        traceback.print_exc(limit=-4, file=sys.stderr)
        return {"broken": f"{type(error).__name__}: {error}"}


def broken(seen: Observations) -> list[str]:
    return [name for name, each in seen.items() if isinstance(each, dict) and "broken" in each]


def picked(scenarios: Iterable[Scenario], only: str) -> list[Scenario]:
    """Those whose name, or one of whose rows, contains one of the words; all if there are none."""
    words = only.split(",") if only else [""]
    return [each for each in scenarios if any(word in part for word in words for part in (each.name, *each.rows))]
