"""Tasks of a library, which does not know the broker of the application: they are tasks of each (DEF-02)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack, cast
from weakref import WeakSet, ref

from celeriq.errors import TaskDefinitionError

if TYPE_CHECKING:
    from celeriq.keywords import TaskKeywords
    from celeriq.redis.streams import RedisBroker
    from celeriq.task import Task

P = ParamSpec("P")
R = TypeVar("R")


class SharedTask(Generic[P, R]):
    """Stands for the task of the broker that was made last; `on(broker)` is that of another one."""

    def __init__(self, name: str, function: Callable[P, R], options: dict[str, Any]) -> None:
        self.task_name = name
        self.function = function
        self._options = options

    def register(self, broker: RedisBroker) -> None:
        register: Callable[..., Any] = broker.task
        register(name=self.task_name, **self._options)(self.function)

    def on(self, broker: RedisBroker) -> Task[P, R]:
        """The task of this broker."""
        return cast("Task[P, R]", broker.find_task(self.task_name))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.on(_current(self.task_name))(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.on(_current(self.task_name)), name)

    def __repr__(self) -> str:
        return f"<SharedTask {self.task_name!r}>"


class NoBrokerError(RuntimeError, AttributeError):
    """A shared task was asked for what only the task of a broker has."""


_shared: list[SharedTask[..., Any]] = []
_brokers: WeakSet[RedisBroker] = WeakSet()
_last: list[ref[RedisBroker]] = []


def join(broker: RedisBroker) -> None:
    """Called by a broker that was made: it gets all shared tasks, those that come later, too."""
    _brokers.add(broker)
    _last[:] = [ref(broker)]
    for task in _shared:
        task.register(broker)


def _current(task_name: str) -> RedisBroker:
    broker = _last[0]() if _last else None
    if broker is None:
        raise NoBrokerError(f"shared task {task_name!r} has no broker yet: import the application's RedisBroker first")
    return broker


def shared_task(*, name: str | None = None, **options: Unpack[TaskKeywords]) -> Callable[[Callable[P, R]], Task[P, R]]:
    """`@shared_task()` registers a function as a task of every broker that there is and will be.

    Raises `TaskDefinitionError` when it is applied twice.
    """

    def share(function: Callable[P, R]) -> Task[P, R]:
        if isinstance(function, SharedTask):
            raise TaskDefinitionError(f"{function!r} is shared already: say @shared_task() once")
        task = SharedTask(name or f"{function.__module__}.{function.__name__}", function, dict(options))
        _shared.append(task)
        for broker in list(_brokers):
            task.register(broker)
        return cast("Task[P, R]", task)

    return share
