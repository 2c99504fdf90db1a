"""Many callers, one round trip: what comes while a batch is on its way makes up the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")

Answers = Sequence[Answer | Exception]
Block = tuple[Sequence[Item], asyncio.Future[Answers[Answer]]]
"""Items that were handed in together, and who waits for them."""

MOST_AT_ONCE = 500
QUIET = 8
"""Turns of the loop without anybody new, after which a batch goes: about a tenth of what a round trip costs."""


class Batches(Generic[Item, Answer]):
    """Hands items to `flush`, one batch at a time; a lone item goes at once, without waiting for company.

    `flush` answers each item with what it is worth, or with the exception that its caller gets. A batch
    waits for what comes in the same turn of the loop; then, as long as `more_to_come` says so of its size, and some do
    come, for those of the next turns.
    """

    def __init__(
        self,
        flush: Callable[[Sequence[Item]], Awaitable[Sequence[Answer | Exception]]],
        most: int = MOST_AT_ONCE,
        more_to_come: Callable[[int], bool] = lambda _: False,
    ) -> None:
        self._flush = flush
        self._most = most
        self._more_to_come = more_to_come
        self._waiting: deque[Block[Item, Answer]] = deque()
        self._busy = False
        self._flusher: asyncio.Task[None] | None = None

    async def put(self, item: Item) -> Answer:
        """What `flush` answered to `item`."""
        [answer] = await (self._queue([item]) if self._busy else self._lead(item))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _lead(self, item: Item) -> Answers[Answer]:
        """The first of a batch, which needs no task of its own if it remains alone."""
        self._busy = True
        try:
            await self._gather(1)
            if not self._waiting:
                return await self._flush([item])
            leading = self._queue([item])
            self._waiting.rotate(1)
        finally:
            self._busy = False
            self._flush_waiting()
        return await leading

    async def put_all(self, items: Sequence[Item]) -> list[Answer | Exception]:
        """What became of each item; they share round trips from the first one on."""
        blocks = [self._queue(items[start : start + self._most]) for start in range(0, len(items), self._most)]
        self._flush_waiting()
        return [answer for answers in await asyncio.gather(*blocks) for answer in answers]

    def _queue(self, items: Sequence[Item]) -> asyncio.Future[Answers[Answer]]:
        future: asyncio.Future[Answers[Answer]] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        return future

    def _flush_waiting(self) -> None:
        if self._waiting and not self._busy:
            self._busy = True
            self._flusher = asyncio.get_running_loop().create_task(self._flush_until_none_waits())

    async def _flush_until_none_waits(self) -> None:
        try:
            while self._waiting:
                if batch := self._next_batch():
                    await self._flush_batch(batch)
                await self._gather(0)
        finally:
            self._busy = False

    async def _gather(self, size: int) -> None:
        """Let the loop turn until nobody new comes to the `size` items that are not in the queue."""
        await asyncio.sleep(0)
        before, quiet = 0, 0
        while quiet < QUIET and (waiting := len(self._waiting) + size) < self._most and self._more_to_come(waiting):
            quiet = quiet + 1 if waiting == before else 0
            before = waiting
            await asyncio.sleep(0)

    def _next_batch(self) -> list[Block[Item, Answer]]:
        batch: list[Block[Item, Answer]] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0][0]) <= self._most):
            block = self._waiting.popleft()
            # Whoever was cancelled while it waited does not want it any more.
            if not block[1].done():
                batch.append(block)
                size += len(block[0])
        return batch

    async def _flush_batch(self, batch: list[Block[Item, Answer]]) -> None:
        items = [item for block, _ in batch for item in block]
        try:
            answers: Answers[Answer] = await self._flush(items)
        except Exception as error:  # noqa: BLE001 - it is theirs who wait
            answers = [error] * len(items)
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        start = 0
        for block, future in batch:
            if not future.done():
                future.set_result(answers[start : start + len(block)])
            start += len(block)
