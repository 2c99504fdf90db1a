"""Dependencies of a FastAPI application in tasks: they work as in a request, or the worker does not start."""

# Annotations are evaluated where they stand: they name dependencies that only one test has.

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import taskiq_fastapi
from fastapi import (
    BackgroundTasks,
    Body,
    Cookie,
    Depends,
    FastAPI,
    File,
    Form,
    Header,
    Path,
    Query,
    Request,
    Response,
    UploadFile,
    WebSocket,
)
from fastapi.requests import HTTPConnection
from fastapi.security import OAuth2PasswordBearer, SecurityScopes
from httpx import ASGITransport, AsyncClient
from sqlalchemy import text
from taskiq import TaskiqDepends

import celeriq.fastapi
from celeriq import RedisBroker, TaskDefinitionError, TaskSession, injected
from celeriq.fastapi import RequestSession
from tests import databases
from tests.integration.conftest import MakeBroker
from tests.workers import running

WAIT = 20


@pytest.fixture
def app() -> FastAPI:
    return FastAPI()


@pytest.fixture
def broker(make_broker: MakeBroker, open_sessions: Any, app: FastAPI) -> RedisBroker:
    """A broker whose workers know the application, and that the application knows."""
    broker = make_broker().with_sessions(open_sessions)
    app.router.lifespan_context = celeriq.fastapi.lifespan(broker)
    taskiq_fastapi.init(broker, app)
    return broker


async def value_of(sent: Any) -> Any:
    return await sent.get(timeout=WAIT)


# -- what the application of these tests has ---------------------------------------------------------------------------


def settings(request: Request) -> dict[str, str]:
    return dict(request.app.state.settings)


class Greeter:
    def __init__(self, settings: Annotated[dict[str, str], Depends(settings)]) -> None:
        self.word = settings["word"]


@dataclass
class Punctuation:
    greeter: Annotated[Greeter, Depends()]
    mark: str = "!"


def greeting(greeter: Annotated[Greeter, Depends()], punctuation: Annotated[Punctuation, Depends()]) -> str:
    assert greeter is punctuation.greeter
    return greeter.word + punctuation.mark


async def test_a_tree_of_them_is_resolved_as_in_a_request(broker: RedisBroker, app: FastAPI) -> None:
    """`request: Request`, without a mark, is FastAPI's way to ask for it; the task gets one that knows the application."""
    app.state.settings = {"word": "hello"}

    @app.get("/")
    async def ask(said: Annotated[str, Depends(greeting)]) -> str:
        return said

    @broker.task
    async def say(name: str, said: Annotated[str, Depends(greeting)] = injected) -> str:
        return f"{said} {name}"

    async with running(broker):
        assert await value_of(await say.delay("you")) == "hello! you"
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/")).json() == "hello!"


@pytest.mark.parametrize("use_cache", [True, False])
async def test_a_connection_is_given_to_those_without_cache_too(
    broker: RedisBroker, app: FastAPI, use_cache: bool
) -> None:
    app.state.number = 0

    def count(connection: HTTPConnection) -> int:
        connection.app.state.number += 1
        return int(connection.app.state.number)

    def sum_of(one: int = Depends(count, use_cache=use_cache), two: int = Depends(count, use_cache=use_cache)) -> int:
        return one + two

    @broker.task
    async def count_up(counted: Annotated[int, Depends(sum_of, use_cache=use_cache)] = injected) -> int:
        return counted

    async with running(broker):
        assert await value_of(await count_up.delay()) == (2 if use_cache else 3)


