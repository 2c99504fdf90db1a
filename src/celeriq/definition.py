"""A task's definition: what `@broker.task` makes of a function."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from taskiq.abc.broker import AsyncBroker
from taskiq.decor import AsyncTaskiqDecoratedTask

from celeriq.attempt import Attempt
from celeriq.dependencies import GraphCache, depends_on
from celeriq.errors import TaskDefinitionError
from celeriq.options import TaskOptions
from celeriq.session import open_task_session

P = ParamSpec("P")
R = TypeVar("R")


class Task(AsyncTaskiqDecoratedTask[P, R], Generic[P, R]):
    """A registered task. Calling it runs the function here and now; `kiq` sends it to a worker."""

    definition: Definition

    def __init__(
        self,
        broker: AsyncBroker,
        task_name: str,
        original_func: Callable[P, R],
        labels: dict[str, Any],
        return_type: type[R] | None = None,
    ) -> None:
        # Taskiq hands the same dict to every function that one decorator is put on.
        labels = dict(labels)
        options: TaskOptions = labels.pop("options")
        self.definition = Definition(task_name, original_func, options, GraphCache(original_func))
        self.definition.check()
        super().__init__(broker, task_name, self.definition.in_attempt(), labels, return_type)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self.definition.function(*args, **kwargs)
        return result

    def __repr__(self) -> str:
        return f"<Task {self.task_name!r}>"


@dataclass(frozen=True, slots=True, eq=False)
class Definition:
    """Name, function and options of a task, and how the function is called inside an attempt."""

    name: str
    function: Callable[..., Any]
    options: TaskOptions
    graphs: GraphCache

    async def call(self, *args: Any, **kwargs: Any) -> Any:
        if inspect.iscoroutinefunction(self.function):
            return await self.function(*args, **kwargs)
        return await asyncio.to_thread(self._call_in_thread, *args, **kwargs)

    def _call_in_thread(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.function(*args, **kwargs)
        except StopIteration as error:
            # No future can hold it: before Python 3.12 whoever waits for the thread would wait for ever.
            raise RuntimeError("the task raised StopIteration") from error

    def check(self) -> None:
        """Raises `TaskDefinitionError` for a function that could only fail in a worker."""
        if inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function):
            raise TaskDefinitionError(f"task {self.name!r}: a generator cannot be a task: return a value, do not yield")
        for parameter in inspect.signature(self.function, eval_str=True).parameters.values():
            if depends_on(parameter.annotation) and parameter.default is inspect.Parameter.empty:
                raise TaskDefinitionError(
                    f"task {self.name!r}: {parameter.name!r} is injected and needs a default, so that callers may "
                    f"leave it out: write `{parameter.name}: ... = injected`"
                )
        if not inspect.iscoroutinefunction(self.function) and self.graphs.for_overrides({}).uses(open_task_session):
            raise TaskDefinitionError(
                f"task {self.name!r}: a `def` task runs in a thread, where an AsyncSession cannot be used: "
                "write `async def`"
            )

    def in_attempt(self) -> Callable[..., Any]:
        """The function that Taskiq's receiver calls: it injects by itself and commits before it returns."""

        @functools.wraps(self.function)
        async def run_attempt(*args: Any, **kwargs: Any) -> Any:
            return await Attempt.current().run(self, args, kwargs)

        run_attempt.__signature__ = self._signature_for_callers()  # type: ignore[attr-defined]
        return run_attempt

    def _signature_for_callers(self) -> inspect.Signature:
        signature = inspect.signature(self.function, eval_str=True)
        hidden = self.graphs.for_overrides({}).injected_parameters
        return signature.replace(parameters=[p for p in signature.parameters.values() if p.name not in hidden])
