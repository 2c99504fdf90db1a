"""Routes by which clients follow tasks, each by its id."""

# Annotations are evaluated where they stand: they name dependencies of one router, which are no names of this module.

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Response, params, status
from fastapi.sse import EventSourceResponse, ServerSentEvent

from celeriq.fastapi.task_view import TaskView
from celeriq.record import Record
from celeriq.redis.results import RedisResults
from celeriq.redis.streams import RedisBroker
from celeriq.states import PENDING

MustExist = Annotated[
    bool | None, Query(description="Whether a task of which nothing is stored is a 404; otherwise it is PENDING")
]
Timeout = Annotated[float, Query(ge=0, allow_inf_nan=False, description="Seconds, up to a limit of the service")]
Terminate = Annotated[bool, Query(description="End it, if it runs")]
LastSeen = Annotated[str | None, Header(alias="Last-Event-ID")]
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"description": "Nothing is stored of this task"}}
NOT_READY: dict[int | str, dict[str, Any]] = {202: {"model": TaskView, "description": "It has not ended yet"}}
SEEN: dict[int | str, dict[str, Any]] = {204: {"description": "The client has seen the end: it need not come again"}}


def task_router(
    broker: RedisBroker,
    *,
    prefix: str = "/tasks",
    must_exist: bool = False,
    tracebacks: bool = False,
    revoke: bool = False,
    longest_wait: float = 30.0,
    dependencies: Sequence[params.Depends] = (),
    tags: Sequence[str] = ("tasks",),
) -> APIRouter:
    """Routes below `prefix`: the state of a task, its result, its changes as server-sent events.

    `must_exist`: answer 404 where nothing is stored, in place of PENDING (ST-02); a request may say it for itself. As
    in Celery nothing is stored of a task that waits for its first run.
    `tracebacks`: show them; they tell how the service is built.
    `revoke`: let clients call tasks off.
    `longest_wait`: seconds that a request for a result may last; it holds a connection.
    `dependencies`: of every route, `[Depends(signed_in)]` for one. Whoever may ask and knows an id is told all.

    Raises `TypeError` if results are stored where nobody tells of them.
    """
    tasks = _Tasks(broker, must_exist=must_exist)
    router = APIRouter(prefix=f"{prefix}/{{task_id}}", dependencies=dependencies, tags=[*tags], responses=NOT_FOUND)
    found, followed = Depends(tasks.find), Depends(tasks.follow)

    def view(record: Record) -> TaskView:
        return TaskView.of(record, tracebacks=tracebacks)

    @router.get("")
    async def show_task(task: Annotated[Record, found]) -> TaskView:
        return view(task)

    @router.get("/result", responses=NOT_READY)
    async def wait_for_task(
        task: Annotated[Record, found],
        response: Response,
        timeout: Timeout = 0,  # noqa: ASYNC109 - as in AsyncResult.get
    ) -> TaskView:
        """The task as soon as it has ended, in whatever way; 202 if that takes longer than `timeout`."""
        ended = await tasks.wait(task, min(timeout, longest_wait))
        if not ended.ready:
            response.status_code = status.HTTP_202_ACCEPTED
        return view(ended)

    @router.get("/events", response_class=EventSourceResponse, responses=SEEN)
    async def follow_task(changes: Annotated[AsyncGenerator[Record], followed]) -> AsyncIterable[TaskView]:
        """The task as it is, and every change of it as an event; the last one is `ready`, and ends the stream."""
        async for change in changes:
            # FastAPI documents what is annotated, and sends an event as it is.
            yield cast("Any", ServerSentEvent(data=view(change), id=_end(change)))

    if revoke:

        @router.post("/revoke", status_code=status.HTTP_202_ACCEPTED)
        async def revoke_task(task: Annotated[Record, found], terminate: Terminate = False) -> TaskView:  # noqa: FBT002
            """Keep it from running, or end it."""
            await broker.revoke(task.task_id, terminate=terminate)
            return view(await tasks.find(task.task_id))

    return router


class _Tasks:
    """What is stored of tasks."""

    def __init__(self, broker: RedisBroker, *, must_exist: bool) -> None:
        self._broker = broker
        self._must_exist = must_exist
        _ = self._results

    @property
    def _results(self) -> RedisResults[Any]:
        results = self._broker.result_backend
        if not isinstance(results, RedisResults):
            raise TypeError(f"task_router needs RedisResults, which tell of changes, not {type(results).__name__}")
        return results

    async def find(self, task_id: str, must_exist: MustExist = None) -> Record:
        found = await self._results.find(task_id)
        if found is not None:
            return found
        if self._must_exist if must_exist is None else must_exist:
            raise HTTPException(status.HTTP_404_NOT_FOUND, f"There is no task {task_id!r}, or not any more.")
        return Record(status=PENDING, task_id=task_id)

    async def wait(self, task: Record, seconds: float) -> Record:
        """As it is when it has ended, or after `seconds`."""
        if task.ready or seconds == 0:
            return task
        try:
            return await self._results.wait(task.task_id, seconds)
        except TimeoutError:
            return await self._results.find(task.task_id) or task

    async def follow(
        self, task_id: str, must_exist: MustExist = None, last_event_id: LastSeen = None
    ) -> AsyncIterator[AsyncGenerator[Record]]:
        """Its changes. They end with the response: nobody closes a generator from which a client turned away."""
        task = await self.find(task_id, must_exist)
        if last_event_id is not None and last_event_id == _end(task):
            # A browser connects again to whatever has ended, until it is told that there is nothing more.
            raise HTTPException(status.HTTP_204_NO_CONTENT)
        async with aclosing(self._results.follow(task_id)) as changes, aclosing(_after(task, changes)) as all_changes:
            yield all_changes


async def _after(task: Record, changes: AsyncGenerator[Record]) -> AsyncGenerator[Record]:
    """`task`, which may be known to nobody yet, and what follows it."""
    yield task
    if not task.ready:
        before = task
        async for change in changes:
            if change != before:
                yield change
            before = change


def _end(task: Record) -> str | None:
    """The id of the last event: what a client that has seen it says when it connects again."""
    return f"{task.status} {task.date_done}" if task.ready else None
