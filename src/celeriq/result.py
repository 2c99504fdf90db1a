"""What a caller holds of a task that it sent."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from taskiq.abc.result_backend import AsyncResultBackend
from taskiq.exceptions import TaskiqResultTimeoutError
from taskiq.result import TaskiqResult
from taskiq.task import AsyncTaskiqTask

R = TypeVar("R")


@runtime_checkable
class Pushes(Protocol):
    """A result backend that tells when a task has ended."""

    async def wait(self, task_id: str, timeout: float | None = None) -> Any: ...  # noqa: ASYNC109 - as callers know it


class AsyncResult(AsyncTaskiqTask[R]):
    """Taskiq's handle of a task that was sent, which waits without asking again and again (W37)."""

    def __init__(
        self,
        task_id: str,
        result_backend: AsyncResultBackend[R],
        return_type: type[R] | None = None,
        *,
        parent: AsyncResult[Any] | None = None,
    ) -> None:
        super().__init__(task_id, result_backend, return_type)
        self.parent = parent
        """The step before this one in its chain."""

    @property
    def id(self) -> str:
        return self.task_id

    def __repr__(self) -> str:
        return f"<AsyncResult {self.task_id}>"

    async def wait_result(
        self,
        check_interval: float = 0.2,
        timeout: float = -1.0,  # noqa: ASYNC109 - Taskiq's signature
        with_logs: bool = False,  # noqa: FBT001, FBT002
    ) -> TaskiqResult[R]:
        """The result, when it is there; raises `TaskiqResultTimeoutError` after `timeout` seconds, 0 waits for ever.

        `check_interval` is for result backends of others, which must be asked.
        """
        if not isinstance(self.result_backend, Pushes):
            return await super().wait_result(check_interval, timeout, with_logs)
        try:
            await self.result_backend.wait(self.task_id, timeout if timeout > 0 else None)
        except TimeoutError as error:
            raise TaskiqResultTimeoutError(timeout=timeout) from error
        return await self.get_result(with_logs=with_logs)
