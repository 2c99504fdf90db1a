"""compose.yaml and Dockerfile without Docker: what they say is checked, and run on the test's own servers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from fpdf import FPDF
from sqlalchemy import make_url

from broker.settings import BrokerSettings
from celeriq.embedded import Services
from db.settings import DatabaseSettings
from tests import databases
from tests.waiting import wait_for

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
PATIENCE = 60.0

Service = dict[str, Any]


def read_services() -> dict[str, Service]:
    """The services as they are for somebody who has set no variable."""
    text = re.sub(r"\$\{\w+:-(\w*)\}", r"\1", (ROOT / "compose.yaml").read_text())
    services: dict[str, Service] = yaml.safe_load(text)["services"]
    return services


SERVICES = read_services()
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


class Instruction(NamedTuple):
    name: str
    arguments: str


def read_dockerfile() -> list[Instruction]:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    words = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    return [Instruction(name, arguments) for name, arguments in words]


def last_stage() -> list[Instruction]:
    instructions = read_dockerfile()
    return instructions[max(i for i, instruction in enumerate(instructions) if instruction.name == "FROM") :]


def copies(instructions: Iterable[Instruction]) -> list[tuple[str, str]]:
    """What comes from the project: source and destination."""
    found: list[tuple[str, str]] = []
    for name, arguments in instructions:
        if name == "COPY" and not arguments.startswith("--from="):
            *sources, destination = arguments.split()
            found += [(source, destination) for source in sources]
    return found


@dataclass(frozen=True)
class Outside:
    """Services outside of containers: their commands, variables and files, but other addresses."""

    folder: Path
    addresses: dict[str, str]
    port: int

    def command(self, words: Sequence[str]) -> list[str]:
        program, *arguments = (w.replace("0.0.0.0", "127.0.0.1").replace("8000", str(self.port)) for w in words)
        return [str(BIN / program), *arguments]

    def environment(self, name: str) -> dict[str, str]:
        return {"PATH": os.defpath, **OURS[name]["environment"], **self.addresses}

    def run(self, name: str, words: Sequence[str]) -> int:
        return subprocess.run(
            self.command(words), cwd=self.folder, env=self.environment(name), timeout=PATIENCE, check=False
        ).returncode

    @contextmanager
    def running(self, name: str) -> Generator[subprocess.Popen[bytes]]:
        with (
            self.log(name).open("ab") as log,
            subprocess.Popen(
                self.command(OURS[name]["command"]),
                cwd=self.folder,
                env=self.environment(name),
                stderr=log,
                start_new_session=True,
            ) as process,
        ):
            try:
                yield process
            finally:
                stop(process)

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def is_healthy(self, name: str) -> bool:
        kind, *words = OURS[name]["healthcheck"]["test"]
        assert kind == "CMD"
        return self.run(name, words) == 0

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE, trust_env=False)

    async def wait_until_healthy(self, name: str, process: subprocess.Popen[bytes]) -> None:
        def is_healthy() -> bool:
            assert process.poll() is None
            return self.is_healthy(name)

        await wait_for(is_healthy, within=PATIENCE)


def stop(process: subprocess.Popen[bytes]) -> int:
    """As Docker does: SIGTERM to the first process, and at the end of the patience SIGKILL to all."""
    process.terminate()
    try:
        return process.wait(PATIENCE)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def app_folder(tmp_path: Path) -> Path:
    """The image's own folder: what the last stage copies, and nothing else."""
    for source, destination in copies(last_stage()):
        if (ROOT / source).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, tmp_path / destination, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / source, tmp_path / destination)
    return tmp_path


@pytest.fixture
def outside(app_folder: Path, port: int, database_url: str, services: Services, namespace: str) -> Outside:
    addresses = {"DB_URL": database_url, "BROKER_URL": services.redis_url, "BROKER_NAMESPACE": namespace}
    return Outside(app_folder, addresses, port)


