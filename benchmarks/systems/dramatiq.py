"""Dramatiq with Redis for both ends, its actors in threads."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks import work
from benchmarks.system import BlockingSystem, program
from benchmarks.work import settings

DAY = 86_400_000
PATIENCE = 60_000

# redis-py's pools refuse the 101st: with a hundred workers, the consumer's.
URL = f"{settings.redis}?max_connections=500"

broker = RedisBroker(url=URL)
if settings.results:
    broker.add_middleware(Results(backend=RedisBackend(url=URL), store_results=True, result_ttl=DAY))
dramatiq.set_broker(broker)

noop = dramatiq.actor(actor_name="noop")(work.noop_now)
sleep = dramatiq.actor(actor_name="sleep")(work.sleep_now)
stamp = dramatiq.actor(actor_name="stamp")(work.stamp_now)
crud = dramatiq.actor(actor_name="crud")(work.crud_now)

TASKS: dict[str, Any] = {"noop": noop, "sleep": sleep, "stamp": stamp, "crud": crud}


class DramatiqSystem(BlockingSystem):
    stores = "result for a day"
    acknowledges = "after the result; requeued a minute after the worker's last heartbeat"
    settings = "one process of threads"

    def worker(self) -> list[str]:
        options = ["--processes", str(settings.processes), "--threads", str(settings.concurrency)]
        return [program("dramatiq"), "benchmarks.systems.dramatiq:broker", *options]

    async def close(self) -> None:
        broker.close()

    def send_now(self, task: str, argument: int, delay: float = 0.0) -> Any:
        if delay:
            return TASKS[task].send_with_options(args=(argument,), delay=round(delay * 1000))
        return TASKS[task].send(argument)

    def wait_now(self, sent: Any) -> Any:
        return sent.get_result(block=True, timeout=PATIENCE)


SYSTEM = DramatiqSystem()
