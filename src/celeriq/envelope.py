"""The message on the wire: JSON with a version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace
from taskiq.labels import LabelType
from taskiq.message import TaskiqMessage

from celeriq import record
from celeriq.errors import PayloadTooLargeError

VERSION = 1
"""Written and understood. Who writes a newer one must stay with this one for a minor release."""

RETRIES_LABEL = "retries"


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """A key that a call has taken, so that no other with the same key is sent."""

    key: str
    period: float
    """Seconds for which it has the key at most, from when it is due."""
    until_end: bool = True
    """Whether the key is free when the task has ended."""


class Envelope(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One call of one task, and what follows it. Unknown fields are ignored, so that newer writers may add some."""

    v: int
    id: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    labels: dict[str, Any]
    labels_types: dict[str, int] | None = None
    queue: str = ""
    priority: int = 0
    delay: float = 0.0
    """Seconds that it waits from when it is sent."""
    immutable: bool = False
    """As a later step it takes no value of the one before (CAN-02)."""
    link: list[Envelope] = []
    """Sent when this one has succeeded (CALL-16)."""
    link_error: list[Envelope] = []
    """Told when this one has failed (CALL-17)."""
    chain: list[Envelope] = []
    """What remains of its chain (CAN-03)."""
    redelivered: bool = False
    """Whether it came back to its queue once (ACK-10)."""
    postponed: int = 0
    """How often it could not even begin."""
    root: str = ""
    """The id of the task with which it all began; '' if that is this one (CALL-12)."""
    parent: str = ""
    """The id of the task that sent it (CALL-12)."""
    headers: dict[str, Any] = {}
    """The caller's own (CALL-11)."""
    shadow: str = ""
    """Another name, for those who look at it (CALL-10)."""
    argsrepr: str | None = None
    """What is shown of `args` (SEC-07)."""
    kwargsrepr: str | None = None
    expires: float | None = None
    """Seconds since 1970 after which it does not run any more (CALL-06)."""
    eta: float | None = None
    """Seconds since 1970 before which it does not run, as it was asked for (CALL-05)."""
    reserved: int | None = None
    """Microseconds since 1970 at which its rate lets it start."""
    ticket: str = ""
    """The name of the slot that it may have while it waits for its rate."""
    options: dict[str, Any] = {}
    """What the call says of the task's options (CALL-02)."""
    claim: Claim | None = None
    """What it took when it was sent."""
    signature: str = ""
    """Room for who sent it; nothing reads it yet."""
    group: str = ""
    """The id of the group that it belongs to."""
    group_index: int | None = None
    """Its place in that group."""
    chord: Chord | None = None
    """What follows when all of its group have ended; of a group, what follows that (CAN-10)."""
    members: list[Envelope] | None = None
    """Those of a group, which is no message itself but a step of a chain or a header; its `id` is the group's."""
    broken: str = ""
    """Why the body of a chord cannot run: which part of the header has failed (CERR-08)."""

    def message(self) -> TaskiqMessage:
        """The same for Taskiq, which writes into what it gets. Whoever decoded this has checked the types."""
        return TaskiqMessage.model_construct(
            task_id=self.id,
            task_name=self.task,
            args=list(self.args),
            kwargs=dict(self.kwargs),
            labels=dict(self.labels),
            labels_types=self.labels_types,
        )


class Chord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is sent when all parts of a header have ended."""

    size: int
    """The number of parts."""
    body: Envelope


class _Head(msgspec.Struct):
    v: int
    id: str = ""


_decoder = msgspec.json.Decoder(Envelope)
_head_decoder = msgspec.json.Decoder(_Head)


def of_message(message: TaskiqMessage) -> Envelope:
    return Envelope(
        v=VERSION,
        id=message.task_id,
        task=message.task_name,
        args=message.args,
        kwargs=message.kwargs,
        labels=message.labels,
        labels_types=message.labels_types,
    )


def decode(message: bytes) -> Envelope:
    """Raises `msgspec.DecodeError` for what is no envelope, `ValueError` for a newer one."""
    envelope = _decoder.decode(message)
    if envelope.v > VERSION:
        raise ValueError(f"an envelope of version {envelope.v}; this worker understands {VERSION}")
    return envelope


def head(message: bytes) -> tuple[int, str]:
    """Version and task id of an envelope of any version; 0 and '' if it is none."""
    try:
        found = _head_decoder.decode(message)
    except msgspec.DecodeError:
        return 0, ""
    return found.v, found.id


def encode(envelope: Envelope, limit: int) -> bytes:
    """Raises `EncodeError` for arguments that JSON cannot hold, `PayloadTooLargeError` beyond `limit` bytes."""
    encoded = record.encode(envelope)
    record.refuse_what_is_lost([envelope.args, envelope.kwargs], encoded)
    return within(limit, encoded, f"the message of task {envelope.task!r}")


def within(limit: int, encoded: bytes, what: str) -> bytes:
    if len(encoded) > limit:
        raise PayloadTooLargeError(
            f"{what} has {len(encoded)} bytes, the limit is {limit}: store the data elsewhere and pass its key, "
            "or say RedisBroker(max_payload=bytes)"
        )
    return encoded


def for_retry(envelope: Envelope, changes: Mapping[str, Any] | None = None, *, counted: bool = True) -> Envelope:
    """The same message for its next run: same id, one retry more (RETRY-01), all else as it was (RETRY-08)."""
    again = replace(without_turn(envelope), **{"redelivered": False, **(changes or {})})
    if not counted:
        return again
    labels = {**again.labels, RETRIES_LABEL: str(int(again.labels.get(RETRIES_LABEL, 0)) + 1)}
    return replace(again, labels=labels, labels_types={**(again.labels_types or {}), RETRIES_LABEL: LabelType.INT})


def postponed(envelope: Envelope) -> Envelope:
    """The same message, which could not begin."""
    return replace(without_turn(envelope), postponed=envelope.postponed + 1)


def without_turn(envelope: Envelope) -> Envelope:
    """The same message behind all others that wait for a limit: it has had its moment, and given its slot back."""
    return replace(envelope, reserved=None, ticket="")
