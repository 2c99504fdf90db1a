from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
from httpx import AsyncClient

from tests import databases, processes
from tests.acceptance.conftest import Start, healthy
from tests.app.fixtures import pdf
from tests.waiting import wait_for

HEAD = (
    b"POST /documents HTTP/1.1\r\nHost: test\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    b'Content-Length: 10000000\r\n\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="a.pdf"\r\n\r\n'
)


async def test_an_upload_that_breaks_off_leaves_neither_row_nor_file(
    start: Start, database_url: str, tmp_path: Path
) -> None:
    port = processes.free_port()
    program = start(processes.api(port), TMPDIR=str(tmp_path))
    async with AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await wait_for(lambda: healthy(client), within=60)
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        # More than the megabyte that is kept in memory: a file has been begun.
        writer.write(HEAD + pdf("Half a letter.") + bytes(3_000_000))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        del reader

    # The files have no name on Linux: what is open tells.
    opened = psutil.Process(program.pid).open_files
    await wait_for(lambda: not [file for file in opened() if str(tmp_path) in file.path and "log" not in file.path])
    assert await databases.value_of(database_url, "select count(*) from documents") == 0
    transactions = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'"
    assert await databases.value_of(database_url, transactions) == 0
