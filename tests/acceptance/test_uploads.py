"""A thousand uploads at once, on pools of ten and two."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Self

from httpx import AsyncClient, Limits

from tests import databases, processes
from tests.acceptance.conftest import Start, healthy
from tests.app.fixtures import pdf
from tests.conftest import Figure
from tests.waiting import wait_for

UPLOADS = 1000
POOL = 10 + 2
SAMPLED = "select state from pg_stat_activity where datname = current_database() and application_name = 'celeriq'"


HEADERS = {"Content-Type": "multipart/form-data; boundary=x"}
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.pdf"\r\nContent-Type: application/pdf\r\n\r\n'
TAIL = b"\r\n--x--\r\n"


class Sampler:
    """What the API's connections do, looked at 20 times a second from a connection of another name."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self.samples: list[Counter[str]] = []
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._connection = await databases.connect(self._url)
        self._task = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._task
        await self._connection.close()

    async def look(self) -> Counter[str]:
        return Counter(row[0] for row in await self._connection.fetch(SAMPLED))

    async def _sample(self) -> None:
        while not self._stop.is_set():
            self.samples.append(await self.look())
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), 1 / 20)


async def test_a_thousand_uploads_open_at_once_stay_within_two_pools(
    start: Start, database_url: str, figure: Figure
) -> None:
    ports = [processes.free_port(), processes.free_port()]
    clients = [
        AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=110, limits=Limits(max_connections=None))
        for port in ports
    ]
    for port in ports:
        start(processes.api(port), BROKER_POOL_SIZE="10")
    content = pdf("A short letter.")
    gate = asyncio.Event()
    waiting = 0

    async def send(number: int) -> int:
        nonlocal waiting

        async def body() -> AsyncIterator[bytes]:
            nonlocal waiting
            yield HEAD
            waiting += 1
            await gate.wait()
            yield content + TAIL

        answer = await clients[number % 2].post("/documents", content=body(), headers=HEADERS)
        return answer.status_code

    for client in clients:
        await wait_for(partial(healthy, client), within=60)
    async with Sampler(database_url) as sampler:
        uploads = [asyncio.create_task(send(number)) for number in range(UPLOADS)]
        await wait_for(lambda: waiting == UPLOADS, within=60)
        gate.set()
        codes = Counter(await asyncio.gather(*uploads))
        most = max(sum(sample.values()) for sample in sampler.samples)
        await wait_for(lambda: nothing_open(database_url))
    for client in clients:
        await client.aclose()

    figure(f"{UPLOADS} uploads at once: at most {most} connections of {2 * POOL}, {len(sampler.samples)} samples")
    assert codes == {202: UPLOADS}
    assert await databases.value_of(database_url, "select count(*) from documents") == UPLOADS
    assert 0 < most <= 2 * POOL
    assert len(sampler.samples) > 20


async def nothing_open(database_url: str) -> bool:
    return not any(state.startswith("idle in") for state in await databases.column_of(database_url, SAMPLED))
