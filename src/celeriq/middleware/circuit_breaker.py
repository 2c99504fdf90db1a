"""Circuit breaker: what a task needs and what has failed again and again is left alone for a while."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from celeriq.hooks import Middleware
from celeriq.middleware.kinds import KEY, Key, check_key, is_key, kind_of
from celeriq.options import EXCEPTIONS, DeclaredOptions, Options, are_exception_classes, is_count, is_time, option
from celeriq.outcome import Deferred, Failed, Outcome, Postponed, Reject, Retrying, Snooze, Succeeded

if TYPE_CHECKING:
    from celeriq.attempt import Attempt
    from celeriq.definition import Definition


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitOptions(DeclaredOptions):
    """What `CircuitBreaker` reads."""

    circuit_failures: int | None = option(
        None, lambda given: given is None or (is_count(given) and given > 0), "it must be a number, 1 or more"
    )
    """How many attempts must fail in a row, in all workers together, to open the circuit. Defaults to no circuit."""

    circuit_for: tuple[type[Exception], ...] = option((), are_exception_classes, EXCEPTIONS.format("circuit_for"))
    """Exceptions that count as failures, subclasses included. Defaults to all."""

    circuit_period: float = option(60.0, lambda given: is_time(given) and given > 0, "it must be seconds, more than 0")
    """Seconds that it stays open; then one attempt tries. Defaults to a minute."""

    circuit_key: Key | None = option(None, is_key, KEY)
    """Those with the same key share a circuit, as with `rate_limit_key`. Defaults to all calls of the task."""


class CircuitBreaker(Middleware):
    """Lets no task begin while its circuit is open, then one; if that succeeds, all. Those that wait hold no slot of a
    worker, and use up no retry.
    """

    options = CircuitOptions

    def concerns(self, options: Options) -> bool:
        return options[CircuitOptions].circuit_failures is not None

    def check(self, task: Definition) -> None:
        mine = task.options[CircuitOptions]
        check_key(task, "circuit_key", mine.circuit_key, "circuit_failures", mine.circuit_failures)

    async def before(self, attempt: Attempt) -> Outcome | None:
        moment = await attempt.engine.circuit_open_until(_kind(attempt), attempt.envelope, _period(attempt))
        return None if moment is None else Deferred(moment)

    def after(self, attempt: Attempt) -> Awaitable[None] | None:
        outcome = attempt.outcome
        return None if isinstance(outcome, Deferred) else self._report(attempt, succeeded=_judged(attempt, outcome))

    async def _report(self, attempt: Attempt, *, succeeded: bool | None) -> None:
        most = attempt.options[CircuitOptions].circuit_failures
        assert most
        await attempt.engine.report_to_circuit(
            _kind(attempt), attempt.envelope, succeeded=succeeded, failures=most, period=_period(attempt)
        )


def _judged(attempt: Attempt, outcome: Outcome | None) -> bool | None:
    """None where the body has not run, or says of itself how it ends: that tells nothing of what it needs."""
    match outcome:
        case Succeeded():
            return True
        case Failed(error) | Retrying(error) | Postponed(error):
            counts = isinstance(error, attempt.options[CircuitOptions].circuit_for or Exception)
            return False if attempt.ran and counts and not isinstance(error, Reject | Snooze) else None
        case _:
            return None


def _kind(attempt: Attempt) -> str:
    assert attempt.definition is not None
    return kind_of(attempt.definition, attempt.envelope, attempt.options[CircuitOptions].circuit_key)


def _period(attempt: Attempt) -> float:
    return attempt.options[CircuitOptions].circuit_period
