"""One worker process, as `celeriq worker` starts it: `python -m celeriq.process`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from redis.exceptions import RedisError

from celeriq.cli import CANNOT_START, WorkerOptions, read_worker_options
from celeriq.errors import PoolTooLargeError, TaskDefinitionError
from celeriq.program import CannotStartError, fastest_loop, imported, look_in, named, set_up_log
from celeriq.receiver import Receiver
from celeriq.redis.pools import Family
from celeriq.redis.streams import RedisBroker
from celeriq.supervisor import CANCEL, REPLACE_ME

logger = logging.getLogger(__name__)

_WITHOUT_TASKS = "a worker without its tasks would set their messages aside"


def main() -> int:
    options = read_worker_options(sys.argv[1:])
    # The supervisor tells us what Ctrl-C and the end of a terminal mean.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, CANCEL):
        signal.signal(number, signal.SIG_IGN)
    if options.parent is not None:
        _stop_with_parent(options.parent)
    try:
        broker = load(options)
        asyncio.run(set_up_log(options.log_level))
    except CannotStartError as error:
        return refuse(error)
    try:
        with asyncio.Runner(loop_factory=fastest_loop()) as runner:
            return runner.run(serve(broker, options))
    except (TaskDefinitionError, PoolTooLargeError) as error:
        # Of what is injected, which is known only when the application has started.
        return refuse(error)
    except (RedisError, OSError) as error:
        # No traceback: it is tried again, and where it comes from is no secret.
        logger.error("cannot run without its servers: %s", error)  # noqa: TRY400
        return 1


def refuse(error: Exception) -> int:
    print(f"celeriq worker cannot start: {error}", file=sys.stderr)  # noqa: T201
    return CANNOT_START


def load(options: WorkerOptions) -> RedisBroker:
    """The broker, with all its tasks; raises `CannotStartError` when a module does not import."""
    look_in(options.app_dir)
    broker = named(options.broker, RedisBroker, _WITHOUT_TASKS)
    broker.is_worker_process = True
    for tasks in options.modules:
        imported(tasks, _WITHOUT_TASKS)
    if options.queues:
        broker.read_queues(options.queues)
    if options.grace is not None:
        broker.grace = options.grace
    broker.family = Family(options.family, options.workers)
    return broker


async def serve(broker: RedisBroker, options: WorkerOptions) -> int:
    """Run until SIGTERM, however often it comes; the supervisor's `CANCEL` cancels what runs."""
    stop = asyncio.Event()

    def on_term(*_: object) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_term)
    asyncio.get_running_loop().add_signal_handler(CANCEL, broker.cancel_attempts)
    with ThreadPoolExecutor(options.threads, thread_name_prefix="celeriq-task") as threads:
        broker.threads = threads
        receiver = Receiver(
            broker,
            threads,
            max_async_tasks=options.concurrency,
            max_tasks_to_execute=options.max_tasks_per_child,
        )
        try:
            await receiver.listen(stop)
        finally:
            await broker.shutdown()
    return 0 if stop.is_set() else REPLACE_ME


def _stop_with_parent(parent: int) -> None:
    """The supervisor holds the other end of this pipe: when it is gone, however it ended, this process stops."""

    def wait() -> None:
        os.read(parent, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="celeriq-parent", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
