"""Retries: which exceptions run a task again, when, and how often (RETRY-01 to RETRY-22)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from celeriq.backoff import RetryPolicy
from celeriq.errors import MaxRetriesExceededError, TaskDefinitionError, TimeLimitExceeded, WorkerLostError
from celeriq.hooks import Middleware
from celeriq.options import (
    EXCEPTIONS,
    DeclaredOptions,
    are_exception_classes,
    is_bool,
    is_count_or_none,
    is_mapping_of_names,
    is_time,
    option,
)
from celeriq.outcome import Failed, Ignore, Outcome, Reject, Retry, Retrying, Snooze

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.definition import Definition

RETRY_KWARGS: Final = frozenset({"countdown", "max_retries"})


def _are_policies(given: Any) -> bool:
    if not isinstance(given, Mapping):
        return False
    kinds, policies = tuple[Any, ...](given), tuple[Any, ...](given.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
    return are_exception_classes(kinds) and all(isinstance(policy, RetryPolicy) for policy in policies)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions(DeclaredOptions):
    """What `Retries` reads."""

    autoretry_for: tuple[type[Exception], ...] = option((), are_exception_classes, EXCEPTIONS.format("autoretry_for"))
    """Exceptions after which the task runs again, subclasses included (RETRY-14). Defaults to none."""

    dont_autoretry_for: tuple[type[Exception], ...] = option(
        (), are_exception_classes, EXCEPTIONS.format("dont_autoretry_for")
    )
    """Exceptions among these after which it does not (RETRY-14). Defaults to none."""

    max_retries: int | None = option(3, is_count_or_none, "it must be 0 or more, or None for no limit")
    """How often it may run again; None is without end (RETRY-02). Defaults to 3, so at most 4 executions."""

    default_retry_delay: float = option(180.0, is_time, "it must be 0 or more, in seconds")
    """Seconds before it runs again (RETRY-03, RETRY-15). Defaults to 180."""

    retry_kwargs: Mapping[str, Any] = option(
        dict, is_mapping_of_names, 'it must be a mapping: write retry_kwargs={"countdown": 5, "max_retries": 5}'
    )
    """`countdown` and `max_retries` of automatic retries alone (RETRY-15). Defaults to the task's own."""

    retry_backoff: bool | float = option(False, lambda given: is_bool(given) or is_time(given), "it must be seconds")  # noqa: FBT003
    """Seconds before the first automatic retry, doubled with each; True is 1 (RETRY-16). Defaults to no backoff."""

    retry_backoff_max: float = option(600.0, is_time, "it must be 0 or more, in seconds")
    """Seconds that the backoff grows to (RETRY-17). Defaults to 600."""

    retry_jitter: bool = option(True, is_bool, "it must be True or False")  # noqa: FBT003
    """Whether the backoff is a random time up to what it would be (RETRY-18). Defaults to True."""

    retry_policies: Mapping[type[Exception], RetryPolicy] = option(
        dict, _are_policies, "it must be a mapping: write retry_policies={ConnectionError: RetryPolicy(delay=5)}"
    )
    """What holds for some exceptions in place of all this; the first that fits. Defaults to none."""

    def policy(self, error: BaseException) -> RetryPolicy | None:
        """What holds for an exception that the task raised, None if it is no reason to run again."""
        if isinstance(error, self.dont_autoretry_for) or self._needs_its_name(error):
            return None
        for kind, policy in self.retry_policies.items():
            if isinstance(error, kind):
                return policy
        return self.automatic() if isinstance(error, self.autoretry_for) else None

    def _needs_its_name(self, error: BaseException) -> bool:
        """What has killed its process may do so again: `autoretry_for=(Exception,)` does not mean that (ACK-04)."""
        named = (*self.autoretry_for, *self.retry_policies)
        return isinstance(error, WorkerLostError) and WorkerLostError not in named

    def automatic(self) -> RetryPolicy:
        """What holds for `autoretry_for`."""
        given = self.retry_kwargs
        return RetryPolicy(
            max_retries=given.get("max_retries", self.max_retries),
            delay=given.get("countdown", self.default_retry_delay),
            backoff=float(self.retry_backoff),
            backoff_max=self.retry_backoff_max,
            jitter=self.retry_jitter,
        )


