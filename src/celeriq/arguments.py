"""Arguments as the function's annotations say they are: a model from its fields, a moment from its text (DEF-11)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from inspect import Parameter
from types import GenericAlias
from typing import Any, cast, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from celeriq import record

Convert = Callable[[Any], Any]

_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Conversion:
    """What is made of the arguments of one task before its body sees them."""

    def __init__(self, task_name: str, function: Callable[..., Any], signature: inspect.Signature) -> None:
        hints = _hints_of(function)
        converts = {
            name: partial(_converted, task_name, name, hints[name], read)
            for name in signature.parameters
            if name in hints and (read := reader(hints[name])) is not None
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


def _converted(task_name: str, name: str, kind: Any, read: Convert, value: Any) -> Any:
    if type(value) is kind:
        return value
    try:
        return read(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = "".join(f"[{part!r}]" for part in first["loc"][1:])
        raise TypeError(
            f"task {task_name!r}: argument {name!r}{where}: {first['msg']}, not {first['input']!r}"
        ) from error


def _hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # annotations that only type checkers understand
        return {}


@cache
def reader(kind: Any) -> Convert | None:
    """What makes a value of `kind` of what JSON made of it; None for an annotation that says nothing, or nothing that
    can be checked. It raises pydantic's `ValidationError`.
    """
    if kind is Any or kind is object:
        return None
    try:
        # In a tuple, for a model or a dataclass cannot be read in another way than its own.
        adapter: TypeAdapter[tuple[Any]] = TypeAdapter(cast("Any", GenericAlias(tuple, (kind,))), config=_BYTES)
    except PydanticUserError:
        return None
    if not adapter.pydantic_complete:
        return None
    if _has_bytes(adapter.core_schema):
        # They are base64 in JSON, and only there.
        return lambda value: adapter.validate_json(record.encode([value]))[0]
    return lambda value: adapter.validate_python((value,))[0]


_BYTES = ConfigDict(val_json_bytes="base64")


def _has_bytes(schema: Any) -> bool:
    if isinstance(schema, dict):
        of = cast("dict[str, Any]", schema)
        return of.get("type") == "bytes" or any(map(_has_bytes, of.values()))
    return isinstance(schema, list | tuple) and any(map(_has_bytes, cast("Sequence[Any]", schema)))
