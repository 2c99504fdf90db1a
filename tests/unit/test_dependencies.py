# Annotations are evaluated where they stand here: dependencies are local to their test.
import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from typing import Annotated, Any, NamedTuple

import fastapi
import pytest
from taskiq_dependencies import Depends

from celeriq import RedisBroker, injected
from celeriq.bound_task import BoundTask
from celeriq.definition import Definition
from celeriq.dependencies import Graph, GraphCache, OpenedDependencies
from celeriq.options import Options, TaskOptions
from celeriq.outcome import Failed, Succeeded
from tests.unit.attempts import Engine, attempt

Target = Callable[..., Any]


class Caller(NamedTuple):
    """What is different in each attempt, as Taskiq's context is."""

    number: int


def definition(function: Target) -> Definition:
    return Definition("name", function, Options(TaskOptions()), GraphCache(function), BoundTask)


async def run(function: Target, engine: Engine | None = None, **context: Any) -> Any:
    return await attempt(engine, **context).run(definition(function), (), {})


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    """The targets of all graphs that are built, in order."""
    targets: list[Target] = []
    build = Graph._build_graph  # pyright: ignore[reportPrivateUsage]

    def counted(self: Graph) -> None:
        targets.append(self.target)
        build(self)

    monkeypatch.setattr(Graph, "_build_graph", counted)
    return targets


def resource(events: list[str], name: str, error: BaseException | None = None) -> Callable[[], AsyncIterator[str]]:
    """A dependency that tells of its opening and closing, and raises `error`, if given, when it is closed."""

    async def open_resource() -> AsyncIterator[str]:
        events.append(f"open {name}")
        try:
            yield name
        finally:
            events.append(f"close {name}")
            if error is not None:
                raise error

    return open_resource


def three_levels(events: list[str], raising: dict[str, BaseException], *, use_cache: bool) -> Target:
    """A function that depends on `last`, which depends on `middle`, which depends on `first`."""

    async def first(_: Annotated[str, Depends(resource(events, "first", raising.get("first")))]) -> None: ...

    async def middle(
        _: Annotated[None, Depends(first, use_cache=use_cache)],
        __: Annotated[str, Depends(resource(events, "middle", raising.get("middle")), use_cache=use_cache)],
    ) -> None: ...

    async def last(
        _: Annotated[None, Depends(middle, use_cache=use_cache)],
        __: Annotated[str, Depends(resource(events, "last", raising.get("last")), use_cache=use_cache)],
    ) -> None: ...

    async def body(_: Annotated[None, Depends(last, use_cache=use_cache)] = injected) -> None:
        events.append("body")

    return body


with_and_without_cache = pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "not cached"])


@with_and_without_cache
async def test_dependencies_are_closed_in_the_reverse_order_of_their_opening(
    events: list[str], use_cache: bool
) -> None:
    await run(three_levels(events, {}, use_cache=use_cache))
    opened, closed = events[:3], events[4:]
    assert events[3] == "body"
    assert sorted(opened) == ["open first", "open last", "open middle"]
    assert closed == [event.replace("open", "close") for event in reversed(opened)]


@with_and_without_cache
@pytest.mark.parametrize("raising", [["first"], ["middle"], ["last"], ["first", "last"], ["first", "middle", "last"]])
async def test_all_dependencies_are_closed_even_if_some_raise(
    events: list[str], use_cache: bool, raising: list[str]
) -> None:
    """Taskiq leaves the others open (W16)."""
    errors: dict[str, BaseException] = {name: OSError(name) for name in raising}
    with pytest.raises(OSError) as raised:
        await run(three_levels(events, errors, use_cache=use_cache))
    opened, closed = events[:3], events[4:]
    assert closed == [event.replace("open", "close") for event in reversed(opened)]
    first_to_raise = next(name for event in closed if (name := event.removeprefix("close ")) in raising)
    assert raised.value is errors[first_to_raise]


async def test_dependencies_with_and_without_cache_are_closed_in_one_order(events: list[str]) -> None:
    """Taskiq closes the ones without cache before all others, in the order of their opening (W16)."""

    async def body(
        _1: Annotated[str, Depends(resource(events, "cached"))] = injected,
        _2: Annotated[str, Depends(resource(events, "one"), use_cache=False)] = injected,
        _3: Annotated[str, Depends(resource(events, "two"), use_cache=False)] = injected,
    ) -> None: ...

    await run(body)
    assert events == ["open cached", "open one", "open two", "close two", "close one", "close cached"]


