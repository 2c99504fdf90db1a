from __future__ import annotations

from collections.abc import AsyncIterable
from contextlib import aclosing
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, HTTPException, status
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from broker import broker
from celeriq import Record, RedisResults

router = APIRouter(prefix="/tasks", tags=["tasks"])

results = cast("RedisResults[Any]", broker.result_backend)


class Accepted(BaseModel):
    task_id: str


class TaskView(BaseModel):
    """State as in Celery; `progress` while the task runs, `result` or `error` when it has ended."""

    task_id: str
    state: str
    ready: bool
    progress: Any = None
    result: Any = None
    error: str | None = None

    @classmethod
    def of(cls, record: Record) -> TaskView:
        view = cls(task_id=record.task_id, state=record.status, ready=record.ready)
        if record.status in {"FAILURE", "RETRY", "REVOKED"}:
            view.error = error_text(record.result)
        elif record.ready:
            view.result = record.result
        else:
            view.progress = record.result
        return view


def error_text(stored: Any) -> str:
    """The stored exception in a line; whatever else a task stored by itself under such a state, as it is."""
    match stored:
        case {"exc_type": kind, "exc_message": [*arguments]}:
            return f"{kind}: {', '.join(map(str, arguments))}"
        case _:
            return str(stored)


async def known_task(task_id: str) -> Record:
    record = await results.find(task_id)
    if record is None:
        raise HTTPException(
            status.HTTP_404_NOT_FOUND,
            f"There is no task {task_id!r}: it was never sent, or ended more than a day ago.",
        )
    return record


@router.get("/{task_id}")
async def show(record: Annotated[Record, Depends(known_task)]) -> TaskView:
    return TaskView.of(record)


@router.get("/{task_id}/progress", response_class=EventSourceResponse)
async def follow(record: Annotated[Record, Depends(known_task)]) -> AsyncIterable[ServerSentEvent]:
    """Every change of state as a server-sent event; the stream ends with the task."""
    async with aclosing(results.follow(record.task_id)) as changes:
        async for change in changes:
            yield ServerSentEvent(event=change.status.lower(), data=TaskView.of(change))
