"""Signals: tell functions of yours what happens, whatever task it happens to (SIG-01 to SIG-11).

    @task_failure.connect
    async def alarm(sender, task_id, exception, **_): ...

Receivers are `def` or `async def`, and take what they need by name and `**_` for the rest. They are called one after
the other; what one raises is logged, and changes nothing (EXE-09).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar, overload

from taskiq.utils import maybe_awaitable

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


class Signal:
    """One kind of thing that happens."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._receivers: dict[object, tuple[Callable[..., Any], object]] = {}

    def __bool__(self) -> bool:
        """Whether anybody wants to know."""
        return bool(self._receivers)

    def __repr__(self) -> str:
        return f"<Signal {self.name}>"

    @overload
    def connect(self, receiver: F) -> F: ...

    @overload
    def connect(self, *, sender: object = None, dispatch_uid: object = None) -> Callable[[F], F]: ...

    def connect(self, receiver: Any = None, *, sender: object = None, dispatch_uid: object = None) -> Any:
        """Call `receiver` from now on, for this sender only if one is given: a task or its name, a worker.

        A receiver that is connected again is called once, and so are several with one `dispatch_uid`.
        """

        def keep(function: F) -> F:
            self._receivers[dispatch_uid or function] = (function, sender)
            return function

        return keep if receiver is None else keep(receiver)

    def disconnect(self, receiver: Callable[..., Any] | None = None, *, dispatch_uid: object = None) -> bool:
        """Whether it was connected."""
        return self._receivers.pop(dispatch_uid or receiver, None) is not None

    async def send(self, sender: object, **told: Any) -> None:
        """Tell all receivers; `sender` is a task, the name of one, or a worker."""
        for receiver, wanted in list(self._receivers.values()):
            if wanted is None or wanted is sender or wanted == getattr(sender, "name", sender):
                try:
                    await maybe_awaitable(receiver(sender=sender, signal=self, **told))
                except Exception:
                    logger.exception("a receiver of %s raised; nothing is changed by it", self.name)


before_task_publish = Signal("before_task_publish")
"""A call is about to be sent, told where it is sent (SIG-01): `body` (args, kwargs, {}), `headers`, to which you may
add, `exchange`, always "", `routing_key`: the queue, `properties`."""
after_task_publish = Signal("after_task_publish")
"""It was sent: the same."""
task_received = Signal("task_received")
"""A worker has taken a task, and begins it at once: `request`. The sender is the worker."""
task_prerun = Signal("task_prerun")
"""The body is about to run: `task_id`, `task`, `args`, `kwargs`."""
task_postrun = Signal("task_postrun")
"""An attempt has ended, in whatever way: the same, `retval`, `state`."""
task_success = Signal("task_success")
"""`result`, `runtime` in seconds."""
task_failure = Signal("task_failure")
"""`task_id`, `exception`, `args`, `kwargs`, `traceback`, `einfo`: the traceback as text."""
task_retry = Signal("task_retry")
"""`request`, `reason`: the exception, `einfo`."""
task_revoked = Signal("task_revoked")
"""`request`, `terminated`, `expired`, `signum`: always None."""
task_unknown = Signal("task_unknown")
"""A worker has a message of a task that it does not know, and sets it aside: `message`, `name`, `id`, `exc`."""
task_rejected = Signal("task_rejected")
"""A worker has what is no message of celeriq's, and makes a dead letter of it: `message`, `exc`."""
setup_logging = Signal("setup_logging")
"""`celeriq worker` sets up its log, unless somebody receives this and does so: `loglevel`, `logger`."""
after_setup_logger = Signal("after_setup_logger")
"""It has: the same."""
after_setup_task_logger = Signal("after_setup_task_logger")
"""The log of the tasks is the same one, so this comes at the same time."""
worker_init = Signal("worker_init")
"""A worker process begins; each is a worker here, so `worker_process_init` is told at the same time."""
worker_process_init = Signal("worker_process_init")
worker_ready = Signal("worker_ready")
"""It takes messages from now on."""
worker_shutting_down = Signal("worker_shutting_down")
"""It was told to stop: `sig`, `how`, `exitcode`."""
worker_process_shutdown = Signal("worker_process_shutdown")
"""Its tasks have ended."""
worker_shutdown = Signal("worker_shutdown")
