"""The documents name what exists: ids, tests, files. Their code compiles, and they stand alone."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from taskiq_redis import RedisStreamBroker

from celeriq.redis.streams import REFUSED
from tests.processes import ROOT

ROWS = ROOT / "tests" / "conformance" / "rows.toml"
REFERENCE = ROOT / "docs" / "reference"
FOLDERS = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in folder.rglob("*.md"))])
SOURCES = [ROOT / name for name in ("src", "broker", "tasks", "api", "db", "tests", "docs")]
WITH_CODE = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]

# What Taskiq and FastAPI do is cited by a letter and a number, what Celery does by its chapter and a number.
ID = (
    r"(?:[WF][1-9]\d?|(?:DEF|CALL|RETRY|ST|RES|EXE|ACK|SHUT|LIM|RT|BEAT|CAN|CERR|REP|STMP|CTL|EVT|SIG|ERR|SEC|CLI|EAG)"
    r"-\d\d)"
)
ROW = re.compile(rf"^\| ({ID}(?:, {ID})*) \|(.*)", re.MULTILINE)
TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
REGISTRY = re.compile(r"\b(?:pypi|pythonhosted|npmjs|yarnpkg|anaconda|crates|rubygems)\.\w+", re.IGNORECASE)
MACHINE = re.compile(r"(?<![\w.}:/~-])/(?:home|root|Users|work|mnt|tmp|private)/|\b[A-Z]:\\")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name)


@cache
def parsed(document: Path) -> list[Token]:
    return MarkdownIt().parse(document.read_text())


def links(document: Path) -> Iterator[str]:
    for token in parsed(document):
        for child in token.children or ():
            for attribute in ("href", "src"):
                if attribute in child.attrs:
                    yield str(child.attrs[attribute])


def anchors(document: Path) -> set[str]:
    """What GitHub makes of the headings: lower case, hyphens for spaces, no other punctuation."""
    tokens = parsed(document)
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def cited() -> set[str]:
    read = {".py", ".lua", ".md", ".txt"}
    files = [path for folder in SOURCES for path in folder.rglob("*") if path.suffix in read]
    return {found for path in [*files, *ROOT.glob("*.md")] for found in re.findall(rf"\b{ID}\b", path.read_text())}


def rows(page: str) -> list[tuple[str, str]]:
    """The ids that have a row on a page of the reference, and the rest of that row."""
    found = ROW.findall((REFERENCE / page).read_text())
    return [(one, rest) for ids, rest in found for one in ids.split(", ")]


def section(page: str, heading: str) -> str:
    return (REFERENCE / page).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_every_id_that_is_cited_has_its_row_in_the_reference() -> None:
    known = {one for page in ("taskiq.md", "celery-rows.md") for one, _ in rows(page)}
    assert cited() - known - tomllib.loads(ROWS.read_text()).keys() == set()


def test_no_row_of_celerys_stands_twice() -> None:
    assert not [one for one, times in Counter(one for one, _ in rows("celery-rows.md")).items() if times > 1]


def test_what_is_called_mended_and_tested_names_a_test() -> None:
    mended = ROW.findall(section("taskiq.md", "Mended, each held by a test"))
    assert mended
    assert not [one for one, rest in mended if not TEST.search(rest)]


@each_document
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    for file, function in TEST.findall(document.read_text()):
        tree = ast.parse((ROOT / file).read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert function in functions, f"{file} has no {function}"


def test_every_option_of_taskiqs_broker_has_its_row() -> None:
    table = section("taskiq.md", "Options of `RedisStreamBroker`")
    told = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE))
    assert told.keys() == inspect.signature(RedisStreamBroker).parameters.keys()
    assert {option for option, what in told.items() if what != "kept"} == REFUSED.keys()


@each_document
def test_every_relative_link_leads_somewhere_in_the_project(document: Path) -> None:
    for link in links(document):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (document.parent / unquote(parts.path)).resolve() if parts.path else document
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        if parts.fragment and target.suffix == ".md":
            assert parts.fragment in anchors(target), link


@pytest.mark.parametrize("document", WITH_CODE, ids=name)
def test_the_python_of_a_document_compiles(document: Path) -> None:
    for token in parsed(document):
        if token.type == "fence" and token.info == "python":
            compile(token.content, document, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@each_document
def test_a_document_names_no_package_registry_and_no_path_of_a_machine(document: Path) -> None:
    text = document.read_text()
    assert not REGISTRY.findall(text)
    assert not [text[found.start() : found.end() + 40] for found in MACHINE.finditer(text)]


def test_every_decision_has_its_line() -> None:
    decisions = ROOT / "docs" / "decisions"
    index = set(links(decisions / "README.md"))
    assert index == {path.name for path in decisions.glob("[0-9]*.md")}
