"""Celery plays: the worker's application, and the client that the scenarios call.

Bodies and handlers are coroutine functions; here they are driven by hand, for what they await is done at once. A
scenario itself runs on an event loop, and its calls, which block, run in a thread.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import datetime
from importlib import import_module
from typing import Any

import redis
from redis.asyncio import Redis

from tests.conformance import scenario
from tests.conformance.rows import load_scenarios
from tests.conformance.scenario import PATIENCE, RECEIVERS, TASKS, Body, Call, Canvas, Task
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

# It stands in an environment of its own, where no type checker looks.
celery: Any = import_module("celery")
canvas: Any = import_module("celery.canvas")
exceptions: Any = import_module("celery.exceptions")
results: Any = import_module("celery.result")
signals: Any = import_module("celery.signals")
rates: Any = import_module("celery.utils.time")
states: Any = import_module("celery.states")
abortable: Any = import_module("celery.contrib.abortable")
kombu: Any = import_module("kombu")
kombu_exceptions: Any = import_module("kombu.exceptions")
billiard_exceptions: Any = import_module("billiard.exceptions")

ELSEWHERE = (kombu_exceptions, billiard_exceptions)
"""Where exceptions are that are not among Celery's own."""

_store: Any = redis.Redis.from_url(URL, decode_responses=True)
_thread = threading.local()


# -- coroutines without a loop -----------------------------------------------------------------------------------------


def drive(coroutine: Any) -> Any:
    """The value of a coroutine whose awaits are all done at once."""
    before = driving()
    _thread.driving = True
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    finally:
        _thread.driving = before
        coroutine.close()
    raise RuntimeError("a body awaits what is not of the suite")


def driving() -> bool:
    return getattr(_thread, "driving", False)


def blocking(body: Body, *, bound: bool = False) -> Callable[..., Any]:
    """`body` as Celery calls it; its signature stays, for Celery reads it."""

    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        if bound:
            args = (CelerySelf(args[0]), *args[1:])
        value = drive(body(*args, **kwargs))
        return value.result if isinstance(value, CeleryResult) else value

    run.__signature__ = inspect.signature(body)  # type: ignore[attr-defined]
    return run


class CelerySelf:
    """A task of Celery's, with awaitable methods."""

    def __init__(self, running: Any) -> None:
        object.__setattr__(self, "_task", running)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._task, name, value)

    async def update_state(self, task_id: str | None = None, state: str | None = None, meta: Any = None) -> None:
        self._task.update_state(task_id=task_id, state=state, meta=meta)

    async def replace(self, call: Call | Canvas) -> Any:
        return self._task.replace(signature(self._task.app, call))

    async def run(self, *args: Any, **kwargs: Any) -> Any:
        return self._task.run(*args, **kwargs)


def base_class(plain: type) -> type:
    """A class of tasks with the methods of a plain one."""
    if issubclass(plain, celery.Task):
        return plain
    members: dict[str, Any] = {}
    for kind in reversed(plain.__mro__[:-1]):
        for name, member in vars(kind).items():
            if inspect.iscoroutinefunction(member):
                members[name] = blocking(member, bound=True)
            elif not name.startswith("__"):
                members[name] = member
    return type(plain.__name__, (celery.Task,), members)


# -- the application ---------------------------------------------------------------------------------------------------


