"""What is said of tasks elsewhere than at the task: for all of them, or for those of a name or pattern (DEF-08)."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from celeriq.errors import UnsupportedOptionError

ROUTED = {"queue": "default_queue=", "priority": "routes={'*': Route(priority=...)}"}
"""What a default must not say, for it would win over the routes."""


class SaidElsewhere:
    """`defaults` hold where a task says nothing, `overrides` whatever it says: those of its name win over patterns, and
    of these the last.

    Raises `UnsupportedOptionError` for what is no mapping, or is the routes' affair.
    """

    def __init__(self, defaults: Mapping[str, Any], overrides: Mapping[str, Mapping[str, Any]]) -> None:
        for option in defaults:
            if option in ROUTED:
                raise UnsupportedOptionError(f"task_defaults says {option!r}, which routes may say: {ROUTED[option]}")
        for pattern, said in overrides.items():
            if not isinstance(said, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise UnsupportedOptionError(
                    f"overrides[{pattern!r}] is {said!r}; write overrides={{{pattern!r}: {{'max_retries': 5}}}}"
                )
        self._defaults = dict(defaults)
        self._overrides = dict(overrides)

    def with_those(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the task `name`, which says `given`."""
        said = {**self._defaults, **given}
        for pattern, override in self._overrides.items():
            if pattern != name and fnmatchcase(name, pattern):
                said |= override
        return {**said, **self._overrides.get(name, {})}