def test_the_compose_file_is_valid_by_the_specification() -> None:
    checker = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(ROOT / "compose.yaml")]
    checked = subprocess.run(checker, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_every_variable_is_one_that_the_application_reads() -> None:
    known = {f"DB_{field.upper()}" for field in DatabaseSettings.model_fields}
    known |= {f"BROKER_{field.upper()}" for field in BrokerSettings.model_fields}
    for service in OURS.values():
        assert service["environment"].keys() <= known


def test_the_addresses_are_those_of_the_two_stores() -> None:
    credentials = SERVICES["postgres"]["environment"]
    for service in OURS.values():
        database, queue = make_url(service["environment"]["DB_URL"]), make_url(service["environment"]["BROKER_URL"])
        assert (database.host, queue.host, queue.port) == ("postgres", "valkey", 6379)
        assert database.username == credentials["POSTGRES_USER"]
        assert database.password == credentials["POSTGRES_PASSWORD"]
        assert database.database == credentials["POSTGRES_DB"]


def test_nothing_starts_before_what_it_needs_is_there() -> None:
    for name, service in OURS.items():
        needed = service["depends_on"]
        assert "postgres" in needed
        if name != "migrate":
            assert needed.keys() == {"postgres", "valkey", "migrate"}
        for other, how in needed.items():
            if other == "migrate":
                assert how["condition"] == "service_completed_successfully"
                assert SERVICES[other]["restart"] == "no"
            else:
                assert how["condition"] == "service_healthy"
                assert SERVICES[other]["healthcheck"]["test"][0] == "CMD"


def test_the_worker_can_be_scaled() -> None:
    assert not SERVICES["worker"].keys() & {"container_name", "ports", "hostname"}


def test_valkey_keeps_what_it_accepted() -> None:
    program, *options = SERVICES["valkey"]["command"]
    assert program == "valkey-server"
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert given["--appendonly"] == "yes"
    assert given["--maxmemory-policy"] == "noeviction"


def test_the_stores_are_asked_by_their_own_programs() -> None:
    assert SERVICES["postgres"]["healthcheck"]["test"][1] == "pg_isready"
    assert SERVICES["valkey"]["healthcheck"]["test"][1:] == ["valkey-cli", "-e", "ping"]


def test_both_stores_keep_their_data_in_named_volumes() -> None:
    """From 18 on, a volume at PostgreSQL's former folder would stay empty, and the data go with the container."""
    named = yaml.safe_load((ROOT / "compose.yaml").read_text())["volumes"]
    assert SERVICES["postgres"]["image"].endswith(":pg18")
    assert SERVICES["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
    assert SERVICES["valkey"]["volumes"] == ["valkey:/data"]
    assert named.keys() == {"postgres", "valkey"}


def test_what_the_dockerfile_copies_exists_and_nothing_else_is_sent_to_the_builder() -> None:
    sources = {source for source, _ in copies(read_dockerfile())}
    assert all((ROOT / source).exists() for source in sources)
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == sources


def test_requirements_are_installed_with_their_hashes() -> None:
    instructions = read_dockerfile()
    installed = [run.arguments for run in instructions if run.name == "RUN" and " -r " in run.arguments]
    named = [re.findall(r"--require-hashes -r (\S+)", arguments) for arguments in installed]
    assert named == [["requirements/app.txt"]]
    assert ("requirements/app.txt", "requirements/app.txt") in copies(instructions)


def test_the_image_runs_the_api_and_not_as_root() -> None:
    last = {name: arguments for name, arguments in last_stage() if name in {"USER", "CMD"}}
    assert int(last["USER"].split(":")[0]) > 0
    assert json.loads(last["CMD"]) == SERVICES["api"]["command"]


async def test_migrate_sets_up_an_empty_database_and_may_run_again(outside: Outside, services: Services) -> None:
    async with databases.copy_of(services.database_url, "template1") as empty:
        elsewhere = replace(outside, addresses={**outside.addresses, "DB_URL": empty})
        for _ in range(2):
            assert elsewhere.run("migrate", OURS["migrate"]["command"]) == 0
        await databases.execute(empty, "select from articles")


async def test_a_worker_runs_what_the_api_was_asked_for(outside: Outside) -> None:
    with outside.running("api") as api, outside.running("worker") as worker:
        await outside.wait_until_healthy("api", api)
        await outside.wait_until_healthy("worker", worker)
        async with outside.client() as client:
            assert await result(client, await publish_an_article(client)) == {"published": 1}
            assert await result(client, await upload_a_document(client)) == {"status": "success", "chunks": 1}
        assert stop(worker) == 0
        assert not outside.is_healthy("worker")
        assert stop(api) in {0, -signal.SIGTERM}
        assert not outside.is_healthy("api")


async def publish_an_article(client: httpx.AsyncClient) -> str:
    user = (await client.post("/users", json={"email": "ada@example.com"})).json()
    article = {"author_id": user["id"], "title": "Notes", "body": "On the engine"}
    assert (await client.post("/articles", json=article)).status_code == 201
    return str((await client.post("/articles/pipeline")).json()["task_id"])


async def upload_a_document(client: httpx.AsyncClient) -> str:
    document = FPDF()
    document.set_font("helvetica", size=12)
    document.add_page()
    document.write(text="On the engine")
    file = ("notes.pdf", bytes(document.output()), "application/pdf")
    return str((await client.post("/documents", files={"file": file})).json()["task_id"])


async def result(client: httpx.AsyncClient, task_id: str) -> Any:
    async def ended() -> Any:
        view = (await client.get(f"/tasks/{task_id}")).json()
        return view["ready"] and view

    view = await wait_for(ended, within=PATIENCE)
    assert view["state"] == "SUCCESS", view
    return view["result"]


async def test_a_worker_that_hangs_is_not_healthy(outside: Outside) -> None:
    impatient = replace(outside, addresses={**outside.addresses, "BROKER_LEASE": "2"})
    with impatient.running("worker") as worker:
        await impatient.wait_until_healthy("worker", worker)
        os.killpg(worker.pid, signal.SIGSTOP)
        await wait_for(lambda: not impatient.is_healthy("worker"), within=PATIENCE)
        os.killpg(worker.pid, signal.SIGCONT)
        await impatient.wait_until_healthy("worker", worker)


async def test_the_api_stops_though_a_client_follows_a_task(outside: Outside) -> None:
    with outside.running("api") as api:
        await outside.wait_until_healthy("api", api)
        async with outside.client() as client:
            waiting = (await client.post("/articles/pipeline")).json()["task_id"]
            async with client.stream("GET", f"/tasks/{waiting}/events") as followed:
                assert "PENDING" in await anext(followed.aiter_lines())
                assert stop(api) in {0, -signal.SIGTERM}


async def test_the_scheduler_stays_up_until_it_is_told_to_stop(outside: Outside) -> None:
    with outside.running("scheduler") as scheduler:
        await wait_for(lambda: "Startup completed" in outside.log("scheduler").read_text(), within=PATIENCE)
        assert scheduler.poll() is None
        assert stop(scheduler) in {0, -signal.SIGTERM}


def test_every_service_of_ours_has_its_test() -> None:
    assert OURS.keys() == {"migrate", "api", "worker", "scheduler"}
