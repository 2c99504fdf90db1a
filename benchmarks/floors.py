"""What celeriq promises of its speed, as ratios between figures of one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count

Values = Mapping[str, Mapping[str, Sequence[float]]]
Read = Callable[[str, str], float]
"""The figure of a workload and a system."""

OURS, STOCK, CEILING = "celeriq", "celeriq (taskiq worker)", "ceiling: redis-py"
ASYNC_PEERS = ("taskiq", "taskiq tuned", "arq", "saq", "streaq", "procrastinate", "pgqueuer")
REDIS_PEERS = (
    *ASYNC_PEERS[:5],
    "dramatiq",
    "huey",
    "celery prefork",
    "celery threads",
    "celery gevent",
)
PEERS = (*dict.fromkeys((*ASYNC_PEERS, *REDIS_PEERS)),)
KEEPING = ("taskiq", "taskiq tuned", "saq", "streaq", "arq", "dramatiq", "procrastinate", "pgqueuer")
"""Those that give a message back when its worker dies; huey, and Celery by default, have forgotten it by then."""
STORING = tuple(name for name in KEEPING if name not in {"procrastinate", "pgqueuer"})
"""Of these, those that store results."""
NULL_POOLS = ("celery NullPool + asyncio.run", "celery NullPool + async_to_sync")
CELERY_CRUD = (*NULL_POOLS, "celery kept loop + pool", "celery prefork", "celery threads", "celery gevent")


@dataclass(frozen=True, slots=True)
class Floor:
    """`ratio` is asked of the medians, and of each round for the spread."""

    text: str
    ratio: Callable[[Read], float]
    goal: float
    at_least: bool = True

    def holds(self, ratio: float) -> bool:
        return ratio >= self.goal if self.at_least else ratio <= self.goal

    def measured(self, values: Values) -> tuple[float, float, float] | None:
        """Of the medians, and the lowest and highest of the rounds; None where something was not measured."""
        try:
            of_medians = self.ratio(lambda workload, system: statistics.median(values[workload][system]))
        except KeyError:
            return None
        each = list(self._rounds(values))
        return of_medians, min(each), max(each)

    def _rounds(self, values: Values) -> Iterator[float]:
        with suppress(IndexError):  # of the first round that was not measured
            for number in count():
                yield self.ratio(partial(_of_round, values, number))


def _of_round(values: Values, number: int, workload: str, system: str) -> float:
    return values[workload][system][number]


def over(workload: str, *systems: str, of: str = "celeriq", than: str = "") -> Callable[[Read], float]:
    """`of` over the best of those systems that were measured."""

    def ratio(read: Read) -> float:
        found: list[float] = []
        for system in systems:
            try:
                found.append(read(than or workload, system))
            except KeyError:
                continue
        if not found:
            raise KeyError(workload)
        return read(workload, of) / max(found)

    return ratio


def value(workload: str, system: str = "celeriq") -> Callable[[Read], float]:
    return lambda read: read(workload, system)


FLOORS = [
    Floor("no-op: worker CPU, µs", value("cpu_us_per_noop"), 55, at_least=False),
    Floor("no-op: × taskiq", over("noop", "taskiq"), 7),
    Floor("no-op: × taskiq tuned", over("noop", "taskiq tuned"), 7),
    Floor("no-op: × the ceiling", over("noop", CEILING), 0.4),
    Floor("no-op under Taskiq's worker: × taskiq tuned", over("noop", "taskiq tuned", of=STOCK), 4),
    Floor("no-op: × the best peer on Redis", over("noop", *REDIS_PEERS), 2.5),
    Floor("no-op without results: × pgqueuer", over("noop_no_result", "pgqueuer"), 1),
    Floor("sending at once: × taskiq tuned", over("send_concurrent", "taskiq tuned"), 4),
    Floor("sending at once: × the best peer", over("send_concurrent", *PEERS), 1),
    Floor("sending one by one: × taskiq tuned", over("send_one", "taskiq tuned"), 2),
    Floor("sending in bulk: × taskiq tuned at once", over("send_bulk", "taskiq tuned", than="send_concurrent"), 8),
    Floor("sending in bulk: × the best peer", over("send_bulk", *PEERS), 1),
    Floor("sleeping 50 ms, 100 at a time: × the limit", lambda read: read("sleep", "celeriq") / 2000, 0.95),
    Floor("CRUD: × the bare session", over("crud", "ceiling: AsyncSession"), 0.85),
    Floor("CRUD: × the best async peer", over("crud", *ASYNC_PEERS), 1.4),
    Floor("CRUD: × the best pattern in Celery", over("crud", *CELERY_CRUD), 2),
    Floor("CRUD: × NullPool in Celery", over("crud", *NULL_POOLS), 8),
    Floor("CRUD with once: × without", over("crud", "celeriq", of="celeriq (once)"), 0.85),
    Floor("CRUD with history: × without", over("crud", "celeriq (no history)", of="celeriq (recording history)"), 0.9),
    Floor("outbox, messages/s of one relay", value("outbox"), 5_000),
    Floor("pickup, p50: × a raw blocking read", over("pickup_ms", CEILING), 1.3, at_least=False),
    Floor("pickup, p99, ms", value("pickup_p99_ms"), 5, at_least=False),
    Floor("waiting for a result: × the ceiling", over("wait_ms", CEILING), 1.5, at_least=False),
    Floor(
        "backlog of 10⁶: × that of 10³", lambda r: r("backlog_1000000", "celeriq") / r("backlog_1000", "celeriq"), 0.85
    ),
    Floor("Redis after the drain, results kept, bytes each", value("redis_bytes_per_noop"), 450, at_least=False),
    Floor("Redis after 10⁶ tasks without results, % more", value("redis_growth_percent"), 5, at_least=False),
    Floor(
        "worker's memory, MiB more than taskiq's",
        lambda r: r("memory_mib", STOCK) - r("memory_mib", "taskiq tuned"),
        6,
        at_least=False,
    ),
    Floor("worker's memory over 10⁶ tasks, MiB more", value("memory_growth_mib"), 2, at_least=False),
    Floor("idle, % of a core", value("idle_cpu_percent"), 0.5, at_least=False),
]