async def test_a_dependency_that_cannot_be_opened_closes_those_that_were(events: list[str]) -> None:
    async def out_of_order(_: Annotated[str, Depends(resource(events, "lock"))]) -> None:
        raise ConnectionError("out of order")

    async def body(_: Annotated[None, Depends(out_of_order)] = injected) -> None:
        events.append("body")

    with pytest.raises(ConnectionError):
        await run(body)
    assert events == ["open lock", "close lock"]


async def test_dependencies_of_every_kind_are_closed_and_see_the_error_of_the_body(events: list[str]) -> None:
    @contextmanager
    def witness(name: str) -> Generator[None]:
        try:
            yield
        except ValueError as error:
            events.append(f"{name} sees {error}")
            raise

    def generator() -> Iterator[None]:
        with witness("generator"):
            yield

    async def async_generator() -> AsyncIterator[None]:
        with witness("async generator"):
            yield

    def manager() -> AbstractContextManager[None]:
        return witness("manager")

    @asynccontextmanager
    async def async_manager() -> AsyncGenerator[None]:
        with witness("async manager"):
            yield

    async def body(
        _1: Annotated[None, Depends(generator)] = injected,
        _2: Annotated[None, Depends(async_generator)] = injected,
        _3: Annotated[None, Depends(manager)] = injected,
        _4: Annotated[None, Depends(async_manager)] = injected,
    ) -> None:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await run(body)
    assert sorted(events) == [
        "async generator sees on purpose",
        "async manager sees on purpose",
        "generator sees on purpose",
        "manager sees on purpose",
    ]


async def test_a_dependency_that_swallows_the_error_does_not_make_a_success_of_it() -> None:
    async def lenient() -> AsyncIterator[None]:
        with suppress(ValueError):
            yield

    async def body(_: Annotated[None, Depends(lenient)] = injected) -> None:
        raise ValueError("on purpose")

    failing = attempt()
    with pytest.raises(ValueError, match="on purpose"):
        await failing.run(definition(body), (), {})
    assert isinstance(failing.outcome, Failed)


