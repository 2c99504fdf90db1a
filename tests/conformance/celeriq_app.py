"""celeriq plays: the worker's broker, and the client that the scenarios call. Settings and names are Celery's."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis as blocking_redis
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession
from taskiq import TaskiqEvents, TaskiqState
from taskiq.result_backends.dummy import DummyResultBackend

import celeriq
from celeriq import AsyncResult, BoundTask, GroupResult, RedisBroker, Route, Signature, signals, states
from celeriq import envelope as envelopes
from celeriq.attempt import Attempt
from celeriq.errors import TaskDefinitionError
from celeriq.middleware import Results
from celeriq.middleware.rate_limits import per_second
from celeriq.redis.keys import GROUP
from celeriq.remote import Remote
from celeriq.signals import Signal
from tests.conformance import database, scenario
from tests.conformance.rows import load_scenarios
from tests.conformance.scenario import PATIENCE, TASKS, Body, Call, Canvas, NotThereYetError, Task
from tests.conformance.worker import (
    NAME,
    SETTINGS,
    URL,
    TellsOfTasks,
    WorkerProcess,
    running,
    tell_ready,
    told_by_the_log,
)
from tests.waiting import wait_for

ERRORS = {"TimeoutError": celeriq.ResultTimeoutError, "OperationalError": celeriq.SendError}
"""What Celery calls by another name."""

IGNORED = {"worker_prefetch_multiplier", "accept_content", "worker_deduplicate_successful_tasks", "worker_pool"}
"""Settings that ask for what is so in any case, or that differ on purpose."""

ON_THE_COMMAND_LINE = {"worker_max_tasks_per_child": "--max-tasks-per-child", "worker_soft_shutdown_timeout": "--grace"}

DEFAULTS = {"task_track_started": "track_started", "task_ignore_result": "ignore_result"}

_store = Redis.from_url(URL, decode_responses=True)
_log_store = blocking_redis.Redis.from_url(URL, decode_responses=True)


# -- the broker --------------------------------------------------------------------------------------------------------


class Settings:
    """What Celery's settings are called here."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.broker: dict[str, Any] = {}
        self.options: dict[str, Any] = {}
        self.stores_results = given.get("result_backend", "") is not None
        self.extended = given.get("result_extended", False)
        self.command: list[str] = []
        for name, value in given.items():
            if name in ON_THE_COMMAND_LINE:
                self.command += [ON_THE_COMMAND_LINE[name], str(value)]
            elif name in DEFAULTS:
                self.options[DEFAULTS[name]] = value
            elif name not in {*IGNORED, "result_backend", "result_extended"}:
                self._read(name, value)

    def _read(self, name: str, value: Any) -> None:
        match name:
            case "task_default_queue":
                self.broker["default_queue"] = value
            case "task_routes":
                self.broker["routes"] = routes(value)
            case "result_expires" | "result_failure_expires":
                self.broker[name] = value
            case "task_create_missing_queues":
                self.broker["create_missing_queues"] = value
            case "task_default_priority":
                self.broker["routes"] = {"*": Route(priority=value)}
            case "task_annotations":
                self.broker["overrides"] = value
            case "broker_transport_options":
                self.broker["lease"] = value["visibility_timeout"]
            case "task_time_limit" | "task_soft_time_limit":
                self.options[name.removeprefix("task_")] = value
            case _:
                raise NotThereYetError(f"setting {name}")


def routes(given: Any) -> Any:
    """Celery's routes are mappings, or functions that return some."""
    if isinstance(given, list):
        return [routes(each) for each in given]
    if callable(given):
        return lambda name, args, kwargs: target(given(name, args, kwargs, {}))
    return {pattern: target(each) for pattern, each in given.items()}


def target(told: Any) -> Any:
    return Route(**told) if isinstance(told, dict) else told


def make_broker(url: str = URL, **given: Any) -> RedisBroker:
    settings = Settings(given)
    said: dict[str, Any] = {"namespace": "conformance", "task_defaults": settings.options}
    said |= {**PATIENCE_OF_WORKERS, **settings.broker}
    made = RedisBroker(url, **said)
    made.with_middlewares(Results(extended=settings.extended))
    if not settings.stores_results:
        made.with_result_backend(DummyResultBackend())
    made.add_event_handler(TaskiqEvents.WORKER_STARTUP, started_up)
    return made


