"""What a client is told of a task."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from celeriq.record import Record
from celeriq.states import EXCEPTION, IGNORED, READY, SUCCESS, UNREADY

NOT_PROGRESS = UNREADY | READY | {IGNORED}
"""What is stored with these is for operators, the host that runs the task for one."""


class TaskError(BaseModel):
    """An exception: its class by name, and its arguments as text."""

    type: str
    message: str

    @classmethod
    def of(cls, record: Record) -> TaskError | None:
        match record.result:
            case None:
                return None
            case {"exc_type": str(kind), "exc_message": [*arguments]}:
                return cls(type=kind, message=", ".join(map(str, arguments)))
            case told:  # a task may store such a state by itself, and with it whatever it likes
                return cls(type=record.status, message=str(told))


class TaskView(BaseModel):
    """A task as it is, or was when it ended."""

    task_id: str
    state: str = Field(description="As in Celery: PENDING, STARTED, RETRY, SUCCESS, FAILURE, REVOKED, or one's own")
    ready: bool = Field(description="Whether it has ended, in whatever way")
    successful: bool
    progress: Any = Field(None, description="What it has told with a state of its own")
    result: Any = Field(None, description="What it returned")
    error: TaskError | None = Field(None, description="Why it failed, was called off or is tried again")
    traceback: str | None = Field(None, description="Only where the service shows them")
    date_done: datetime | None = None

    @classmethod
    def of(cls, record: Record, *, tracebacks: bool = False) -> TaskView:
        state, told = record.status, record.result
        return cls(
            task_id=record.task_id,
            state=state,
            ready=record.ready,
            successful=state == SUCCESS,
            progress=None if state in NOT_PROGRESS else told,
            result=told if state == SUCCESS else None,
            error=TaskError.of(record) if state in EXCEPTION else None,
            traceback=record.traceback if tracebacks else None,
            date_done=None if record.date_done is None else datetime.fromisoformat(record.date_done),
        )
