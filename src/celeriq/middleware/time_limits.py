"""Time limits: a body that takes too long is told so, and then ended (LIM-01 to LIM-05)."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from celeriq.errors import TaskDefinitionError
from celeriq.hooks import Middleware
from celeriq.options import DeclaredOptions, Options, is_limit_or_none, option
from celeriq.time_limits import within

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.definition import Definition
    from celeriq.envelope import Envelope


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimitOptions(DeclaredOptions):
    """What `TimeLimits` reads."""

    soft_time_limit: float | None = option(None, is_limit_or_none, "it must be seconds, more than 0", per_call=True)
    """Seconds after which `SoftTimeLimitExceeded` is raised inside the body, which may catch it (LIM-01).
    Defaults to no limit."""

    time_limit: float | None = option(None, is_limit_or_none, "it must be seconds, more than 0", per_call=True)
    """Seconds after which the body is ended, and the task has failed with `TimeLimitExceeded` (LIM-02).
    Defaults to no limit."""


class TimeLimits(Middleware):
    """Runs the body under the limits of the call, or of the task, or of all tasks (LIM-03)."""

    options = TimeLimitOptions

    def __init__(self, *, soft_time_limit: float | None = None, time_limit: float | None = None) -> None:
        """Seconds, for tasks that have none of their own. Raises `TaskDefinitionError` for what is no limit."""
        super().__init__()
        self._general = TimeLimitOptions(soft_time_limit=soft_time_limit, time_limit=time_limit)
        _check("all tasks", self._limits(Options(TimeLimitOptions())))

    def check(self, task: Definition) -> None:
        _check(f"task {task.name!r}", self._limits(task.options))
        _check_thread(f"task {task.name!r}", task, task.options)

    def concerns(self, options: Options) -> bool:
        return self._limits(options) != (None, None)

    def stamp(self, envelope: Envelope, options: Options, task: Definition | None) -> None:
        if envelope.options:
            whose = f"the call of task {envelope.task!r}"
            _check(whose, self._limits(options))
            if task is not None:
                _check_thread(whose, task, options)

    def around(self, attempt: Attempt, body: Awaitable[Any]) -> Awaitable[Any]:
        soft, hard = self._limits(attempt.options)
        if attempt.definition is None or attempt.definition.is_async:
            return within(cast("Coroutine[Any, Any, Any]", body), soft, hard)
        # The process that it runs in keeps them. A thread cannot, and the limits for all tasks do not reach it.
        attempt.limits = soft, hard
        return body

    def _limits(self, options: Options) -> tuple[float | None, float | None]:
        """Soft and hard."""
        mine, general = options[TimeLimitOptions], self._general
        return mine.soft_time_limit or general.soft_time_limit, mine.time_limit or general.time_limit


def _check_thread(whose: str, task: Definition, options: Options) -> None:
    mine = options[TimeLimitOptions]
    if mine != TimeLimitOptions() and not task.is_async and options.get("pool") != "process":
        name = "soft_time_limit" if mine.time_limit is None else "time_limit"
        raise TaskDefinitionError(
            f"{whose}: {name}={getattr(mine, name):g} cannot end a thread, where a `def` task runs: "
            'write `async def`, or pool="process"'
        )


def _check(whose: str, limits: tuple[float | None, float | None]) -> None:
    soft, hard = limits
    if soft is not None and hard is not None and soft > hard:
        raise TaskDefinitionError(
            f"{whose}: soft_time_limit={soft:g} comes after time_limit={hard:g} and would never be told: make it less"
        )
