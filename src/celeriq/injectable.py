"""Whether a worker can give dependencies what they ask for: those of FastAPI may read a request, and there is none."""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterator
from typing import Any, cast

from taskiq_dependencies.dependency import Dependency

from celeriq.dependencies import Graph, parameters_of
from celeriq.errors import TaskDefinitionError

FROM_REQUESTS = "fastapi.params"
"""Where Header, Query, Path, Body, Cookie, Form and File are at home: FastAPI need not be installed."""
SECURITY = "fastapi.security.base"
CONNECTIONS = "starlette.requests"


def check_injectable(task: str, graph: Graph, given: Container[Any]) -> None:
    """Raise `TaskDefinitionError` for a dependency of the task that could only fail in a worker, with the remedy.

    `given`: what is there without being called. A parameter without a mark of FastAPI's is left to its default.
    """
    for current in _graphs(graph):
        for dependency in current.called:
            if dependency.dependency not in given:
                _check(task, dependency, current.parameters_injected_into(dependency))


def _graphs(graph: Graph) -> Iterator[Graph]:
    """It, and those of the dependencies without cache."""
    yield graph
    for nested in graph.subgraphs.values():
        if isinstance(nested, Graph):
            yield from _graphs(nested)


def _check(task: str, dependency: Dependency, injected: set[str]) -> None:
    called: Any = dependency.dependency
    kinds: tuple[type[Any], ...] = type(called).__mro__
    if any(kind.__module__ == SECURITY for kind in kinds):
        raise _refused(task, called, "reads the request's credentials")
    for parameter in parameters_of(called):
        if parameter.name in injected or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if (mark := _mark(parameter)) is not None:
            raise _refused(task, called, f"reads {parameter.name!r} from the request ({type(mark).__name__})")
        if parameter.default is parameter.empty:
            raise _refused(task, called, f"needs {parameter.name!r}{_kind(parameter)} of a request", parameter)


def _mark(parameter: inspect.Parameter) -> Any:
    marks = [parameter.default, *getattr(parameter.annotation, "__metadata__", ())]
    return next((mark for mark in marks if type(mark).__module__ == FROM_REQUESTS), None)


def _kind(parameter: inspect.Parameter) -> str:
    name = getattr(parameter.annotation, "__name__", "")
    return f" ({name})" if name and parameter.annotation is not parameter.empty else ""


def _refused(
    task: str, dependency: Any, reason: str, parameter: inspect.Parameter | None = None
) -> TaskDefinitionError:
    where, name = _place(dependency)
    remedy = f"broker.dependency_overrides[{name}] = ... says what stands for it in tasks"
    if parameter is not None and getattr(parameter.annotation, "__module__", "") == CONNECTIONS:
        remedy = 'taskiq_fastapi.init(broker, "api.main:app") gives tasks one that knows the application'
    return TaskDefinitionError(f"task {task!r}: its dependency {where} {reason}, and a worker has none: {remedy}")


def _place(dependency: Any) -> tuple[str, str]:
    """Where it is, and what to call it; an object that is called is named by its class."""
    named = cast("Any", dependency if hasattr(dependency, "__qualname__") else type(dependency))
    return f"{named.__module__}.{named.__qualname__}", named.__name__
