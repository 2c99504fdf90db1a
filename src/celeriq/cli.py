"""The command line: `celeriq worker broker:broker tasks -Q mail -c 100`, `celeriq scheduler broker:scheduler tasks`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from uuid import uuid4

from celeriq.supervisor import CANNOT_START, Supervisor

__all__ = ["CANNOT_START", "SchedulerOptions", "WorkerOptions", "main", "read_worker_options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What `celeriq worker` was told."""

    broker: str
    modules: list[str]
    queues: list[str]
    concurrency: int
    workers: int
    threads: int | None
    max_tasks_per_child: int | None
    grace: float | None
    app_dir: str
    log_level: str
    parent: int | None
    """Where the supervisor's pipe is."""
    family: str
    """What the processes of one supervisor have in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """What `celeriq scheduler` was told."""

    scheduler: str
    modules: list[str]
    app_dir: str
    log_level: str


def main() -> int:
    """Called by the console script; returns its exit code."""
    parser = argparse.ArgumentParser(prog="celeriq", description="Async tasks with Celery's semantics.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_worker_options(commands.add_parser("worker", help="run tasks", description=worker.__doc__))
    _add_scheduler_options(commands.add_parser("scheduler", help="send what is due", description=scheduler.__doc__))
    given = sys.argv[1:]
    told = parser.parse_args(given)
    if told.command == "scheduler":
        return scheduler(SchedulerOptions(**{name: getattr(told, name) for name in SchedulerOptions.__slots__}))
    return worker(_worker_options(told), given[1:])


def worker(options: WorkerOptions, arguments: Sequence[str]) -> int:
    """Run tasks until SIGTERM or Ctrl-C: what runs is finished then. Ctrl-C again, or SIGQUIT, cancels it."""
    logging.basicConfig(level=options.log_level, format="[%(asctime)s][%(levelname)-7s][%(name)s] %(message)s")
    command = [sys.executable, "-m", "celeriq.process", *arguments, "--family", uuid4().hex]
    return Supervisor(command, options.workers, has_grace=options.grace is not None).run()


def scheduler(options: SchedulerOptions) -> int:
    """Send tasks when their schedules are due, until SIGTERM or Ctrl-C. Several may run: each tick is sent once."""
    # What it needs takes its time to be imported, and `--help` needs none of it.
    run: Callable[[SchedulerOptions], int] = import_module("celeriq.scheduler_process").run
    return run(options)


def read_worker_options(arguments: Sequence[str]) -> WorkerOptions:
    parser = argparse.ArgumentParser(prog="celeriq worker")
    _add_worker_options(parser)
    return _worker_options(parser.parse_args(arguments))


def _worker_options(given: argparse.Namespace) -> WorkerOptions:
    return WorkerOptions(**{name: getattr(given, name) for name in WorkerOptions.__slots__})


def _add_worker_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("broker", type=partial(_place, "broker"), metavar="module:broker", help="where the RedisBroker is")
    _add_modules(parser)
    add("-Q", "--queues", type=_names, default=[], metavar="a,b", help="read these queues; default: those of all tasks")
    add("-c", "--concurrency", type=_count, default=100, metavar="N", help="tasks at once in a process; default: 100")
    add("-w", "--workers", type=_count, default=1, metavar="N", help="processes; default: 1")
    add("--threads", type=_count, metavar="N", help="threads for `def` tasks in a process; default: Python's")
    add("--max-tasks-per-child", type=_count, metavar="N", help="a process is replaced after N tasks; default: never")
    add("--grace", type=_seconds, metavar="SECONDS", help="how long a stop waits for tasks; default: until they end")
    _add_surroundings(parser)
    add("--parent", type=int, help=argparse.SUPPRESS)
    add("--family", default="", help=argparse.SUPPRESS)


def _add_scheduler_options(parser: argparse.ArgumentParser) -> None:
    place = partial(_place, "scheduler")
    parser.add_argument("scheduler", type=place, metavar="module:scheduler", help="where the Scheduler is")
    _add_modules(parser)
    _add_surroundings(parser)


def _add_modules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("modules", nargs="*", metavar="module", help="modules that register tasks")


def _add_surroundings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--app-dir", default=".", metavar="FOLDER", help="where modules are looked for; default: here")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])


def _place(what: str, given: str) -> str:
    module, colon, name = given.partition(":")
    if not (module and colon and name):
        raise argparse.ArgumentTypeError(f"{given!r} names no {what}: write module:{what}, as in broker:{what}")
    return given


def _names(given: str) -> list[str]:
    names = [name.strip() for name in given.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{given!r} has an empty name: write -Q mail,default")
    return names


def _count(given: str) -> int:
    if not given.isdecimal() or int(given) == 0:
        raise argparse.ArgumentTypeError(f"{given!r} is no number from 1 on")
    return int(given)


def _seconds(given: str) -> float:
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{given!r} is no number of seconds from 0 on")
    return seconds
