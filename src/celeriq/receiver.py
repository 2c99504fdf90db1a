"""celeriq's own receiver: from a delivery to its settlement without detours.

`celeriq worker` uses it; `taskiq worker --receiver celeriq.receiver:Receiver` does as well. Middlewares are called as
Taskiq's receiver calls them, in the same order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import anyio
import msgspec
from taskiq.abc.broker import AsyncBroker
from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.acks import AcknowledgeType
from taskiq.context import Context
from taskiq.decor import AsyncTaskiqDecoratedTask
from taskiq.exceptions import NoResultError
from taskiq.message import TaskiqMessage
from taskiq.receiver import Receiver as StockReceiver
from taskiq.result import TaskiqResult
from taskiq.state import TaskiqState
from taskiq.utils import maybe_awaitable

from celeriq.attempt import Attempt, Delivery
from celeriq.options import TaskOptions
from celeriq.outcome import Released
from celeriq.redis.results import RedisResults
from celeriq.redis.streams import RedisBroker
from celeriq.task import Task

logger = logging.getLogger(__name__)

DEFAULT_SLOTS = 100

_Result = TaskiqResult[Any]
Hook = Callable[..., Any]


class Hooks:
    """The hooks of those middlewares that have one, in the order in which they are called: they are an onion."""

    def __init__(self, middlewares: Sequence[TaskiqMiddleware]) -> None:
        def hooks(name: str, ordered: Iterable[TaskiqMiddleware]) -> list[Hook]:
            default = getattr(TaskiqMiddleware, name)
            return [getattr(one, name) for one in ordered if getattr(type(one), name) is not default]

        self.pre_execute = hooks("pre_execute", middlewares)
        self.on_error = hooks("on_error", reversed(middlewares))
        self.post_execute = hooks("post_execute", reversed(middlewares))
        self.post_save = hooks("post_save", reversed(middlewares))


class Receiver(StockReceiver):
    """Takes as many messages as it has slots, and runs each in one asyncio task."""

    def __init__(
        self,
        broker: AsyncBroker,
        executor: Executor | None = None,
        *,
        max_async_tasks: int | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(broker, RedisBroker):
            raise TypeError(f"celeriq's receiver needs a RedisBroker, not {type(broker).__name__}: use Taskiq's own")
        self.slots = max_async_tasks or broker.concurrency or DEFAULT_SLOTS
        super().__init__(broker, executor, max_async_tasks=self.slots, **options)
        self._broker = broker
        self._hooks = Hooks(broker.middlewares)
        self._running: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()

    # -- taking ----------------------------------------------------------------------------------------------------

    async def listen(self, finish_event: asyncio.Event) -> None:
        """Take and run messages until `finish_event` is set, then wait for those that run."""
        self._broker.own_receiver, self._broker.slots = True, self.slots
        if self.run_startup:
            await self._broker.startup()
        logger.info("Listening started.")
        stopping = asyncio.create_task(finish_event.wait())
        stopping.add_done_callback(lambda _: self._stop_taking())
        try:
            await self._listen(stopping)
        finally:
            stopping.cancel()
            await self._wait_for_running()
            if self.on_exit is not None:
                self.on_exit(self)

    def _stop_taking(self) -> None:
        self._ended.set()
        self._broker.stop_taking()

    async def _listen(self, stopping: asyncio.Task[Any]) -> None:
        left = self.max_tasks_to_execute
        while not stopping.done() and left != 0:
            free = self.slots - len(self._running)
            if free == 0:
                self._ended.clear()
                await self._ended.wait()
                continue
            for delivery in await self._broker.take(free if left is None else min(free, left)):
                if stopping.done():
                    await self._broker.attempts.hand_back(delivery)
                elif await self._broker.attempts.admit(delivery):
                    self._start(delivery)
                    left = None if left is None else left - 1
            # Their bodies begin before more is asked for.
            await asyncio.sleep(0)

    def _start(self, delivery: Delivery) -> None:
        running = asyncio.create_task(self._receive(delivery))
        self._running.add(running)
        running.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._ended.set()

    async def _wait_for_running(self) -> None:
        if self._running:
            logger.info("Waiting for %d running tasks to complete...", len(self._running))
            await asyncio.wait(self._running, timeout=self.wait_tasks_timeout)

    # -- one message -----------------------------------------------------------------------------------------------

    async def _receive(self, delivery: Delivery) -> None:
        """Read, run, settle. Whatever a hook raises leaves here, and the attempt is settled from what is recorded."""
        message = self._read(delivery)
        task = None if message is None else self._broker.find_task(message.task_name)
        if message is None or task is None:
            await self._broker.attempts.acknowledge(delivery)
            return
        message = await self._prepared(message)
        if self._get_ack_time(message) is AcknowledgeType.WHEN_RECEIVED:
            await self._broker.attempts.acknowledge(delivery)
        attempt = Attempt.current()
        logger.debug("task %s[%s] received", message.task_name, message.task_id)
        result = await self._run(task, message, attempt)
        if result.error is None:
            logger.debug("task %s[%s] succeeded in %g s", message.task_name, message.task_id, attempt.runtime)
        if result.error is not None:
            await self._tell(self._hooks.on_error, message, result, result.error)
        await self._tell(self._hooks.post_execute, message, result)
        await self._settle(attempt, result)
        if attempt.settled and not isinstance(result.error, NoResultError):
            await self._tell(self._hooks.post_save, message, result)

    async def _prepared(self, message: TaskiqMessage) -> TaskiqMessage:
        for hook in self._hooks.pre_execute:
            message = await maybe_awaitable(hook(message))
        return message

    def _read(self, delivery: Delivery) -> TaskiqMessage | None:
        try:
            message = self._broker.formatter.loads(delivery)
            message.parse_labels()
        except (msgspec.DecodeError, ValueError) as error:
            logger.warning("cannot read a message of queue %r: %s", delivery.queue, error)
            return None
        return message

    async def _run(
        self, task: AsyncTaskiqDecoratedTask[Any, Any], message: TaskiqMessage, attempt: Attempt
    ) -> TaskiqResult[Any]:
        """What the task returned or raised. A task that another broker registered is run as Taskiq runs it."""
        if not isinstance(task, Task):
            attempt.begun = True
            return await self.run_task(task.original_func, message)
        value: Any = None
        raised: BaseException | None = None
        try:
            if not task.definition.needs_nothing(self._broker.dependency_overrides):
                # A copy for each attempt, from which its dependencies are resolved.
                self._broker.custom_dependency_context.update(
                    {Context: Context(message, self._broker), TaskiqState: self._broker.state}
                )
            with _limit(message):
                value = await attempt.run(task.definition, tuple(message.args), message.kwargs)
        except BaseException as error:
            raised = error
            if isinstance(error, task.definition.options[TaskOptions].throws):
                logger.info("task %s[%s] raised expected: %r", message.task_name, message.task_id, error)
            elif not isinstance(error, NoResultError):
                logger.exception("task %s[%s] failed", message.task_name, message.task_id)
        # A result is what hooks get; nobody validates it.
        return _Result.model_construct(
            is_err=raised is not None,
            return_value=value,
            execution_time=attempt.runtime,
            labels=message.labels,
            error=raised,
        )

    async def _settle(self, attempt: Attempt, result: TaskiqResult[Any]) -> None:
        attempt.end_from_outside(result.return_value, result.error)
        backend = self._broker.result_backend
        # Another's result first, our acknowledgement last.
        unfinished = isinstance(result.error, NoResultError) or isinstance(attempt.outcome, Released)
        if not isinstance(backend, RedisResults) and not unfinished:
            try:
                await backend.set_result(attempt.message.task_id, result)
            except Exception:
                logger.exception("Can't set result in result backend.")
        await self._broker.settle(attempt)

    async def _tell(self, hooks: Sequence[Hook], *told: Any) -> None:
        for hook in hooks:
            await maybe_awaitable(hook(*told))


def _limit(message: TaskiqMessage) -> AbstractContextManager[object]:
    timeout = message.labels.get("timeout")
    return nullcontext() if timeout is None else anyio.fail_after(float(timeout))
