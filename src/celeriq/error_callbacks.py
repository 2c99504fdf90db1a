"""Error callbacks: who is told of a failure, and how (CERR-01, CERR-02)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter
from itertools import takewhile
from typing import Any

from celeriq.definition import Definition
from celeriq.envelope import Envelope
from celeriq.steps import fed, messages

TOLD = ("request", "exc", "traceback")
"""What a function is called with, in the worker where the task failed."""

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def is_called_where_it_failed(callback: Definition, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether it is a function of more than one argument beside those given, and not bound: others are sent as tasks
    (CERR-02).
    """
    parameters = callback.signature.parameters.values()
    takes_any = any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters)
    positional = [one.name for one in parameters if one.kind in _POSITIONAL]
    free = takewhile(lambda name: name not in kwargs, positional[len(args) :])
    return not callback.bound and (takes_any or len(list(free)) > 1)


def as_sent(callback: Envelope, failed: Envelope) -> list[Envelope]:
    """As a task, with the id of what failed as its first argument and that as its parent (CERR-02, CERR-03)."""
    return messages(fed(callback, failed.id, failed))
