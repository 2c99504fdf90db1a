"""Celery's behaviours, one in each file; a broker has those that it is given, by default all of them."""

from __future__ import annotations

from celeriq.hooks import Middleware
from celeriq.middleware.early_ends import EarlyEnds
from celeriq.middleware.expiry import Expiry
from celeriq.middleware.handlers import Handlers
from celeriq.middleware.limited_time import TimeLimits
from celeriq.middleware.results import Results, TrackStarted
from celeriq.middleware.retries import Retries
from celeriq.middleware.revocation import Revocation
from celeriq.middleware.shared_limits import ConcurrencyLimits, RateLimits
from celeriq.middleware.told import Signals

__all__ = [
    "ConcurrencyLimits",
    "EarlyEnds",
    "Expiry",
    "Handlers",
    "Middleware",
    "RateLimits",
    "Results",
    "Retries",
    "Revocation",
    "Signals",
    "TimeLimits",
    "TrackStarted",
    "standard",
]

STANDARD: tuple[type[Middleware], ...] = (
    Revocation,
    Expiry,
    ConcurrencyLimits,
    RateLimits,
    Signals,
    TrackStarted,
    Handlers,
    TimeLimits,
    EarlyEnds,
    Retries,
    Results,
)


def standard() -> list[Middleware]:
    """One of each, in the order in which they are asked; leave one out, and what it does is not done."""
    return [kind() for kind in STANDARD]
