"""What every program of celeriq's begins with: the application's modules, the log, the event loop."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from celeriq import signals

T = TypeVar("T")


class CannotStartError(Exception):
    """The application cannot be run as it is; trying again would not help."""


def look_in(folder: str) -> None:
    """Modules are looked for there first."""
    sys.path.insert(0, str(Path.cwd() / folder))


def named(place: str, kind: type[T], otherwise: str) -> T:
    """What stands at `module:name`; raises `CannotStartError` if it is none of this kind."""
    module, _, name = place.partition(":")
    found = getattr(imported(module, otherwise), name, None)
    if not isinstance(found, kind):
        noun = kind.__name__.removeprefix("Redis").lower()
        raise CannotStartError(f"{place!r} is no {kind.__name__}: name one as `module:{noun}`")
    return found


def imported(module: str, otherwise: str) -> Any:
    """The module; raises `CannotStartError`, with what would happen `otherwise`, when it does not import."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        traceback.print_exc()
        raise CannotStartError(f"module {module!r} does not import; {otherwise}") from error


async def set_up_log(level: str) -> None:
    """Write it to the standard error, unless somebody else has set it up (SIG-12)."""
    told = {"loglevel": level, "logger": logging.getLogger()}
    if signals.setup_logging:
        await signals.setup_logging.send(None, **told)
        return
    logging.basicConfig(level=level, format="[%(asctime)s][%(levelname)-7s][%(name)s] %(message)s")
    await signals.after_setup_logger.send(None, **told)
    await signals.after_setup_task_logger.send(None, **told)


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The loop of uvloop, where `celeriq[speed]` is installed, as under `taskiq worker`; None is that of asyncio."""
    try:
        new_loop: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    except ImportError:
        return None
    return new_loop
