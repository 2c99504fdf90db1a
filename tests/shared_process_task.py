"""A shared task that runs in child processes: each imports this module, and has no broker."""

from __future__ import annotations

import os

from celeriq import shared_task


@shared_task(name="shared_pid", pool="process")
def shared_pid() -> int:
    return os.getpid()
