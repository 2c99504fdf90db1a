"""The last lines that an attempt has logged, for whoever looks at how it ended."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

from celeriq.attempt import Attempt

OWN = frozenset({"celeriq", "taskiq"})
"""Whose lines are about the attempt, not of it."""

FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLogs:
    """Which lines of an attempt its entry in the history gets."""

    lines: int = 50
    """How many, the last ones. Defaults to 50."""

    size: int = 8192
    """Characters that they have together at most. Defaults to 8192."""

    successes: bool = False
    """Whether those that succeed get any, too. Defaults to False: failures, retries and what was called off do."""

    formatter: logging.Formatter = FORMAT
    """How a line is written. Defaults to time, level, logger and message, and the traceback of an exception."""


FAILURES_ONLY = HistoryLogs()


class AttemptLogs(logging.Handler):
    """Notes what is logged while an attempt of `owner` runs, with the attempt. The loggers' levels say what is."""

    def __init__(self, kept: HistoryLogs, owner: object) -> None:
        super().__init__()
        self.setFormatter(kept.formatter)
        self._kept = kept
        self._owner = owner

    def begin(self) -> None:
        """Note from now on what reaches the root logger."""
        root = logging.getLogger()
        if not root.handlers and logging.lastResort is not None:
            # It speaks only as long as there is no handler.
            root.addHandler(logging.lastResort)
        root.addHandler(self)

    def end(self) -> None:
        logging.getLogger().removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Called in whatever thread logs."""
        attempt = Attempt.current_or_none()
        if attempt is None or attempt.engine is not self._owner or record.name.partition(".")[0] in OWN:
            return
        try:
            line = self.format(record)[: self._kept.size]
        except Exception:  # noqa: BLE001 - as every handler of logging's does
            self.handleError(record)
            return
        if attempt.logs is None:
            attempt.logs = deque(maxlen=self._kept.lines)
        attempt.logs.append(line)

    def text_of(self, attempt: Attempt, *, succeeded: bool) -> str | None:
        """The lines, if such an attempt gets any: the end of them, if they are too long."""
        if not attempt.logs or (succeeded and not self._kept.successes):
            return None
        return "\n".join(attempt.logs)[-self._kept.size :]
