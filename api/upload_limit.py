"""A limit on what is read of an upload, with an answer that names it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response, status
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from api.settings import MIB, settings

FORM_BYTES = 64 * 1024
"""What surrounds the file in a multipart body."""


class UploadRoute(APIRoute):
    """A route that stops reading a body that is over the limit; FastAPI's own limit answers in plain text."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_limited(request: Request) -> Response:
            if int(request.headers.get("content-length", 0)) > settings.max_upload_bytes + FORM_BYTES:
                raise too_large()
            return await handle(Request(request.scope, limited(request.receive)))

        return handle_limited


def limited(receive: Receive) -> Receive:
    received = 0

    async def receive_limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > settings.max_upload_bytes + FORM_BYTES:
            raise too_large()
        return message

    return receive_limited


def too_large() -> HTTPException:
    return HTTPException(
        status.HTTP_413_CONTENT_TOO_LARGE, f"The file is over {settings.max_upload_bytes / MIB:g} MiB."
    )