class Retries(Middleware):
    """Runs a task again after the exceptions that it names, and when it asks for it."""

    options = RetryOptions

    def __init__(self, chance: random.Random | None = None) -> None:
        super().__init__()
        self._chance = chance or random.Random()  # noqa: S311 - jitter is no secret

    def check(self, task: Definition) -> None:
        mine = task.options[RetryOptions]
        if unknown := mine.retry_kwargs.keys() - RETRY_KWARGS:
            raise TaskDefinitionError(
                f"task {task.name!r}: retry_kwargs knows {' and '.join(sorted(RETRY_KWARGS))}, not {unknown.pop()!r}"
            )
        if mine.retry_backoff and "countdown" in mine.retry_kwargs:
            raise TaskDefinitionError(
                f"task {task.name!r}: retry_backoff and retry_kwargs['countdown'] both say how long to wait: give one"
            )
        if not mine.autoretry_for and (mine.retry_backoff or mine.retry_kwargs or mine.dont_autoretry_for):
            raise TaskDefinitionError(
                f"task {task.name!r}: retry_backoff, retry_kwargs and dont_autoretry_for are about automatic retries: "
                "name the exceptions with autoretry_for=(...)"
            )
        try:
            mine.automatic()
        except (TypeError, ValueError) as error:
            raise TaskDefinitionError(f"task {task.name!r}: retry_kwargs: {error}") from error

    def decide(self, attempt: Attempt, error: BaseException) -> Outcome | None:
        if isinstance(error, Retry):
            return _asked_for(attempt, error)
        if isinstance(error, Snooze):
            return Retrying(error, error.seconds, counted=False)
        # Whatever `autoretry_for=(Exception,)` catches: these say themselves how the task ends (RETRY-14, RETRY-19).
        policy = (
            None
            if isinstance(error, Ignore | Reject | TimeLimitExceeded)
            else attempt.options[RetryOptions].policy(error)
        )
        if policy is None or _is_exhausted(attempt, policy.max_retries):
            return None
        return Retrying(error, policy.seconds(attempt.retries, self._chance.randrange))


def _asked_for(attempt: Attempt, asked: Retry) -> Outcome:
    limit = attempt.options[RetryOptions].max_retries if asked.max_retries is None else asked.max_retries
    if _is_exhausted(attempt, limit):
        return Failed(_when_exhausted(attempt, asked.exc))
    delay = attempt.options[RetryOptions].default_retry_delay if asked.countdown is None else asked.countdown
    at = None if asked.eta is None or asked.countdown is not None else _timestamp(asked.eta)
    return Retrying(asked.exc, delay, at, asked.changes, asked=asked)


def _is_exhausted(attempt: Attempt, limit: int | None) -> bool:
    return limit is not None and attempt.retries >= limit


def _when_exhausted(attempt: Attempt, exc: BaseException | None) -> BaseException:
    """The task's own exception, or one that says what happened (RETRY-04, RETRY-05)."""
    if exc is not None:
        return exc
    call = attempt.envelope
    error = MaxRetriesExceededError(f"Can't retry {call.task}[{call.id}] args:{tuple(call.args)} kwargs:{call.kwargs}")
    error.task_args, error.task_kwargs = tuple(call.args), dict(call.kwargs)
    return error


def _timestamp(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def retry(attempt: Attempt, asked: Retry) -> NoReturn:
    """Raise what ends the attempt: `asked`, or what a task gets that has no retry left.

    A task may catch that one and do something else, so it is raised here and not decided later.
    """
    if RetryOptions not in attempt.options:
        raise TaskDefinitionError("self.retry() needs the middleware Retries, which this broker does not have")
    match _asked_for(attempt, asked):
        case Failed(error):
            raise error
        case _:
            raise asked


def changed_call(
    definition: Definition,
    call: tuple[list[Any], dict[str, Any]],
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The fields of the envelope for a retry with other arguments.

    Where only `args` or only `kwargs` are given anew, those of the other that they do not contradict are kept
    (RETRY-13).
    """
    own_args, own_kwargs = call
    names = list(definition.signature.parameters)
    if args is not None and kwargs is not None:
        return {"args": list(args), "kwargs": dict(kwargs)}
    if args is not None:
        given = frozenset(names[: len(args)])
        return {"args": list(args), "kwargs": {name: own_kwargs[name] for name in own_kwargs if name not in given}}
    if kwargs is not None:
        named = dict(zip(names, own_args, strict=False))
        if named.keys() & kwargs.keys():
            return {"args": [], "kwargs": {**named, **kwargs}}
        return {"kwargs": dict(kwargs)}
    return {}
