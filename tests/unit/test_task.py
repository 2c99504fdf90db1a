# Annotations are evaluated where they stand here: dependencies are local to their test.
import asyncio
import inspect
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Any

import fastapi
import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from taskiq.message import TaskiqMessage
from taskiq_dependencies import Depends
from taskiq_redis import RedisStreamBroker

from celeriq import (
    CurrentTask,
    RedisBroker,
    TaskDefinitionError,
    TaskSession,
    UnknownOptionError,
    UnsupportedOptionError,
    injected,
)
from celeriq.attempt import Attempt, Delivery
from celeriq.envelope import of_message
from celeriq.options import TaskOptions
from celeriq.redis.streams import REFUSED
from celeriq.task import Task

NOBODY_LISTENS = "redis://localhost:1"


@pytest.fixture
def broker() -> RedisBroker:
    return RedisBroker(NOBODY_LISTENS)


async def run(task: Task[..., Any], broker: RedisBroker, *args: Any) -> Any:
    """What a worker does with a message of `task`, short of settling it."""
    message = TaskiqMessage(task_id="id", task_name=task.task_name, labels={}, args=[], kwargs={})
    attempt = Attempt(engine=broker, delivery=Delivery(b""), envelope=of_message(message), message=message)
    return await attempt.run(task.definition, args, {})


def word() -> str:
    return "word"


async def uses_session(session: TaskSession) -> AsyncIterator[AsyncSession]:
    yield session


@pytest.mark.parametrize(
    "annotation",
    [TaskSession, CurrentTask, Annotated[str, Depends(word)], Annotated[str, fastapi.Depends(word)]],
    ids=["session", "task", "taskiq", "fastapi"],
)
def test_an_injected_parameter_without_a_default_fails_at_import(broker: RedisBroker, annotation: Any) -> None:
    async def send(order: int, given: Any) -> None: ...

    send.__annotations__["given"] = annotation
    with pytest.raises(TaskDefinitionError) as refused:
        broker.task(name="mail.send")(send)
    assert "task 'mail.send': 'given' is injected and needs a default" in str(refused.value)
    assert "write `given: ... = injected`" in str(refused.value)
    assert broker.find_task("mail.send") is None


def test_an_injected_parameter_may_also_have_the_dependency_as_its_default(broker: RedisBroker) -> None:
    @broker.task
    async def send(order: int, given: str = Depends(word)) -> None: ...

    assert list(inspect.signature(send.original_func).parameters) == ["order"]


def test_an_ordinary_parameter_needs_no_default(broker: RedisBroker) -> None:
    @broker.task
    async def send(order: int, note: Annotated[str, "at most 80 characters"]) -> None: ...

    assert list(inspect.signature(send.original_func).parameters) == ["order", "note"]


def directly(session: TaskSession = injected) -> None: ...


def through_a_dependency(session: Annotated[AsyncSession, Depends(uses_session)] = injected) -> None: ...


def without_cache(session: Annotated[AsyncSession, Depends(uses_session, use_cache=False)] = injected) -> None: ...


def through_fastapi(session: Annotated[AsyncSession, fastapi.Depends(uses_session)] = injected) -> None: ...


@pytest.mark.parametrize("function", [directly, through_a_dependency, without_cache, through_fastapi])
def test_a_def_task_with_a_session_fails_at_import(broker: RedisBroker, function: Callable[..., None]) -> None:
    with pytest.raises(TaskDefinitionError, match=r"task 'mail.send': a `def` task runs in a thread.*`async def`"):
        broker.task(name="mail.send")(function)
    assert broker.find_task("mail.send") is None


misspelled: dict[str, Any] = {"max_retires": 3}


def test_an_unknown_option_fails_at_import(broker: RedisBroker) -> None:
    with pytest.raises(UnknownOptionError, match=r"task 'mail.send': unknown option 'max_retires'.*'max_retries'"):
        broker.task(name="mail.send", **misspelled)


def test_an_unknown_option_of_an_unnamed_task_fails_at_import(broker: RedisBroker) -> None:
    with pytest.raises(UnknownOptionError, match=r"named after its function.*unknown option 'max_retires'"):
        broker.task(**misspelled)


async def test_calling_a_task_calls_its_function_here_and_now(broker: RedisBroker) -> None:
    """DEF-10."""
    seen: list[Any] = []

    @broker.task
    async def send(order: int, session: TaskSession = injected, *, copies: int = 1) -> int:
        seen.append(session)
        return order * copies

    session = AsyncSession()
    assert await send(5, session, copies=2) == 10
    assert seen == [session]


def test_calling_a_def_task_calls_its_function_in_this_thread(broker: RedisBroker) -> None:
    @broker.task
    def whereabouts() -> threading.Thread:
        return threading.current_thread()

    assert whereabouts() is threading.current_thread()


async def test_what_a_called_task_raises_is_raised(broker: RedisBroker) -> None:
    @broker.task(autoretry_for=(OSError,))
    async def send() -> None:
        raise OSError("on purpose")

    with pytest.raises(OSError, match="on purpose"):
        await send()


