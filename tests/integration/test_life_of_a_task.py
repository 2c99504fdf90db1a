"""docs/life-of-a-task.md tells what happens: its lists are compared with what does, under both receivers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, model_serializer
from sqlalchemy import event, text
from taskiq import TaskiqDepends, TaskiqMiddleware

from celeriq import RedisBroker, TaskSession, injected
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

PAGE = Path(__file__).parents[2] / "docs" / "life-of-a-task.md"
HOOKS = ("pre_send", "post_send", "pre_execute", "on_error", "post_execute", "post_save")

events: list[str] = []
"""Of the one task of a test."""


def told(heading: str) -> list[str]:
    """The events that the page lists under `heading`."""
    listing = PAGE.read_text().partition(f"## {heading}\n")[2].partition("```text\n")[2].partition("```")[0]
    return [line.partition("  ")[0].strip() for line in listing.splitlines()]


def hook(name: str) -> Callable[..., Any]:
    def noting(_: TaskiqMiddleware, told: Any, *_more: Any) -> Any:
        events.append(name)
        return told if name.startswith("pre_") else None

    return noting


Noting: Any = type("Noting", (TaskiqMiddleware,), {name: hook(name) for name in HOOKS})


class Value(BaseModel):
    @model_serializer
    def serialize(self) -> int:
        events.append("encoded")
        return 1


def note_rollback(*_: object) -> None:
    if "committed" not in events:
        events.append("rolled back")


async def audit(session: TaskSession = injected) -> AsyncIterator[None]:
    event.listen(session.sync_session, "after_commit", lambda _: events.append("committed"))
    # Closing a session rolls back what was not committed.
    event.listen(session.sync_session, "after_transaction_end", note_rollback)
    events.append("opened")
    try:
        yield
    finally:
        events.append("closing")


def note_after(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, name: str) -> None:
    original = getattr(owner, method)

    async def noting(*args: Any) -> Any:
        answer = await original(*args)
        events.append(name)
        return answer

    monkeypatch.setattr(owner, method, noting)


@pytest.fixture
def broker(make_broker: MakeBroker, open_sessions: Any, monkeypatch: pytest.MonkeyPatch) -> RedisBroker:
    events.clear()
    broker = make_broker().with_sessions(open_sessions).with_middlewares(Noting())
    note_after(monkeypatch, broker._sender, "send", "sent")
    note_after(monkeypatch, broker.settlement, "settle", "settled")
    return broker


@pytest.mark.parametrize(
    ("error", "heading"),
    [(None, "It succeeds"), (ConnectionError("away"), "It is retried"), (ValueError("wrong"), "It fails")],
)
async def test_the_events_are_those_that_the_page_lists(
    broker: RedisBroker, error: Exception | None, heading: str
) -> None:
    @broker.task(autoretry_for=(ConnectionError,), default_retry_delay=3600)
    async def live(audited: Annotated[None, TaskiqDepends(audit)] = injected, session: TaskSession = injected) -> Value:
        await session.execute(text("select 1"))
        events.append("body")
        if error:
            raise error
        return Value()

    expected = told(heading)
    last = expected[-1]
    async with running(broker):
        await live.kiq()
        await wait_for(lambda: last in events)
    if expected[0] != "pre_send":
        assert events[:3] == ["pre_send", "sent", "post_send"]
        del events[:3]
    assert events == expected
