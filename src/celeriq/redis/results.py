"""States and results in Redis, in Celery's form, as JSON."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from taskiq.depends.progress_tracker import TaskProgress
from taskiq.result import TaskiqResult
from taskiq_redis import RedisAsyncResultBackend
from taskiq_redis.exceptions import ResultIsMissingError

from celeriq import record
from celeriq.attempt import Attempt, Delivery
from celeriq.errors import UnsupportedOptionError
from celeriq.record import Record
from celeriq.redis.connections import cancellations
from celeriq.redis.keys import GROUP, Keys
from celeriq.redis.scripts import Scripts
from celeriq.redis.watch import Watch

logger = logging.getLogger(__name__)

R = TypeVar("R")

PAUSE = 0.2

FOR_EVER = -1
DAY = 86_400


REFUSED = {
    "keep_results": "a result is kept until it expires, for whoever else waits for it",
    "result_ex_time": "say expires=seconds",
    "result_px_time": "say expires=seconds",
    "serializer": "records are JSON in Celery's shape",
    "prefix_str": "say namespace=",
}
"""Options of `RedisAsyncResultBackend` that are refused, with the reason or the remedy."""


class RedisResults(RedisAsyncResultBackend[R]):
    """The result backend of a `RedisBroker`. Never pickle: who can write to Redis must not run code here."""

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "celeriq",
        expires: float | None = DAY,
        failure_expires: float | None = None,
        **connection: Any,
    ) -> None:
        """`expires`: seconds that a record is kept, counted anew at every write (ST-05); None keeps it for ever.
        `failure_expires`: the same for failures, None as for the others (ST-19).
        """
        for option in connection.keys() & REFUSED.keys():
            raise UnsupportedOptionError(f"RedisResults refuses {option!r}: {REFUSED[option]}")
        super().__init__(url, **connection)
        self.keys = Keys(namespace)
        self.milliseconds = FOR_EVER if expires is None else _milliseconds(expires)
        self.milliseconds_of_failures = self.milliseconds if failure_expires is None else _milliseconds(failure_expires)
        # taskiq-redis builds a client per call, which costs more than the call.
        self._client: Redis = Redis(connection_pool=self.redis_pool)
        self._scripts = Scripts(self.redis_pool)
        # A connection of its own, which may wait for ever: many who follow a task must not keep others from sending.
        self._watch = Watch(partial(patient, url, connection))

    async def store(
        self, stored: Record, *, only_if_absent: bool = False, only_if_held: Delivery | None = None
    ) -> None:
        """Store a state and tell whoever waits; SUCCESS is never overwritten (ST-07).

        `only_if_held`: the message of the task that tells; a worker that was given up tells nothing any more.
        """
        keys = [self.keys.record(stored.task_id)]
        arguments: list[Any] = [record.encode(stored), self.milliseconds, int(only_if_absent)]
        if only_if_held is not None:
            keys.append(only_if_held.stream)
            arguments += (GROUP, only_if_held.entry_id, only_if_held.worker)
        await self._scripts.store(keys=keys, args=arguments)

    async def find(self, task_id: str) -> Record | None:
        """The record of `task_id`, or None: never sent, not started yet, or expired (ST-02)."""
        stored = await self._client.get(self.keys.record(task_id))
        return record.decode(stored) if stored is not None else None

    async def follow(self, task_id: str) -> AsyncGenerator[Record]:
        """The record as it is, then every change of it as it is told, until the task has ended.

        What is told while the connection is down is missed, so after that the record is looked at again.
        """
        async with self._watch.changes(self.keys.record(task_id)) as told:
            last: Record | None = None
            cancelled_before = cancellations()
            current = await self._find_patiently(task_id)
            while True:
                if current is not None and current != last:
                    yield current
                    last = current
                if current is not None and current.ready:
                    return
                if cancellations() > cancelled_before:
                    # Swallowed on the way to Redis: whoever gave up would wait for ever.
                    raise asyncio.CancelledError
                change = await told.get()
                current = record.decode(change) if change else await self._find_patiently(task_id)

    async def _find_patiently(self, task_id: str) -> Record | None:
        """A Redis that is away for a moment is no reason to give up waiting."""
        while True:
            try:
                return await self.find(task_id)
            except (RedisConnectionError, RedisTimeoutError) as error:
                logger.debug("not looked up, again in %.1f s: %s", PAUSE, error)
                await asyncio.sleep(PAUSE)

    async def wait(self, task_id: str, timeout: float | None = None) -> Record:  # noqa: ASYNC109 - as callers know it
        """The record once the task has ended; raises `TimeoutError` after `timeout` seconds, None waits for ever."""
        async with asyncio.timeout(timeout), aclosing(self.follow(task_id)) as changes:
            async for change in changes:
                if change.ready:
                    return change
        raise AssertionError("unreachable: what is followed ends with the task")

    async def forget(self, task_id: str) -> None:
        """Delete the record of `task_id` (ST-21)."""
        await self._client.delete(self.keys.record(task_id))

    async def save_group(self, group_id: str, told: Any) -> None:
        """Keep which results belong together, as long as a result (RES-14)."""
        kept = None if self.milliseconds == FOR_EVER else self.milliseconds
        await self._client.set(self.keys.group(group_id), record.encode(told), px=kept)

    async def find_group(self, group_id: str) -> Any:
        """What was kept, or None."""
        kept = await self._client.get(self.keys.group(group_id))
        return None if kept is None else msgspec.json.decode(kept)

    async def delete_group(self, group_id: str) -> None:
        await self._client.delete(self.keys.group(group_id))

    async def shutdown(self) -> None:
        await self._watch.close()
        await self._scripts.close()
        await super().shutdown()

    async def set_result(self, task_id: str, result: TaskiqResult[R]) -> None:
        """Called by Taskiq's receiver: settles the attempt that runs, or stores a result made elsewhere."""
        attempt = Attempt.current_or_none()
        if attempt is not None and attempt.message.task_id == task_id:
            attempt.end_from_outside(result.return_value, result.error)
            await attempt.engine.settle(attempt)
        elif result.error is not None:
            await self.store(record.failure(task_id, result.error, result.execution_time))
        else:
            await self.store(record.success(task_id, result.return_value, result.execution_time))

    async def is_result_ready(self, task_id: str) -> bool:
        stored = await self.find(task_id)
        return stored is not None and stored.ready

    async def get_result(self, task_id: str, with_logs: bool = False) -> TaskiqResult[R]:  # noqa: ARG002, FBT001, FBT002
        """Raises `ResultIsMissingError` while the task has not ended."""
        stored = await self.find(task_id)
        if stored is None or not stored.ready:
            raise ResultIsMissingError
        return TaskiqResult(
            is_err=stored.failed,
            return_value=cast("R", None if stored.failed else stored.result),
            execution_time=stored.runtime,
            error=record.decode_exception(stored.result) if stored.failed else None,
        )

    async def set_progress(self, task_id: str, progress: TaskProgress[Any]) -> None:
        await self.store(Record(status=str(progress.state), result=progress.meta, task_id=task_id))

    async def get_progress(self, task_id: str) -> TaskProgress[Any] | None:
        stored = await self.find(task_id)
        return TaskProgress(state=stored.status, meta=stored.result) if stored is not None else None


def patient(url: str, connection: dict[str, Any], seconds: float | None = None) -> Redis:
    """A client of one connection, which waits for an answer that may take `seconds`, None for ever."""
    options: dict[str, Any] = {**connection, "socket_timeout": None if seconds is None else seconds + 3}
    return Redis.from_url(url, **options)  # pyright: ignore[reportUnknownMemberType] - untyped in redis-py


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
