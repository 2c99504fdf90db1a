"""The states of a task, as in Celery (ST-01)."""

from __future__ import annotations

PENDING = "PENDING"
RECEIVED = "RECEIVED"
STARTED = "STARTED"
RETRY = "RETRY"
SUCCESS = "SUCCESS"
FAILURE = "FAILURE"
REVOKED = "REVOKED"
REJECTED = "REJECTED"
IGNORED = "IGNORED"

READY = frozenset({SUCCESS, FAILURE, REVOKED})
"""The task has ended."""

PROPAGATE = frozenset({FAILURE, REVOKED})
"""Its end is an exception for whoever asks for the result."""

EXCEPTION = PROPAGATE | {RETRY}
"""The stored result is an exception."""

UNREADY = frozenset({PENDING, RECEIVED, STARTED, REJECTED, RETRY})

_HIGHEST_FIRST = (SUCCESS, FAILURE, None, REVOKED, STARTED, RECEIVED, REJECTED, RETRY, PENDING)


def precedence(state: str) -> int:
    """Of two states that are told of one task, the one with the lower number holds; your own come after FAILURE."""
    return _HIGHEST_FIRST.index(state if state in _HIGHEST_FIRST else None)
