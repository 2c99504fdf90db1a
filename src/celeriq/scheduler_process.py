"""The process of `celeriq scheduler`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import suppress

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from celeriq.cli import CANNOT_START, SchedulerOptions
from celeriq.errors import CeleriqError
from celeriq.program import CannotStartError, fastest_loop, imported, look_in, named, set_up_log
from celeriq.scheduler import Scheduler

logger = logging.getLogger(__name__)

LONGEST_PAUSE = 30.0
"""Seconds between two tries to start while a server does not answer."""

_WITHOUT_TASKS = "a scheduler without its tasks would delete the schedules that they declare"


def run(options: SchedulerOptions) -> int:
    """Until SIGTERM or Ctrl-C; the exit code."""
    try:
        scheduler = load(options)
        asyncio.run(set_up_log(options.log_level))
        with asyncio.Runner(loop_factory=fastest_loop()) as runner:
            runner.run(serve(scheduler))
    except (CannotStartError, CeleriqError) as error:
        print(f"celeriq scheduler cannot start: {error}", file=sys.stderr)  # noqa: T201
        return CANNOT_START
    return 0


def load(options: SchedulerOptions) -> Scheduler:
    """The scheduler, with all tasks of its broker; raises `CannotStartError` when a module does not import."""
    look_in(options.app_dir)
    scheduler = named(options.scheduler, Scheduler, _WITHOUT_TASKS)
    for tasks in options.modules:
        imported(tasks, _WITHOUT_TASKS)
    return scheduler


async def serve(scheduler: Scheduler) -> None:
    """Raises `CeleriqError` for an application that cannot be run as it is."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(*_: object) -> None:
        # Not the loop's own handlers: they go with it, and a second signal would then end a process that is ending.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, on_signal)
    starting = asyncio.create_task(start(scheduler))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
    else:
        starting.cancel()
        await asyncio.wait({starting})
    await stopping
    await scheduler.shutdown()
    logger.info("Shutdown completed.")


async def start(scheduler: Scheduler) -> None:
    """Until its servers answer: nobody else would try again."""
    pause = 1.0
    while True:
        try:
            await scheduler.startup()
        except (RedisError, SQLAlchemyError, OSError) as error:
            # No traceback: where it comes from is no secret.
            logger.error("cannot run without its servers, next try in %g s: %s", pause, error)  # noqa: TRY400
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        else:
            logger.info("Startup completed.")
            return
