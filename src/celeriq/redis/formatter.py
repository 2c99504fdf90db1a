"""Envelopes for Taskiq: how its receiver reads a message, and how others write one."""

from __future__ import annotations

from collections.abc import Callable

from taskiq.abc.formatter import TaskiqFormatter
from taskiq.message import BrokerMessage, TaskiqMessage

from celeriq import envelope
from celeriq.attempt import Delivery
from celeriq.envelope import Envelope


class EnvelopeFormatter(TaskiqFormatter):
    """Writes and reads envelopes; reading a delivery begins its attempt.

    Taskiq's receiver reads a message inside the asyncio task that will run it, so an attempt set there is seen by
    everything that this message causes, and by nothing else.
    """

    def __init__(self, max_payload: int, begin: Callable[[Delivery, Envelope, TaskiqMessage], None]) -> None:
        self._max_payload = max_payload
        self._begin = begin

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        """Raises `EncodeError` for arguments that JSON cannot hold, `PayloadTooLargeError` for too many of them."""
        return BrokerMessage(
            task_id=message.task_id,
            task_name=message.task_name,
            message=envelope.encode(envelope.of_message(message), self._max_payload),
            labels=message.labels,
        )

    def loads(self, message: bytes) -> TaskiqMessage:
        read = envelope.decode(message)
        parsed = read.message()
        if isinstance(message, Delivery):
            if read.labels:
                # Taskiq parses the labels next; those that it cannot must fail here, while this is no attempt yet.
                read.message().parse_labels()
            self._begin(message, read, parsed)
        return parsed
