"""A record for every task that was sent, so that an unknown id can be told from one that waits.

Celery keeps none before a task starts: PENDING there means "unknown" as well (ST-02). Its users add one by a signal.
"""

from __future__ import annotations

from taskiq import TaskiqMessage, TaskiqMiddleware

from celeriq import Record, RedisResults


class Announcement(TaskiqMiddleware):
    """Stores PENDING before the message is sent; a worker that was faster is not overwritten."""

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        results = self.broker.result_backend
        if isinstance(results, RedisResults):
            await results.store(Record(status="PENDING", task_id=message.task_id), only_if_absent=True)
        return message
