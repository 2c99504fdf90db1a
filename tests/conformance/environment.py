"""An environment for Celery, with pinned versions: its dependencies do not bind ours."""

from __future__ import annotations

import hashlib
import subprocess
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FOLDER = ROOT / ".conformance"
REQUIREMENTS = HERE / "requirements.txt"


def python() -> Path:
    """The Python of the environment; it is made, or made anew, when its requirements have changed."""
    folder = FOLDER / "environment"
    program, stamp = folder / "bin" / "python", folder / "installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return program
    print("installing Celery …", flush=True)  # noqa: T201 - it takes a while
    FOLDER.mkdir(exist_ok=True)
    # Neither git nor ruff looks into it.
    (FOLDER / ".gitignore").write_text("*\n")
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(program), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--require-hashes", "-r", str(REQUIREMENTS)], check=True)
    stamp.write_text(wanted)
    return program
