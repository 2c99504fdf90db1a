"""The README's commands, code and tree are what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx import AsyncClient

from celeriq.embedded import Services
from tests import databases, processes
from tests.acceptance.conftest import healthy_at
from tests.acceptance.test_demo import alone
from tests.processes import ROOT
from tests.waiting import wait_for

README = (ROOT / "README.md").read_text()
UNLISTED = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "pyproject.toml", "alembic.ini"}


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [body for named, body in fenced if named == language]


def commands() -> Iterator[str]:
    for block in blocks("sh"):
        for line in block.splitlines():
            yield line.partition("#")[0].strip()


def test_the_tree_is_what_lies_on_the_disk() -> None:
    [tree] = blocks("")
    told = {line.split()[0].rstrip("/") for line in tree.splitlines()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    there = {path.partition("/")[0] for path in listed.splitlines()}
    assert told == {name for name in there - UNLISTED if not name.startswith(".")}


@pytest.mark.parametrize("command", [command for command in commands() if command.startswith("make")])
def test_a_make_command_exists(command: str) -> None:
    subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_the_demo_of_the_readme_ends_well(environment: dict[str, str]) -> None:
    assert "make demo ONCE=1" in commands()
    done = subprocess.run(
        ["make", "demo", "ONCE=1", f"VENV={sys.prefix}"],
        cwd=ROOT,
        env=alone(environment),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chunks are searchable" in done.stdout


async def test_the_adoption_in_forty_lines_works(services: Services, database_url: str, tmp_path: Path) -> None:
    [code] = blocks("python")
    assert sum(1 for line in code.splitlines() if line.strip()) <= 40
    (tmp_path / "shop.py").write_text(code)
    await databases.execute(
        database_url,
        "create table orders (id int primary key, paid bool default false)",
        "insert into orders values (1), (2), (3)",
    )
    port = processes.free_port()
    api, worker = (command.split() for command in commands() if "shop:" in command)
    environment = {"DB_URL": database_url, "BROKER_URL": services.redis_url}
    with (
        processes.started((*api, "--port", str(port)), environment, tmp_path / "api.log", cwd=tmp_path),
        processes.started((*worker, "--workers", "1"), environment, tmp_path / "worker.log", cwd=tmp_path),
    ):
        async with AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            await wait_for(lambda: healthy_at(client, "/docs"), within=60)
            assert (await client.post("/orders/1/payment")).is_success
            assert (await client.post("/orders/2/payment", params={"later": True})).is_success
            paid = "select id from orders where paid order by id"
            await wait_for(lambda: is_paid(database_url, 2))
            assert await databases.column_of(database_url, paid) == [1, 2]


async def is_paid(database_url: str, order: int) -> bool:
    return bool(await databases.value_of(database_url, "select paid from orders where id = $1", order))
