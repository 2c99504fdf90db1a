"""Whether anybody has ever listened on a queue: who sends where nobody does is told so, once."""

from __future__ import annotations

import logging

from redis.exceptions import RedisError

from celeriq.redis.keys import Keys
from celeriq.redis.scripts import Scripts

logger = logging.getLogger(__name__)


class Listeners:
    """Looks once for each queue that this process sends to."""

    def __init__(self, keys: Keys, scripts: Scripts) -> None:
        self._keys = keys
        self._scripts = scripts
        self._looked_for: set[str] = set()

    async def look(self, queue: str) -> None:
        """Called before a message is sent there, which waits for a worker in any case."""
        if queue in self._looked_for:
            return
        self._looked_for.add(queue)
        try:
            known = await self._scripts.known(keys=[self._keys.queues], args=[queue])
        except (RedisError, OSError) as error:
            self._looked_for.discard(queue)
            logger.debug("not looked for a worker of queue %r: %s", queue, error)
            return
        if not known:
            logger.warning(
                "no worker has listened on queue %r yet: its messages wait until one does (`celeriq worker -Q %s`)",
                queue,
                queue,
            )
