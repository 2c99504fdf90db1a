"""What a chord is told of a part of its header that has ended (CAN-11)."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import msgspec

from celeriq import record
from celeriq.envelope import Chord, Envelope
from celeriq.steps import fed, is_list, last_step, messages

PLACE = uuid4().hex
"""Stands in the body's message for the results, until all are there."""

FAILED = b"!"
"""What the JSON of a failed part begins with."""


class Part(msgspec.Struct, frozen=True):
    """A part that has ended, and what is sent if it was the last one."""

    group: str
    index: int
    size: int
    told: bytes
    """Its value as JSON, or behind `FAILED` why the body cannot run."""
    body: list[tuple[Envelope, bytes]] = []
    """Its messages, in which `PLACE` stands for the results."""
    outer: Part | None = None
    """In place of a body: the part that has the results as its value."""


def succeeded(ended: Envelope, chord: Chord, value: Any) -> Part:
    """Of a task that has returned `value`."""
    return _part(ended, ended, chord, record.encode(value))


def failed(ended: Envelope, error: BaseException) -> Part | None:
    """Of a task that has failed, and all behind it in its chain with it; None if that is the part of no chord."""
    last = last_step(ended)
    if last.chord is None:
        return None
    why = f"Dependency {ended.id} raised {record.describe(error)}"
    return _part(last, ended, last.chord, FAILED + record.encode(why))


def _part(last: Envelope, ended: Envelope, chord: Chord, told: bytes) -> Part:
    if is_list(chord.body) and chord.body.chord is not None:
        outer = _part(chord.body, ended, chord.body.chord, b"")
        return Part(last.group, last.group_index or 0, chord.size, told, outer=outer)
    body = [(message, record.encode(message)) for message in messages(fed(chord.body, PLACE, ended))]
    return Part(last.group, last.group_index or 0, chord.size, told, body)
