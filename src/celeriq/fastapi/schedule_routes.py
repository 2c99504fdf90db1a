"""Schedules over HTTP: `app.include_router(schedule_router(scheduler), prefix="/schedules")`."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, cast

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from celeriq.errors import ScheduleConflictError, ScheduleError, UnknownScheduleError
from celeriq.schedule_rows import StoredSchedule
from celeriq.scheduler import Scheduler
from celeriq.schedules import Changes, Schedules
from celeriq.ticks import POLICY_KEYS, Misfire, Overlap, TickPolicy


class Policy(BaseModel):
    """What becomes of late ticks and of those that overlap: see `celeriq.TickPolicy`."""

    model_config = ConfigDict(extra="forbid")

    misfire: Misfire = "once"
    grace: float = 60.0
    most: int = 100
    jitter: float = 0.0
    overlap: Overlap = "allow"
    max_overlap: float | None = None


class ScheduleView(BaseModel):
    """A schedule, and what became of it; moments are in UTC."""

    model_config = ConfigDict(extra="forbid")

    name: str
    task: str
    schedule: str = Field(description="as JSON", examples=['{"cron": "0 2 * * *", "tz": "Europe/Berlin"}'])
    args: Any
    kwargs: Any
    options: Any
    labels: Any
    policy: Any = Field(description="what differs from the default")
    paused: bool
    is_declared: bool = Field(description="whether the code declares it")
    last_due: datetime
    next_due: datetime | None
    last_run_at: datetime | None
    last_task_id: str | None
    runs: int
    missed: int
    skipped: int
    error: str | None = Field(description="why it cannot run")
    version: int
    updated_at: datetime


class ScheduleChange(BaseModel):
    """What is to be changed; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    version: int | None = Field(None, description="the one that was read: 409 if somebody has edited it since")
    task: str | None = None
    schedule: Mapping[str, Any] | None = Field(None, examples=[{"cron": "0 2 * * *", "tz": "Europe/Berlin"}])
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    policy: Policy | None = None


class NewSchedule(BaseModel):
    """A schedule that the code does not declare."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    task: str
    schedule: Mapping[str, Any] = Field(examples=[{"interval": 30}])
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    options: dict[str, Any] = {}
    policy: Policy = Policy()
    paused: bool = False


class Run(BaseModel):
    """A call that was made."""

    task_id: str


def schedule_router(scheduler: Scheduler) -> APIRouter:
    """Routes to look at schedules and to change them. Whoever may call them may have any task called: protect them,
    `APIRouter`s take `dependencies=[Depends(...)]` where they are included.

    404 for an unknown name, 409 for a conflict, 422 for a schedule that cannot run; each says the remedy.
    """
    router = APIRouter(tags=["schedules"])
    _add_reading(router, scheduler.schedules)
    _add_changing(router, scheduler.schedules)
    _add_switching(router, scheduler.schedules)
    return router


def _add_reading(router: APIRouter, schedules: Schedules) -> None:
    @router.get("")
    async def list_schedules() -> list[ScheduleView]:  # pyright: ignore[reportUnusedFunction]
        return [_view(row) for row in await schedules.list()]

    @router.get("/{name:path}")
    async def get_schedule(name: str) -> ScheduleView:  # pyright: ignore[reportUnusedFunction]
        with _told():
            return _view(await schedules.get(name))


def _add_changing(router: APIRouter, schedules: Schedules) -> None:
    @router.post("", status_code=201)
    async def create_schedule(given: NewSchedule) -> ScheduleView:  # pyright: ignore[reportUnusedFunction]
        with _told():
            row = await schedules.add(
                given.name,
                given.task,
                given.schedule,
                args=given.args,
                kwargs=given.kwargs,
                options=given.options,
                policy=_policy(given.policy),
                paused=given.paused,
            )
        return _view(row)

    @router.patch("/{name:path}")
    async def edit_schedule(name: str, given: ScheduleChange) -> ScheduleView:  # pyright: ignore[reportUnusedFunction]
        said = {key: getattr(given, key) for key in given.model_fields_set if getattr(given, key) is not None}
        if "policy" in said:
            with _told():
                said["policy"] = _policy(said["policy"])
        version = said.pop("version", None)
        with _told():
            return _view(await schedules.edit(name, version=version, **cast("Changes", said)))

    @router.delete("/{name:path}", status_code=204)
    async def delete_schedule(name: str) -> None:  # pyright: ignore[reportUnusedFunction]
        with _told():
            await schedules.delete(name)


def _add_switching(router: APIRouter, schedules: Schedules) -> None:
    @router.post("/{name:path}/pause")
    async def pause_schedule(name: str) -> ScheduleView:  # pyright: ignore[reportUnusedFunction]
        with _told():
            return _view(await schedules.pause(name))

    @router.post("/{name:path}/resume")
    async def resume_schedule(name: str) -> ScheduleView:  # pyright: ignore[reportUnusedFunction]
        with _told():
            return _view(await schedules.resume(name))

    @router.post("/{name:path}/run", status_code=202)
    async def run_schedule(name: str) -> Run:  # pyright: ignore[reportUnusedFunction]
        with _told():
            return Run(task_id=(await schedules.run_now(name)).task_id)


def _view(row: StoredSchedule) -> ScheduleView:
    fields = {name: getattr(row, name) for name in StoredSchedule.__slots__ if name != "declared"}
    return ScheduleView(**fields, is_declared=row.declared is not None)


def _policy(given: Policy) -> TickPolicy:
    return TickPolicy(**{key: getattr(given, key) for key in POLICY_KEYS})


@contextmanager
def _told() -> Generator[None]:
    """As the answer that an error is."""
    try:
        yield
    except UnknownScheduleError as error:
        raise HTTPException(404, str(error)) from error
    except ScheduleConflictError as error:
        raise HTTPException(409, str(error)) from error
    except ScheduleError as error:
        raise HTTPException(422, str(error)) from error
