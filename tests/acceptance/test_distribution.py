"""What `pip install celeriq` gives, and the arrows between the packages."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.processes import BIN, ROOT

PLANTED = {
    "db knows the queue": ("db/users.py", "import broker"),
    "db knows the library": ("db/users.py", "import celeriq"),
    "db knows Taskiq": ("db/users.py", "import taskiq"),
    "broker knows the tasks": ("broker/logs.py", "import tasks"),
    "broker knows the API": ("broker/logs.py", "import api"),
    "tasks know the API": ("tasks/users.py", "import api.text"),
    "the library knows db": ("src/celeriq/errors.py", "import db.models"),
    "the library knows broker": ("src/celeriq/errors.py", "import broker"),
    "the library knows tasks": ("src/celeriq/errors.py", "import tasks"),
    "the library knows the API": ("src/celeriq/errors.py", "import api"),
    "storage knows execution": ("src/celeriq/record.py", "import celeriq.attempt"),
    "execution knows the transport": ("src/celeriq/attempt.py", "import celeriq.redis.streams"),
}


def copy_of_the_project(folder: Path) -> Path:
    for name in ("src", "broker", "tasks", "api", "db", "migrations"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    # -P and PYTHONPATH: the copy is looked at, not what is installed.
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        check=False,
        cwd=folder,
        env={"PYTHONPATH": f"{folder / 'src'}:{folder}", "PATH": str(BIN)},
        capture_output=True,
        text=True,
    )


def test_the_arrows_hold(tmp_path: Path) -> None:
    checked = lint_imports(copy_of_the_project(tmp_path))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(("path", "planted"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_violation_of_an_arrow_is_found(tmp_path: Path, path: str, planted: str) -> None:
    project = copy_of_the_project(tmp_path)
    with (project / path).open("a") as file:
        file.write(f"\n{planted}\n")
    checked = lint_imports(project)
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert "BROKEN" in checked.stdout


def test_the_wheel_brings_celeriq_alone(tmp_path: Path) -> None:
    project = copy_of_the_project(tmp_path / "project")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(project)],
        check=True,
        capture_output=True,
    )
    [wheel] = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"celeriq"}
    assert "celeriq/py.typed" in names
    assert {name for name in names if name.endswith(".lua")} == {
        f"celeriq/redis/{file.name}" for file in (ROOT / "src/celeriq/redis").glob("*.lua")
    }
