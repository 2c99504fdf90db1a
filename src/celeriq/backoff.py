"""How long to wait before the next try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often, and after how long, a task runs again after one kind of exception.

    Raises `ValueError` for a number that makes no sense.
    """

    max_retries: int | None = 3
    """How often it may run again; None is without end."""
    delay: float = 180.0
    """Seconds until then, unless there is a backoff."""
    backoff: float = 0.0
    """Seconds before the first retry, twice as many before each further one; 0 is no backoff (RETRY-16)."""
    backoff_max: float = 600.0
    """Seconds that the backoff grows to (RETRY-17)."""
    jitter: bool = True
    """Whether the backoff is a random number of seconds, at most what it would be without (RETRY-18)."""

    def __post_init__(self) -> None:
        if self.max_retries is not None and self.max_retries < 0:
            raise ValueError(f"max_retries is {self.max_retries}; it must be 0 or more, or None for no limit")
        for name in ("delay", "backoff", "backoff_max"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be seconds, 0 or more")

    def seconds(self, retries: int, draw: Callable[[int], int]) -> float:
        """Before the retry after `retries` others; `draw(n)` gives a whole number from 0 to n - 1."""
        if not self.backoff:
            return self.delay
        # Whole seconds, at least one, as Celery counts them; no power that is larger than the cap can matter.
        grown = min(self.backoff_max, int(max(1.0, self.backoff)) * 2 ** min(retries, 60))
        return draw(int(grown) + 1) if self.jitter else grown