async def test_what_a_teardown_raises_does_not_hide_the_error_of_the_body(
    events: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def body(_: Annotated[str, Depends(resource(events, "lock", OSError("not released")))] = injected) -> None:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        await run(body)
    assert "too late to matter" in caplog.text
    assert "not released" in caplog.text


async def test_a_teardown_that_raises_before_the_commit_fails_the_task(events: list[str]) -> None:
    begun = attempt()

    async def session() -> AsyncIterator[None]:
        try:
            yield
        except BaseException:
            events.append("rolled back")
            raise
        begun.committed = True

    async def audit(_: Annotated[None, Depends(session)]) -> AsyncIterator[None]:
        yield
        raise OSError("audit not written")

    async def body(_: Annotated[None, Depends(audit)] = injected) -> int:
        return 5

    with pytest.raises(OSError, match="audit not written"):
        await begun.run(definition(body), (), {})
    assert events == ["rolled back"]
    assert isinstance(begun.outcome, Failed)


async def test_a_teardown_that_raises_after_the_commit_does_not_change_the_outcome(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun = attempt()

    async def lock() -> AsyncIterator[None]:
        yield
        raise OSError("not released")

    async def session(_: Annotated[None, Depends(lock)]) -> AsyncIterator[None]:
        yield
        begun.committed = True

    async def body(_: Annotated[None, Depends(session)] = injected) -> int:
        return 5

    with caplog.at_level(logging.WARNING):
        assert await begun.run(definition(body), (), {}) == 5
    assert begun.outcome == Succeeded(5)
    assert begun.stored.startswith(b'{"status":"SUCCESS","result":5,')
    assert "not released" in caplog.text


@pytest.mark.parametrize("fail", [False, True], ids=["good end", "bad end"])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_generator_that_yields_twice_is_an_error_and_is_closed(
    events: list[str], caplog: pytest.LogCaptureFixture, kind: str, fail: bool
) -> None:
    async def twice() -> AsyncIterator[None]:
        try:
            try:
                yield
            finally:
                yield
        finally:
            events.append("close twice")

    def twice_without_async() -> Iterator[None]:
        try:
            try:
                yield
            finally:
                yield
        finally:
            events.append("close twice")

    async def body(
        _1: Annotated[str, Depends(resource(events, "lock"))] = injected,
        _2: Annotated[None, Depends(twice if kind == "async" else twice_without_async)] = injected,
    ) -> None:
        if fail:
            raise ValueError("on purpose")

    with pytest.raises((RuntimeError, ValueError)) as raised:
        await run(body)
    assert events == ["open lock", "close twice", "close lock"]
    assert "yields more than once" in (caplog.text if fail else str(raised.value))


@with_and_without_cache
async def test_nobody_sees_the_context_of_another_attempt(use_cache: bool) -> None:
    """Taskiq shares one context among all tasks that run, and its dependencies without cache read it late (W17)."""
    together = asyncio.Barrier(20)

    async def caller(given: Annotated[Caller, Depends()]) -> Caller:
        await together.wait()
        return given

    async def middle(
        given: Annotated[Caller, Depends(caller, use_cache=use_cache)],
    ) -> AsyncIterator[Caller]:
        await together.wait()
        yield given

    async def body(given: Annotated[Caller, Depends(middle, use_cache=use_cache)] = injected) -> int:
        await together.wait()
        return given.number

    shared = definition(body)
    numbers = [attempt(caller=Caller(n)).run(shared, (), {}) for n in range(20)]
    assert await asyncio.gather(*numbers) == list(range(20))


async def test_what_taskiq_writes_into_the_context_of_one_attempt_no_other_sees() -> None:
    """Taskiq's receiver updates `broker.custom_dependency_context` with the running task (W17)."""
    broker = RedisBroker("redis://localhost:1")
    broker.add_dependency_context({str: "shared"})
    together = asyncio.Barrier(10)

    async def receive(number: int) -> dict[Any, Any]:
        receiving = attempt()
        receiving.become_current()
        broker.custom_dependency_context.update({Caller: Caller(number)})
        await together.wait()
        return receiving.dependency_context

    seen = await asyncio.gather(*(asyncio.create_task(receive(number)) for number in range(10)))
    assert seen == [{**seen[0], str: "shared", Caller: Caller(number)} for number in range(10)]
    assert Caller not in broker.custom_dependency_context


async def test_a_dependency_is_resolved_once_per_attempt_unless_it_is_not_cached() -> None:
    calls: list[str] = []

    async def cached() -> None:
        calls.append("cached")

    async def fresh() -> None:
        calls.append("fresh")

    async def body(
        _1: Annotated[None, Depends(cached)] = injected,
        _2: Annotated[None, Depends(cached)] = injected,
        _3: Annotated[None, Depends(fresh, use_cache=False)] = injected,
        _4: Annotated[None, Depends(fresh, use_cache=False)] = injected,
    ) -> None: ...

    shared = definition(body)
    for _ in range(2):
        await attempt().run(shared, (), {})
    assert sorted(calls) == ["cached"] * 2 + ["fresh"] * 4


async def test_the_graph_is_built_once_for_many_messages(built: list[Target]) -> None:
    """Taskiq builds it for every message as soon as anything is overridden (W18)."""

    async def word() -> str:
        return "original"

    async def body(_: Annotated[str, Depends(word)] = injected) -> str:
        return _

    engine, shared = Engine(), definition(body)
    engine.dependency_overrides[int] = float
    assert shared.signature.parameters == {}  # as at import
    built.clear()
    for _ in range(50):
        await attempt(engine).run(shared, (), {})
    assert built == [body]


async def test_the_graph_is_built_again_after_the_overrides_changed(built: list[Target]) -> None:
    async def word() -> str:
        return "original"

    async def body(_: Annotated[str, Depends(word)] = injected) -> str:
        return _

    engine, shared = Engine(), definition(body)

    async def answers() -> set[str]:
        return {await attempt(engine).run(shared, (), {}) for _ in range(5)}

    assert await answers() == {"original"}
    engine.dependency_overrides[word] = lambda: "overridden"
    assert await answers() == {"overridden"}
    engine.dependency_overrides[word] = lambda: "overridden again"
    assert await answers() == {"overridden again"}
    engine.dependency_overrides.clear()
    assert await answers() == {"original"}
    assert built == [body] * 4


@with_and_without_cache
async def test_overrides_reach_every_dependency(events: list[str], use_cache: bool) -> None:
    """Taskiq's do not reach dependencies without cache (W18)."""

    async def word() -> str:
        return "original"

    async def inner(given: Annotated[str, Depends(word, use_cache=use_cache)]) -> str:
        return f"inner {given}"

    async def outer(given: Annotated[str, Depends(inner, use_cache=use_cache)]) -> str:
        return f"outer {given}"

    async def body(
        direct: Annotated[str, Depends(word, use_cache=use_cache)] = injected,
        deep: Annotated[str, Depends(outer, use_cache=use_cache)] = injected,
    ) -> tuple[str, str]:
        return direct, deep

    async def other_word(given: Annotated[str, Depends(resource(events, "fake"))]) -> str:
        return given

    engine = Engine()
    assert await run(body, engine) == ("original", "outer inner original")
    engine.dependency_overrides[word] = other_word
    assert await run(body, engine) == ("fake", "outer inner fake")
    engine.dependency_overrides[inner] = lambda: "another"
    assert await run(body, engine) == ("fake", "outer another")
    assert events.count("open fake") == events.count("close fake") > 0


@with_and_without_cache
def test_a_graph_tells_which_parameters_it_fills_in_and_what_it_uses(use_cache: bool) -> None:
    def word() -> None: ...

    def other() -> None: ...

    def sentence(_: Annotated[None, Depends(word, use_cache=use_cache)]) -> None: ...

    def body(
        _number: int,
        _first: Annotated[None, Depends(sentence, use_cache=use_cache)] = injected,
        _second: None = Depends(word),
    ) -> None: ...

    graph = Graph(body)
    assert graph.injected_parameters == {"_first", "_second"}
    assert graph.uses(sentence)
    assert graph.uses(word)
    assert not graph.uses(other)


def test_a_function_without_dependencies_has_an_empty_graph() -> None:
    def body(_number: int) -> None: ...

    assert Graph(body).injected_parameters == frozenset()


async def test_parameters_of_dependencies_can_be_given() -> None:
    class Greeting:
        def __init__(self, word: str) -> None:
            self.word = word

        def __call__(self) -> str:
            return f"{self.word}!"

    def repeated(times: int, word: str = "ha") -> str:
        return times * word

    async def body(
        greeting: Annotated[str, Depends(Greeting("hello"))] = injected,
        twice: Annotated[str, Depends(repeated, kwargs={"times": 2})] = injected,
        thrice: Annotated[str, Depends(repeated, kwargs={"times": 3})] = injected,
    ) -> tuple[str, str, str]:
        return greeting, twice, thrice

    assert await run(body) == ("hello!", "haha", "hahaha")


@with_and_without_cache
async def test_dependencies_of_fastapi_work(events: list[str], use_cache: bool) -> None:
    async def word(given: Annotated[str, fastapi.Depends(resource(events, "lock"), use_cache=use_cache)]) -> str:
        return f"a {given}"

    async def body(
        given: Annotated[str, fastapi.Depends(word, use_cache=use_cache)] = injected,
        same: str = fastapi.Depends(word),
    ) -> tuple[str, str]:
        return given, same

    engine = Engine()
    assert await run(body, engine) == ("a lock", "a lock")
    assert events.count("open lock") == events.count("close lock") == (1 if use_cache else 2)
    engine.dependency_overrides[word] = lambda: "fake"
    assert await run(body, engine) == ("fake", "fake")


async def test_closing_twice_closes_once(events: list[str]) -> None:
    async def body(_: Annotated[str, Depends(resource(events, "lock"))] = injected) -> None: ...

    graph = Graph(body)
    opened = OpenedDependencies(graph, graph)
    assert await opened.resolve_kwargs() == {"_": "lock"}
    for _ in range(2):
        assert await opened.close_all(None, lambda: False) is None
    assert events == ["open lock", "close lock"]