def make_app(**settings: Any) -> Any:
    made = celery.Celery("conformance", set_as_current=False)
    made.conf.update(
        broker_url=os.environ.get("CONFORMANCE_BROKER", URL),
        result_backend=URL,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    made.conf.update(settings)
    for declared in TASKS.values():
        define(made, declared.body, name=declared.name, **declared.options)
    made.finalize()
    return made


def define(app: Any, body: Body, **options: Any) -> Any:
    # Else Celery gives it to every other application of the process, too.
    options.setdefault("shared", False)
    base = options.pop("base", None)
    if base is not None:
        options["base"] = base_class(base)
    return app.task(**options)(blocking(body, bound=bool(options.get("bind"))))


def signature(app: Any, call: Any) -> Any:
    """What Celery makes of a call or a canvas; of a list of them, a list."""
    if isinstance(call, list | tuple):
        return [signature(app, each) for each in call]
    if isinstance(call, Call):
        options = {name: value for name, value in call.options.items() if not name.startswith("link")}
        named = {"args": call.args, "kwargs": dict(call.kwargs), "immutable": call.immutable, **options}
        known = call.task in app.tasks
        made = app.tasks[call.task].signature(**named) if known else app.signature(call.task, **named)
        for name in call.options.keys() - options:
            getattr(made, name)(signature(app, call.options[name]))
        return made
    if not isinstance(call, Canvas):
        return call
    parts = [signature(app, part) for part in call.parts]
    if call.kind == "chain":
        made = canvas.chain(*parts, app=app)
    elif call.kind == "group":
        made = canvas.group(parts, app=app)
    else:
        made = canvas.chord(parts, signature(app, call.body), app=app)
    for callback in call.error_callbacks:
        made.link_error(signature(app, callback))
    return made


def translated(app: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: signature(app, value) if name.startswith("link") else value for name, value in options.items()}


def connect_receivers() -> None:
    for told in RECEIVERS:
        if told.worker is None or told.worker == NAME:
            getattr(signals, told.signal).connect(functools.partial(receive, told), weak=False)


def receive(told: scenario.Receiver, *, sender: Any = None, **event: Any) -> None:
    name = getattr(sender, "name", sender)
    if told.signal == "task_received":
        # The sender is the consumer.
        name = event["request"].name
    if told.task is None or told.task == name:
        event.pop("signal", None)
        drive(told.receive({"sender": sender, **event}))


# -- the client --------------------------------------------------------------------------------------------------------


class CeleryResult:
    def __init__(self, player: CeleryApp, result: Any) -> None:
        self._player = player
        self.result = result

    def __repr__(self) -> str:
        return f"<Result {self.id}>"

    @property
    def id(self) -> str:
        return str(self.result.id)

    @property
    def parent(self) -> CeleryResult | None:
        found: CeleryResult | None = self._player.wrapped(self.result.parent)
        return found

    @property
    def results(self) -> list[CeleryResult]:
        return [CeleryResult(self._player, each) for each in self.result.results]

    async def get(self, timeout: float | None = PATIENCE, **options: Any) -> Any:  # noqa: ASYNC109 - Celery's option
        return await self._call("get", timeout=timeout, **options)

    async def state(self) -> str:
        return str(await self._read("state"))

    async def info(self) -> Any:
        return await self._read("info")

    async def traceback(self) -> str | None:
        told: str | None = await self._read("traceback")
        return told

    async def ready(self) -> bool:
        return bool(await self._call("ready"))

    async def successful(self) -> bool:
        return bool(await self._call("successful"))

    async def failed(self) -> bool:
        return bool(await self._call("failed"))

    async def exists(self) -> bool:
        return bool(await self._call("exists"))

    async def children(self) -> list[CeleryResult] | None:
        found = await self._read("children")
        return None if found is None else [CeleryResult(self._player, each) for each in found]

    async def date_done(self) -> Any:
        return await self._read("date_done")

    async def detail(self, name: str) -> Any:
        return await self._read(name)

    async def forget(self) -> None:
        await self._call("forget")

    async def revoke(self, **options: Any) -> None:
        await self._call("revoke", **options)

    async def abort(self) -> None:
        handle = abortable.AbortableAsyncResult(self.id, app=self._player.app)
        await self._player.run(handle.abort)

    async def as_tuple(self) -> Any:
        return await self._call("as_tuple")

    async def collect(self) -> list[Any]:
        return list(await self._player.run(lambda: [value for _, value in self.result.collect(timeout=PATIENCE)]))

    async def completed_count(self) -> int:
        return int(await self._call("completed_count"))

    async def waiting(self) -> bool:
        return bool(await self._call("waiting"))

    async def save(self) -> None:
        await self._call("save")

    async def delete(self) -> None:
        await self._call("delete")

    async def _call(self, name: str, **options: Any) -> Any:
        return await self._player.run(lambda: getattr(self.result, name)(**options))

    async def _read(self, name: str) -> Any:
        return await self._player.run(lambda: getattr(self.result, name))


class CeleryStates:
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


class CeleryApp:
    """What the scenarios call."""

    default_queue = "celery"
    takes_beforehand = True

    def __init__(self, app: Any, threads: ThreadPoolExecutor | None = None) -> None:
        self.app = app
        # One thread, for the client's connections and caches belong to the thread that made them.
        self._threads = threads or ThreadPoolExecutor(1)

    async def run(self, function: Callable[[], Any]) -> Any:
        """In a task at once, else in the thread."""
        if driving():
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    def wrapped(self, result: Any) -> Any:
        return result if result is None else CeleryResult(self, result)

    async def send(
        self,
        call: Task | Call | Canvas,
        args: Sequence[Any],
        kwargs: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> Any:
        def now() -> Any:
            options_here = translated(self.app, options)
            if isinstance(call, Task):
                return self.app.tasks[call.name].apply_async(args, kwargs, **options_here)
            return signature(self.app, call).apply_async(args, kwargs, **options_here)

        return self.wrapped(await self.run(now))

    async def call(self, task: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return await self.run(lambda: self.app.tasks[task](*args, **kwargs))

    async def send_task(
        self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> CeleryResult:
        def now() -> Any:
            return self.app.send_task(name, args, kwargs, **translated(self.app, options))

        return CeleryResult(self, await self.run(now))

    async def send_many_as_one(self, task: Task, items: Sequence[Any], how: str, size: int = 0) -> CeleryResult:
        def now() -> Any:
            of = self.app.tasks[task.name]
            made = of.chunks(items, size) if how == "chunks" else getattr(of, how)(items)
            return made.apply_async()

        return CeleryResult(self, await self.run(now))

    async def send_stamped(
        self, task: Task, args: Sequence[Any], stamps: Mapping[str, str], **options: Any
    ) -> CeleryResult:
        def now() -> Any:
            made = self.app.tasks[task.name].s(*args)
            made.stamp(**stamps)
            return made.apply_async(**options)

        return CeleryResult(self, await self.run(now))

    async def revoke_by_stamps(self, stamps: Mapping[str, str]) -> None:
        await self.run(lambda: self.app.control.revoke_by_stamped_headers(dict(stamps)))

    async def send_retried(self, task: Task, retries: int) -> CeleryResult:
        return CeleryResult(self, await self.run(lambda: self.app.tasks[task.name].apply_async(retries=retries)))

    def result(self, task_id: str) -> CeleryResult:
        return CeleryResult(self, self.app.AsyncResult(task_id))

    async def restored_group(self, group_id: str) -> CeleryResult | None:
        found: CeleryResult | None = self.wrapped(
            await self.run(lambda: self.app.GroupResult.restore(group_id, app=self.app))
        )
        return found

    async def restored(self, told: Any) -> CeleryResult:
        return CeleryResult(self, await self.run(lambda: results.result_from_tuple(told, app=self.app)))

    async def revoke(self, task_id: str, **options: Any) -> None:
        await self.run(lambda: self.app.control.revoke(task_id, **options))

    async def record(self, task_id: str) -> dict[str, Any] | None:
        stored = _store.get(f"celery-task-meta-{task_id}")
        return json.loads(str(stored)) if stored is not None else None

    async def stored_state(self, task_id: str) -> str | None:
        record = await self.record(task_id)
        return record["status"] if record else None

    async def time_to_live(self, task_id: str) -> int | None:
        left = int(_store.ttl(f"celery-task-meta-{task_id}"))
        return None if left == -1 else left

    def _held(self, task_id: str) -> list[Any]:
        """The headers of its messages that are not acknowledged."""
        headers = [json.loads(each)[0]["headers"] for each in _store.hvals("unacked")]
        return [each for each in headers if each.get("id") == task_id]

    async def held(self, task_id: str) -> bool:
        return bool(self._held(task_id))

    async def due_at(self, task_id: str) -> float | None:
        # A worker has it in its memory.
        etas = [each["eta"] for each in self._held(task_id) if each["eta"]]
        return datetime.fromisoformat(etas[0]).timestamp() if etas else None

    async def store(self, record: Mapping[str, Any]) -> None:
        _store.set(f"celery-task-meta-{record['task_id']}", json.dumps(record))

    async def queued(self, queue: str) -> list[str]:
        lists = [queue, *(f"{queue}\x06\x16{step}" for step in (3, 6, 9))]
        # Sent on the left, taken from the right.
        messages = [json.loads(each) for one in lists for each in reversed(list(_store.lrange(one, 0, -1)))]
        return [message["headers"]["task"] for message in messages]

    async def put(self, queue: str, content_type: str, body: str, headers: Mapping[str, Any]) -> None:
        def now() -> None:
            with self.app.producer_pool.acquire(block=True) as producer:
                producer.publish(
                    body,
                    exchange="",
                    routing_key=queue,
                    content_type=content_type,
                    content_encoding="utf-8",
                    headers=dict(headers),
                )

        await self.run(now)

    async def subscriptions(self) -> int:
        return int(await self.run(lambda: len(self.app.backend.result_consumer.subscribed_to)))

    async def worker_is_idle(self) -> None:
        async def idle() -> bool:
            def asked() -> bool:
                inspected = self.app.control.inspect(destination=[f"main@{socket.gethostname()}"], limit=1, timeout=5)
                return not any(each for told in (inspected.reserved(), inspected.active()) for each in told.values())

            return not await self.queued(self.default_queue) and await self.run(asked)

        await wait_for(idle)

    async def option(self, task: Task, name: str) -> Any:
        return getattr(self.app.tasks[task.name], name)

    async def state_sets(self) -> dict[str, list[str]]:
        named = ("READY_STATES", "UNREADY_STATES", "EXCEPTION_STATES", "PROPAGATE_STATES")
        return {name: sorted(getattr(states, name)) for name in named}

    async def higher_state(self, one: str, other: str) -> str:
        return str(max(states.state(one), states.state(other)))

    async def logged(self, task_id: str) -> dict[str, Any]:
        return told_by_the_log(_store, task_id)

    async def rate_of(self, given: Any) -> Any:
        return rates.rate(given) or None

    @asynccontextmanager
    async def states(self, task_id: str) -> AsyncGenerator[CeleryStates]:
        async with Redis.from_url(URL) as client, client.pubsub() as told:
            await told.subscribe(f"celery-task-meta-{task_id}")
            await anext(told.listen())
            yield CeleryStates(told)

    @asynccontextmanager
    async def worker(
        self, *queues: str, name: str = "own", concurrency: int = 1, breakable: bool = False, **settings: Any
    ) -> AsyncGenerator[WorkerProcess]:
        pool = settings.get("worker_pool", "prefork")
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "tests.conformance.celery_app",
            "worker",
            "-n",
            f"{name}@%h",
            "-l",
            "INFO",
        ]
        command += ["-P", pool, "-c", str(concurrency), *(["-Q", ",".join(queues)] if queues else [])]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        start = functools.partial(WorkerProcess, _store, name, command, settings)
        async with running(start, breakable=breakable) as worker:
            yield worker

    @asynccontextmanager
    async def configured(self, **settings: Any) -> AsyncGenerator[CeleryApp]:
        player = CeleryApp(make_app(**settings), self._threads)
        scenario.begin(player)
        try:
            yield player
        finally:
            scenario.end(player)
            await self.run(player.app.close)

    @asynccontextmanager
    async def without_broker(self) -> AsyncGenerator[CeleryApp]:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            nowhere = f"redis://127.0.0.1:{held.getsockname()[1]}/0"
            async with self.configured(broker_url=nowhere, result_backend=None) as player:
                yield player

    @asynccontextmanager
    async def with_a_dead_address_first(self) -> AsyncGenerator[CeleryApp]:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            nowhere = f"redis://127.0.0.1:{held.getsockname()[1]}/0"
            async with self.configured(broker_url=[nowhere, URL]) as player:
                yield player

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Any]:
        transaction = django_transactions()
        entered = await self.run(lambda: _entered(transaction.atomic()))
        try:
            yield entered
        except BaseException:
            told = sys.exc_info()
            await self.run(lambda: entered.__exit__(*told))
            raise
        else:
            await self.run(lambda: entered.__exit__(None, None, None))

    async def delay_on_commit(self, task: Task, transaction: Any, *args: Any) -> Any:
        contrib: Any = import_module("celery.contrib.django.task")
        return await self.run(lambda: contrib.DjangoTask.delay_on_commit(self.app.tasks[task.name], *args))

    def blank(self, main: str | None = None) -> CeleryBlank:
        return CeleryBlank(main)

    def name_of(self, error: type[BaseException]) -> str:
        return error.__name__

    def error(self, name: str) -> type[BaseException]:
        for module in (exceptions, *ELSEWHERE):
            found: type[BaseException] | None = getattr(module, name, None)
            if found is not None:
                return found
        raise scenario.NotThereYetError(name)

    async def note(self, topic: str, values: Sequence[Any]) -> None:
        _store.rpush(f"noted:{topic}", json.dumps(list(values), default=str))

    async def notes(self, topic: str) -> list[Any]:
        return [json.loads(each) for each in _store.lrange(f"noted:{topic}", 0, -1)]

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - in a task of Celery's

    async def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def process(self) -> int:
        return os.getpid()

    async def open_gate(self, name: str) -> None:
        _store.set(f"gate:{name}", 1)

    async def gate_is_open(self, name: str) -> bool:
        return bool(_store.exists(f"gate:{name}"))

    def running_task(self) -> Any:
        return CelerySelf(celery.current_task)

    async def is_aborted(self, task: Any) -> bool:
        return bool(abortable.AbortableAsyncResult(task.request.id, app=self.app).is_aborted())


@functools.cache
def django_transactions() -> Any:
    """Django with a database in memory, which is all that its transactions need."""
    in_memory = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
    import_module("django.conf").settings.configure(DATABASES={"default": in_memory})
    import_module("django").setup()
    return import_module("django.db.transaction")


def _entered(context: Any) -> Any:
    context.__enter__()
    return context


class CeleryBlank:
    """An application with no tasks but Celery's own."""

    def __init__(self, main: str | None) -> None:
        self._app = celery.Celery(main, set_as_current=False)

    def define(self, body: Body, **options: Any) -> str:
        return str(define(self._app, body, **options).name)

    def define_class(self, name: str, body: Body) -> None:
        def run(_: Any, *args: Any) -> Any:
            return drive(body(*args))

        self._app.register_task(type(name, (celery.Task,), {"name": name, "run": run})())

    def share(self, body: Body, **options: Any) -> None:
        celery.shared_task(**options)(blocking(body))

    def discover(self, package: str) -> None:
        scenario.DISCOVERING.append(self)
        self._app.autodiscover_tasks([package])
        self._app.loader.import_default_modules()
        scenario.DISCOVERING.remove(self)

    def names(self) -> list[str]:
        return sorted(name for name in self._app.tasks if not name.startswith("celery."))

    async def call(self, name: str, *args: Any) -> Any:
        return self._app.tasks[name](*args)


# -- this process ------------------------------------------------------------------------------------------------------

scenario.begin(CeleryApp(None))
load_scenarios()
app = make_app(**SETTINGS)
scenario.end(scenario.playing())
player = CeleryApp(app)
scenario.begin(player)
connect_receivers()
if NAME:
    signals.worker_ready.connect(lambda **_: tell_ready(_store), weak=False)
    logging.getLogger("celery").addHandler(TellsOfTasks(_store))
VERSIONS = {"celery": celery.__version__, "kombu": kombu.__version__}