async def test_a_def_task_runs_in_a_thread(broker: RedisBroker) -> None:
    @broker.task
    def whereabouts() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert await run(whereabouts, broker) is False


async def test_a_def_task_that_exhausts_an_iterator_fails(broker: RedisBroker) -> None:
    """Before Python 3.12 asyncio cannot carry a StopIteration out of a thread: whoever awaits it waits for ever."""

    @broker.task
    def first(numbers: list[int]) -> int:
        return next(iter(numbers))

    async with asyncio.timeout(5):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await run(first, broker, [])


def test_a_task_is_named_after_its_module_and_function(broker: RedisBroker) -> None:
    @broker.task
    async def send() -> None: ...

    @broker.task()
    async def send_twice() -> None: ...

    assert send.task_name == send.definition.name == f"{__name__}.send"
    assert send_twice.task_name == f"{__name__}.send_twice"
    assert broker.find_task(f"{__name__}.send") is send


def test_a_task_can_be_given_a_name(broker: RedisBroker) -> None:
    """By Celery's keyword and in Taskiq's place."""

    @broker.task(name="mail.send")
    async def send() -> None: ...

    @broker.task("mail.receipt")
    async def receipt() -> None: ...

    assert send.task_name == send.definition.name == "mail.send"
    assert receipt.task_name == receipt.definition.name == "mail.receipt"
    assert broker.find_task("mail.send") is send
    assert broker.find_task("mail.receipt") is receipt


def test_a_task_can_be_registered_without_a_decorator(broker: RedisBroker) -> None:
    async def send() -> None: ...

    task = broker.register_task(send, "mail.send", queue="mail")
    assert isinstance(task, Task)
    assert task.definition.options[TaskOptions] == TaskOptions(queue="mail")


def test_one_decorator_makes_a_task_of_each_function(broker: RedisBroker) -> None:
    patient = broker.task(queue="slow", max_retries=7, labels={"timeout": 5})

    @patient
    async def send() -> None: ...

    @patient
    async def receipt() -> None: ...

    for task in (send, receipt):
        assert task.definition.options[TaskOptions] == TaskOptions(queue="slow", labels={"timeout": 5})
        assert task.definition.options.get("max_retries") == 7
        assert task.labels == {"queue": "slow", "timeout": 5}
    assert send.labels is not receipt.labels
    assert [send.task_name, receipt.task_name] == [f"{__name__}.send", f"{__name__}.receipt"]
    assert list(broker.local_task_registry.values()) == [send, receipt]


def test_a_task_looks_like_its_function(broker: RedisBroker) -> None:
    @broker.task(name="mail.send")
    async def send(order: int) -> None:
        """Send what was ordered."""

    assert repr(send) == "<Task 'mail.send'>"
    assert send.__doc__ == "Send what was ordered."
    assert send.definition.function.__name__ == "send"


def test_options_become_the_labels_that_taskiq_reads(broker: RedisBroker) -> None:
    @broker.task(acks_late=False, queue="mail", priority=3, schedule=[{"cron": "0 3 * * *"}])
    async def purge() -> None: ...

    assert purge.labels == {
        "queue": "mail",
        "priority": 3,
        "schedule": [{"cron": "0 3 * * *"}],
        "ack_type": "when_received",
    }


def test_a_task_without_a_queue_goes_to_the_default_queue_of_its_broker() -> None:
    broker = RedisBroker(NOBODY_LISTENS, default_queue="mail")

    @broker.task
    async def send() -> None: ...

    assert send.labels == {}
    assert broker._reads() == {"mail"}


@pytest.mark.parametrize("option", sorted(REFUSED))
def test_a_broker_option_that_would_do_harm_is_refused_with_its_reason(option: str) -> None:
    given: dict[str, Any] = {option: 1}
    with pytest.raises(UnsupportedOptionError) as refused:
        RedisBroker(NOBODY_LISTENS, **given)
    assert str(refused.value) == f"RedisBroker refuses {option!r}: {REFUSED[option]}"


def test_maxlen_is_refused_because_it_drops_messages() -> None:
    with pytest.raises(UnsupportedOptionError, match="it would drop messages that nobody has read"):
        RedisBroker(NOBODY_LISTENS, maxlen=1000)


@pytest.mark.parametrize(
    "option", sorted(inspect.signature(RedisStreamBroker).parameters.keys() - {"url", "connection_kwargs"})
)
def test_every_option_of_taskiqs_broker_is_kept_or_refused_with_its_reason(option: str) -> None:
    given: dict[str, Any] = {option: None}
    with suppress(UnsupportedOptionError):
        RedisBroker(NOBODY_LISTENS, **given)


def test_an_option_of_the_connection_reaches_it() -> None:
    broker = RedisBroker(NOBODY_LISTENS, socket_connect_timeout=7, max_connection_pool_size=9)
    assert broker.connection_pool.connection_kwargs["socket_connect_timeout"] == 7
    assert broker.connection_pool.max_connections == 9
