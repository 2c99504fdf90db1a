"""Tasks that are registered elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskiq.abc.broker import AsyncBroker

from celeriq.calling import Kicker
from celeriq.options import Options


class Remote:
    """A task that is called by its name: what it takes, whoever runs it knows (CALL-08)."""

    def __init__(
        self, broker: AsyncBroker, name: str, options: Options | None = None, kicker: Kicker[Any, Any] | None = None
    ) -> None:
        """`options`: what is taken for its own, of which a call may say some; `kicker`: the task's, if it is known."""
        self.broker = broker
        self.task_name = name
        self.per_call: Sequence[str] = () if options is None else options.per_call
        self._kicker: Kicker[Any, Any] = kicker or Kicker(task_name=name, broker=broker, labels={})
        self._kicker.options = options

    def kicker(self) -> Kicker[Any, Any]:
        return self._kicker

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """There is nothing to compare them with."""
