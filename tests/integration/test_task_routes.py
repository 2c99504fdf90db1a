"""Following tasks over HTTP: their state, their result, every change as it is told, and calling them off."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import fastapi.routing
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from httpx import ASGITransport, AsyncClient, Response
from redis.asyncio import Redis
from taskiq import InMemoryBroker

from celeriq import BoundTask, CurrentTask, RedisBroker, injected
from celeriq.fastapi import TaskView, task_router
from celeriq.record import Record, failure, success
from tests.integration.conftest import MakeBroker
from tests.waiting import wait_for
from tests.workers import running

WAIT = 20


@asynccontextmanager
async def asking(broker: RedisBroker, **settings: Any) -> AsyncGenerator[AsyncClient]:
    """A client of an application that has these routes and no others."""
    app = FastAPI()
    app.include_router(task_router(broker, **settings))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test", timeout=WAIT) as client:
        yield client


@asynccontextmanager
async def serving(broker: RedisBroker, **settings: Any) -> AsyncGenerator[AsyncClient]:
    """The same over a real connection, which a client may break off."""
    app = FastAPI()
    app.include_router(task_router(broker, **settings))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=5))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        served = asyncio.create_task(server.serve([listening]))
        try:
            await wait_for(lambda: server.started)
            async with AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=WAIT) as client:
                yield client
        finally:
            server.should_exit = True
            await served


async def told(answer: Response) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream, which ends with this: keep it."""
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def followers(redis: Redis, broker: RedisBroker, task_id: str) -> int:
    """How many connections Redis tells of this task."""
    [(_, number)] = await redis.pubsub_numsub(broker.keys.record(task_id))
    return int(number)


async def is_left_alone(redis: Redis, broker: RedisBroker, task_id: str) -> bool:
    return await followers(redis, broker, task_id) == 0


@pytest.fixture
def broker(make_broker: MakeBroker) -> RedisBroker:
    return make_broker()


# -- the state ---------------------------------------------------------------------------------------------------------


async def test_a_task_of_which_nothing_is_known_is_pending(broker: RedisBroker) -> None:
    """ST-02."""
    async with asking(broker) as client:
        answer = await client.get("/tasks/nobody")
    assert answer.status_code == 200
    assert answer.json() == {
        "task_id": "nobody",
        "state": "PENDING",
        "ready": False,
        "successful": False,
        "progress": None,
        "result": None,
        "error": None,
        "traceback": None,
        "date_done": None,
    }


@pytest.mark.parametrize("path", ["/tasks/nobody", "/tasks/nobody/result", "/tasks/nobody/events"])
async def test_or_not_found_if_somebody_says_so(broker: RedisBroker, path: str) -> None:
    async with asking(broker) as client:
        answer = await client.get(path, params={"must_exist": True})
    assert (answer.status_code, answer.json()["detail"]) == (404, "There is no task 'nobody', or not any more.")
    async with asking(broker, must_exist=True) as client:
        assert (await client.get(path)).status_code == 404
    async with asking(broker, must_exist=True) as client:
        assert (await client.get("/tasks/nobody", params={"must_exist": False})).json()["state"] == "PENDING"


async def test_what_a_task_has_returned_or_raised(broker: RedisBroker) -> None:
    @broker.task
    async def divide(x: int, y: int) -> dict[str, float]:
        return {"quotient": x / y}

    async with running(broker), asking(broker) as client:
        fine, broken = await divide.delay(6, 3), await divide.delay(1, 0)
        for sent in (fine, broken):
            await sent.get(timeout=WAIT, propagate=False)
        returned = TaskView.model_validate((await client.get(f"/tasks/{fine.id}")).json())
        raised = TaskView.model_validate((await client.get(f"/tasks/{broken.id}")).json())
    assert (returned.state, returned.ready, returned.successful) == ("SUCCESS", True, True)
    assert (returned.result, returned.error, returned.date_done is None) == ({"quotient": 2.0}, None, False)
    assert (raised.state, raised.ready, raised.successful, raised.result) == ("FAILURE", True, False, None)
    assert raised.error is not None
    assert (raised.error.type, raised.error.message) == ("ZeroDivisionError", "division by zero")
    assert raised.traceback is None


