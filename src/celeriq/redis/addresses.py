"""Where a message goes: from what call, task and routes say to a parcel."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from taskiq import AsyncTaskiqDecoratedTask

from celeriq import envelope
from celeriq.envelope import Envelope
from celeriq.errors import EncodeError, QueueNotFound, SendError
from celeriq.redis.sending import Parcel
from celeriq.routing import Routes, check_priority, find_route, read_routes

LONGEST_DELAY = 2.0**31


class Addresses:
    """Decides queue, priority and delay: the call first, then the task, then the routes, then the default (RT-02)."""

    def __init__(
        self, routes: Routes, default_queue: str, max_payload: int, only: Callable[[], Collection[str]] | None = None
    ) -> None:
        """`only`: the queues that there are, None if a call may make some."""
        self._routers = read_routes(routes)
        self._default_queue = default_queue
        self._max_payload = max_payload
        self._only = only

    def parcel(self, message: Envelope) -> Parcel:
        """The message, addressed and encoded; raises `SendError` for one that cannot be sent."""
        at = None if message.delay else message.eta
        try:
            self._address_all(message)
            encoded = envelope.encode(message, self._max_payload)
        except (EncodeError, ValueError) as error:
            raise SendError(reason=f"task {message.task!r} was not sent: {error}") from error
        return Parcel(message.queue, encoded, message.priority, message.delay, at)

    def queue_of(self, task: AsyncTaskiqDecoratedTask[Any, Any]) -> str:
        """Where calls of the task go that say nothing else; a route may look at the arguments, which are not known."""
        route = find_route(self._routers, task.task_name, (), {})
        return str(task.labels.get("queue") or route.queue or self._default_queue)

    def _address_all(self, message: Envelope) -> None:
        if message.task:
            self._address(message)
        for later in (*message.link, *message.link_error, *message.chain, *(message.members or ())):
            self._address_all(later)
        if message.chord is not None:
            self._address_all(message.chord.body)

    def _address(self, message: Envelope) -> None:
        labels = message.labels
        route = find_route(self._routers, message.task, message.args, message.kwargs)
        message.queue = str(labels.get("queue") or route.queue or self._default_queue)
        if self._only is not None and message.queue not in self._only():
            raise QueueNotFound(
                f"task {message.task!r}: there is no queue {message.queue!r}: name it with RedisBroker(queues=[...]), "
                "or leave create_missing_queues out"
            )
        priority = labels.get("priority", route.priority)
        message.priority = check_priority(0 if priority is None else _number(priority))
        # As other brokers of Taskiq's read it, in seconds.
        message.delay = message.delay or float(labels.get("delay", 0.0))
        if not 0 <= message.delay < LONGEST_DELAY:
            raise ValueError(f"delay is {message.delay}; it must be seconds, 0 or more and less than 2**31")


def _number(given: Any) -> object:
    """A label is text by now."""
    try:
        return int(given)
    except ValueError:
        return given
