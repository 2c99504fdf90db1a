"""Who delivers mail: a service that is asked over HTTP, or the log where there is none."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Protocol

import httpx
import structlog

from tasks.settings import MailSettings

logger = structlog.get_logger(__name__)


class MailServiceError(Exception):
    """The service did not take the mail now, and may take it later."""


class MailRefusedError(ValueError):
    """The service will never take this mail."""


@dataclass(frozen=True, slots=True)
class Mail:
    to: str
    subject: str
    text: str


class Mailer(Protocol):
    async def send(self, mail: Mail, key: str) -> None:
        """Deliver it, once for each key. Raises `MailServiceError` or `MailRefusedError`."""


class LoggedMailer:
    """Delivers nothing, and says what it would have delivered."""

    async def send(self, mail: Mail, key: str) -> None:
        logger.info("mail", to=mail.to, subject=mail.subject, key=key)


class HttpMailer:
    """Posts mails as JSON; the service knows by the header `Idempotency-Key` which it has already."""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def send(self, mail: Mail, key: str) -> None:
        try:
            answer = await self._client.post(self._url, json=asdict(mail), headers={"Idempotency-Key": key})
        except httpx.TransportError as error:
            raise MailServiceError(f"no answer: {error!r}") from error
        if answer.is_server_error or answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            raise MailServiceError(f"answered with {answer.status_code}")
        if not answer.is_success:
            raise MailRefusedError(f"refused with {answer.status_code}: {answer.text[:200]}")


async def open_mailer() -> AsyncGenerator[Mailer]:
    settings = MailSettings()
    if settings.url is None:
        yield LoggedMailer()
        return
    async with httpx.AsyncClient(timeout=settings.timeout) as client:
        yield HttpMailer(client, settings.url)