PATIENCE_OF_WORKERS = {"lease": 3.0, "unknown_grace": 0.5}
"""Seconds, less than by default: that a worker is dead, and a task unknown, is sure so late that nobody would wait."""


def started_up(_: TaskiqState) -> None:
    tell_ready(_log_store)


def define_all(made: RedisBroker) -> dict[str, TaskDefinitionError]:
    """The tasks that celeriq refuses, and why."""
    refused: dict[str, TaskDefinitionError] = {}
    for declared in TASKS.values():
        try:
            define(made, declared.body, name=declared.name, **declared.options)
        except TaskDefinitionError as error:
            refused[declared.name] = error
    return refused


def define(made: RedisBroker, body: Body, **options: Any) -> Any:
    options.pop("pydantic", None)  # annotations are obeyed in any case
    base = options.get("base")
    if base is not None and not issubclass(base, BoundTask):
        options["base"] = type(base.__name__, (base, BoundTask), {})
    return made.task(**options)(body)


# -- the client --------------------------------------------------------------------------------------------------------


class CeleriqResult:
    """Of a task, or of a group."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def __getattr__(self, name: str) -> Any:
        raise NotThereYetError(f"AsyncResult.{name}")

    def __json__(self) -> Any:
        return self._result.__json__()

    @property
    def id(self) -> str:
        return str(self._result.id)

    @property
    def parent(self) -> CeleriqResult | None:
        found: CeleriqResult | None = wrapped(self._result.parent)
        return found

    @property
    def results(self) -> list[CeleriqResult]:
        return [CeleriqResult(each) for each in self._result.results]

    async def get(self, timeout: float | None = PATIENCE, **options: Any) -> Any:  # noqa: ASYNC109 - Celery's option
        return await self._result.get(timeout=timeout, **options)

    async def state(self) -> str:
        return str(await self._result.state())

    async def info(self) -> Any:
        return await self._result.info()

    async def traceback(self) -> str | None:
        told: str | None = await self._result.traceback()
        return told

    async def ready(self) -> bool:
        return bool(await self._result.ready())

    async def successful(self) -> bool:
        return bool(await self._result.successful())

    async def failed(self) -> bool:
        return bool(await self._result.failed())

    async def exists(self) -> bool:
        return bool(await self._result.exists())

    async def children(self) -> list[CeleriqResult] | None:
        return [CeleriqResult(each) for each in await self._result.children()]

    async def date_done(self) -> Any:
        return await self._result.date_done()

    async def detail(self, name: str) -> Any:
        return getattr(await self._result.snapshot(), name, None)

    async def as_tuple(self) -> Any:
        return self._result.as_tuple()

    async def collect(self) -> list[Any]:
        return [value async for _, value in self._result.collect()]

    async def completed_count(self) -> int:
        return int(await self._result.completed_count())

    async def waiting(self) -> bool:
        return bool(await self._result.waiting())

    async def save(self) -> None:
        await self._result.save()

    async def delete(self) -> None:
        await self._result.delete()

    async def forget(self) -> None:
        await self._result.forget()

    async def revoke(self, **options: Any) -> None:
        await self._result.revoke(**options)


def wrapped(result: AsyncResult[Any] | GroupResult | None) -> Any:
    return None if result is None else CeleriqResult(result)


class CeleriqStates:
    """The states that are told on the channel of a task's record."""

    def __init__(self, told: Any) -> None:
        self._told = told
        self._seen: list[str] = []

    async def until(self, *wanted: str) -> list[str]:
        async with asyncio.timeout(PATIENCE):
            async for message in self._told.listen():
                if message["type"] == "message":
                    self._seen.append(json.loads(message["data"])["status"])
                    if self._seen[-1] in wanted:
                        break
        return self._seen

    async def until_now(self) -> list[str]:
        while message := await self._told.get_message(ignore_subscribe_messages=True, timeout=0.2):
            self._seen.append(json.loads(message["data"])["status"])
        return self._seen


