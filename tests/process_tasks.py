"""What the tests run in child processes: a module of its own, for each child imports it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from time import sleep
from typing import Any

from celeriq.errors import SoftTimeLimitExceeded
from celeriq.outcome import Retry

kept: list[bytearray] = []


def pid() -> int:
    return os.getpid()


def pid_written_to(file: str) -> int:
    """Whoever waits for the file knows that this runs."""
    written = Path(f"{file}.part")
    written.write_text(str(os.getpid()))
    written.rename(file)
    return os.getpid()


def hang(started: str) -> None:
    pid_written_to(started)
    while True:
        sleep(60)


def hang_holding_the_interpreter(started: str) -> None:
    """In C code that lets no other thread, and no signal handler, run Python."""
    pid_written_to(started)
    sum(range(10**15))


def wait_for_file(started: str, file: str) -> int:
    pid_written_to(started)
    while not Path(file).exists():
        sleep(0.01)
    return os.getpid()


def call_with(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return args, kwargs


def divide(number: int, by: int) -> float:
    return number / by


def exit_at_once(code: int) -> None:
    os._exit(code)


def ask_to_exit(code: object) -> None:
    sys.exit(code)  # type: ignore[arg-type]


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note_and_kill_oneself(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    kill_oneself()


def crash() -> None:
    ctypes.string_at(0)


def crash_while_answering(megabytes: int) -> bytes:
    threading.Timer(0.01, kill_oneself).start()
    return os.urandom(megabytes * 1024 * 1024)


def keep(megabytes: int) -> int:
    kept.append(bytearray(os.urandom(1024)) * (megabytes * 1024))
    return os.getpid()


def use_for_a_while(megabytes: int) -> int:
    used = bytearray(os.urandom(1024)) * (megabytes * 1024)
    return os.getpid() + 0 * len(used)


def cleaned_up_at_the_soft_limit(started: str) -> str:
    try:
        hang(started)
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return "never"


def cleaned_up_for(seconds: float) -> str:
    try:
        sleep(60)
    except SoftTimeLimitExceeded:
        sleep(seconds)
        return "cleaned up"
    return "never"


class SlowToRead:
    """Says when a process has read it."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return _read_slowly, (self.file,)


def _read_slowly(file: str) -> str:
    sleep(0.2)
    Path(file).touch()
    return file


def hang_with(_: object) -> None:
    sleep(60)


def handlers() -> dict[str, object]:
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    ignored = {number.name: signal.getsignal(number) is signal.SIG_IGN for number in numbers}
    return {**ignored, "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ()))}


class OddError(Exception):
    """Its constructor takes other arguments than it hands on."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class UnpicklableError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.hook = lambda: text


def raise_odd_error() -> None:
    raise OddError(code=7)


def raise_unpicklable_error() -> None:
    raise UnpicklableError("it hurts")


def raise_local_error() -> None:
    class LocalError(Exception):
        pass

    raise LocalError("from here")


def return_lambda() -> object:
    return lambda: None


class ReadableOnce:
    """Is pickled, and cannot be read again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return divide, (1, 0)


def return_what_cannot_be_read() -> ReadableOnce:
    return ReadableOnce()


class Shop:
    @staticmethod
    def opening_hours() -> str:
        return "always"


def renamed() -> None: ...


renamed.__qualname__ = "nobody_is_called_this"


async def coroutine() -> None: ...


def retry_until(file: str) -> str:
    """Ask for a retry, once."""
    if not Path(file).exists():
        Path(file).touch()
        raise Retry(countdown=0)
    return "ran again"
