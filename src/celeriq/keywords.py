"""What type checkers know of the options of tasks and calls; a test compares it with what is declared.

The meaning of each is told where it is declared: `celeriq.options.TaskOptions`, `celeriq.call_options.CallOptions` and
the options of the middlewares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from celeriq.backoff import RetryPolicy
    from celeriq.bound_task import BoundTask
    from celeriq.canvas import Call
    from celeriq.schedule_entry import Scheduled


class PerCall(TypedDict, total=False):
    """Options of a task that a call may say, too."""

    expires: float | datetime | None
    ignore_result: bool
    soft_time_limit: float | None
    time_limit: float | None


class TaskKeywords(PerCall, total=False):
    """Of `@broker.task(...)`; `bind` is named there, for what it makes of the function."""

    queue: str | None
    priority: int | None
    base: type[BoundTask] | None
    aliases: Sequence[str]
    acks_late: bool
    acks_on_failure: bool
    acks_on_timeout: bool
    reject_on_worker_lost: bool
    retry_on_worker_lost: bool
    throws: tuple[type[BaseException], ...]
    typing: bool
    schedule: Scheduled | Sequence[Scheduled]
    labels: Mapping[str, Any]
    pool: Literal["thread", "process"] | None
    track_started: bool
    autoretry_for: tuple[type[Exception], ...]
    dont_autoretry_for: tuple[type[Exception], ...]
    max_retries: int | None
    default_retry_delay: float
    retry_kwargs: Mapping[str, Any]
    retry_backoff: bool | float
    retry_backoff_max: float
    retry_jitter: bool
    retry_policies: Mapping[type[Exception], RetryPolicy]
    store_errors_even_if_ignored: bool
    once: bool
    unique: Literal["skip", "replace", "raise"] | None
    unique_key: str | Callable[..., object] | None
    unique_period: float
    unique_until: Literal["end", "period"]
    circuit_failures: int | None
    circuit_for: tuple[type[Exception], ...]
    circuit_period: float
    circuit_key: str | Callable[..., object] | None
    rate_limit: float | str | None
    rate_limit_key: str | Callable[..., object] | None
    concurrency_limit: int | None
    concurrency_limit_key: str | Callable[..., object] | None


class CallKeywords(PerCall, total=False):
    """Of `apply_async(...)` and `set(...)`."""

    queue: str | None
    priority: int | None
    countdown: float | None
    eta: datetime | None
    task_id: str | None
    link: Call | Sequence[Call]
    link_error: Call | Sequence[Call]
    headers: Mapping[str, Any]
    shadow: str | None
    argsrepr: str | None
    kwargsrepr: str | None
    root_id: str | None
    parent_id: str | None
    session: AsyncSession | None
