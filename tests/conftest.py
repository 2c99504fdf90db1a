"""One PostgreSQL and one Valkey for the whole run; a database and a namespace for every test."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
from blockbuster import blockbuster_ctx
from redis.asyncio import Redis

from celeriq import embedded
from celeriq.embedded import Postgres, Services, Valkey
from tests import databases

PROVING = bool(os.environ.get("PROVE"))
PROOFS_HEAD = """# Proofs

What `make prove` measured last, at full size, on two shared cores. `make test` runs the same proofs small.
"""
RUNNING = pytest.StashKey[Services]()
STARTED = pytest.StashKey[ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    shared: dict[str, Any] | None = getattr(config, "workerinput", None)
    running = Services(**shared["services"]) if shared else start_services(config)
    config.stash[RUNNING] = running
    # The application reads its addresses when it is imported, so its fixtures come after them.
    os.environ.update(DB_URL=running.database_url, BROKER_URL=running.redis_url)
    config.pluginmanager.import_plugin("tests.app.fixtures")


def start_services(config: pytest.Config) -> Services:
    stack = config.stash[STARTED] = ExitStack()
    folder = Path(tempfile.mkdtemp(prefix="celeriq-tests-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    running = stack.enter_context(embedded.services(folder, durable=False))
    databases.create_template(running.database_url)
    return running


def pytest_unconfigure(config: pytest.Config) -> None:
    if STARTED in config.stash:
        config.stash[STARTED].close()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["services"] = asdict(node.config.stash[RUNNING])


Figure = Callable[[str], None]


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Figure:
    """Report what was measured: it is printed at the end of the run."""
    return lambda told: record_property("figure", told)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed: list[Any] = terminalreporter.getreports("passed")
    failed: list[Any] = terminalreporter.getreports("failed")
    told = [value for report in (*passed, *failed) for name, value in report.user_properties if name == "figure"]
    if told:
        terminalreporter.section("measured")
        for line in dict.fromkeys(told):
            terminalreporter.line(line)
    if PROVING:
        write_proofs(list(dict.fromkeys(told)))
        called = [report for report in passed if report.when == "call"]
        terminalreporter.line(f"{len(called)} passed, {len(failed)} failed")


def write_proofs(lines: list[str]) -> None:
    """Put what was measured in place of what the file says of the same proof, and keep the rest."""
    page = databases.ROOT / "docs" / "proofs.md"
    kept = [line for line in page.read_text().splitlines() if line.startswith("- ")] if page.exists() else []
    subjects = {line.partition(":")[0] for line in lines}
    rows = [line for line in kept if line[2:].partition(":")[0] not in subjects] + [f"- {line}" for line in lines]
    page.write_text("\n".join([PROOFS_HEAD, *sorted(rows), ""]))


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """A call of the library's that sleeps, locks or waits for the network on the event loop fails the test.

    Files are left out: redis-py and SQLAlchemy look up their own versions and plug-ins when they connect first.
    """
    with blockbuster_ctx("celeriq") as watched:
        for name, function in watched.functions.items():
            if name.startswith(("os.", "io.")):
                function.deactivate()
        yield


@pytest.fixture(scope="session")
def services(request: pytest.FixtureRequest) -> Services:
    return request.config.stash[RUNNING]


@pytest.fixture
async def database_url(services: Services, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[str]:
    async with databases.copy_of(services.database_url, databases.TEMPLATE) as url:
        monkeypatch.setenv("DB_URL", url)
        yield url


@pytest.fixture
def namespace() -> str:
    return uuid4().hex


@pytest.fixture
async def redis(services: Services) -> AsyncGenerator[Redis]:
    async with Redis.from_url(services.redis_url) as client:
        yield client


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for sockets, whose paths must be short."""
    with TemporaryDirectory(prefix="celeriq-") as folder:
        yield Path(folder)


@pytest.fixture
def valkey(tmp_path: Path, short_folder: Path) -> Iterator[Valkey]:
    server = Valkey(tmp_path, short_folder, appendfsync="always")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def postgres(tmp_path: Path, short_folder: Path) -> Iterator[Postgres]:
    """One of its own, which keeps what it has committed, and may be killed."""
    server = Postgres(tmp_path / "database", short_folder)
    server.start()
    yield server
    server.stop()
