"""What is known of a task before it runs."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import anyio

from celeriq.arguments import Conversion
from celeriq.dependencies import GraphCache
from celeriq.options import Options, TaskOptions

if TYPE_CHECKING:
    from celeriq.attempt import Attempt


@dataclass(frozen=True, eq=False)
class Definition:
    """Name, function and options of a task, and what is injected into it."""

    name: str
    function: Callable[..., Any]
    options: Options
    graphs: GraphCache
    bound_class: type[Any]
    """What `self` is in a bound task: a `BoundTask`."""

    @cached_property
    def instance(self) -> Any:
        """The one in this process (DEF-01)."""
        made = self.bound_class()
        made.definition = self
        return made

    def needs_nothing(self, overrides: Mapping[Any, Any]) -> bool:
        """Whether nothing is injected into it."""
        return self.graphs.for_overrides(overrides).is_empty()

    def accepts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the function can be called so; what is injected is left out."""
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError:
            return False
        return True

    @cached_property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.function)

    @cached_property
    def signature(self) -> inspect.Signature:
        """The function's own signature, without what is injected."""
        signature = inspect.signature(self.function, eval_str=True)
        hidden = self.graphs.for_overrides({}).injected_parameters
        shown = [parameter for name, parameter in signature.parameters.items() if name not in hidden]
        return signature.replace(parameters=shown[1:] if self.bound else shown)

    @cached_property
    def bound(self) -> bool:
        """Whether the running task is its first argument (DEF-05)."""
        return self.options[TaskOptions].bind

    @cached_property
    def plain_counts(self) -> range:
        """How many positional arguments alone fit for certain; binding a signature costs more than a whole message."""
        plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = list(self.signature.parameters.values())
        if any(parameter.kind not in plain for parameter in parameters):
            return range(0)
        required = sum(parameter.default is inspect.Parameter.empty for parameter in parameters)
        return range(required, len(parameters) + 1)

    @cached_property
    def convert(self) -> Conversion:
        """What is made of its arguments."""
        return Conversion(self.name, self.function, self.signature)

    @property
    def is_wrapped(self) -> bool:
        """Whether its base class puts a `__call__` around it (DEF-06)."""
        return any("__call__" in vars(kind) for kind in self.bound_class.__mro__)

    @cached_property
    def body(self) -> Callable[..., Any]:
        """What is called: the function, or what its base class puts around it as `__call__` (DEF-06)."""
        if self.is_wrapped:
            return cast("Callable[..., Any]", self.instance)
        return partial(self.function, self.instance) if self.bound else self.function

    async def call(self, attempt: Attempt, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the function: `async def` on the loop, `def` in one of the threads."""
        if self.is_async:
            return await self.body(*args, **kwargs)
        call = partial(copy_context().run, self._call_in_thread, *args, **kwargs)
        return await _to_its_end(asyncio.get_running_loop().run_in_executor(attempt.engine.threads, call))

    def _call_in_thread(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.body(*args, **kwargs)
        except StopIteration as error:
            # No future can hold it: before Python 3.12 whoever waits for the thread would wait for ever.
            raise RuntimeError("the task raised StopIteration") from error


async def _to_its_end(running: asyncio.Future[Any]) -> Any:
    """Await a thread. It cannot be cancelled: whoever cancels is obeyed when it has ended, and its slot is free."""
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        # anyio cancels again at every turn of the loop, asyncio as often as it is told to.
        with anyio.CancelScope(shield=True):
            while not running.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait({running})
        running.exception()
        raise
