"""Waiting for a condition, with a deadline, instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from time import monotonic, sleep
from typing import Any

PAUSE = 0.02


async def wait_for(condition: Callable[[], Any | Awaitable[Any]], within: float = 20.0) -> Any:
    """The first true value of `condition`, which may be a coroutine function; fails after `within` seconds."""
    deadline = monotonic() + within
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if monotonic() > deadline:
            raise AssertionError(f"{_source(condition)} was not true within {within} s: {value!r}")
        await asyncio.sleep(PAUSE)


def wait_without_loop(condition: Callable[[], bool], within: float = 30.0) -> None:
    """The same where no event loop runs."""
    deadline = monotonic() + within
    while not condition():
        assert monotonic() < deadline, f"{_source(condition)} was not true within {within} s"
        sleep(PAUSE)


def _source(condition: Callable[[], Any]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except TypeError:  # a partial
        return repr(condition)
