from __future__ import annotations

from typing import Any

import pytest
from httpx import AsyncClient
from redis.asyncio import Redis

from broker import broker
from celeriq import TaskSession
from db import users
from tasks.users import activate_user
from tests.app.fixtures import ended
from tests.waiting import wait_for


async def created(client: AsyncClient, path: str, **body: Any) -> int:
    answer = await client.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return int(answer.json()["id"])


async def test_a_user_is_activated_by_a_task(client: AsyncClient) -> None:
    user = await created(client, "/users", email="ada@example.org")
    await created(client, "/articles", author_id=user, title="One", body="a b c")
    accepted = await client.post(f"/users/{user}/activation")
    assert accepted.status_code == 202
    view = await ended(client, accepted.json()["task_id"])
    assert view["result"] == {"user_id": user, "articles": 1}
    assert (await client.get(f"/users/{user}")).json()["is_active"] is True


async def test_activating_twice_keeps_the_first_instant(client: AsyncClient) -> None:
    user = await created(client, "/users", email="ada@example.org")
    instants: set[str] = set()
    for _ in range(2):
        await ended(client, (await client.post(f"/users/{user}/activation")).json()["task_id"])
        instants.add((await client.get(f"/users/{user}")).json()["activated_at"])
    assert len(instants) == 1


async def test_activation_is_retried_after_a_minute_three_times(client: AsyncClient, redis: Redis) -> None:
    options = activate_user.definition.options
    assert (options.get("default_retry_delay"), options.get("max_retries")) == (60, 3)
    sent = await activate_user.kiq(4711)

    async def waiting() -> list[Any]:
        return list(await redis.zrange(broker.keys.delayed("default"), 0, -1, withscores=True))

    [(_, due)] = await wait_for(waiting)
    seconds, _ = await redis.time()
    assert 55 < due / 1000 - seconds <= 61
    view = (await client.get(f"/tasks/{sent.task_id}")).json()
    assert view["state"] == "RETRY"
    assert view["error"] == {"type": "UnknownUserError", "message": "there is no user 4711"}


async def test_the_pipeline_publishes_what_is_pending(client: AsyncClient) -> None:
    user = await created(client, "/users", email="ada@example.org")
    for number in range(3):
        await created(client, "/articles", author_id=user, title=f"No. {number}", body="some words")
    for limit, published in ((2, 2), (2, 1), (2, 0)):
        accepted = await client.post("/articles/pipeline", params={"limit": limit})
        assert (await ended(client, accepted.json()["task_id"]))["result"] == {"published": published}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "detail"),
    [
        ("GET", "/users/1", None, 404, "There is no user 1."),
        ("POST", "/users/1/activation", None, 404, "There is no user 1."),
        ("POST", "/articles", {"author_id": 1, "title": "t", "body": ""}, 422, "There is no user 1."),
    ],
)
async def test_an_unknown_user_is_named(
    client: AsyncClient, method: str, path: str, body: Any, status: int, detail: str
) -> None:
    answer = await client.request(method, path, json=body)
    assert (answer.status_code, answer.json()["detail"]) == (status, detail)


async def test_an_email_is_given_once(client: AsyncClient) -> None:
    await created(client, "/users", email="ada@example.org")
    answer = await client.post("/users", json={"email": "ada@example.org"})
    assert (answer.status_code, answer.json()["detail"]) == (409, "There is a user ada@example.org already.")


def test_the_crud_is_the_same_in_the_api_and_in_the_worker() -> None:
    """Both call db.users.activate with a session; neither has a copy of it."""
    assert "session" in activate_user.definition.graphs.for_overrides({}).injected_parameters
    assert users.activate.__module__ == "db.users"
    assert TaskSession.__origin__.__name__ == "AsyncSession"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"/users/{2**31}", None),
        ("POST", f"/users/{2**31}/activation", None),
        ("POST", "/users", {"email": "a\0b@example.org"}),
        ("POST", "/articles", {"author_id": 2**31, "title": "t", "body": ""}),
        ("POST", "/articles", {"author_id": 1, "title": "t", "body": "a\0b"}),
    ],
)
async def test_what_the_database_cannot_hold_is_refused(client: AsyncClient, method: str, path: str, body: Any) -> None:
    assert (await client.request(method, path, json=body)).status_code == 422
