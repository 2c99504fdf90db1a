"""Waiting for several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def first_told(waits: Iterable[Coroutine[Any, Any, T | None]]) -> T | None:
    """What one of them tells first, None if all have ended and told nothing; the others are cancelled."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    waiting = set(tasks)
    try:
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task in done and (told := task.result()) is not None:
                    return told
        return None
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