async def test_what_they_open_is_closed_in_reverse_and_sees_the_error(broker: RedisBroker) -> None:
    events: list[str] = []

    def opened(name: str) -> Callable[..., Iterator[str]]:
        def dependency() -> Iterator[str]:
            events.append(f"open {name}")
            try:
                yield name
            except ValueError as error:
                events.append(f"{name} saw {error}")
                raise
            finally:
                events.append(f"close {name}")

        return dependency

    async def inner(_: Annotated[str, Depends(opened("outer"))]) -> AsyncIterator[str]:
        events.append("open inner")
        yield "inner"
        events.append("close inner")

    @broker.task
    async def work(fails: bool, _: Annotated[str, Depends(inner)] = injected) -> None:
        events.append("work")
        if fails:
            raise ValueError("no")

    async with running(broker):
        await value_of(await work.delay(False))
        assert events == ["open outer", "open inner", "work", "close inner", "close outer"]
        events.clear()
        with pytest.raises(ValueError, match="no"):
            await value_of(await work.delay(True))
    assert events == ["open outer", "open inner", "work", "outer saw no", "close outer"]


async def test_the_request_s_session_is_the_task_s(broker: RedisBroker, database_url: str) -> None:
    """What a dependency of the application writes is committed with the task, and rolled back with it."""
    await databases.execute(database_url, "create table effect (id int)")

    async def write(session: RequestSession) -> int:
        await session.execute(text("insert into effect values (1)"))
        return id(session)

    @broker.task
    async def work(
        fails: bool, written: Annotated[int, Depends(write)] = injected, session: TaskSession = injected
    ) -> bool:
        assert await session.scalar(text("select count(*) from effect where id = 1"))
        if fails:
            raise ValueError
        return written == id(session)

    async with running(broker):
        with pytest.raises(ValueError):
            await value_of(await work.delay(True))
        assert await databases.column_of(database_url, "select id from effect") == []
        assert await value_of(await work.delay(False))
    assert await databases.column_of(database_url, "select id from effect") == [1]


async def test_a_def_task_is_refused_the_request_s_session(broker: RedisBroker) -> None:
    """In its thread an AsyncSession cannot be used."""

    @broker.task(name="work")
    def work(session: RequestSession = injected) -> None: ...

    with pytest.raises(TaskDefinitionError, match=r"task 'work': a `def` task runs in a thread.*write `async def`"):
        await start(broker)


async def start(broker: RedisBroker) -> None:
    broker.is_worker_process = True
    await broker.startup()


# -- what needs a request ----------------------------------------------------------------------------------------------


def header(token: Annotated[str, Header()]) -> str:
    return token


def header_with_default(token: Annotated[str | None, Header()] = None) -> str | None:
    """In a task it would always be None: whoever says Header wants to know what the client said."""
    return token


def old_header(token: str = Header()) -> str:
    return token


def query(limit: Annotated[int, Query(ge=1)]) -> int:
    return limit


def path(number: Annotated[int, Path()]) -> int:
    return number


def body(wanted: Annotated[dict[str, int], Body()]) -> dict[str, int]:
    return wanted


def cookie(session_id: Annotated[str, Cookie()]) -> str:
    return session_id


def form(name: Annotated[str, Form()]) -> str:
    return name


def file(content: Annotated[bytes, File()]) -> bytes:
    return content


def upload(content: UploadFile) -> UploadFile:
    return content


def unmarked(limit: int) -> int:
    return limit


def socket(socket: WebSocket) -> WebSocket:
    return socket


def response(answer: Response) -> Response:
    return answer


def later(tasks: BackgroundTasks) -> BackgroundTasks:
    return tasks


def scopes(wanted: SecurityScopes) -> SecurityScopes:
    return wanted


class Paging:
    def __init__(self, page: Annotated[int, Query()] = 1) -> None:
        self.page = page


signed_in = OAuth2PasswordBearer("token")

HERE = __name__


