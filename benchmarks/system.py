"""What a measurement asks of a system; each module in `benchmarks/systems` answers with a `SYSTEM`."""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

TASKS = ("noop", "sleep", "crud", "stamp")
"""Every system has a task of each name, with one whole number as its argument; see `benchmarks.work`."""


class System(ABC):
    """One way to run tasks, in an environment of its own, as its own documentation says.

    `stores` and `acknowledges` say what it does for the figure that it gets.
    """

    stores: str
    acknowledges: str
    settings: str
    """What differs from its defaults."""

    @abstractmethod
    def worker(self) -> list[str]:
        """The command of one worker; it obeys SIGTERM."""

    async def open(self) -> None:  # noqa: B027 - not every system connects
        """Connect as a sender."""

    async def close(self) -> None:  # noqa: B027
        """Disconnect."""

    @abstractmethod
    async def send(self, task: str, argument: int, delay: float = 0.0) -> Any:
        """Send one call, `delay` seconds later to be run; answers with what `wait` takes."""

    async def send_all(self, task: str, arguments: Sequence[int], at_once: int) -> list[Any]:
        """Send calls one by one, `at_once` at a time."""
        waiting = iter(arguments)
        sent: list[Any] = []

        async def send_some() -> None:
            for argument in waiting:
                sent.append(await self.send(task, argument))  # noqa: PERF401 - the iterator is shared

        await asyncio.gather(*(send_some() for _ in range(at_once)))
        return sent

    async def send_bulk(self, task: str, arguments: Sequence[int]) -> list[Any]:
        """Send many calls in one; raises `NotImplementedError` where there is no such call."""
        raise NotImplementedError

    async def relay(self, count: int) -> float:
        """Seconds from the commit of a transaction with so many calls until all are sent; raises `NotImplementedError`
        where no transaction can have any.
        """
        raise NotImplementedError

    async def wait(self, sent: Any) -> Any:
        """Wait for the result as the system's users do; raises `NotImplementedError` where there is none."""
        raise NotImplementedError

    async def wait_all(self, sent: Sequence[Any]) -> list[Any]:
        return list(await asyncio.gather(*(self.wait(one) for one in sent)))


class BlockingSystem(System):
    """A system whose senders block: they send from threads when they send at a time."""

    @abstractmethod
    def send_now(self, task: str, argument: int, delay: float = 0.0) -> Any: ...

    def wait_now(self, sent: Any) -> Any:
        raise NotImplementedError

    async def send(self, task: str, argument: int, delay: float = 0.0) -> Any:
        return self.send_now(task, argument, delay)

    async def send_all(self, task: str, arguments: Sequence[int], at_once: int) -> list[Any]:
        with ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(partial(self.send_now, task), arguments))

    async def wait(self, sent: Any) -> Any:
        return self.wait_now(sent)

    async def wait_all(self, sent: Sequence[Any]) -> list[Any]:
        return [self.wait_now(one) for one in sent]


def program(name: str) -> str:
    """A command of this environment."""
    return str(Path(sys.executable).with_name(name))
