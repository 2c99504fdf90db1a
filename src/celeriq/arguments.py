"""Arguments as the function's annotations say they are: a model from its fields, a moment from its text (DEF-11)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from inspect import Parameter
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

Convert = Callable[[Any], Any]

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Conversion:
    """What is made of the arguments of one task before its body sees them."""

    def __init__(self, task_name: str, function: Callable[..., Any], signature: inspect.Signature) -> None:
        hints = _hints_of(function)
        converts = {
            name: partial(_converted, task_name, name, hints[name], adapter)
            for name in signature.parameters
            if name in hints and (adapter := _adapter_of(hints[name])) is not None
        }
        parameters = signature.parameters.values()
        self._positional = [converts.get(one.name) for one in parameters if one.kind in _POSITIONAL]
        self._named = {one.name: converts[one.name] for one in parameters if one.name in converts}
        kinds = {one.kind: converts.get(one.name) for one in parameters}
        self._more_args = kinds.get(Parameter.VAR_POSITIONAL)
        self._more_kwargs = kinds.get(Parameter.VAR_KEYWORD)
        self.is_needed = bool(converts)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Raises `TypeError` for what cannot be what its annotation says."""
        named = {name: self._one(self._named.get(name, self._more_kwargs), value) for name, value in kwargs.items()}
        return tuple(self._positionals(args)), named

    def _positionals(self, args: tuple[Any, ...]) -> Iterator[Any]:
        for number, value in enumerate(args):
            yield self._one(self._positional[number] if number < len(self._positional) else self._more_args, value)

    def _one(self, convert: Convert | None, value: Any) -> Any:
        # Callers may leave out what has a default, and say None for it.
        return value if convert is None or value is None else convert(value)


def _converted(task_name: str, name: str, kind: Any, adapter: TypeAdapter[Any], value: Any) -> Any:
    if type(value) is kind:
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = "".join(f"[{part!r}]" for part in first["loc"])
        raise TypeError(
            f"task {task_name!r}: argument {name!r}{where}: {first['msg']}, not {first['input']!r}"
        ) from error


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # annotations that only type checkers understand
        return {}


def _adapter_of(kind: Any) -> TypeAdapter[Any] | None:
    """None for an annotation that says nothing, or nothing that can be checked."""
    if kind is Any or kind is object:
        return None
    try:
        return TypeAdapter(kind)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
        return None
