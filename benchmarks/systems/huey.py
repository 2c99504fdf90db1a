"""Huey with Redis, its workers in threads."""

from __future__ import annotations

from typing import Any

from huey import RedisHuey

from benchmarks import work
from benchmarks.system import BlockingSystem, program
from benchmarks.work import settings

# redis-py's pools refuse the 101st: with a hundred workers, the scheduler's.
huey = RedisHuey("benchmarks", url=f"{settings.redis}?max_connections=500", results=settings.results)

noop = huey.task(name="noop")(work.noop_now)
sleep = huey.task(name="sleep")(work.sleep_now)
stamp = huey.task(name="stamp")(work.stamp_now)
crud = huey.task(name="crud")(work.crud_now)

TASKS: dict[str, Any] = {"noop": noop, "sleep": sleep, "stamp": stamp, "crud": crud}


class HueySystem(BlockingSystem):
    stores = "result until it is read, pickled"
    acknowledges = "before the task: what runs when the worker dies is lost"
    settings = "one process of threads; no periodic tasks"

    def worker(self) -> list[str]:
        options = ["--worker-type", "thread", "--workers", str(settings.concurrency), "--no-periodic", "--quiet"]
        return [program("huey_consumer"), "benchmarks.systems.huey.huey", *options]

    def send_now(self, task: str, argument: int, delay: float = 0.0) -> Any:
        if delay:
            return TASKS[task].schedule((argument,), delay=delay)
        return TASKS[task](argument)

    def wait_now(self, sent: Any) -> Any:
        return sent(blocking=True)


SYSTEM = HueySystem()
