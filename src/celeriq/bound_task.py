"""The running task, as its own body sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from taskiq_dependencies import Depends

from celeriq import record, request
from celeriq.attempt import Attempt
from celeriq.middleware import retries
from celeriq.outcome import Retry
from celeriq.record import Record
from celeriq.request import Request
from celeriq.routing import Route

if TYPE_CHECKING:
    from celeriq.definition import Definition

CARRIED = ("queue", "priority", "headers", "shadow")
"""What a retry may say of its message beside the task's options."""


class BoundTask:
    """Who the running task is, and how it tells of its progress and asks to run again.

    `@broker.task(bind=True)` passes it as `self`, `task: CurrentTask = injected` injects it. There is one for each task
    and process, made once (DEF-01): what you keep in it is shared by all runs; `request` is the one that runs here.
    Derive from it to handle what becomes of your tasks (EXE-06), and say `@broker.task(base=YourTask)`; attributes of
    the class that bear the name of an option are its value for all these tasks.
    """

    definition: Definition

    @property
    def request(self) -> Request:
        """The call that runs here."""
        attempt = Attempt.current_or_none()
        return Request(task=self.name) if attempt is None else request.of_attempt(attempt)

    @property
    def id(self) -> str:
        return Attempt.current().envelope.id

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def retries(self) -> int:
        """How often the task was retried before this attempt; 0 in the first."""
        return Attempt.current().retries

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The task's function, for a `__call__` that stands around it (DEF-06); awaited if it is `async def`."""
        function = self.definition.function
        return function(self, *args, **kwargs) if self.definition.bound else function(*args, **kwargs)

    async def update_state(self, state: str, meta: Any = None, task_id: str | None = None) -> None:
        """Store `state` and `meta`, at once and outside of the transaction (ST-04).

        What a part of the task tells after the task has ended is dropped. Raises `EncodeError` for what JSON lacks.
        """
        attempt = Attempt.current()
        record.refuse_what_is_lost(meta, record.encode(meta))
        if attempt.outcome is not None:
            return
        if task_id is None or task_id == attempt.envelope.id:
            await attempt.engine.store(Record(status=state, result=meta, task_id=attempt.envelope.id), attempt)
        else:
            await attempt.engine.store(Record(status=state, result=meta, task_id=task_id), None)

    def retry(  # noqa: PLR0917 - as in Celery
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: BaseException | None = None,
        throw: bool = True,  # noqa: FBT001, FBT002 - as in Celery
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> NoReturn:
        """Run again later: raises `Retry`, and nothing after it runs (RETRY-01). Write `raise self.retry(...)`.

        `countdown`: seconds until then, or `eta`: the moment; by default the task's `default_retry_delay`. `args` and
        `kwargs` replace the call's. Raises `exc` when there is no retry left, or `MaxRetriesExceededError` (RETRY-04,
        RETRY-05), `TypeError` for an option that no call has, and what a call raises for illegal ones.
        """
        if not throw:
            raise TypeError(
                f"task {self.name!r}: retry(throw=False) would make two outcomes of one run: it is not supported"
            )
        attempt = Attempt.current_or_none()
        if attempt is None:
            raise exc or Retry("Task can be retried")
        changes = {name: value for name in CARRIED if (value := options.pop(name, None)) is not None}
        Route(queue=changes.get("queue"), priority=changes.get("priority"))
        if options:
            attempt.options.changed_by_call(options)
            changes["options"] = {**attempt.envelope.options, **options}
        call = list(attempt.envelope.args), dict(attempt.envelope.kwargs)
        changes |= retries.changed_call(self.definition, call, args, kwargs)
        retries.retry(attempt, Retry(exc=exc, eta=eta, countdown=countdown, max_retries=max_retries, changes=changes))

    # -- what you may override, as `def` or `async def` -------------------------------------------------------------

    def before_start(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], /) -> Any:
        """Before the body. What it raises fails the task, which is not retried automatically (EXE-07)."""

    def on_success(self, retval: Any, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], /) -> Any:
        """The task has succeeded, and its result is stored (EXE-01)."""

    def on_failure(
        self, exc: BaseException, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], einfo: str, /
    ) -> Any:
        """The task has failed, and its state is stored (EXE-02); `einfo` is the traceback."""

    def on_retry(
        self, exc: BaseException | None, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], einfo: str, /
    ) -> Any:
        """The task will run again, and its message waits (EXE-03)."""

    def after_return(  # noqa: PLR0917 - as in Celery
        self,
        status: str,
        retval: Any,
        task_id: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        einfo: str | None,
        /,
    ) -> Any:
        """The task has succeeded or failed, after the handler for that; `retval` is its value or its exception."""


def bound_task() -> Any:
    attempt = Attempt.current()
    return attempt.definition.instance if attempt.definition is not None else BoundTask()


CurrentTask = Annotated[BoundTask, Depends(bound_task)]
"""The running task: `task: CurrentTask = injected`."""