async def test_tracebacks_are_shown_where_the_service_says_so(broker: RedisBroker) -> None:
    await broker.result_backend.store(failure("t", ValueError("no"), 0))  # type: ignore[attr-defined]
    async with asking(broker, tracebacks=True) as client:
        assert (await client.get("/tasks/t")).json()["traceback"] == "ValueError: no\n"
        assert "ValueError: no" in (await client.get("/tasks/t/events")).text


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (Record(status="PROGRESS", result={"current": 1}, task_id="t"), ({"current": 1}, None)),
        (Record(status="STARTED", result={"pid": 1, "hostname": "inside"}, task_id="t"), (None, None)),
        (Record(status="RETRY", task_id="t"), (None, None)),
        (Record(status="RETRY", result={"exc_type": "E", "exc_message": ["a", 1]}, task_id="t"), (None, ("E", "a, 1"))),
        (Record(status="FAILURE", result={"own": "words"}, task_id="t"), (None, ("FAILURE", "{'own': 'words'}"))),
    ],
    ids=["its own", "started", "retry without error", "retry", "a failure told by itself"],
)
async def test_what_is_shown_of_other_states(
    broker: RedisBroker, stored: Record, shown: tuple[Any, tuple[str, str] | None]
) -> None:
    """Which host runs a task is nobody's business."""
    await broker.result_backend.store(stored)  # type: ignore[attr-defined]
    async with asking(broker) as client:
        view = TaskView.model_validate((await client.get("/tasks/t")).json())
    assert (view.progress, view.error and (view.error.type, view.error.message)) == shown


# -- the result --------------------------------------------------------------------------------------------------------


async def test_a_result_comes_as_soon_as_it_is_there(broker: RedisBroker) -> None:
    go = asyncio.Event()

    @broker.task
    async def waits() -> str:
        await go.wait()
        return "told"

    async with running(broker), asking(broker) as client:
        sent = await waits.delay()
        path = f"/tasks/{sent.id}/result"
        for params in ({}, {"timeout": 0.05}):
            answer = await client.get(path, params=params)
            assert (answer.status_code, answer.json()["ready"]) == (202, False)
        asked = asyncio.create_task(client.get(path, params={"timeout": WAIT}))
        go.set()
        answer = await asked
    assert (answer.status_code, answer.json()["result"]) == (200, "told")


async def test_nobody_waits_longer_than_the_service_lets_them(broker: RedisBroker, redis: Redis) -> None:
    async with asking(broker, longest_wait=0.05) as client, asyncio.timeout(WAIT):
        answer = await client.get("/tasks/nobody/result", params={"timeout": 3600})
    assert (answer.status_code, answer.json()["state"]) == (202, "PENDING")
    await wait_for(lambda: is_left_alone(redis, broker, "nobody"))


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon"])
async def test_a_wrong_timeout_is_refused(broker: RedisBroker, seconds: str) -> None:
    async with asking(broker) as client:
        assert (await client.get("/tasks/t/result", params={"timeout": seconds})).status_code == 422


async def test_a_task_that_has_failed_is_an_answer_like_any(broker: RedisBroker) -> None:
    await broker.result_backend.store(failure("t", ValueError("no"), 0))  # type: ignore[attr-defined]
    async with asking(broker) as client:
        answer = await client.get("/tasks/t/result", params={"timeout": WAIT})
    assert (answer.status_code, answer.json()["error"]) == (200, {"type": "ValueError", "message": "no"})


# -- the events --------------------------------------------------------------------------------------------------------


