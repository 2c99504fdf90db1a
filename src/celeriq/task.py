"""A registered task: what `@broker.task` makes of a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Container, Coroutine, Iterable, Mapping, Sequence
from types import CoroutineType
from typing import Any, Generic, ParamSpec, TypeVar, Unpack, cast, overload

from sqlalchemy.ext.asyncio import AsyncSession
from taskiq.abc.broker import AsyncBroker
from taskiq.decor import AsyncTaskiqDecoratedTask

from celeriq.attempt import Attempt
from celeriq.bound_task import BoundTask
from celeriq.calling import Arguments, Kicker, kiq_many
from celeriq.canvas import Signature
from celeriq.definition import Definition
from celeriq.dependencies import GraphCache, depends_on
from celeriq.errors import TaskDefinitionError
from celeriq.injectable import check_injectable
from celeriq.keywords import CallKeywords
from celeriq.options import Options, TaskOptions
from celeriq.result import AsyncResult
from celeriq.session import uses_session

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


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
        options: Options = labels.pop("options")
        base = options[TaskOptions].base or BoundTask
        self.definition = Definition(task_name, original_func, options, GraphCache(original_func), base)
        check(self.definition)
        super().__init__(broker, task_name, in_attempt(self.definition), labels, return_type)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return cast("R", self.definition.body(*args, **kwargs))

    def __repr__(self) -> str:
        return f"<Task {self.task_name!r}>"

    def kicker(self) -> Kicker[P, R]:
        """The call, to be changed before it is sent: `task.kicker().with_labels(queue="slow").kiq(1)`."""
        kicker: Kicker[P, R] = Kicker(
            task_name=self.task_name, broker=self.broker, labels=dict(self.labels), return_type=self.return_type
        )
        kicker.definition = self.definition
        return kicker

    @property
    def per_call(self) -> Sequence[str]:
        """What a call may say of its options."""
        return self.definition.options.per_call

    @overload  # what it returns is Taskiq's handle, and more
    async def kiq(self: Task[P, CoroutineType[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> AsyncResult[T]: ...

    @overload
    async def kiq(self: Task[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> AsyncResult[T]: ...

    @overload
    async def kiq(self: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]: ...

    async def kiq(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *args: P.args, **kwargs: P.kwargs
    ) -> Any:
        """Send the call, and return its handle as soon as Redis has it.

        Raises `TypeError` for arguments that do not fit the task (DEF-09), and `SendError` with the reason: arguments
        that JSON cannot hold, too large a message, a Redis that does not answer.
        """
        self.check_arguments(args, kwargs)
        return await self.kicker().kiq(*args, **kwargs)

    @overload
    async def delay(self: Task[P, CoroutineType[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> AsyncResult[T]: ...

    @overload
    async def delay(self: Task[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> AsyncResult[T]: ...

    @overload
    async def delay(self: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]: ...

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """`kiq` by the name that Celery's users know (CALL-01)."""
        return await self.kiq(*args, **kwargs)

    @overload
    async def apply_async(
        self: Task[P, CoroutineType[Any, Any, T]],
        args: Sequence[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        **options: Unpack[CallKeywords],
    ) -> AsyncResult[T]: ...

    @overload
    async def apply_async(
        self: Task[P, Coroutine[Any, Any, T]],
        args: Sequence[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        **options: Unpack[CallKeywords],
    ) -> AsyncResult[T]: ...

    @overload
    async def apply_async(
        self: Task[P, R],
        args: Sequence[Any] = ...,
        kwargs: Mapping[str, Any] | None = ...,
        **options: Unpack[CallKeywords],
    ) -> AsyncResult[R]: ...

    async def apply_async(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Unpack[CallKeywords]
    ) -> Any:
        """Send a call with options: see `celeriq.call_options.CallOptions` (CALL-02).

        Raises `TypeError` for arguments that do not fit the task and for unknown options, and what `kiq` raises.
        """
        if not isinstance(args, list | tuple):
            raise TypeError(f"args of task {self.task_name!r} are {args!r}; they must be a tuple or a list")
        if kwargs is not None and not isinstance(kwargs, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"kwargs of task {self.task_name!r} are {kwargs!r}; they must be a mapping")
        return await self.s(*args, **(kwargs or {})).apply_async(**options)

    @overload
    async def delay_on_commit(
        self: Task[P, CoroutineType[Any, Any, T]], session: AsyncSession, /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncResult[T]: ...

    @overload
    async def delay_on_commit(
        self: Task[P, Coroutine[Any, Any, T]], session: AsyncSession, /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncResult[T]: ...

    @overload
    async def delay_on_commit(
        self: Task[P, R], session: AsyncSession, /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncResult[R]: ...

    async def delay_on_commit(self, session: AsyncSession, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Write the call into the outbox, in the transaction of `session`: it is sent when that is committed, and never
        if it is rolled back (DEF-15). The same as `apply_async(args, kwargs, session=session)`.

        Raises what `kiq` raises, and `TablesMissingError` if the database has no table for it.
        """
        return await self.s(*args, **kwargs).apply_async(session=session)

    async def kiq_many(
        self, calls: Iterable[Arguments], *, session: AsyncSession | None = None
    ) -> list[AsyncResult[Any]]:
        """Send thousands of calls in few round trips: `await add.kiq_many([(1, 2), {"x": 3, "y": 4}])`; with a
        `session`, when that is committed.

        Raises `TypeError` for arguments that do not fit, before anything is sent, and `SendError` if some calls were
        not sent; its `unsent` has their positions.
        """
        return await kiq_many(self, calls, session)

    def s(self, *args: Any, **kwargs: Any) -> Signature[R]:
        """The call, not yet made; as a later step it gets the result of the one before as its first argument."""
        return Signature(task=self, args=args, kwargs=kwargs)

    def si(self, *args: P.args, **kwargs: P.kwargs) -> Signature[R]:
        """The same, which takes nothing from the step before it (CAN-02)."""
        return Signature(task=self, args=args, kwargs=kwargs, immutable=True)

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any], number: int | None = None) -> None:
        """Raise `TypeError` for arguments that do not fit this task (DEF-09); `number`: which of many calls it is."""
        definition = self.definition
        if (not kwargs and len(args) in definition.plain_counts) or not definition.options[TaskOptions].typing:
            return
        try:
            definition.signature.bind(*args, **kwargs)
        except TypeError as error:
            what = "the call" if number is None else f"call {number}"
            raise TypeError(f"{what} of task {self.task_name!r}: {error}") from error


def check(task: Definition) -> None:
    """Raise `TaskDefinitionError` for a function that could only fail in a worker."""
    function = task.function
    if not issubclass(task.bound_class, BoundTask):
        raise TaskDefinitionError(
            f"task {task.name!r}: base={task.bound_class.__name__} must be derived from celeriq.BoundTask"
        )
    around = next((vars(kind)["__call__"] for kind in task.bound_class.__mro__ if "__call__" in vars(kind)), None)
    if around is not None and inspect.iscoroutinefunction(around) is not task.is_async:
        word = "async def" if task.is_async else "def"
        raise TaskDefinitionError(
            f"task {task.name!r}: {task.bound_class.__name__}.__call__ stands around its body, which is `{word}`: "
            f"write `{word} __call__`, and call self.run(...) in it"
        )
    if task.bound and not inspect.signature(function).parameters:
        raise TaskDefinitionError(
            f"task {task.name!r}: bind=True passes the running task: write `def {function.__name__}(self: BoundTask)`"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TaskDefinitionError(f"task {task.name!r}: a generator cannot be a task: return a value, do not yield")
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if depends_on(parameter.annotation) and parameter.default is inspect.Parameter.empty:
            raise TaskDefinitionError(
                f"task {task.name!r}: {parameter.name!r} is injected and needs a default, so that callers may "
                f"leave it out: write `{parameter.name}: ... = injected`"
            )
    _refuse_session_in_thread(task, {})


def check_injection(task: Definition, overrides: Mapping[Any, Any], given: Container[Any]) -> None:
    """The same for what is injected, when it is known what stands for what: at the start of a worker."""
    _refuse_session_in_thread(task, overrides)
    check_injectable(task.name, task.graphs.for_overrides(overrides), given)


def _refuse_session_in_thread(task: Definition, overrides: Mapping[Any, Any]) -> None:
    if not task.is_async and uses_session(task.graphs.for_overrides(overrides)):
        raise TaskDefinitionError(
            f"task {task.name!r}: a `def` task runs in a thread, where an AsyncSession cannot be used: "
            "write `async def`"
        )


def in_attempt(task: Definition) -> Callable[..., Any]:
    """The function that Taskiq's receiver calls: it injects by itself and commits before it returns."""

    @functools.wraps(task.function)
    async def run_attempt(*args: Any, **kwargs: Any) -> Any:
        return await Attempt.current().run(task, args, kwargs)

    run_attempt.__signature__ = task.signature  # type: ignore[attr-defined]
    # Arguments are converted in the attempt, and Taskiq does not know how bytes are written here.
    run_attempt.__annotations__ = {}
    return run_attempt