@pytest.mark.parametrize(
    ("dependency", "told"),
    [
        (header, f"{HERE}.header reads 'token' from the request (Header)"),
        (header_with_default, f"{HERE}.header_with_default reads 'token' from the request (Header)"),
        (old_header, f"{HERE}.old_header reads 'token' from the request (Header)"),
        (query, f"{HERE}.query reads 'limit' from the request (Query)"),
        (path, f"{HERE}.path reads 'number' from the request (Path)"),
        (body, f"{HERE}.body reads 'wanted' from the request (Body)"),
        (cookie, f"{HERE}.cookie reads 'session_id' from the request (Cookie)"),
        (form, f"{HERE}.form reads 'name' from the request (Form)"),
        (file, f"{HERE}.file reads 'content' from the request (File)"),
        (Paging, f"{HERE}.Paging reads 'page' from the request (Query)"),
        (upload, f"{HERE}.upload needs 'content' (UploadFile) of a request"),
        (unmarked, f"{HERE}.unmarked needs 'limit' (int) of a request"),
        (socket, f"{HERE}.socket needs 'socket' (WebSocket) of a request"),
        (response, f"{HERE}.response needs 'answer' (Response) of a request"),
        (later, f"{HERE}.later needs 'tasks' (BackgroundTasks) of a request"),
        (scopes, f"{HERE}.scopes needs 'wanted' (SecurityScopes) of a request"),
        (signed_in, "OAuth2PasswordBearer reads the request's credentials"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("use_cache", [True, False])
async def test_what_needs_a_request_is_refused_when_the_worker_starts(
    broker: RedisBroker, dependency: Any, told: str, use_cache: bool
) -> None:
    def between(_: Annotated[Any, Depends(dependency, use_cache=use_cache)]) -> None: ...

    @broker.task(name="work")
    async def work(_: Annotated[None, Depends(between, use_cache=use_cache)] = injected) -> None: ...

    with pytest.raises(TaskDefinitionError) as refused:
        await start(broker)
    message = str(refused.value)
    assert message.startswith("task 'work': its dependency ")
    name = getattr(dependency, "__name__", "OAuth2PasswordBearer")
    assert f"{told}, and a worker has none: broker.dependency_overrides[{name}] = ... says what stands" in message
    assert "\n" not in message


async def test_the_same_broker_may_send_such_a_task(broker: RedisBroker) -> None:
    """Only who runs it needs what it asks for."""

    @broker.task
    async def work(_: Annotated[str, Depends(header)] = injected) -> None: ...

    async with broker:
        await work.delay()


async def test_an_override_stands_for_it(broker: RedisBroker) -> None:
    @broker.task
    async def work(token: Annotated[str, Depends(header)] = injected) -> str:
        return token

    broker.dependency_overrides[header] = lambda: "the task's"
    async with running(broker):
        assert await value_of(await work.delay()) == "the task's"


async def test_one_by_name_of_the_application_stands_for_it_too(broker: RedisBroker, app: FastAPI) -> None:
    """An application says so where it starts: that is before anything is refused."""

    @broker.task
    async def work(token: Annotated[str, Depends(header)] = injected) -> str:
        return token

    start_app = app.router.lifespan_context

    def starting(app: FastAPI) -> Any:
        broker.dependency_overrides[header] = lambda: "the application's"
        return start_app(app)

    app.router.lifespan_context = starting
    async with running(broker):
        assert await value_of(await work.delay()) == "the application's"


def page(limit: int = 10, *more: int, **others: int) -> int:
    return limit + len(more) + len(others)


def page_of(limit: int) -> int:
    return limit


async def test_what_has_a_default_or_an_argument_of_its_own_is_no_question(broker: RedisBroker) -> None:
    @broker.task
    async def work(
        limit: Annotated[int, Depends(page)] = injected,
        other: Annotated[int, TaskiqDepends(page_of, kwargs={"limit": 3})] = injected,
    ) -> int:
        return limit + other

    async with running(broker):
        assert await value_of(await work.delay()) == 13


async def test_without_the_application_a_request_is_refused_with_what_to_call(make_broker: MakeBroker) -> None:
    broker = make_broker()

    @broker.task
    async def work(_: Annotated[Any, Depends(settings)] = injected) -> None: ...

    with pytest.raises(TaskDefinitionError, match=r"needs 'request' \(Request\) of a request.*taskiq_fastapi\.init\("):
        await start(broker)
