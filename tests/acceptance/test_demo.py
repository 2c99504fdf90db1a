"""`make demo` as a newcomer meets it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.app.fixtures import pdf
from tests.processes import ROOT
from tests.waiting import wait_for

DEMO = [sys.executable, "-m", "api.demo"]


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, *arguments],
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def start(output: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with output.open("wb") as log:
        return subprocess.Popen([*DEMO, "--pdf", "docs/manual.pdf"], cwd=ROOT, env=environment, stdout=log, stderr=log)


def alone(environment: dict[str, str]) -> dict[str, str]:
    """The environment of somebody who has configured nothing."""
    return {name: value for name, value in os.environ.items() if name not in {"DB_URL", "BROKER_URL"}}


def test_the_demo_ingests_the_manual_and_answers_a_question(environment: dict[str, str]) -> None:
    done = run(environment, "--pdf", "docs/manual.pdf", "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chunks are searchable" in done.stdout
    assert "What happens when a commit fails?" in done.stdout
    assert "/docs" in done.stdout


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"plain text", "The file is not a PDF."),
        (pdf(""), "the PDF has no text"),
    ],
)
def test_a_document_that_cannot_be_ingested_ends_the_demo_with_the_reason(
    environment: dict[str, str], tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "bad.pdf").write_bytes(content)
    done = run(environment, "--pdf", str(tmp_path / "bad.pdf"), "--once")
    assert done.returncode == 1
    assert reason in done.stdout


def test_a_file_that_is_not_there_is_named(environment: dict[str, str]) -> None:
    done = run(environment, "--pdf", "missing.pdf", "--once")
    assert (done.returncode, done.stdout) == (
        1,
        "The demo failed: there is no file 'missing.pdf': name a PDF with PDF=path\n",
    )


def test_a_database_that_cannot_be_reached_ends_the_demo_with_the_reason(environment: dict[str, str]) -> None:
    done = run(environment | {"DB_URL": "postgresql+asyncpg://celeriq@127.0.0.1:1/celeriq"}, "--pdf", "docs/manual.pdf")
    assert done.returncode == 1
    assert "migrate has ended" in done.stdout
    assert "Connect call failed" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_whatever_ends_the_demo_ends_everything(
    environment: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    demo = start(tmp_path / "demo.log", alone(environment))
    try:
        await wait_for(lambda: b"Everything stays up" in (tmp_path / "demo.log").read_bytes(), within=100)
        children = psutil.Process(demo.pid).children(recursive=True)
        assert {"postgres", "valkey-server"} <= {child.name() for child in children}
        demo.send_signal(number)
        code = await wait_for(lambda: (demo.poll() is not None) and [demo.returncode], within=30)
        await wait_for(lambda: not [child for child in children if child.is_running()], within=30)
        assert code == [-9 if number == signal.SIGKILL else 0]
    finally:
        demo.kill()
        demo.wait()


async def test_two_demos_side_by_side_do_not_meet(environment: dict[str, str], tmp_path: Path) -> None:
    outputs = [tmp_path / f"{number}.log" for number in range(2)]
    demos = [start(output, alone(environment)) for output in outputs]
    try:
        await wait_for(lambda: all(b"Everything stays up" in output.read_bytes() for output in outputs), within=100)
        addresses = {line for output in outputs for line in output.read_text().splitlines() if line.startswith("API  ")}
        assert len(addresses) == 2
    finally:
        for demo in demos:
            demo.terminate()
        for demo in demos:
            demo.wait()
