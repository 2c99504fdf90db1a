from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from httpx import AsyncClient, TransportError

from celeriq import RedisBroker
from celeriq.embedded import Services
from tests import databases, processes
from tests.acceptance.observing import TABLES
from tests.conftest import PROVING
from tests.processes import Process
from tests.waiting import wait_for

Start = Callable[..., Process]
LEASE = 5.0 if PROVING else 1.0


@pytest.fixture
def environment(services: Services, database_url: str, namespace: str) -> dict[str, str]:
    # Of the pool: other tests want connections of the same server.
    addresses = {"DB_URL": database_url, "BROKER_URL": services.redis_url, "BROKER_NAMESPACE": namespace}
    return {**addresses, "POOL_SIZE": "10"}


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Start a program of the application's; it ends with the test."""
    with ExitStack() as stack:

        def start(command: tuple[str, ...], **variables: str) -> Process:
            log = tmp_path / f"{len(list(tmp_path.iterdir()))}.log"
            return stack.enter_context(processes.started(command, environment | variables, log))

        yield start


@pytest.fixture(params=processes.ENGINE_WORKERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Whose worker it is."""
    return str(request.param)


@pytest.fixture
def worker(kind: str) -> tuple[str, ...]:
    """The command of an obedient worker: see `tests.engine`."""
    return processes.ENGINE_WORKERS[kind]


@pytest.fixture
async def sender(
    services: Services, database_url: str, namespace: str, environment: dict[str, str]
) -> AsyncGenerator[RedisBroker]:
    await databases.execute(database_url, *TABLES)
    environment["LEASE"] = str(LEASE)
    broker = RedisBroker(services.redis_url, namespace=namespace)
    await broker.startup()
    yield broker
    await broker.shutdown()


@pytest.fixture
async def api(start: Start) -> AsyncGenerator[AsyncClient]:
    """A client of the API in a process of its own."""
    port = processes.free_port()
    start(processes.api(port))
    async with AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        await wait_for(lambda: healthy(client))
        yield client


async def healthy(client: AsyncClient) -> bool:
    return await healthy_at(client, "/health")


async def healthy_at(client: AsyncClient, path: str) -> bool:
    try:
        return (await client.get(path)).is_success
    except TransportError:
        return False
