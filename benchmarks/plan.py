"""Which systems are measured, with which work, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass

SECONDS = 4
"""A backlog is meant to last so long."""


@dataclass(frozen=True, slots=True)
class Entrant:
    """A system as it takes part."""

    name: str
    module: str
    environment: str
    variant: str = ""
    speed: int = 2_000
    """No-ops per second, roughly: how large its backlogs are made."""
    processes: int = 1
    skips: frozenset[str] = frozenset()
    """Workloads that it has no part in: a system that cannot delay, a ceiling without a queue."""
    only: frozenset[str] = frozenset()
    """If any, all that it takes part in."""
    endless: bool = False
    """It works without a backlog, and so never comes to its end."""
    short: bool = False
    """Whether `SHORT=1` measures it, too."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is done once in every round."""

    name: str
    step: str
    """How `benchmarks.drive` does it."""
    size: int = 0
    """Messages, 0 for what lasts some seconds."""
    concurrency: int = 100
    processes: int = 0
    """Of the worker, 0 for the entrant's own number."""
    results: bool = True
    fraction: float = 1.0
    """Of the speed at no-ops."""
    entrants: tuple[str, ...] = ()
    """If any, all that take part in it."""
    short: bool = False

    def messages(self, entrant: Entrant) -> int:
        if entrant.endless:
            return 10 * self.size
        return self.size or max(1_000, round(entrant.speed * self.fraction * SECONDS))


CRUD = frozenset({"crud"})

ENTRANTS = [
    Entrant("celeriq", "celeriq", "celeriq", speed=18_000, short=True),
    Entrant("celeriq (taskiq worker)", "celeriq", "celeriq", "stock", speed=10_000, short=True),
    Entrant(
        "celeriq (no history)",
        "celeriq",
        "celeriq",
        "without-history",
        speed=16_000,
        only=frozenset({"noop", "crud"}),
        short=True,
    ),
    Entrant(
        "celeriq (recording history)",
        "celeriq",
        "celeriq",
        "recording",
        speed=14_000,
        only=frozenset({"noop", "crud"}),
        short=True,
    ),
    Entrant("celeriq (once)", "celeriq", "celeriq", "once", only=CRUD, short=True),
    Entrant("taskiq", "taskiq", "taskiq"),
    Entrant("taskiq tuned", "taskiq", "taskiq-tuned", "tuned", 3_000, skips=frozenset({"backlog_1000000"}), short=True),
    Entrant("arq", "arq", "arq", short=True),
    Entrant("saq", "saq", "saq"),
    Entrant("streaq", "streaq", "streaq", speed=1_200),
    Entrant("dramatiq", "dramatiq", "dramatiq"),
    Entrant("huey", "huey", "huey", speed=2_500),
    Entrant("procrastinate", "procrastinate", "procrastinate", speed=500),
    Entrant("pgqueuer", "pgqueuer", "pgqueuer", speed=8_000, short=True),
    Entrant("celery prefork", "celery", "celery", "prefork", speed=1_000, processes=2, short=True),
    Entrant("celery threads", "celery", "celery", "threads", speed=1_000),
    Entrant("celery gevent", "celery", "celery", "gevent", speed=800),
    Entrant("celery NullPool + asyncio.run", "celery", "celery", "nullpool-run", 1_000, 2, only=CRUD, short=True),
    Entrant("celery NullPool + async_to_sync", "celery", "celery", "nullpool-async-to-sync", 1_000, 2, only=CRUD),
    Entrant("celery kept loop + pool", "celery", "celery", "kept-loop", 1_000, 2, only=CRUD),
    Entrant("ceiling: redis-py", "ceiling", "celeriq", "redis", speed=30_000, skips=frozenset({"crud"}), short=True),
    Entrant("ceiling: AsyncSession", "ceiling", "celeriq", "session", only=CRUD, endless=True, short=True),
    Entrant("ceiling: asyncpg", "ceiling", "celeriq", "asyncpg", only=CRUD, endless=True),
]

WORKLOADS = [
    Workload("noop", "drain:noop", short=True),
    Workload("noop_no_result", "drain:noop:noop_no_result", results=False),
    Workload("sleep", "drain:sleep", size=20_000),
    Workload("crud", "drain:crud", size=5_000, concurrency=20, short=True),
    Workload("send_one", "send_one", size=5_000),
    Workload("send_concurrent", "send_concurrent", size=10_000, short=True),
    Workload("send_bulk", "send_bulk", size=50_000, short=True),
    Workload("outbox", "outbox", size=20_000, entrants=("celeriq",), short=True),
    Workload("pickup", "pickup", short=True),
    Workload("wait", "wait"),
    Workload("join", "join"),
    Workload("delay", "delay", size=500),
    Workload("idle", "idle", size=1_000),
]

GROWTH: list[Workload] = [
    *(Workload(f"backlog_{size}", "backlog", size=size, results=False) for size in (10**3, 10**4, 10**5, 10**6)),
    *(
        Workload(f"workers_{number}", f"drain:noop:workers_{number}", processes=number, fraction=number)
        for number in (1, 2, 4)
    ),
]
"""How throughput goes with the backlog and with the workers."""

GROWN = ("celeriq", "celeriq (taskiq worker)", "taskiq tuned")
"""Whose growth is measured."""

LONG = [
    Workload("growth", "growth", size=10**6, results=False),
]
"""A million tasks in one worker, once."""

LASTING = ("celeriq", "celeriq (taskiq worker)")
"""Who does them."""

UNITS = {
    "noop": "tasks/s",
    "noop_no_result": "tasks/s",
    "sleep": "tasks/s",
    "crud": "tasks/s",
    "send_one": "messages/s",
    "send_concurrent": "messages/s",
    "send_bulk": "messages/s",
    "outbox": "messages/s",
    "join_1000_s": "s",
    "idle_cpu_percent": "% of a core",
    "redis_growth_percent": "%",
}


def unit(workload: str) -> str:
    for part, named in (("_us_", "µs"), ("_ms", "ms"), ("_mib", "MiB"), ("_bytes_", "bytes")):
        if part in workload:
            return named
    return UNITS.get(workload, "tasks/s")
