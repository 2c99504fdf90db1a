"""Concurrency limits: how many of a task run at a time, in all workers together (LIM-08)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from celeriq.errors import TaskDefinitionError
from celeriq.hooks import Middleware
from celeriq.middleware.kinds import KEY, Key, check_key, is_key, kind_of
from celeriq.options import DeclaredOptions, Options, TaskOptions, is_count, option
from celeriq.outcome import InLine, Outcome, Released

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.definition import Definition


@dataclass(frozen=True, slots=True, kw_only=True)
class ConcurrencyOptions(DeclaredOptions):
    """What `ConcurrencyLimits` reads."""

    concurrency_limit: int | None = option(
        None, lambda given: given is None or (is_count(given) and given > 0), "it must be a number, 1 or more"
    )
    """How many may run at a time, in all workers together. Defaults to no limit."""

    concurrency_limit_key: Key | None = option(None, is_key, KEY)
    """Those with the same key share it, as with `rate_limit_key`. Defaults to all calls of the task."""


class ConcurrencyLimits(Middleware):
    """Lets so many run; the others wait in line, where they hold no slot of a worker."""

    options = ConcurrencyOptions

    def concerns(self, options: Options) -> bool:
        return options[ConcurrencyOptions].concurrency_limit is not None

    def check(self, task: Definition) -> None:
        mine = task.options[ConcurrencyOptions]
        check_key(
            task, "concurrency_limit_key", mine.concurrency_limit_key, "concurrency_limit", mine.concurrency_limit
        )
        if mine.concurrency_limit is not None and not task.options[TaskOptions].acks_late:
            raise TaskDefinitionError(
                f"task {task.name!r}: with acks_late=False nobody knows when it has ended, so it can have no "
                "concurrency_limit: leave one of them out"
            )

    async def before(self, attempt: Attempt) -> Outcome | None:
        mine = attempt.options[ConcurrencyOptions]
        assert mine.concurrency_limit is not None
        assert attempt.definition is not None
        kind = kind_of(attempt.definition, attempt.envelope, mine.concurrency_limit_key)
        may_run = await attempt.engine.acquire(attempt, kind, mine.concurrency_limit)
        if may_run is None:
            return Released()
        return None if may_run else InLine()
