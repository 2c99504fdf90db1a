"""Dependency injection inside the attempt, on Taskiq's own graph.

Taskiq opens dependencies before a task and closes them after it, outside of what it guards: a teardown that raises
leaves the others open and the message neither settled nor acknowledged. Here they are opened and closed by the attempt.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from graphlib import TopologicalSorter
from typing import Any, Final

from taskiq_dependencies import DependencyGraph
from taskiq_dependencies.ctx import AsyncResolveContext
from taskiq_dependencies.dependency import Dependency
from taskiq_dependencies.utils import ParamInfo

logger = logging.getLogger(__name__)

injected: Final[Any] = object()
"""The default of every injected parameter: type checkers then know that callers leave it out."""


class Graph(DependencyGraph):
    """A graph whose overrides reach dependencies without cache too, and parameters that say no more than a type.

    taskiq-fastapi overrides `Request` and `HTTPConnection`: FastAPI's dependencies ask for them by type alone.
    """

    def __init__(
        self, target: Callable[..., Any], replaced_deps: dict[Any, Any] | None = None, *, of_dependency: bool = False
    ) -> None:
        self._of_dependency = of_dependency
        super().__init__(target, replaced_deps)

    def _build_graph(self) -> None:
        super()._build_graph()
        replaced = self.replaced_deps or {}
        for dependency in self.subgraphs:
            dependency.dependency = replaced.get(dependency.dependency, dependency.dependency)
            if dependency.dependency is not None:
                self.subgraphs[dependency] = Graph(dependency.dependency, replaced, of_dependency=True)
        if self._of_dependency and not self.ordered_deps:
            self.ordered_deps = [Dependency(self.target)]
        added = [each for dependency in self.called for each in self._inject_by_type(dependency, replaced)]
        if added:
            self.ordered_deps = list(TopologicalSorter(self.dependencies).static_order())

    def _inject_by_type(self, dependency: Dependency, replaced: Mapping[Any, Any]) -> list[Dependency]:
        injected = self.parameters_injected_into(dependency)
        added: list[Dependency] = []
        for parameter in parameters_of(dependency.dependency):
            kind = parameter.annotation
            if isinstance(kind, type) and kind in replaced and parameter.name not in injected:
                added.append(Dependency(replaced[kind], signature=parameter, parent=dependency))
                added[-1].param_name = parameter.name
        if added:
            self.dependencies[dependency] += added
        return added

    @property
    def called(self) -> list[Dependency]:
        """The dependencies that are called when it is resolved, without those of its subgraphs."""
        return [
            entry
            for entry in self.ordered_deps
            if entry.use_cache
            and entry.dependency not in (None, ParamInfo)
            and (self._of_dependency or entry.dependency is not self.target)
        ]

    def parameters_injected_into(self, dependency: Dependency) -> set[str]:
        """The names of those that are filled in when `dependency` is called."""
        return {entry.param_name for entry in self.dependencies.get(dependency, ())} | dependency.kwargs.keys()

    @property
    def injected_parameters(self) -> frozenset[str]:
        """The names of the parameters that the graph fills in."""
        target = next((entry for entry in self.dependencies if entry.dependency is self.target), None)
        return frozenset(entry.param_name for entry in self.dependencies[target]) if target else frozenset()

    def uses(self, function: Callable[..., Any]) -> bool:
        """Whether `function` is anywhere among the dependencies."""
        return any(entry.dependency is function for entries in self.dependencies.values() for entry in entries) or any(
            graph.uses(function) for graph in self.subgraphs.values() if isinstance(graph, Graph)
        )


class GraphCache:
    """Builds a task's graph once per set of overrides, not once per message."""

    def __init__(self, target: Callable[..., Any]) -> None:
        self._target = target
        self._overrides: dict[Any, Any] | None = None
        self._graph: Graph | None = None

    def for_overrides(self, overrides: Mapping[Any, Any]) -> Graph:
        if self._graph is None or self._overrides != overrides:
            self._overrides = dict(overrides)
            self._graph = Graph(self._target, self._overrides)
        return self._graph


class OpenedDependencies(AsyncResolveContext):
    """Dependencies of one attempt: closed in the reverse order of their opening, all of them, whatever one raises."""

    async def resolver(self, executed_func: Any, initial_cache: dict[Any, Any]) -> Any:
        if not isinstance(executed_func, DependencyGraph):
            return await super().resolver(executed_func, initial_cache)
        nested = OpenedDependencies(executed_func, self.main_graph, initial_cache)
        # One list for all: a dependency without cache is closed when its turn comes, not before the others.
        nested.opened_dependencies = self.opened_dependencies
        return await nested.resolve_kwargs()

    async def close_all(self, error: BaseException | None, committed: Callable[[], bool]) -> BaseException | None:
        """Close every dependency; each sees `error`, and what one raises becomes the error, unless it is too late.

        The session's dependency commits when its turn comes. What was opened before it (a lock, say) closes after the
        commit and can no longer change the outcome: it is logged.
        """
        while self.opened_dependencies:
            dependency = self.opened_dependencies.pop()
            try:
                await _close(dependency, error)
            except BaseException as raised:
                if error is None and not committed():
                    error = raised
                elif raised is not error:
                    logger.warning("%r raised while it was closed; too late to matter", dependency, exc_info=raised)
        return error


def parameters_of(dependency: Any) -> list[inspect.Parameter]:
    """Those of a function, of a class, or of an object that is called; none of what is built into Python."""
    called = getattr(dependency, "__origin__", dependency)
    try:
        return list(inspect.signature(called, eval_str=True).parameters.values())
    except NameError:  # imported for type checkers alone
        return list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return []


def depends_on(annotation: Any) -> bool:
    """Whether `annotation` is `Annotated[..., Depends(...)]`, Taskiq's or FastAPI's."""
    return any(
        isinstance(entry, Dependency) or type(entry).__module__ == "fastapi.params"
        for entry in getattr(annotation, "__metadata__", ())
    )


async def _close(dependency: Any, error: BaseException | None) -> None:
    if inspect.isasyncgen(dependency):
        await _finish_async_generator(dependency, error)
    elif inspect.isgenerator(dependency):
        _finish_generator(dependency, error)
    elif hasattr(dependency, "__aexit__"):
        await dependency.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)
    else:
        dependency.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


async def _finish_async_generator(generator: Any, error: BaseException | None) -> None:
    try:
        await (generator.athrow(error) if error else anext(generator))
    except StopAsyncIteration:
        return
    await generator.aclose()
    raise RuntimeError(f"{generator!r} yields more than once: a dependency yields its value and ends")


def _finish_generator(generator: Any, error: BaseException | None) -> None:
    try:
        generator.throw(error) if error else next(generator)
    except StopIteration:
        return
    generator.close()
    raise RuntimeError(f"{generator!r} yields more than once: a dependency yields its value and ends")
