"""What a scenario saw, as plain JSON that is the same in every run."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from tests.conformance.scenario import NotThereYetError, playing

IDENTITY = re.compile(r"\b[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}\b")
TIME = re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+\d\d:\d\d)?")


async def outcome(awaited: Awaitable[Any]) -> dict[str, Any]:
    """What came of it: a value, or an exception with its arguments."""
    try:
        return {"value": plain(await awaited)}
    except NotThereYetError:
        raise
    except (Exception, SystemExit) as raised:  # noqa: BLE001 - whatever it is, it was seen
        return described(raised)


async def brief(awaited: Awaitable[Any]) -> dict[str, Any]:
    """The same without the arguments of an exception, where its text is anybody's own."""
    told = await outcome(awaited)
    told.pop("args", None)
    return told


async def raised(awaited: Awaitable[Any]) -> str | None:
    """The name of the exception alone."""
    return (await outcome(awaited)).get("raised")


def described(error: BaseException) -> dict[str, Any]:
    # Celery's Retry is an argument of its own.
    arguments = [each for each in error.args if each is not error]
    return {"raised": playing().name_of(type(error)), "args": plain(arguments)}


def plain(value: Any) -> Any:
    """`value` as JSON holds it; of what JSON cannot hold, what kind of thing it is."""
    found: Any = f"<{type(value).__name__}>"
    match value:
        case None | bool() | int() | float() | str():
            found = value
        case BaseException():
            found = described(value)
        case Mapping():
            found = {str(name): plain(each) for name, each in value.items()}
        case AbstractSet():
            found = sorted(map(plain, value), key=repr)
        case Sequence() if not isinstance(value, bytes):
            found = [plain(each) for each in value]
        case _:
            pass
    return found


def normalised(observation: Any) -> Any:
    """Ids become id-1, id-2 in the order in which they are met, moments become `<time>`."""
    met: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        return met.setdefault(found[0].replace("-", ""), f"id-{len(met) + 1}")

    text = json.dumps(observation, allow_nan=False)
    return json.loads(TIME.sub("<time>", IDENTITY.sub(number, text)))
