"""`python -m tests.conformance.recording SYSTEM FILE ONLY forwards|backwards`: a system plays, and is written down.

Celery does so in the environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.conformance.playing import Observations, picked, play
from tests.conformance.scenario import SCENARIOS


async def played(player: Any, only: str, *, backwards: bool) -> Observations:
    chosen = picked(SCENARIOS.values(), only)
    async with player.worker(name="main", concurrency=2) as worker:
        seen = await play(player, reversed(chosen) if backwards else chosen)
        if not worker.running:
            raise RuntimeError(f"the worker ended:\n{worker.output()}")
    return seen


def main(system: str, file: Path, only: str, order: str) -> None:
    playing: Any = import_module(f"tests.conformance.{system}_app")
    seen = asyncio.run(played(playing.player, only, backwards=order == "backwards"))
    file.write_text(json.dumps({"versions": playing.VERSIONS, "observations": seen}))
    sys.stdout.flush()
    # Results of Celery's that nobody fetched would go on to unsubscribe while the interpreter ends.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4])
