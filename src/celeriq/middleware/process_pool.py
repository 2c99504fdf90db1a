"""Process pool: `def` tasks in child processes, which a limit can interrupt, and anything can kill (LIM-04)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from celeriq.errors import TaskDefinitionError, UnsupportedOptionError
from celeriq.hooks import Middleware
from celeriq.options import DeclaredOptions, Options, option

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.definition import Definition
    from celeriq.processes import Processes


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions(DeclaredOptions):
    """What `ProcessPool` reads."""

    pool: Literal["thread", "process"] | None = option(
        None, lambda given: given in (None, "thread", "process"), 'it must be "thread" or "process"'
    )
    """Where a `def` task runs. Defaults to a thread; `async def` always runs on the event loop."""


class ProcessPool(Middleware):
    """Runs tasks with `pool="process"` in child processes, one call at a time in each.

    One that is killed, or kills itself, fails its own task with `WorkerLostError` (ACK-04). It is killed when the task
    reaches its hard limit (LIM-02), is terminated (LIM-14), or its worker stops and does not wait any longer.
    """

    options = PoolOptions

    def __init__(
        self,
        size: int | None = None,
        *,
        max_tasks_per_child: int | None = None,
        max_memory_per_child: int | None = None,
    ) -> None:
        """Each is for one worker process, which starts children when it needs them, and keeps them.

        `size`: how many there may be; further calls wait. Defaults to the number of CPUs.
        `max_tasks_per_child`: calls after which a child is replaced. Defaults to None, no limit (SHUT-07).
        `max_memory_per_child`: KiB of resident memory; a child that has more after a call is replaced. Defaults to
        None, no limit.

        Raises `UnsupportedOptionError` for less than 1.
        """
        super().__init__()
        self._size, self._max_tasks, self._max_memory = size, max_tasks_per_child, max_memory_per_child
        for name, given in (
            ("size", size),
            ("max_tasks_per_child", max_tasks_per_child),
            ("max_memory_per_child", max_memory_per_child),
        ):
            if given is not None and given < 1:
                raise UnsupportedOptionError(f"{name} is {given!r}; it must be 1 or more, or None")
        self._processes: Processes | None = None

    def check(self, task: Definition) -> None:
        match task.options[PoolOptions].pool:
            case "process":
                _check_process(task)
            case "thread" if task.is_async:
                raise TaskDefinitionError(
                    f'task {task.name!r}: pool="thread" is for `def`, and `async def` runs on the event loop: write '
                    "`def`, or leave pool out"
                )
            case _:
                pass

    def concerns(self, options: Options) -> bool:
        return options[PoolOptions].pool == "process"

    async def call(
        self, attempt: Attempt, definition: Definition, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        soft, hard = attempt.limits
        return await self._started().run(definition.function, args, kwargs, soft=soft, hard=hard)

    def _started(self) -> Processes:
        if self._processes is None:
            from celeriq.processes import Processes  # noqa: PLC0415 - see _check_process

            self._processes = Processes(
                self._size, max_tasks_per_child=self._max_tasks, max_memory_per_child=self._max_memory
            )
        return self._processes

    async def shutdown(self) -> None:
        """Called when the worker has ended its attempts."""
        if self._processes is not None:
            await self._processes.close(0)
            self._processes = None


def _check_process(task: Definition) -> None:
    if task.bound:
        raise TaskDefinitionError(
            f"task {task.name!r}: bind=True passes the running task, which stays in the worker: leave bind out, or "
            'leave pool="process" out'
        )
    if task.is_wrapped:
        raise TaskDefinitionError(
            f"task {task.name!r}: {task.bound_class.__name__}.__call__ stands around its body and stays in the worker: "
            'write it without, or leave pool="process" out'
        )
    if injected := sorted(task.graphs.for_overrides({}).injected_parameters):
        raise TaskDefinitionError(
            f"task {task.name!r}: {injected[0]!r} is injected, which a process cannot be sent: pass plain data, or "
            'leave pool="process" out'
        )
    from celeriq.processes import check  # noqa: PLC0415 - it needs an extra, and says so where there is none

    try:
        check(task.function)
    except TaskDefinitionError as error:
        raise TaskDefinitionError(f"task {task.name!r}: {error}") from error
