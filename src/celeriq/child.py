"""What happens inside a child process, and what travels between it and its worker."""

from __future__ import annotations

import fcntl
import inspect
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, cast

from celeriq import record
from celeriq.definition import Definition
from celeriq.errors import EncodeError, SoftTimeLimitExceeded, TaskDefinitionError
from celeriq.shared import SharedTask

HELD_BACK = frozenset({signal.SIGINT, signal.SIGHUP, signal.SIGTERM})
"""Signals for the worker, which a terminal or a service manager sends to its children as well. They are blocked while
a child starts, until it can tell that they are not for it."""

SOFT_LIMIT = signal.SIGUSR1
"""As in Celery (LIM-01). SIGALRM is left to the tasks."""


# -- what is asked of a child ------------------------------------------------------------------------------------------


class Reference(NamedTuple):
    """Where a child finds a function."""

    module: str
    name: str
    folder: str
    """What its module is imported from; Taskiq's command line takes the working folder off the path again."""


class Call(NamedTuple):
    reference: Reference
    arguments: bytes
    """Pickled here and not by the pool, whose threads end at what they cannot pickle."""


def check(function: Callable[..., Any]) -> None:
    """Raise `TaskDefinitionError` for a function that no child process could find or run."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not name or "<" in name:
        raise TaskDefinitionError(
            f"{function!r} cannot run in a process, which finds it by its name: "
            "write it with `def` at the top level of a module"
        )
    if inspect.iscoroutinefunction(function):
        raise TaskDefinitionError(
            f"{module}.{name} is `async def` and runs on the event loop: for a process write `def`"
        )


def reference_to(function: Callable[..., Any]) -> Reference:
    """Raises `TaskDefinitionError` as `check` does."""
    check(function)
    module = function.__module__
    return Reference(module, function.__qualname__, _folder_of(module))


@cache
def _folder_of(module: str) -> str:
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return ""
    path = Path(file)
    above = path.parent.parents if path.stem == "__init__" else path.parents
    depth = module.count(".")
    return str(above[depth]) if depth < len(above) else ""


def encode_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Raises `EncodeError` for what cannot be pickled."""
    try:
        return pickle.dumps((args, kwargs))
    except Exception as error:
        raise EncodeError(
            f"the arguments of {function.__qualname__} cannot be sent to a process: {error}; "
            "send plain data, or the key to fetch it by"
        ) from error


# -- what it answers ---------------------------------------------------------------------------------------------------


class RemoteTraceback(Exception):  # noqa: N818 - no error, but where one was raised
    """The cause of an error that was raised in another process: its traceback there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Ending:
    """What came of a call. It always arrives: in place of what cannot be pickled, or read again, there is an error."""

    def __init__(self, value: Any = None, error: BaseException | None = None, told: str = "", memory: int = 0) -> None:
        self._value = value
        self._error = error
        self._told = told
        self.memory = memory
        """The process's resident memory in KiB when it had run."""

    def result(self) -> Any:
        """The value; or raises the error, its traceback in the child as the cause."""
        if self._error is not None:
            raise self._error from RemoteTraceback(self._told)
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        if self._error is not None:
            return _failed, (_pickled_error(self._error), self._told, self.memory)
        try:
            return _succeeded, (pickle.dumps(self._value), self.memory)
        except Exception as error:  # noqa: BLE001 - whatever a __reduce__ of the user's raises
            refused = EncodeError(f"the return value cannot be sent to the worker: {error}; return plain data")
            return _failed, (_pickled_error(refused), traceback.format_exc(), self.memory)


def _succeeded(pickled: bytes, memory: int) -> Ending:
    try:
        return Ending(pickle.loads(pickled), memory=memory)  # noqa: S301 - from our own child
    except Exception as error:  # noqa: BLE001 - whatever a __setstate__ of the user's raises
        refused = EncodeError(f"the return value cannot be read in the worker: {error!r}; return plain data")
        return Ending(error=refused, told=traceback.format_exc(), memory=memory)


def _failed(ways: list[bytes], told: str, memory: int) -> Ending:
    return Ending(error=_unpickled_error(ways), told=told, memory=memory)


