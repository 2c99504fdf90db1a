"""How a task tells that it ran, whatever runs it: one byte, or one number, appended to a file.

Appending is atomic between threads and processes, and costs every system the same microsecond.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from time import monotonic_ns


class Meter:
    """Ticks and lateness of one measurement, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._ticks = folder / "ticks"
        self._late = folder / "late"
        self._tick = os.open(self._ticks, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        self._note = os.open(self._late, os.O_APPEND | os.O_CREAT | os.O_WRONLY)

    def tick(self) -> None:
        """A task has run."""
        os.write(self._tick, b".")

    def late(self, due_ns: int) -> None:
        """A task that was due at `due_ns` of the monotonic clock, which is one for all processes, begins now."""
        os.write(self._note, struct.pack("q", monotonic_ns() - due_ns))
        self.tick()

    def ticks(self) -> int:
        return self._ticks.stat().st_size

    def lateness_ms(self) -> list[float]:
        """Milliseconds, in no order."""
        return [late / 1e6 for (late,) in struct.iter_unpack("q", self._late.read_bytes())]

    def clear(self) -> None:
        os.truncate(self._ticks, 0)
        os.truncate(self._late, 0)
