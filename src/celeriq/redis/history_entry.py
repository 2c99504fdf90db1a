"""What the history is told of an attempt, as it stands in the stream."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from celeriq import record
from celeriq.attempt import Attempt
from celeriq.attempt_logs import AttemptLogs
from celeriq.history_rows import moment_of, number_of
from celeriq.outcome import Failed, Ignored, Outcome, Postponed, Retrying, Revoked, Succeeded

NAMES: dict[type[Outcome], str] = {
    Succeeded: "SUCCESS",
    Failed: "FAILURE",
    Retrying: "RETRY",
    Postponed: "POSTPONED",
    Ignored: "IGNORED",
    Revoked: "REVOKED",
}
"""How the history names an outcome; RELEASED is no end of anything."""


class HistoryEntry(msgspec.Struct, kw_only=True, array_like=True):
    """What became of an attempt, written without the names of its fields: there is one for each task.

    A later version may append fields, and reads what has fewer of them.
    """

    id: str
    task: str = ""
    queue: str
    state: str
    worker: str = ""
    runtime: float = 0.0
    """Seconds."""
    retries: int = 0
    error: str | None = None
    root: str = ""
    """The id of the task with which it all began; '' if that is this one."""
    parent: str = ""
    group: str = ""
    logs: str | None = None
    """The last lines that it has logged."""


_decoder = msgspec.json.Decoder(HistoryEntry)


def entry_of(attempt: Attempt, outcome: Outcome, share: float, logs: AttemptLogs | None) -> bytes:
    """The entry of an attempt, b'' if it gets none: of the plain successes a `share` of 0 to 1 do."""
    call = attempt.envelope
    if isinstance(outcome, Succeeded) and not _in_workflow(attempt) and not _chosen(call.id, share):
        return b""
    entry = HistoryEntry(
        id=call.id,
        task=call.task,
        queue=attempt.delivery.queue,
        state="DEAD" if isinstance(outcome, Failed) and not attempt.begun else NAMES[type(outcome)],
        retries=attempt.retries,
        worker=attempt.delivery.worker,
        runtime=attempt.runtime,
        error=record.describe(outcome.error) if isinstance(outcome, Failed | Retrying | Revoked | Postponed) else None,
        root=call.root,
        parent=call.parent,
        group=call.group,
        logs=None if logs is None else logs.text_of(attempt, succeeded=isinstance(outcome, Succeeded)),
    )
    return record.encode(entry)


def _in_workflow(attempt: Attempt) -> bool:
    call = attempt.envelope
    return bool(attempt.next_steps or call.chain or call.group or call.chord)


def _chosen(task_id: str, share: float) -> bool:
    """The same for every attempt of a task."""
    return zlib.crc32(task_id.encode()) < share * 2**32


def row_of(namespace: str, entry_id: str, data: bytes) -> tuple[Any, ...]:
    """The row of an entry: see `celeriq.history_rows.COLUMNS`. Raises `msgspec.DecodeError`, `ValueError`."""
    entry, number = _decoder.decode(data), number_of(entry_id)
    words = (entry.id, entry.task, entry.queue, entry.state, entry.worker)
    return (
        namespace,
        number,
        moment_of(number),
        *(_clean(word) for word in words),
        entry.runtime,
        entry.retries,
        _clean(entry.error or "") or None,
        _clean(entry.root or entry.id),
        _clean(entry.parent) or None,
        _clean(entry.group) or None,
        _clean(entry.logs or "") or None,
    )


def _clean(word: str) -> str:
    """PostgreSQL's text holds every character but one."""
    return word.replace("\0", "\N{REPLACEMENT CHARACTER}")
