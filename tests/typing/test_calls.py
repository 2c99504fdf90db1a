"""What type checkers say of calls: the right ones are accepted, each of the wrong ones is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
REFUSED = "# refused"

Line = tuple[str, int]


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    """A folder with both files, outside of the project, whose own checks the wrong calls would fail."""
    shutil.copy(HERE / "calls.py", tmp_path / "right_calls.py")
    shutil.copy(HERE / "wrong_calls.py.txt", tmp_path / "wrong_calls.py")
    return tmp_path


@pytest.fixture
def marked(calls: Path) -> set[Line]:
    lines = (calls / "wrong_calls.py").read_text().splitlines()
    return {("wrong_calls.py", number) for number, line in enumerate(lines, start=1) if line.endswith(REFUSED)}


@pytest.mark.timeout(300)
def test_mypy_refuses_the_wrong_calls_and_no_others(
    calls: Path, marked: set[Line], pytestconfig: pytest.Config
) -> None:
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("mypy")
    output = check("mypy", f"--config-file={ROOT / 'pyproject.toml'}", f"--cache-dir={cache}", *calls.glob("*.py"))
    errors = re.findall(r"^(.+?):(\d+): error: ", output, flags=re.MULTILINE)
    assert {(Path(file).name, int(line)) for file, line in errors} == marked, output


@pytest.mark.timeout(300)
def test_pyright_refuses_the_wrong_calls_and_no_others(calls: Path, marked: set[Line]) -> None:
    rules: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pyright"]
    for place in ("venvPath", "venv"):
        rules.pop(place, None)
    config = calls / "pyrightconfig.json"
    config.write_text(json.dumps({**rules, "include": ["."], "extraPaths": [str(ROOT / "src")]}))
    output = check("pyright", f"--project={config}", f"--pythonpath={sys.executable}", "--outputjson")
    errors: list[dict[str, Any]] = json.loads(output)["generalDiagnostics"]
    assert {(Path(error["file"]).name, error["range"]["start"]["line"] + 1) for error in errors} == marked, output


def check(checker: str, *arguments: str | Path) -> str:
    """What `checker` says; it ends with 1 because it has found errors, and with more if it could not look for them."""
    ended = subprocess.run(
        [sys.executable, "-m", checker, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    return ended.stdout
