"""One id from the request through its tasks to every line that they log."""

from __future__ import annotations

from structlog.contextvars import bind_contextvars, get_contextvars
from taskiq import TaskiqMessage, TaskiqMiddleware

from broker.logs import configure_logging

LABEL = "correlation_id"


class Correlation(TaskiqMiddleware):
    """Carries the correlation id along with the message; a task that nobody's request caused starts one."""

    def startup(self) -> None:
        if self.broker.is_worker_process:
            configure_logging()

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        message.labels[LABEL] = str(get_contextvars().get(LABEL, message.task_id))
        return message

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        bind_contextvars(
            **{LABEL: message.labels.get(LABEL, message.task_id)}, task=message.task_name, task_id=message.task_id
        )
        return message
