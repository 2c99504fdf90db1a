"""Many callers, one round trip: what comes while a batch is on its way makes up the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

MOST_AT_ONCE = 500


class Batches(Generic[Item, Answer]):
    """Hands items to `flush`, one batch at a time; a lone item goes at once, without waiting for company.

    `flush` answers each item with what it is worth, or with the exception that its caller gets.
    """

    def __init__(
        self, flush: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]], most: int = MOST_AT_ONCE
    ) -> None:
        self._flush = flush
        self._most = most
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._busy = False
        self._flusher: asyncio.Task[None] | None = None

    async def put(self, item: Item) -> Answer:
        """What `flush` answered to `item`."""
        if self._busy:
            return await self._queue(item)
        self._busy = True
        try:
            [answer] = await self._flush([item])
        finally:
            self._busy = False
            self._flush_waiting()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def put_all(self, items: Sequence[Item]) -> list[Answer | BaseException]:
        """What became of each item; they share round trips from the first one on."""
        futures = [self._queue(item) for item in items]
        self._flush_waiting()
        return await asyncio.gather(*futures, return_exceptions=True)

    def _queue(self, item: Item) -> asyncio.Future[Answer]:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        return future

    def _flush_waiting(self) -> None:
        if self._waiting and not self._busy:
            self._busy = True
            self._flusher = asyncio.get_running_loop().create_task(self._flush_until_none_waits())

    async def _flush_until_none_waits(self) -> None:
        try:
            while self._waiting:
                # Whoever was cancelled while it waited does not want it any more.
                batch = [waiting for waiting in self._waiting[: self._most] if not waiting[1].done()]
                del self._waiting[: self._most]
                if batch:
                    await self._flush_batch(batch)
        finally:
            self._busy = False

    async def _flush_batch(self, batch: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._flush([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - it is theirs who wait
            answers = [error] * len(batch)
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
