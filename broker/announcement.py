"""A record for every task that was sent, so that an unknown id can be told from one that waits.

Celery keeps none before a task starts: PENDING there means "unknown" as well (ST-02). Its users add one by a signal.
"""

from __future__ import annotations

from redis.exceptions import RedisError
from taskiq import TaskiqMessage, TaskiqMiddleware
from taskiq.exceptions import SendTaskError

from celeriq import Record, RedisResults


class Announcement(TaskiqMiddleware):
    """Stores PENDING before the message is sent; a worker that was faster is not overwritten."""

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        results = self.broker.result_backend
        if isinstance(results, RedisResults):
            try:
                await results.store(Record(status="PENDING", task_id=message.task_id), only_if_absent=True)
            except RedisError as error:
                raise SendTaskError from error
        return message
