"""One subscription per process, for everyone in it who waits for a task."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

LOOK_AGAIN = b""
"""What is told when something may have been missed: the connection was broken, and is there again."""

Told = asyncio.Queue[bytes]


class Watch:
    """Hands on what is published, to whoever watches its channel; everything runs on the loop of the first watcher."""

    def __init__(self, client: Callable[[], Redis]) -> None:
        self._new_client = client
        self._watchers: defaultdict[str, set[Told]] = defaultdict(set)
        self._confirmed: dict[str, asyncio.Event] = {}
        self._subscription: Any = None
        self._client: Redis | None = None
        self._reader: asyncio.Task[None] | None = None
        self._subscribing = asyncio.Lock()
        self._commands: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def changes(self, channel: str) -> AsyncGenerator[Told]:
        """What is published on `channel` from now on: whoever looks at the record after this misses nothing."""
        told: Told = asyncio.Queue()
        self._watchers[channel].add(told)
        try:
            await self._to_its_end(self._subscribe(channel))
            await self._confirmed[channel].wait()
            yield told
        finally:
            self._watchers[channel].discard(told)
            if not self._watchers[channel]:
                await self._leave(channel)

    async def _leave(self, channel: str) -> None:
        """Whoever leaves has no use for an error, and a Redis that is away tells nobody anything."""
        try:
            await self._to_its_end(self._unsubscribe(channel))
        except (RedisError, OSError) as error:
            logger.debug("not unsubscribed: %s", error)

    async def _to_its_end(self, command: Coroutine[Any, Any, None]) -> None:
        """Whoever waits may give up at any moment: a connection that is left in the middle of a command, or while it
        is being made, would take one answer for another from then on.
        """
        running = asyncio.create_task(command)
        self._commands.add(running)
        running.add_done_callback(self._commands.discard)
        running.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await asyncio.shield(running)

    async def close(self) -> None:
        running = [*self._commands, *([self._reader] if self._reader is not None else [])]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        if self._subscription is not None and self._client is not None:
            await self._subscription.aclose()
            await self._client.aclose()
        self._subscription = self._client = self._reader = None
        self._watchers.clear()
        self._confirmed.clear()

    async def _subscribe(self, channel: str) -> None:
        # redis-py connects at the first subscription, and cannot do so for two at once.
        async with self._subscribing:
            if self._subscription is None:
                self._client = self._new_client()
                client: Any = self._client  # pub/sub is not typed in redis-py
                self._subscription = client.pubsub()
            if channel not in self._confirmed:
                await self._subscription.subscribe(channel)
                self._confirmed[channel] = asyncio.Event()
            if self._reader is None:
                self._reader = asyncio.create_task(self._read())

    async def _unsubscribe(self, channel: str) -> None:
        async with self._subscribing:
            if not self._watchers[channel]:
                del self._watchers[channel]
                if self._confirmed.pop(channel, None) is not None:
                    await self._subscription.unsubscribe(channel)

    async def _read(self) -> None:
        """Until `close`. redis-py subscribes anew after a broken connection, and tells so."""
        pause = 0.1
        while True:
            try:
                message = await self._subscription.get_message(timeout=None)
                pause = 0.1
            except (RedisError, OSError) as error:
                logger.debug("subscription broken, again in %.1f s: %s", pause, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)
                continue
            if message is not None:
                self._hand_on(message["type"], message["channel"].decode(), message["data"])

    def _hand_on(self, kind: str, channel: str, data: Any) -> None:
        if kind == "subscribe":
            if (confirmed := self._confirmed.get(channel)) is not None:
                confirmed.set()
            data = LOOK_AGAIN
        elif kind != "message":
            return
        for told in self._watchers.get(channel, ()):
            told.put_nowait(data)
