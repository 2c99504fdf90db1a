"""Attempts without a queue or a database."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from celeriq.attempt import Attempt, Delivery
from celeriq.definition import Definition
from celeriq.envelope import RETRIES_LABEL, VERSION, Claim, Envelope
from celeriq.hooks import NO_HOOKS, Hooks
from celeriq.options import Options
from celeriq.record import Record


class Engine:
    """What an attempt needs of a broker."""

    def __init__(self) -> None:
        self.dependency_overrides: dict[Any, Any] = {}
        self.max_payload = 1024
        self.commit_timeout = 60.0
        self.threads: Executor | None = None
        self.namespace = "tests"

    def new_session(self, database: str | None = None) -> AsyncSession:
        raise NotImplementedError

    async def write_outgoing(self, attempt: Attempt, session: AsyncSession) -> None:
        raise NotImplementedError

    async def store(self, stored: Record, attempt: Attempt | None) -> None:
        raise NotImplementedError

    async def settle(self, attempt: Attempt) -> None:
        raise NotImplementedError

    async def acquire(self, attempt: Attempt, kind: str, most: int) -> bool | None:
        raise NotImplementedError

    async def reserve(self, kind: str, seconds: float, before: int | None, late: float) -> int | None:
        raise NotImplementedError

    async def claim(self, call: Envelope, claim: Claim, *, replace: bool) -> str:
        raise NotImplementedError

    async def circuit_open_until(self, kind: str, call: Envelope, period: float) -> float | None:
        raise NotImplementedError

    async def report_to_circuit(
        self, kind: str, call: Envelope, *, succeeded: bool | None, failures: int, period: float
    ) -> None:
        raise NotImplementedError

    def is_revoked(self, call: Envelope) -> bool:
        return False

    def settings_of(self, definition: Definition, said: Mapping[str, Any]) -> tuple[Options, Hooks]:
        return definition.options.changed(said), NO_HOOKS


def attempt(engine: Engine | None = None, *, retries: int = 0, **context: Any) -> Attempt:
    labels = {RETRIES_LABEL: retries} if retries else {}
    call = Envelope(v=VERSION, id="id", task="name", args=[1], kwargs={"two": 2}, labels=labels)
    begun = Attempt(engine=engine or Engine(), delivery=Delivery(b""), envelope=call, message=call.message())
    begun.dependency_context = {type(value): value for value in context.values()}
    return begun
