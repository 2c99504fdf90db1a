"""The manual says what the code does, and the committed PDF says what the manual says."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from pydantic_settings import BaseSettings
from pypdf import PdfReader

from api.main import app
from api.settings import ApiSettings
from broker.settings import BrokerSettings
from celeriq import TaskOptions, TickPolicy
from celeriq.hooks import kinds_of
from celeriq.middleware import standard
from celeriq.options import read_options
from celeriq.redis.keys import Keys
from db.settings import DatabaseSettings
from docs.typeset import SOURCE, typeset
from tasks.settings import IngestSettings, MailSettings, MaintenanceSettings

ROOT = SOURCE.parent.parent
MANUAL = SOURCE.read_text()
PDF = SOURCE.with_suffix(".pdf").read_bytes()
CHAPTERS = re.findall(r"^## (.+)$", MANUAL, re.MULTILINE)
PYTHON = [token for token in MarkdownIt().parse(MANUAL) if token.type == "fence" and token.info == "python"]
SETTINGS: tuple[type[BaseSettings], ...] = (
    DatabaseSettings,
    BrokerSettings,
    ApiSettings,
    IngestSettings,
    MailSettings,
    MaintenanceSettings,
)

each_python_block = pytest.mark.parametrize("code", [token.content for token in PYTHON])


def pages(pdf: bytes) -> list[str]:
    return [page.extract_text() for page in PdfReader(BytesIO(pdf)).pages]


def bookmarks(outline: list[Any]) -> Iterator[str]:
    for entry in outline:
        yield from [entry.title] if hasattr(entry, "title") else bookmarks(entry)


def variables() -> dict[str, str]:
    """What the settings classes read from the environment, each with its default."""
    return {
        f"{settings.model_config.get('env_prefix')}{name.upper()}": str(field.default)
        for settings in SETTINGS
        for name, field in settings.model_fields.items()
    }


def table(heading: str) -> dict[str, str]:
    """The first two columns of the table that begins with the column `heading`."""
    rows = MANUAL.partition(f"| {heading} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip(" `") for cell in row.split("|")] for row in rows]
    return {first: second for _, first, second, *_ in cells}


def test_the_committed_pdf_is_what_the_manual_typesets_to() -> None:
    assert pages(PDF) == pages(typeset(MANUAL)), "docs/manual.md has changed: run `make manual`"


def test_the_same_manual_typesets_to_the_same_bytes() -> None:
    assert typeset(MANUAL) == typeset(MANUAL)


def test_every_chapter_begins_a_page_that_says_so() -> None:
    first_lines = [page.partition("\n")[0].strip() for page in pages(PDF)]
    assert [line for line in first_lines if line in CHAPTERS] == CHAPTERS


def test_the_bookmarks_of_the_pdf_are_the_headings_of_the_manual() -> None:
    titles = list(bookmarks(PdfReader(BytesIO(PDF)).outline))
    assert titles == re.findall(r"^##+ (.+)$", MANUAL, re.MULTILINE)


def test_the_pdf_says_what_it_is() -> None:
    metadata = PdfReader(BytesIO(PDF)).metadata
    assert metadata is not None
    assert (metadata.title, metadata.author) == ("The celeriq manual", "The celeriq authors")


def test_no_line_of_code_is_wider_than_the_page() -> None:
    code = [token.content for token in MarkdownIt().parse(MANUAL) if token.type == "fence"]
    assert not [line for block in code for line in block.splitlines() if len(line) > 89]


@each_python_block
def test_the_python_of_the_manual_compiles(code: str) -> None:
    compile(code, "manual.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@each_python_block
def test_what_the_python_of_the_manual_imports_exists(code: str) -> None:
    for statement in ast.walk(ast.parse(code)):
        match statement:
            case ast.ImportFrom(module=str(module)):
                names = {name.name for name in statement.names}
                found = importlib.import_module(module)
                assert not {n for n in names if not hasattr(found, n) and find_spec(f"{module}.{n}") is None}
            case ast.Import():
                assert all(importlib.import_module(name.name) for name in statement.names)
            case _:
                pass


def test_the_manual_lists_every_environment_variable_with_its_default() -> None:
    assert table("Variable") == {name: default.replace("None", "none") for name, default in variables().items()}


def test_every_environment_variable_that_the_manual_names_is_a_setting() -> None:
    assert set(re.findall(r"`([A-Z]+_[A-Z_]+)`", MANUAL)) <= variables().keys()


def test_the_manual_lists_every_task_option_with_its_default() -> None:
    options = read_options("task", {}, [TaskOptions, *kinds_of(standard())])
    defaults = {name: str(default).replace("None", "none") for name, default in options.as_dict().items()}
    assert table("Option") == {**defaults, "queue": "the broker's", "priority": "the route's"}


def test_the_manual_lists_what_a_schedule_says_of_its_ticks() -> None:
    assert table("Policy") == {name: str(said).replace("None", "none") for name, said in asdict(TickPolicy()).items()}


def test_the_manual_lists_every_key_in_redis() -> None:
    keys = Keys()
    queue = keys.queue("NAME").replace(":0", ":STEP"), keys.delayed("NAME"), keys.dead("NAME")
    parked = keys.parked, keys.parked_as("TASK")
    workers = keys.beats, keys.pools, keys.leaving, keys.crashes, keys.sender("ID"), keys.sent
    revoked = keys.revoked, keys.revocations
    limits = keys.slots, keys.running("KIND"), keys.line("KIND"), keys.rate("KIND")
    shared = *limits, keys.unique("KIND"), keys.replaced("ID"), keys.circuit("KIND")
    others = keys.record("ID"), keys.group("ID"), keys.chord("ID"), keys.history, keys.recorded
    assert list(table("Key")) == [*queue, keys.queues, keys.paused, *parked, *revoked, *shared, *others, *workers]


def test_every_make_target_that_the_manual_names_exists() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:^|`)make ([a-z]+)", MANUAL, re.MULTILINE)
    assert named
    assert set(named) <= set(targets)


def test_every_file_that_the_manual_names_exists() -> None:
    named = re.findall(r"`([a-z]+/[a-z_/]+\.py)`", MANUAL)
    assert named
    assert all((ROOT / Path(name)).is_file() for name in named)


def test_every_address_of_the_api_that_the_manual_names_exists() -> None:
    served = {re.sub(r"\{.+?\}", "ID", path) for path in app.openapi()["paths"]}
    named = re.findall(r"(?:127\.0\.0\.1:8000|`)(/[a-z/_{}A-Z]+)", MANUAL)
    assert {re.sub(r"\{.+?\}|TASK_ID", "ID", path) for path in named} <= served