class CeleriqApp:
    """What the scenarios call."""

    takes_beforehand = False

    def __init__(self, broker: RedisBroker, refused: Mapping[str, TaskDefinitionError]) -> None:
        self.broker = broker
        self.default_queue: str = broker.queue_name
        self._refused = refused

    def __getattr__(self, name: str) -> Any:
        raise NotThereYetError(name)

    @property
    def as_app(self) -> Any:
        """The same for type checkers, who miss what is not there yet."""
        return self

    def task(self, name: str) -> Any:
        if name in self._refused:
            raise self._refused[name]
        return self.broker.find_task(name)

    def signature(self, call: Any) -> Any:
        if isinstance(call, list | tuple):
            return [self.signature(each) for each in call]
        if isinstance(call, Call):
            task = self.task(call.task) or Remote(self.broker, call.task)
            made = Signature(task=task, args=tuple(call.args), kwargs=call.kwargs, immutable=call.immutable)
            return made.set(**self.translated(call.options))
        if not isinstance(call, Canvas):
            return call
        parts = [self.signature(part) for part in call.parts]
        if call.kind == "chain":
            whole: Any = celeriq.chain(*parts)
        else:
            whole = celeriq.group(parts) if call.body is None else celeriq.chord(parts, self.signature(call.body))
        return whole.on_error(*(self.signature(callback) for callback in call.error_callbacks))

    def translated(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.signature(value) if name.startswith("link") else value for name, value in options.items()}

    async def send(
        self,
        call: Task | Call | Canvas,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> Any:
        if isinstance(call, Task):
            sent = await self.task(call.name).apply_async(args, kwargs, **self.translated(options))
        else:
            sent = await self.signature(call).apply_async(args, **self.translated(options))
        return wrapped(sent)

    async def call(self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return await self.task(task)(*args, **kwargs)

    async def send_task(
        self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> CeleriqResult:
        return CeleriqResult(await self.broker.send_task(name, args, kwargs, **self.translated(options)))

    async def send_retried(self, task: Task, retries: int) -> CeleriqResult:
        kicker = self.task(task.name).kicker().with_labels(**{envelopes.RETRIES_LABEL: retries})
        return CeleriqResult(await kicker.kiq())

    def result(self, task_id: str) -> CeleriqResult:
        return CeleriqResult(AsyncResult(task_id, broker=self.broker))

    async def restored_group(self, group_id: str) -> CeleriqResult | None:
        found: CeleriqResult | None = wrapped(await GroupResult.restore(group_id, self.broker))
        return found

    async def restored(self, told: Any) -> CeleriqResult:
        return CeleriqResult(celeriq.result_from_tuple(told, self.broker))

    async def revoke(self, task_id: str, **options: Any) -> None:
        await self.broker.revoke(task_id, **options)

    async def record(self, task_id: str) -> dict[str, Any] | None:
        stored = await _store.get(self.broker.keys.record(task_id))
        record: dict[str, Any] | None = json.loads(stored) if stored is not None else None
        if record and record["traceback"]:
            # The lines of it are those of this machine.
            record["traceback"] = record["traceback"].partition(" ")[0]
        return record

    async def stored_state(self, task_id: str) -> str | None:
        record = await self.record(task_id)
        return record["status"] if record else None

    async def time_to_live(self, task_id: str) -> int | None:
        left = int(await _store.ttl(self.broker.keys.record(task_id)))
        return None if left == -1 else left

    async def store(self, record: Mapping[str, Any]) -> None:
        await _store.set(self.broker.keys.record(record["task_id"]), json.dumps(record))

    async def queued(self, queue: str) -> list[str]:
        return [json.loads(message)["task"] for message in await self._messages(queue, held=False)]

    async def _messages(self, queue: str, *, held: bool) -> list[str]:
        """Those that a worker holds, or those that none does."""
        found: list[str] = []
        for stream in self.broker.keys.steps(queue):
            entries: Any = await _store.xrange(stream)
            pending: Any = (
                await _store.xpending_range(stream, GROUP, "-", "+", 10_000) if await _grouped(stream) else []
            )
            held_ids = {each["message_id"] for each in pending if each["consumer"] != "released"}
            found += [fields["data"] for entry, fields in entries if (entry in held_ids) is held]
        return found

    async def _queues(self) -> list[str]:
        names: Any = await _store.keys(self.broker.keys.queue("*", 0).replace("{", "[{]").replace("}", "[}]"))
        return [self.broker.keys.queue_of(name)[0] for name in names]

    async def held(self, task_id: str) -> bool:
        messages = [each for queue in await self._queues() for each in await self._messages(queue, held=True)]
        return task_id in {json.loads(each)["id"] for each in messages}

    async def due_at(self, task_id: str) -> float | None:
        names: Any = await _store.keys(self.broker.keys.delayed("*").replace("{", "[{]").replace("}", "[}]"))
        for name in names:
            members: Any = await _store.zrange(name, 0, -1, withscores=True)
            for member, score in members:
                if json.loads(member[member.index("{") :])["id"] == task_id:
                    return float(score) / 1000
        return None

    async def put(self, queue: str, content_type: str, body: str, headers: Mapping[str, Any]) -> None:
        await _store.xadd(self.broker.keys.queue(queue), {"data": json.dumps([content_type, body, dict(headers)])})

    async def subscriptions(self) -> int:
        pattern = self.broker.keys.record("*").replace("{", "[{]").replace("}", "[}]")
        channels: Any = await _store.pubsub_channels(pattern)
        return len(channels)

    async def rate_of(self, given: Any) -> Any:
        limited = define(self.broker, _nothing, name=uuid4().hex, rate_limit=given)
        return per_second(limited.definition.options.get("rate_limit")) or None

    async def send_stamped(
        self, task: Task, args: Sequence[Any], stamps: Mapping[str, str], **options: Any
    ) -> CeleriqResult:
        headers = {f"stamp {name}": value for name, value in stamps.items()}
        sent: CeleriqResult = await self.send(task, args, None, {**options, "headers": headers})
        return sent

    async def revoke_by_stamps(self, stamps: Mapping[str, str]) -> None:
        await self.broker.revoke_by_headers({f"stamp {name}": value for name, value in stamps.items()})

    async def worker_is_idle(self) -> None:
        async def idle() -> bool:
            lengths = [int(await _store.xlen(stream)) for stream in self.broker.keys.steps(self.default_queue)]
            return not any(lengths)

        await wait_for(idle)
        # What is told of a task comes after its settlement.
        await asyncio.sleep(0.3)

    async def option(self, task: Task, name: str) -> Any:
        return self.task(task.name).definition.options.as_dict().get(name, "none")

    async def state_sets(self) -> dict[str, list[str]]:
        named = {
            "READY_STATES": states.READY,
            "UNREADY_STATES": states.UNREADY,
            "EXCEPTION_STATES": states.EXCEPTION,
            "PROPAGATE_STATES": states.PROPAGATE,
        }
        return {name: sorted(each) for name, each in named.items()}

    async def higher_state(self, one: str, other: str) -> str:
        return min(one, other, key=states.precedence)

    async def logged(self, task_id: str) -> dict[str, Any]:
        return told_by_the_log(_log_store, task_id)

    @asynccontextmanager
    async def states(self, task_id: str) -> AsyncGenerator[CeleriqStates]:
        async with Redis.from_url(URL) as client, client.pubsub() as told:
            await told.subscribe(self.broker.keys.record(task_id))
            await anext(told.listen())
            yield CeleriqStates(told)

    @asynccontextmanager
    async def worker(
        self, *queues: str, name: str = "own", concurrency: int = 1, breakable: bool = False, **settings: Any
    ) -> AsyncGenerator[WorkerProcess]:
        options = Settings(settings).command
        program = str(Path(sys.executable).with_name("celeriq"))
        command = [program, "worker", "tests.conformance.celeriq_app:broker", "-c", str(concurrency)]
        # Celery tells of each task at INFO.
        command += ["--log-level", "DEBUG"]
        # The main one reads what no other one does.
        command += ["-Q", ",".join(queues or (self.default_queue,)), *options]
        start = functools.partial(WorkerProcess, _log_store, name, command, settings)
        async with running(start, breakable=breakable) as worker:
            yield worker

    @asynccontextmanager
    async def configured(self, **settings: Any) -> AsyncGenerator[CeleriqApp]:
        made = make_broker(**settings)
        player = CeleriqApp(made, define_all(made))
        async with playing(player):
            yield player

    @asynccontextmanager
    async def without_broker(self) -> AsyncGenerator[CeleriqApp]:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            made = make_broker(f"redis://127.0.0.1:{held.getsockname()[1]}/0")
            async with playing(CeleriqApp(made, define_all(made))) as player:
                yield player

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncSession]:
        await self.broker.with_sessions(database.open_sessions).startup()
        async with self.broker.sessions.begin() as session:
            yield session

    async def delay_on_commit(self, task: Task, transaction: AsyncSession, *args: Any) -> Any:
        return await self.task(task.name).delay_on_commit(transaction, *args)

    def blank(self, main: str | None = None) -> CeleriqBlank:
        return CeleriqBlank(main)

    def name_of(self, error: type[BaseException]) -> str:
        return next((name for name, kind in ERRORS.items() if kind is error), error.__name__)

    def error(self, name: str) -> type[BaseException]:
        found: type[BaseException] | None = ERRORS.get(name) or getattr(celeriq, name, None)
        if found is None:
            raise NotThereYetError(name)
        return found

    async def note(self, topic: str, values: Sequence[Any]) -> None:
        await _store.rpush(f"noted:{topic}", json.dumps(list(values), default=str))

    async def notes(self, topic: str) -> list[Any]:
        found: Any = await _store.lrange(f"noted:{topic}", 0, -1)
        return [json.loads(each) for each in found]

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def process(self) -> int:
        return os.getpid()

    async def open_gate(self, name: str) -> None:
        await _store.set(f"gate:{name}", 1)

    async def gate_is_open(self, name: str) -> bool:
        return bool(await _store.exists(f"gate:{name}"))

    def running_task(self) -> Any:
        definition = Attempt.current().definition
        assert definition is not None
        return definition.instance


async def _nothing() -> None: ...


async def _grouped(stream: str) -> bool:
    return (
        any(group["name"] == GROUP for group in await _store.xinfo_groups(stream))
        if await _store.exists(stream)
        else False
    )


@asynccontextmanager
async def playing(player: CeleriqApp) -> AsyncGenerator[CeleriqApp]:
    """It is asked while this lasts."""
    scenario.begin(player.as_app)
    try:
        yield player
    finally:
        scenario.end(player.as_app)
        await player.broker.shutdown()


class CeleriqBlank:
    """A broker without tasks."""

    def __init__(self, main: str | None) -> None:
        self._broker = RedisBroker(URL, namespace=uuid4().hex, main=main)

    def __getattr__(self, name: str) -> Any:
        raise NotThereYetError(name)

    def define(self, body: Body, **options: Any) -> str:
        return str(define(self._broker, body, **options).task_name)

    def define_class(self, name: str, body: Body) -> None:
        # A task is a function.
        define(self._broker, body, name=name)

    def share(self, body: Body, **options: Any) -> None:
        celeriq.shared_task(**options)(body)

    def discover(self, package: str) -> None:
        here: Any = self
        scenario.DISCOVERING.append(here)
        import_module(f"{package}.tasks")
        scenario.DISCOVERING.remove(here)

    def names(self) -> list[str]:
        return sorted(self._broker.local_task_registry)

    async def call(self, name: str, *args: Any) -> Any:
        task: Any = self._broker.find_task(name)
        return await task(*args)


def connect(told: scenario.Receiver) -> None:
    """As far as there is such a signal here."""
    found: Signal | None = getattr(signals, told.signal, None)
    if found is None or (told.worker is not None and told.worker != NAME):
        return

    by_request = told.signal == "task_received"  # the sender is a worker

    async def receive(**event: Any) -> None:
        del event["signal"]
        if not by_request or event["request"].task == told.task:
            await told.receive(event)

    found.connect(sender=None if by_request else told.task, dispatch_uid=receive)(receive)


# -- this process ------------------------------------------------------------------------------------------------------

load_scenarios()
broker = make_broker(os.environ.get("CONFORMANCE_BROKER", URL), **SETTINGS)
player = CeleriqApp(broker, define_all(broker))
scenario.begin(player.as_app)
for each in scenario.RECEIVERS:
    connect(each)
if NAME:
    logging.getLogger("celeriq").addHandler(TellsOfTasks(_log_store))
VERSIONS = {"celeriq": version("celeriq")}
