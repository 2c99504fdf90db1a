"""The parent of the worker processes: starts them, starts them again, and stops them."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

logger = logging.getLogger(__name__)

CANNOT_START = 78
REPLACE_ME = 79
"""A process has run as many tasks as it may (SHUT-07)."""
"""Exit code of a worker whose application cannot be run as it is (EX_CONFIG of sysexits.h)."""

STEADY = 60.0
"""Seconds after which a process that ends had been running well."""
LONGEST_PAUSE = 30.0
LOOK = 1.0
CANCEL = signal.SIGUSR1
"""Tells a worker that is stopping to cancel what runs. Not a second SIGTERM: whoever stops a whole group of processes
sends that to all of them at once."""

STOP = (signal.SIGTERM, CANCEL, signal.SIGKILL)
"""What the first, the second and the third Ctrl-C become."""


@dataclass(slots=True)
class Child:
    """One process, or the pause until it is started again."""

    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    """In a row, each soon after the start."""
    start_at: float = 0.0


class Supervisor:
    """Keeps `count` processes of one command running until it is told to stop.

    `has_grace`: whether what runs gets a limited time when it stops, so that SIGQUIT need not cancel it (SHUT-03).
    A process that ends early is started again at growing intervals; one that cannot start ends everything.
    """

    def __init__(self, command: Sequence[str], count: int, *, has_grace: bool = False) -> None:
        self._command = list(command)
        self._children = [Child() for _ in range(count)]
        self._has_grace = has_grace
        self._signals = 0
        self._exit_code = 0
        # Written to by signals, so that a wait ends; an Event's lock might be held by the very thread they interrupt.
        self._happened, wakes = os.pipe()
        os.set_blocking(self._happened, False)
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        # Never written to: it closes with this process, which its children notice however it ends.
        self._parent, self._alive = os.pipe()

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, self._on_end)
        logger.info("starting %d worker processes", len(self._children))
        while self._signals == 0:
            for child in self._children:
                self._look_after(child)
            self._wait()
        return self._stop()

    def _on_signal(self, number: int, *_: Any) -> None:
        """Ctrl-C each time says more; SIGTERM says the same however often it comes (SHUT-01, SHUT-02)."""
        if number == signal.SIGINT:
            self._signals += 1
        else:
            self._signals = max(self._signals, 2 if number == signal.SIGQUIT and not self._has_grace else 1)

    def _on_end(self, *_: Any) -> None:
        """A handler there must be, or nothing wakes the wait."""

    def _wait(self) -> None:
        select.select([self._happened], [], [], LOOK)
        with suppress(BlockingIOError):
            os.read(self._happened, 1024)

    # -- running ---------------------------------------------------------------------------------------------------

    def _look_after(self, child: Child) -> None:
        if child.process is not None and (code := child.process.poll()) is not None:
            child.process = None
            self._after_end(child, code)
        if child.process is None and self._signals == 0 and monotonic() >= child.start_at:
            self._start(child)

    def _start(self, child: Child) -> None:
        child.started = monotonic()
        child.process = subprocess.Popen([*self._command, "--parent", str(self._parent)], pass_fds=[self._parent])

    def _after_end(self, child: Child, code: int) -> None:
        if code == CANNOT_START:
            self._exit_code = code
            self._signals += 1
            return
        if code == REPLACE_ME:
            return
        child.failures = 0 if monotonic() - child.started > STEADY else child.failures + 1
        pause = min(2.0 ** (child.failures - 1), LONGEST_PAUSE) if child.failures else 0.0
        child.start_at = monotonic() + pause
        logger.error("a worker process ended with code %d; the next one starts in %g s", code, pause)

    # -- stopping --------------------------------------------------------------------------------------------------

    def _stop(self) -> int:
        """Tell them once per signal, and wait until all have ended."""
        told = 0
        while running := [c.process for c in self._children if c.process is not None and c.process.poll() is None]:
            while told < self._signals:
                number = STOP[min(told, len(STOP) - 1)]
                told += 1
                for process in running:
                    process.send_signal(number)
            self._wait()
        return self._exit_code
