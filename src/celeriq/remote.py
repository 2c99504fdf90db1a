"""Tasks that are registered elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskiq.abc.broker import AsyncBroker

from celeriq.calling import Kicker


class Remote:
    """A task that is called by its name: what it takes, whoever runs it knows (CALL-08)."""

    def __init__(
        self, broker: AsyncBroker, name: str, kicker: Kicker[Any, Any] | None = None, per_call: Sequence[str] = ()
    ) -> None:
        self.broker = broker
        self.task_name = name
        self.per_call = per_call
        """What a call may say of its options, if they are known here."""
        self._kicker: Kicker[Any, Any] = kicker or Kicker(task_name=name, broker=broker, labels={})

    def kicker(self) -> Kicker[Any, Any]:
        return self._kicker

    def check_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """There is nothing to compare them with."""