def _pickled_error(error: BaseException) -> list[bytes]:
    """As itself; without its constructor, which may want other arguments than `args`; and as a result stores it."""
    ways = (
        error,
        _Unconstructed(type(error), error.args, error.__dict__),
        _Stored(record.encode_exception(error)),
    )
    pickled: list[bytes] = []
    for way in ways:
        with suppress(Exception):
            pickled.append(pickle.dumps(way))
    return pickled


def _unpickled_error(ways: list[bytes]) -> BaseException:
    for pickled in ways:
        with suppress(Exception):
            found = pickle.loads(pickled)  # noqa: S301 - from our own child
            if isinstance(found, BaseException):
                return found
    return EncodeError("the error cannot be sent to the worker: its traceback follows as the cause")


class _Unconstructed(NamedTuple):
    kind: type[BaseException]
    arguments: tuple[Any, ...]
    state: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, tuple(self)


def _made(kind: type[BaseException], arguments: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    return error


class _Stored(NamedTuple):
    stored: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return record.decode_exception, tuple(self)


# -- what a child does -------------------------------------------------------------------------------------------------


class _Body:
    """Whether a task's own code is running, which alone a soft limit may interrupt."""

    running = False
    told = False
    """Once is enough: the worker tells it again, until it has the answer."""


def begin() -> None:
    """The first thing that a child does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Not ignored, which the task's own subprocesses would inherit, and could not be terminated.
    signal.signal(signal.SIGTERM, _leave_it_to_the_worker)
    signal.signal(SOFT_LIMIT, _on_soft_limit)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
    _end_with_parent()


def _leave_it_to_the_worker(*_: object) -> None:
    pass


def _on_soft_limit(*_: object) -> None:
    if _Body.running and not _Body.told:
        _Body.told = True
        raise SoftTimeLimitExceeded


def _end_with_parent() -> None:
    """However the worker ends, and whatever runs here: nobody wants its result any more."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    if sys.platform == "linux":
        # The kernel sees to it, also while C code holds the interpreter. PR_SET_PDEATHSIG would kill this process when
        # the thread that started it ends; this is a pipe to the process.
        pipe = parent.sentinel
        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
        if not parent.is_alive():
            _kill_oneself()
    else:
        threading.Thread(target=_end_after, args=(parent,), name="celeriq-parent", daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    _kill_oneself()


def _kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def prepare(reference: Reference) -> Ending:
    """Import the function, which may take long and is no part of any task."""
    try:
        find(reference)
    except Exception as error:  # noqa: BLE001 - whatever a module of the user's raises
        return Ending(error=error, told=traceback.format_exc())
    return Ending()


@cache
def find(reference: Reference) -> Callable[..., Any]:
    """The function that `reference` names, or that of the task which took its place."""
    if reference.folder and reference.folder not in sys.path:
        sys.path.append(reference.folder)
    found: Any = import_module(reference.module)
    for name in reference.name.split("."):
        found = getattr(found, name, None)
    task: Any = found if issubclass(type(found), SharedTask) else getattr(found, "definition", None)
    function: Any = task.function if issubclass(type(task), SharedTask | Definition) else found
    if not callable(function):
        raise TaskDefinitionError(
            f"there is no function {reference.name!r} in module {reference.module!r} where a process looks for it: "
            "give it the name that it was defined by"
        )
    return cast("Callable[..., Any]", function)


def perform(call: Call) -> Ending:
    """Run the function. It is interrupted by the soft limit, and may end the process."""
    try:
        function = find(call.reference)
        args, kwargs = pickle.loads(call.arguments)  # noqa: S301 - from our own worker
        try:
            _Body.told = False
            _Body.running = True
            value = function(*args, **kwargs)
        finally:
            _Body.running = False
    except SystemExit as wish:
        _leave(wish.code)
    except BaseException as error:  # noqa: BLE001 - it is raised in the worker
        return Ending(error=error, told=traceback.format_exc(), memory=resident_memory())
    return Ending(value, memory=resident_memory())


def _leave(code: object) -> NoReturn:
    """A task that exits ends its process, as in Celery (EXE-10)."""
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)  # noqa: T201 - as `sys.exit` does
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code or 0)


def resident_memory() -> int:
    """What this process has in memory now, in KiB (SHUT-07)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        # The peak. On Linux it is no measure at all: a process begins with the peak of the one that started it.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
    return pages * resource.getpagesize() // 1024
