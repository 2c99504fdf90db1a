"""The message on the wire: JSON with a version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from taskiq.abc.formatter import TaskiqFormatter
from taskiq.labels import LabelType
from taskiq.message import BrokerMessage, TaskiqMessage

from celeriq import record
from celeriq.attempt import RETRIES_LABEL, Attempt, Delivery

if TYPE_CHECKING:
    from celeriq.redis.streams import RedisBroker

VERSION = 1


class Envelope(msgspec.Struct, kw_only=True):
    """One call of one task. Unknown fields are ignored, so that newer writers may add some."""

    v: int = VERSION
    id: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    labels: dict[str, Any]
    labels_types: dict[str, int] | None = None


_decoder = msgspec.json.Decoder(Envelope)


def task_id_of(message: bytes) -> str:
    """The task id, or '' if this is no envelope."""
    try:
        return _decoder.decode(message).id
    except msgspec.DecodeError:
        return ""


def for_retry(message: bytes) -> bytes:
    """The same message for its next run: same id, one retry more (RETRY-01)."""
    envelope = _decoder.decode(message)
    envelope.labels[RETRIES_LABEL] = str(int(envelope.labels.get(RETRIES_LABEL, 0)) + 1)
    envelope.labels_types = {**(envelope.labels_types or {}), RETRIES_LABEL: LabelType.INT}
    return record.encode(envelope)


class EnvelopeFormatter(TaskiqFormatter):
    """Writes and reads envelopes; reading a delivery starts its attempt.

    Taskiq's receiver reads a message inside the asyncio task that will run it, so an attempt set there is seen by
    everything that this message causes, and by nothing else.
    """

    def __init__(self, broker: RedisBroker) -> None:
        self._broker = broker

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        """Raises `EncodeError` for arguments that JSON cannot hold."""
        envelope = Envelope(
            id=message.task_id,
            task=message.task_name,
            args=message.args,
            kwargs=message.kwargs,
            labels=message.labels,
            labels_types=message.labels_types,
        )
        return BrokerMessage(
            task_id=message.task_id,
            task_name=message.task_name,
            message=record.encode(envelope),
            labels=message.labels,
        )

    def loads(self, message: bytes) -> TaskiqMessage:
        envelope = _decoder.decode(message)
        read = TaskiqMessage(
            task_id=envelope.id,
            task_name=envelope.task,
            args=envelope.args,
            kwargs=envelope.kwargs,
            labels=envelope.labels,
            labels_types=envelope.labels_types,
        )
        if isinstance(message, Delivery):
            # Taskiq parses the labels next; those that it cannot must fail here, while this is no attempt yet.
            read.model_copy(update={"labels": dict(read.labels)}).parse_labels()
            self._broker.begin(Attempt(engine=self._broker, delivery=message, message=read))
        return read
