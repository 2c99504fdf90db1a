"""Circuits: whether what a task needs works at present, as all workers together have seen it."""

from __future__ import annotations

from celeriq.redis.keys import Keys
from celeriq.redis.scripts import Scripts
from celeriq.redis.settlement import persistently

FORGET_FAILURES = 86_400_000
"""Milliseconds without another failure, after which a circuit is as good as new."""

ENDED = {True: "1", False: "0", None: ""}


class Circuits:
    """One circuit for each kind of task that has one."""

    def __init__(self, keys: Keys, scripts: Scripts) -> None:
        self._keys = keys
        self._scripts = scripts

    async def open_until(self, kind: str, task_id: str, period: float) -> float | None:
        """Seconds since 1970 at which it may be asked again; None lets the attempt begin."""
        arguments = [task_id, round(period * 1000)]
        moment = await persistently(lambda: self._scripts.let_pass(keys=[self._keys.circuit(kind)], args=arguments))
        return int(moment) / 1000 or None

    async def report(self, kind: str, task_id: str, *, succeeded: bool | None, failures: int, period: float) -> None:
        """How an attempt ended that was let begin: None if that says nothing of what the task needs."""
        arguments = [task_id, ENDED[succeeded], failures, round(period * 1000), FORGET_FAILURES]
        await self._scripts.report(keys=[self._keys.circuit(kind)], args=arguments)
