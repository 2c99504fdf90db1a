"""A registered task: what `@broker.task` makes of a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from taskiq.abc.broker import AsyncBroker
from taskiq.decor import AsyncTaskiqDecoratedTask

from celeriq.attempt import Attempt
from celeriq.definition import Definition
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
        options: TaskOptions = labels.pop("options")
        self.definition = Definition(task_name, original_func, options, GraphCache(original_func))
        check(self.definition)
        super().__init__(broker, task_name, in_attempt(self.definition), labels, return_type)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self.definition.function(*args, **kwargs)
        return result

    def __repr__(self) -> str:
        return f"<Task {self.task_name!r}>"


def check(task: Definition) -> None:
    """Raise `TaskDefinitionError` for a function that could only fail in a worker."""
    function = task.function
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TaskDefinitionError(f"task {task.name!r}: a generator cannot be a task: return a value, do not yield")
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if depends_on(parameter.annotation) and parameter.default is inspect.Parameter.empty:
            raise TaskDefinitionError(
                f"task {task.name!r}: {parameter.name!r} is injected and needs a default, so that callers may "
                f"leave it out: write `{parameter.name}: ... = injected`"
            )
    if not inspect.iscoroutinefunction(function) and task.graphs.for_overrides({}).uses(open_task_session):
        raise TaskDefinitionError(
            f"task {task.name!r}: a `def` task runs in a thread, where an AsyncSession cannot be used: "
            "write `async def`"
        )


def in_attempt(task: Definition) -> Callable[..., Any]:
    """The function that Taskiq's receiver calls: it injects by itself and commits before it returns."""

    @functools.wraps(task.function)
    async def run_attempt(*args: Any, **kwargs: Any) -> Any:
        return await Attempt.current().run(task, args, kwargs)

    signature = inspect.signature(task.function, eval_str=True)
    hidden = task.graphs.for_overrides({}).injected_parameters
    shown = [parameter for name, parameter in signature.parameters.items() if name not in hidden]
    run_attempt.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
    return run_attempt
