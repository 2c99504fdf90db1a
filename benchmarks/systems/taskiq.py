"""taskiq with taskiq-redis's streams: as it comes, or tuned."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from taskiq import TaskiqDepends, TaskiqEvents
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq.serializers import JSONSerializer, ORJSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks import work
from benchmarks.system import System, program
from benchmarks.work import meter, settings

tuned = settings.variant == "tuned"
broker = RedisStreamBroker(settings.redis)
broker.with_result_backend(
    RedisAsyncResultBackend(settings.redis, serializer=JSONSerializer() if tuned else None, result_ex_time=86_400)
    if settings.results
    else DummyResultBackend()
)
if tuned:
    broker.with_serializer(ORJSONSerializer())


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def open_engine(state: Any) -> None:
    state.engine = work.async_engine()
    state.sessions = async_sessionmaker(state.engine, expire_on_commit=False)


async def open_session() -> AsyncGenerator[AsyncSession]:
    async with broker.state.sessions.begin() as session:
        yield session


noop = broker.task(task_name="noop")(work.noop)
sleep = broker.task(task_name="sleep")(work.sleep)
stamp = broker.task(task_name="stamp")(work.stamp)


@broker.task(task_name="crud")
async def crud(number: int, session: AsyncSession = TaskiqDepends(open_session)) -> int:  # noqa: B008
    await work.update(session, number)
    meter.tick()
    return number


TASKS: dict[str, Any] = {"noop": noop, "sleep": sleep, "stamp": stamp, "crud": crud}


class Taskiq(System):
    stores = "result for a day"
    acknowledges = "after the result; read again 10 minutes after the worker's death"
    settings = "uvloop, hiredis, orjson, JSON results" if tuned else "pickled results"

    def worker(self) -> list[str]:
        options = ["--workers", str(settings.processes), "--max-async-tasks", str(settings.concurrency)]
        return [program("taskiq"), "worker", "benchmarks.systems.taskiq:broker", *options, "--log-level", "WARNING"]

    async def open(self) -> None:
        await broker.startup()

    async def close(self) -> None:
        await broker.shutdown()

    async def send(self, task: str, argument: int, delay: float = 0.0) -> Any:
        if delay:
            raise NotImplementedError
        return await TASKS[task].kiq(argument)

    async def wait(self, sent: Any) -> Any:
        return (await sent.wait_result()).return_value


SYSTEM = Taskiq()
