"""A wire that can be cut: a proxy in front of a server, which drops connections instead of handing replies on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

CHUNK = 1 << 16


class Wire:
    """Cuts a connection instead of handing a reply on, `cuts` times, for replies that `cut_when` picks."""

    def __init__(self, server: str, cut_when: Callable[[bytes], bool], cuts: int) -> None:
        self._server = server
        self._cut_when = cut_when
        self.cuts_left = cuts

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(self._server)
        asking = asyncio.create_task(self._hand_on(reader, to_server))
        try:
            await self._hand_on(from_server, writer, cut=True)
        finally:
            asking.cancel()
            for end in (to_server, writer):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, cut: bool = False) -> None:
        try:
            while data := await reader.read(CHUNK):
                if cut and self.cuts_left and self._cut_when(data):
                    self.cuts_left -= 1
                    return
                writer.write(data)
                await writer.drain()
        except OSError:
            return


@asynccontextmanager
async def cut_wire(
    server: Path, folder: Path, cut_when: Callable[[bytes], bool], cuts: int
) -> AsyncGenerator[tuple[Wire, str]]:
    """The wire in front of the server's socket, and the address of its near end."""
    wire, near = Wire(str(server), cut_when, cuts), folder / "wire.sock"
    running: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        with suppress(asyncio.CancelledError):
            await wire.connect(reader, writer)

    listening = await asyncio.start_unix_server(accept, str(near))
    try:
        yield wire, f"unix://{near}"
    finally:
        listening.close()
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
