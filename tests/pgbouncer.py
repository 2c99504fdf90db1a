"""A real PgBouncer in transaction mode in front of the tests' PostgreSQL, without root and without installing it.

No wheel brings the binary. Where it is not installed Debian's package is fetched, with the libraries that are missing,
and unpacked into a folder of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import make_url

from celeriq.embedded import Server

CACHE = Path(tempfile.gettempdir()) / f"celeriq-pgbouncer-{os.getuid()}"
PORT = 6432
PATIENCE = 120.0
CONFIGURATION = """
[databases]
* = host={host} port={port} user={user}

[pgbouncer]
unix_socket_dir = {sockets}
listen_port = {listens}
pidfile = {pid_file}
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 200
"""


class NoPgBouncerError(Exception):
    """There is none here, and none can be fetched: the message says why."""


class PgBouncer(Server):
    """Keeps `size` connections to the PostgreSQL at `url` for each database, and lends one for each transaction."""

    def __init__(self, directory: Path, sockets: Path, url: str, *, size: int) -> None:
        super().__init__(directory, sockets, "pgbouncer", "pgbouncer.pid", signal.SIGTERM)
        self._server = make_url(url)
        self._size = size
        self._configuration = directory.resolve() / "pgbouncer.ini"
        self._command = [*binary(), str(self._configuration)]

    def url_of(self, database_url: str) -> str:
        """The address of the same database through PgBouncer."""
        database = make_url(database_url).database
        return f"postgresql+asyncpg://celeriq@/{database}?host={quote(str(self.sockets))}&port={PORT}"

    def _prepare(self) -> None:
        self.data.mkdir(exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(self.data, "nobody")
        said = {
            "host": self._server.query["host"],
            "port": self._server.query.get("port", 5432),
            "user": self._server.username,
            "sockets": self.sockets,
            "listens": PORT,
            "pid_file": self._pid_file,
            "size": self._size,
        }
        self._configuration.write_text(CONFIGURATION.format(**said))

    def _answers(self) -> bool:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.sockets / f".s.PGSQL.{PORT}"))
            return True
        return False


def binary() -> list[str]:
    """What runs PgBouncer; raises `NoPgBouncerError`."""
    installed = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if installed:
        return [installed]
    if not CACHE.exists():
        _fetch()
    libraries = ":".join(str(folder) for folder in CACHE.glob("usr/lib/*-linux-*"))
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(CACHE / "usr/sbin/pgbouncer")]


def _fetch() -> None:
    """At once or not at all: several processes of a run may want it."""
    with tempfile.TemporaryDirectory(prefix="celeriq-pgbouncer-") as folder:
        _run(folder, "apt-get", "download", "pgbouncer", *_missing_libraries(folder))
        whole = Path(folder) / "whole"
        for package in Path(folder).glob("*.deb"):
            _run(folder, "dpkg", "-x", str(package), str(whole))
        whole.chmod(0o755)
        with suppress(OSError):  # another one was first
            whole.rename(CACHE)


def _missing_libraries(folder: str) -> list[str]:
    lines = _run(folder, "apt-cache", "depends", "pgbouncer").splitlines()
    wanted = [line.split()[-1] for line in lines if "Depends: lib" in line]
    return [one for one in wanted if subprocess.run(["dpkg", "-s", one], check=False, capture_output=True).returncode]


def _run(folder: str, *command: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError) as error:
        told = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1:]
        raise NoPgBouncerError(f"no pgbouncer: it is not installed, and {command[0]} failed: {told}") from error
    return done.stdout
