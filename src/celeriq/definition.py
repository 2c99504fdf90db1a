"""What is known of a task before it runs."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from celeriq.dependencies import GraphCache
from celeriq.options import TaskOptions


@dataclass(frozen=True, slots=True, eq=False)
class Definition:
    """Name, function and options of a task, and what is injected into it."""

    name: str
    function: Callable[..., Any]
    options: TaskOptions
    graphs: GraphCache

    async def call(self, *args: Any, **kwargs: Any) -> Any:
        """Run the function: `async def` on the loop, `def` in a thread."""
        if inspect.iscoroutinefunction(self.function):
            return await self.function(*args, **kwargs)
        return await asyncio.to_thread(self._call_in_thread, *args, **kwargs)

    def _call_in_thread(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.function(*args, **kwargs)
        except StopIteration as error:
            # No future can hold it: before Python 3.12 whoever waits for the thread would wait for ever.
            raise RuntimeError("the task raised StopIteration") from error
