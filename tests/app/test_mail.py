"""Mail through a service that answers as it pleases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from httpx import AsyncClient

from broker import broker
from tasks.mail import send_welcome
from tests.app.fixtures import ended, pdf, upload
from tests.waiting import wait_for

CIRCUIT = "mail.welcome"


class MailService:
    """An HTTP server that answers with the statuses it is given, the last of them again and again."""

    def __init__(self) -> None:
        self.answers = [202]
        self.asked: list[tuple[dict[str, str], Any]] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()[1:]
        headers = dict(line.split(": ", 1) for line in head if line)
        self.asked.append((headers, json.loads(await reader.readexactly(int(headers["content-length"])))))
        status = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        writer.write(b"HTTP/1.1 %d told\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def serving(service: MailService) -> AsyncGenerator[str]:
    server = await asyncio.start_server(service.answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mails"


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[MailService]:
    service = MailService()
    async with serving(service) as url:
        monkeypatch.setenv("MAIL_URL", url)
        yield service


async def new_user(client: AsyncClient, number: int = 1) -> int:
    return int((await client.post("/users", json={"email": f"ada{number}@example.org"})).json()["id"])


async def circuit(field: str) -> bytes | None:
    client: Any = broker._client
    value: bytes | None = await client.hget(broker.keys.circuit(CIRCUIT), field)
    return value


async def test_who_is_activated_is_greeted_once(service: MailService, client: AsyncClient) -> None:
    user = await new_user(client)
    for _ in range(2):
        accepted = await client.post(f"/users/{user}/activation")
        await ended(client, accepted.json()["task_id"])
        await wait_for(lambda: service.asked)
    [(_, mail)] = service.asked
    assert (mail["to"], mail["subject"]) == ("ada1@example.org", "Welcome to the library")


async def test_a_service_that_fails_is_asked_again_under_the_same_key(
    service: MailService, client: AsyncClient
) -> None:
    service.answers = [503, 429, 202]
    sent = await send_welcome.kiq(await new_user(client))
    view = await ended(client, sent.id)
    assert view["result"] == {"to": "ada1@example.org"}
    assert [headers["idempotency-key"] for headers, _ in service.asked] == [sent.id] * 3


async def test_what_the_service_refuses_fails_at_once(service: MailService, client: AsyncClient) -> None:
    service.answers = [422]
    view = await ended(client, (await send_welcome.kiq(await new_user(client))).id)
    error: Any = view["error"]
    assert error["type"] == "MailRefusedError"
    assert error["message"].startswith("refused with 422")
    assert len(service.asked) == 1
    assert await circuit("failures") is None


async def test_a_service_that_is_down_is_left_alone(client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five mails fail; the others are not tried, use up no retry, and hold up nobody else."""
    service = MailService()
    service.answers = [500]
    async with serving(service) as url:
        monkeypatch.setenv("MAIL_URL", url)
        user = await new_user(client)
        for _ in range(5):
            await send_welcome.kiq(user)
        await wait_for(lambda: circuit("until"))
        await wait_for(lambda: all_wait(5))
        asked = len(service.asked)
        for _ in range(20):
            await send_welcome.kiq(user)
        assert (await ended(client, (await client.post("/articles/pipeline")).json()["task_id"]))["state"] == "SUCCESS"
        await wait_for(lambda: all_wait(25))
    assert len(service.asked) == asked


async def all_wait(number: int) -> bool:
    return int(await broker._client.zcard(broker.keys.delayed("io_heavy"))) == number


async def test_a_mail_does_not_wait_for_documents(
    service: MailService, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker has both queues; those documents that are too many hold none of its slots."""
    go_on = asyncio.Event()

    async def slow_extract(*_: Any) -> list[str]:
        await go_on.wait()
        return ["one page"]

    monkeypatch.setattr("tasks.documents.extract", slow_extract)
    accepted = [await upload(client, pdf(f"page {number}")) for number in range(25)]
    await wait_for(lambda: broker._client.llen(broker.keys.line("documents.ingest_pdf")))
    view = await ended(client, (await send_welcome.kiq(await new_user(client))).id)
    assert view["state"] == "SUCCESS"
    go_on.set()
    for one in accepted:
        assert (await ended(client, one["task_id"]))["state"] == "SUCCESS"
