"""One measurement of one system, in the system's own environment: `python -m benchmarks.drive MODULE WORKLOAD SIZE`.

Prints the figures as one line of JSON: `{workload: value}`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import psutil

from benchmarks.settings import Settings
from benchmarks.system import System
from benchmarks.work import meter

Figures = dict[str, float]

PATIENCE = 120.0
"""Seconds after which a measurement that does not move is given up."""
WINDOW = 4.0
"""Seconds that a throughput is measured for at most."""
WARM = 0.5
"""Seconds from the first task on that are not counted, while pools, caches and processes come up."""
SENDERS = 50
IDLE = 10.0
PICKUPS = 200
PER_SECOND = 50
JOINED = 1000


class StuckError(RuntimeError):
    """Nothing moved for too long."""


class Worker:
    """A running worker, with all its processes."""

    def __init__(self, command: Sequence[str], log: str) -> None:
        self._log = log
        with open(log, "ab") as output:  # noqa: PTH123
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def processes(self) -> list[psutil.Process]:
        main = psutil.Process(self._process.pid)
        return [main, *main.children(recursive=True)]

    def cpu(self) -> float:
        """Seconds of CPU that its processes have used."""
        total = 0.0
        for process in self.processes():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory(self) -> float:
        """MiB that its processes have for themselves, what they share counted once."""
        return sum(process.memory_full_info().pss for process in self.processes()) / 2**20

    def suspend(self) -> None:
        for process in self.processes():
            process.suspend()

    def resume(self) -> None:
        for process in self.processes():
            process.resume()

    def check(self) -> None:
        if self._process.poll() is not None:
            raise StuckError(f"the worker ended with {self._process.returncode}:\n{self.tail()}")

    def tail(self) -> str:
        with open(self._log, "rb") as log:  # noqa: PTH123
            return log.read()[-3000:].decode(errors="replace")

    def stop(self) -> None:
        processes = self.processes() if self._process.poll() is None else []
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, timeout=5)
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        self._process.wait()


class Measurement:
    """One system and its settings."""

    def __init__(self, system: System, size: int) -> None:
        self._settings = Settings.from_environment()
        self._system = system
        self._size = size

    @asynccontextmanager
    async def _worker(self) -> AsyncGenerator[Worker]:
        worker = Worker(self._system.worker(), str(self._settings.scratch / "worker.log"))
        try:
            yield worker
        finally:
            worker.stop()

    @asynccontextmanager
    async def _ready_worker(self) -> AsyncGenerator[Worker]:
        """One that has run a task."""
        async with self._worker() as worker:
            await self._system.send("noop", 0)
            await self._ticks(1, worker)
            meter.clear()
            yield worker

    async def _ticks(self, wanted: int, worker: Worker, until: Callable[[], bool] = lambda: False) -> int:
        """Wait for so many ticks; how many there are then."""
        seen, moved = meter.ticks(), time.monotonic()
        while seen < wanted and not until():
            await asyncio.sleep(0.004)
            worker.check()
            now = meter.ticks()
            if now != seen:
                seen, moved = now, time.monotonic()
            elif time.monotonic() - moved > PATIENCE:
                raise StuckError(f"{seen} of {wanted} tasks ran, and no more in {PATIENCE:g} s:\n{worker.tail()}")
        return seen

    async def fill(self, task: str) -> None:
        """A backlog, by the fastest call that the system has."""
        arguments = range(self._size)
        try:
            await self._system.send_bulk(task, arguments)
        except NotImplementedError:
            await self._system.send_all(task, arguments, SENDERS)

    # -- the measurements ------------------------------------------------------------------------------------------

    async def drain(self, task: str, name: str) -> Figures:
        """Tasks per second, from half a second after the first one to the backlog's end."""
        before = self._redis_memory()
        await self.fill(task)
        figures: Figures = {}
        async with self._worker() as worker:
            await self._ticks(1, worker)
            await asyncio.sleep(WARM)
            first, began, cpu = meter.ticks(), time.monotonic(), worker.cpu()
            last = await self._ticks(self._size, worker, lambda: time.monotonic() - began > WINDOW)
            seconds, cpu = time.monotonic() - began, worker.cpu() - cpu
            figures[name] = (last - first) / seconds
            if name.startswith("noop"):
                figures[f"cpu_us_per_{name}"] = cpu / (last - first) * 1e6
                if last == self._size:
                    figures[f"redis_bytes_per_{name}"] = (await self._settled_memory(before)) / self._size
        return figures

    async def backlog(self) -> Figures:
        """Tasks per second of a worker that was stopped while the backlog grew, from when it goes on."""
        async with self._ready_worker() as worker:
            worker.suspend()
            await self.fill("noop")
            worker.resume()
            began = time.monotonic()
            count = await self._ticks(self._size, worker, lambda: time.monotonic() - began > WINDOW)
            return {f"backlog_{self._size}": count / (time.monotonic() - began)}

    async def send_one(self) -> Figures:
        await self._system.send("noop", 0)
        began, sent = time.perf_counter(), 0
        while sent < self._size and time.perf_counter() - began < WINDOW:
            await self._system.send("noop", sent)
            sent += 1
        return {"send_one": sent / (time.perf_counter() - began)}

    async def send_concurrent(self) -> Figures:
        await self._system.send_all("noop", range(SENDERS), SENDERS)
        began = time.perf_counter()
        await self._system.send_all("noop", range(self._size), SENDERS)
        return {"send_concurrent": self._size / (time.perf_counter() - began)}

    async def send_bulk(self) -> Figures:
        await self._system.send_bulk("noop", range(100))
        began = time.perf_counter()
        await self._system.send_bulk("noop", range(self._size))
        return {"send_bulk": self._size / (time.perf_counter() - began)}

    async def outbox(self) -> Figures:
        await self._system.relay(100)
        return {"outbox": self._size / await self._system.relay(self._size)}

    async def pickup(self) -> Figures:
        """From just before the call to the first line of the body, in an idle worker."""
        async with self._ready_worker() as worker:
            due = time.monotonic()
            for _ in range(PICKUPS):
                due += 1 / PER_SECOND
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self._system.send("stamp", time.monotonic_ns())
            await self._ticks(PICKUPS, worker)
        return {
            "pickup_ms": _percentile(meter.lateness_ms(), 50),
            "pickup_p99_ms": _percentile(meter.lateness_ms(), 99),
        }

    async def wait(self) -> Figures:
        """From just before the call until the caller has the result."""
        async with self._ready_worker():
            taken: list[float] = []
            end = time.monotonic() + WINDOW
            while len(taken) < PICKUPS and (time.monotonic() < end or not taken):
                began = time.perf_counter()
                async with asyncio.timeout(PATIENCE):
                    await self._system.wait(await self._system.send("noop", len(taken)))
                taken.append((time.perf_counter() - began) * 1000)
        return {"wait_ms": statistics.median(taken)}

    async def join(self) -> Figures:
        """Send a thousand and have all their results."""
        async with self._ready_worker():
            began = time.perf_counter()
            try:
                sent = await self._system.send_bulk("noop", range(JOINED))
            except NotImplementedError:
                sent = await self._system.send_all("noop", range(JOINED), SENDERS)
            async with asyncio.timeout(PATIENCE):
                values = await self._system.wait_all(sent)
            seconds = time.perf_counter() - began
        if sorted(values) != list(range(JOINED)):
            raise StuckError(f"wrong results: {sorted(values)[:5]} …")
        return {"join_1000_s": seconds}

    async def delay(self) -> Figures:
        """How late messages run that are sent for a random moment within two seconds."""
        chance = random.Random(self._size)
        async with self._ready_worker() as worker:
            for _ in range(self._size):
                delay = 1.0 + 2.0 * chance.random()
                await self._system.send("stamp", time.monotonic_ns() + int(delay * 1e9), delay)
            await self._ticks(self._size, worker)
        late = meter.lateness_ms()
        return {"delay_lateness_ms": _percentile(late, 50), "delay_lateness_p99_ms": _percentile(late, 99)}

    async def idle(self) -> Figures:
        """What a worker uses that has nothing to do any more, after a thousand tasks."""
        await self.fill("noop")
        async with self._worker() as worker:
            await self._ticks(self._size, worker)
            await asyncio.sleep(2)
            began, cpu = time.monotonic(), worker.cpu()
            await asyncio.sleep(IDLE)
            percent = (worker.cpu() - cpu) / (time.monotonic() - began) * 100
            return {"idle_cpu_percent": percent, "memory_mib": worker.memory()}

    async def growth(self) -> Figures:
        """What the worker and Redis need more after all tasks than after a tenth of them, when all is full that is
        bounded: pools, buffers, the history.
        """
        async with self._ready_worker() as worker:
            seen: list[tuple[float, float]] = []
            tenth = self._size // 10
            for done in range(tenth, self._size + 1, tenth):
                await self._system.send_bulk("noop", range(tenth))
                await self._ticks(done, worker)
                await asyncio.sleep(1)
                seen.append((worker.memory(), self._redis_memory()))
        (memory, redis), (memory_after, redis_after) = seen[0], seen[-1]
        return {
            "memory_growth_mib": memory_after - memory,
            "redis_growth_percent": (redis_after / redis - 1) * 100,
            "redis_left_mib": redis_after / 2**20,
        }

    # -- Redis -----------------------------------------------------------------------------------------------------

    def _redis_memory(self) -> float:
        from redis import Redis  # noqa: PLC0415 - not every system has it

        with Redis.from_url(self._settings.redis) as redis:
            return float(redis.info("memory")["used_memory"])

    async def _settled_memory(self, before: float) -> float:
        """Bytes more than before, when the last results are stored."""
        await asyncio.sleep(1)
        return self._redis_memory() - before


def _percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def measure(module: str, workload: str, size: int) -> Figures:
    system: System = importlib.import_module(f"benchmarks.systems.{module}").SYSTEM
    measurement = Measurement(system, size)
    await system.open()
    try:
        kind, _, task = workload.partition(":")
        if kind == "drain":
            task, _, name = task.partition(":")
            return await measurement.drain(task, name or task)
        figures: Figures = await getattr(measurement, kind)()
        return figures
    finally:
        await system.close()


def main() -> int:
    module, workload, size = sys.argv[1:]
    try:
        figures = _run(measure(module, workload, int(size)))
    except NotImplementedError:
        figures = {}
    except (StuckError, TimeoutError) as error:
        print(repr(error), file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


def _run(work: Coroutine[Any, Any, Figures]) -> Figures:
    """On uvloop, where the system's environment has it, as its workers do."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


if __name__ == "__main__":
    sys.exit(main())
