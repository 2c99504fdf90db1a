from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

import celeriq
from celeriq import errors


def public_names(module: ModuleType) -> set[str]:
    return {name for name, value in vars(module).items() if not name.startswith("_") and not inspect.ismodule(value)}


def public_classes() -> list[type[Any]]:
    exported = (getattr(celeriq, name) for name in celeriq.__all__)
    return [value for value in exported if inspect.isclass(value)]


def test_all_is_sorted_and_names_nothing_twice() -> None:
    assert celeriq.__all__ == sorted(set(celeriq.__all__))


def test_all_is_complete() -> None:
    assert set(celeriq.__all__) == set(celeriq._HOMES)
    assert public_names(celeriq) <= {*celeriq.__all__, "import_module", "annotations", "TYPE_CHECKING", "Any"}
    assert set(celeriq.__all__) <= set(dir(celeriq))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'celeriq' has no attribute 'Celery'"):
        getattr(celeriq, "Celery")  # noqa: B009 - checkers know that it is not there


def test_the_command_line_starts_without_the_libraries_that_workers_need() -> None:
    """So that the supervisor stays small, and `--help` comes at once."""
    loaded = "import celeriq.cli, sys; print({'taskiq', 'sqlalchemy', 'redis', 'pydantic'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True)
    assert told.stdout == "set()\n"


@pytest.mark.parametrize("name", celeriq.__all__)
def test_everything_in_all_can_be_imported(name: str) -> None:
    namespace: dict[str, Any] = {}
    exec(f"from celeriq import {name}", namespace)
    assert namespace[name] is getattr(celeriq, name)


def test_every_error_is_exported_and_one_of_celeriqs() -> None:
    raised = [kind for kind in vars(errors).values() if getattr(kind, "__module__", "") == errors.__name__]
    assert {kind.__name__ for kind in raised} <= set(celeriq.__all__)
    assert all(issubclass(kind, celeriq.CeleriqError | Warning) for kind in raised)


@pytest.mark.parametrize("kind", public_classes(), ids=lambda kind: kind.__name__)
def test_a_public_class_has_a_docstring_of_its_own(kind: type[Any]) -> None:
    documented = vars(kind).get("__doc__")
    assert documented
    assert not documented.startswith(f"{kind.__name__}(")