async def test_every_change_is_an_event_and_the_last_one_ends_the_stream(broker: RedisBroker, redis: Redis) -> None:
    go = asyncio.Event()

    @broker.task
    async def counting(task: CurrentTask = injected) -> str:
        await go.wait()
        for number in range(20):
            await task.update_state("PROGRESS", {"current": number})
        return "counted"

    async with running(broker), serving(broker) as client:
        sent = await counting.delay()
        async with client.stream("GET", f"/tasks/{sent.id}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-cache"
            events = told(answer)
            seen = [await anext(events)]
            await wait_for(lambda: followers(redis, broker, sent.id))
            go.set()
            seen += [event async for event in events]
        await wait_for(lambda: is_left_alone(redis, broker, sent.id))
    assert [event["state"] for event in seen] == ["PENDING", *20 * ["PROGRESS"], "SUCCESS"]
    assert [event["progress"]["current"] for event in seen[1:-1]] == list(range(20))
    assert (seen[-1]["ready"], seen[-1]["result"]) == (True, "counted")


async def test_retries_are_changes_too(broker: RedisBroker) -> None:
    @broker.task(bind=True, max_retries=1)
    async def work(self: BoundTask) -> None:
        raise self.retry(exc=ValueError(f"attempt {self.request.retries}"), countdown=0)

    async with serving(broker) as client:
        sent = await work.delay()
        async with client.stream("GET", f"/tasks/{sent.id}/events") as answer:
            events = told(answer)
            assert (await anext(events))["state"] == "PENDING"
            async with running(broker):
                seen = [event async for event in events]
    assert [(event["state"], event["error"]["message"]) for event in seen] == [
        ("RETRY", "attempt 0"),
        ("FAILURE", "attempt 1"),
    ]


async def test_a_client_that_goes_away_leaves_nothing_behind(broker: RedisBroker, redis: Redis) -> None:
    async with serving(broker) as client:
        for _ in range(3):
            async with client.stream("GET", "/tasks/t/events") as answer:
                events = told(answer)
                assert (await anext(events))["state"] == "PENDING"
                await wait_for(lambda: followers(redis, broker, "t"))
            await wait_for(lambda: is_left_alone(redis, broker, "t"))


async def test_so_does_one_that_never_reads_what_it_is_told(broker: RedisBroker, redis: Redis) -> None:
    """The stream stands in the middle of an event then, and not where it waits for the next one."""
    results: Any = broker.result_backend
    async with serving(broker) as client:
        async with client.stream("GET", "/tasks/t/events"):
            await wait_for(lambda: followers(redis, broker, "t"))
            for number in range(20):  # Redis itself cuts off who is 32 MB behind
                meta = {"current": number, "more": 1_000_000 * "x"}
                await results.store(Record(status="PROGRESS", result=meta, task_id="t"))
        await wait_for(lambda: is_left_alone(redis, broker, "t"))


async def test_a_stream_in_which_nothing_happens_is_kept_alive(
    broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastapi.routing, "_PING_INTERVAL", 0.05)
    async with serving(broker) as client, client.stream("GET", "/tasks/t/events") as answer:
        lines = answer.aiter_lines()
        pending = TaskView.of(Record(status="PENDING", task_id="t")).model_dump_json()
        for line in (f"data: {pending}", "", ": ping", "", ": ping"):
            assert await anext(lines) == line


async def test_a_browser_that_has_seen_the_end_is_told_not_to_come_again(broker: RedisBroker) -> None:
    """An EventSource connects again, with the id of the last event, until it gets a 204."""
    results: Any = broker.result_backend
    await results.store(failure("t", ValueError("no"), 0))
    async with asking(broker) as client:
        lines = (await client.get("/tasks/t/events")).text.splitlines()
        [end] = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
        again = await client.get("/tasks/t/events", headers={"Last-Event-ID": end})
        assert (again.status_code, again.content) == (204, b"")
        await results.store(success("t", "better", 0))
        later = await client.get("/tasks/t/events", headers={"Last-Event-ID": end})
    assert '"result":"better"' in later.text


async def test_one_that_has_not_is_told_how_it_stands(broker: RedisBroker) -> None:
    results: Any = broker.result_backend
    await results.store(Record(status="PROGRESS", result={"current": 7}, task_id="t"))
    async with serving(broker) as client:
        headers = {"Last-Event-ID": "from another time"}
        async with client.stream("GET", "/tasks/t/events", headers=headers) as answer:
            events = told(answer)
            assert (await anext(events))["progress"] == {"current": 7}
            await results.store(success("t", 8, 0))
            assert [event["result"] async for event in events] == [8]


async def test_a_hundred_who_follow_share_one_subscription(broker: RedisBroker, redis: Redis) -> None:
    results: Any = broker.result_backend
    async with asking(broker) as client:
        asked = [asyncio.create_task(client.get("/tasks/t/events")) for _ in range(100)]
        await wait_for(lambda: len(results._watch._watchers[broker.keys.record("t")]) == 100)
        assert await followers(redis, broker, "t") == 1
        await results.store(success("t", 1, 0))
        answers = await asyncio.gather(*asked)
    assert all('"result":1' in answer.text for answer in answers)


# -- calling off -------------------------------------------------------------------------------------------------------


async def test_a_task_is_called_off_where_the_service_lets_clients_do_so(broker: RedisBroker) -> None:
    @broker.task
    async def never() -> None: ...

    sent = await never.delay()
    async with asking(broker) as client:
        assert (await client.post(f"/tasks/{sent.id}/revoke")).status_code == 404
    async with asking(broker, revoke=True) as client:
        answer = await client.post(f"/tasks/{sent.id}/revoke")
        assert (answer.status_code, answer.json()["state"]) == (202, "REVOKED")
        assert answer.json()["error"] == {"type": "TaskRevokedError", "message": "revoked"}


async def test_one_that_runs_is_ended_if_the_client_says_so(broker: RedisBroker) -> None:
    begun = asyncio.Event()

    @broker.task
    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with running(broker), asking(broker, revoke=True) as client:
        sent = await endless.delay()
        await begun.wait()
        assert (await client.post(f"/tasks/{sent.id}/revoke", params={"terminate": True})).status_code == 202
        answer = await client.get(f"/tasks/{sent.id}/result", params={"timeout": WAIT})
    assert (answer.json()["state"], answer.json()["error"]["message"]) == ("REVOKED", "terminated")


# -- the router --------------------------------------------------------------------------------------------------------


async def signed_in(token: str = Header("")) -> None:
    if token != "secret":
        raise HTTPException(401)


async def test_every_route_asks_its_dependencies(broker: RedisBroker) -> None:
    async with asking(broker, dependencies=[Depends(signed_in)], revoke=True, prefix="/jobs") as client:
        for method, path in (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("POST", "/revoke")):
            assert (await client.request(method, f"/jobs/t{path}")).status_code == 401
        assert (await client.get("/jobs/t", headers={"token": "secret"})).status_code == 200


def test_they_are_documented(broker: RedisBroker) -> None:
    app = FastAPI()
    app.include_router(task_router(broker, revoke=True))
    described = app.openapi()
    assert {(path, method) for path, methods in described["paths"].items() for method in methods} == {
        ("/tasks/{task_id}", "get"),
        ("/tasks/{task_id}/result", "get"),
        ("/tasks/{task_id}/events", "get"),
        ("/tasks/{task_id}/revoke", "post"),
    }
    asked = described["paths"]["/tasks/{task_id}/result"]["get"]
    view = {"$ref": "#/components/schemas/TaskView"}
    assert [asked["responses"][code]["content"]["application/json"]["schema"] for code in ("200", "202")] == [view] * 2
    assert {one["name"] for one in asked["parameters"]} == {"task_id", "must_exist", "timeout"}
    events = described["paths"]["/tasks/{task_id}/events"]["get"]["responses"]
    assert events["200"]["content"]["text/event-stream"]["itemSchema"]["properties"]["data"]["contentSchema"] == view
    assert {"204", "404"} <= events.keys()


def test_results_that_nobody_tells_of_are_refused(broker: RedisBroker) -> None:
    broker.with_result_backend(InMemoryBroker().result_backend)
    with pytest.raises(TypeError, match="task_router needs RedisResults, which tell of changes, not Inmemory"):
        task_router(broker)


async def test_a_router_reads_where_its_broker_writes_by_now(broker: RedisBroker, namespace: str) -> None:
    """Tests give a broker a namespace of their own, long after the application was put together."""
    router = task_router(broker)
    broker.with_namespace(f"{namespace}-later")
    await broker.result_backend.store(success("t", 1, 0))  # type: ignore[attr-defined]
    app = FastAPI()
    app.include_router(router)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/tasks/t")).json()["result"] == 1
