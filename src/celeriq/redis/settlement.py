"""How an attempt ends in Redis: once, whole, and only if the message is still this worker's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from celeriq.attempt import Attempt, Delivery
from celeriq.outcome import Retrying
from celeriq.redis.envelope import for_retry
from celeriq.redis.keys import Keys
from celeriq.redis.queues import GROUP
from celeriq.redis.scripts import Scripts

logger = logging.getLogger(__name__)

T = TypeVar("T")

AWAY = (RedisConnectionError, RedisTimeoutError, OutOfMemoryError, ReadOnlyError, OSError)
"""Errors that pass: a restart, a failover, a memory that somebody will enlarge."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What the settlement script is told, beside where the message lies."""

    task_id: str
    fenced: bool = True
    record: bytes = b""
    next_message: bytes = b""
    delay: float = 0.0
    """Seconds until the next message is due."""
    dead_because: str = ""


def ending_of(attempt: Attempt) -> Ending:
    """The settlement that the attempt's outcome asks for."""
    outcome = attempt.outcome
    return Ending(
        task_id=attempt.message.task_id,
        fenced=not attempt.acknowledged,
        record=attempt.stored,
        next_message=for_retry(attempt.delivery) if isinstance(outcome, Retrying) else b"",
        delay=outcome.delay if isinstance(outcome, Retrying) else 0.0,
    )


async def settle(scripts: Scripts, keys: Keys, delivery: Delivery, ending: Ending, keep: int) -> bool:
    """Run the script until Redis has answered; False if the message is no longer this worker's.

    `keep`: milliseconds that a record is kept; 0 stores none. Asking again after a broken connection is safe: the
    script's fence lets a settlement through once.
    """
    script_keys = [
        keys.queue(delivery.queue),
        keys.delayed(delivery.queue),
        keys.record(ending.task_id),
        keys.crashes,
        keys.dead(delivery.queue),
    ]
    arguments: list[Any] = [
        GROUP,
        delivery.worker,
        delivery.entry_id,
        int(ending.fenced),
        ending.record if keep else b"",
        keep,
        ending.next_message,
        round(ending.delay * 1000),
        ending.dead_because,
        bytes(delivery) if ending.dead_because else b"",
    ]
    return bool(await persistently(lambda: scripts.settle(keys=script_keys, args=arguments)))


async def persistently(write: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Until Redis has answered: giving up would lose what a task has already committed."""
    pause = 0.1
    while True:
        try:
            return await write()
        except AWAY as error:
            logger.warning("Redis cannot be written to, again in %.1f s: %s", pause, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)
