"""An environment for each system, with pinned versions: one's dependencies do not bind another's."""

from __future__ import annotations

import hashlib
import json
import subprocess
import venv
from pathlib import Path

from benchmarks.settings import Settings

HERE = Path(__file__).parent
ROOT = HERE.parent
FOLDER = ROOT / ".bench"


def environment(name: str) -> Path:
    """The Python of the environment; it is made, or made anew, when its requirements have changed."""
    requirements = HERE / "requirements" / f"{name}.txt"
    folder = FOLDER / "environments" / name
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"installing {name} …", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", str(requirements)], check=True)
    if name == "celeriq":
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", "-e", str(ROOT)], check=True)
    stamp.write_text(wanted)
    return python


def versions(name: str) -> dict[str, str]:
    """What is installed there."""
    listed = subprocess.run(
        [str(environment(name)), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    )
    return {each["name"].lower(): each["version"] for each in json.loads(listed.stdout)}


def describe(name: str, module: str, variant: str) -> dict[str, str]:
    """What a system says of itself."""
    asked = (
        f"import json, importlib; s = importlib.import_module('benchmarks.systems.{module}').SYSTEM; "
        "print(json.dumps({'stores': s.stores, 'acknowledges': s.acknowledges, 'settings': s.settings}))"
    )
    settings = Settings(
        redis="redis://127.0.0.1/0", database="postgresql+asyncpg://celeriq@/celeriq", folder="/tmp", variant=variant
    )
    told = subprocess.run(
        [str(environment(name)), "-c", asked],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), **settings.environment()},
    )
    answer: dict[str, str] = json.loads(told.stdout.splitlines()[-1])
    return answer
