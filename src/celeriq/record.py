"""The stored state and result of a task, in the shape of Celery's (ST-05)."""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, cast

import msgspec
from msgspec.structs import replace
from pydantic import BaseModel

from celeriq.errors import EncodeError
from celeriq.states import FAILURE, PROPAGATE, READY, RETRY, REVOKED, SUCCESS

MOST_CHILDREN = 1_000
"""So many of the tasks that a task has sent are told of in its record."""


class Record(msgspec.Struct, kw_only=True, omit_defaults=False):
    """State and result of one task id. `date_done` is ISO 8601 in UTC, only for ready states (ST-05)."""

    # The first field: the scripts tell the final SUCCESS by the record's first bytes (ST-07).
    status: str
    result: Any = None
    traceback: str | None = None
    children: list[Any] = []
    date_done: str | None = None
    task_id: str
    runtime: float = 0.0
    """Seconds from the start of the attempt to its outcome; not in Celery's record."""

    @property
    def ready(self) -> bool:
        return self.status in READY

    @property
    def failed(self) -> bool:
        return self.status in PROPAGATE


class ExtendedRecord(Record, kw_only=True):
    """With what is known of the call, for those who look at results alone (ST-06)."""

    name: str | None = None
    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    worker: str | None = None
    retries: int | None = None
    queue: str | None = None


def extended(stored: bytes, **known: Any) -> bytes:
    """`stored`, with the fields of `ExtendedRecord`."""
    return encode(replace(_decoder.decode(stored), **known))


def success(task_id: str, value: Any, runtime: float, children: Sequence[str] = ()) -> Record:
    return Record(
        status=SUCCESS,
        result=value,
        date_done=_now(),
        task_id=task_id,
        runtime=runtime,
        children=_children(children),
    )


def failure(task_id: str, error: BaseException, runtime: float, children: Sequence[str] = ()) -> Record:
    return Record(
        status=FAILURE,
        result=encode_exception(error),
        traceback=_format(error),
        date_done=_now(),
        task_id=task_id,
        runtime=runtime,
        children=_children(children),
    )


def revoked(task_id: str, error: BaseException, runtime: float) -> Record:
    """Nothing went wrong in the task, so there is no traceback."""
    return Record(status=REVOKED, result=encode_exception(error), date_done=_now(), task_id=task_id, runtime=runtime)


def retry(
    task_id: str,
    error: BaseException | None,
    runtime: float,
    children: Sequence[str] = (),
    raised: BaseException | None = None,
) -> Record:
    """RETRY keeps the exception, if there is one, and is not done; `raised` bears the traceback (RETRY-07)."""
    traced = error or raised
    return Record(
        status=RETRY,
        result=None if error is None else encode_exception(error),
        traceback=None if traced is None else _format(traced),
        task_id=task_id,
        runtime=runtime,
        children=_children(children),
    )


def _children(ids: Sequence[str]) -> list[Any]:
    """As Celery writes a result without parent and children (RES-09)."""
    return [[[task_id, None], None] for task_id in ids[:MOST_CHILDREN]]


def encode(value: Any) -> bytes:
    """`value` as JSON; raises `EncodeError` naming the type that JSON cannot hold (ST-12)."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise EncodeError(f"cannot be stored as JSON: {error}; return plain data or a pydantic model") from error


def as_read(value: Any) -> Any:
    """`value` as whoever reads its JSON gets it; raises `EncodeError`."""
    return msgspec.json.decode(encode(value))


def decode(stored: bytes | str) -> ExtendedRecord:
    return _decoder.decode(stored)


def refuse_what_is_lost(value: Any, encoded: bytes) -> None:
    """Raise `EncodeError` for a NaN or an infinity anywhere in `value`: JSON has none, and null would be stored."""
    if type(value) in _WITHOUT_FLOATS or b"null" not in encoded:
        return
    if (lost := next(_not_finite(value), None)) is not None:
        raise EncodeError(f"cannot be stored as JSON, which has no {lost}: give None or text in its place")


def _not_finite(value: Any) -> Iterator[float]:
    if isinstance(value, float) and not math.isfinite(value):
        yield value
    for each in _inside(value):
        yield from _not_finite(each)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, BaseModel):
        return [value.model_dump()]
    if isinstance(value, dict):
        return cast("Iterable[Any]", value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return cast("Iterable[Any]", value)
    return (getattr(value, field.name) for field in fields(value)) if is_dataclass(value) else ()


_WITHOUT_FLOATS = frozenset({type(None), bool, int, str, bytes})


def encode_exception(error: BaseException) -> dict[str, Any]:
    """Class, arguments and module; an argument that JSON cannot hold becomes its repr (ST-08)."""
    return {
        "exc_type": type(error).__qualname__,
        "exc_message": [_plain(argument) for argument in error.args],
        "exc_module": type(error).__module__,
    }


def decode_exception(stored: dict[str, Any]) -> BaseException:
    """The stored exception: looked up among loaded modules, never imported, and only if it is one (ST-09)."""
    found: Any = sys.modules.get(stored["exc_module"])
    for name in stored["exc_type"].split("."):
        # Not getattr: a module's own __getattr__ runs code, most often an import.
        found = vars(found).get(name) if isinstance(found, ModuleType | type) else None
    arguments = stored["exc_message"]
    if isinstance(found, type) and issubclass(found, BaseException):
        try:
            return _construct(found, arguments)
        except Exception:  # noqa: BLE001 - whatever a constructor of the user's raises
            return Exception(f"{found!r}({', '.join(map(repr, arguments))})")
    made_up = type(stored["exc_type"], (Exception,), {"__module__": stored["exc_module"]})
    return _construct(made_up, arguments)


def _construct(kind: type[BaseException], arguments: list[Any]) -> BaseException:
    return kind(*arguments)


def _encode_special(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if hasattr(value, "__json__"):
        return value.__json__()
    raise TypeError(f"objects of type {type(value).__qualname__}")


_encoder = msgspec.json.Encoder(enc_hook=_encode_special)
_decoder = msgspec.json.Decoder(ExtendedRecord)


def _plain(value: Any) -> Any:
    try:
        encode(value)
    except Exception:  # noqa: BLE001 - a failure is always storable, whatever a model's serializer raises
        return describe(value)
    return value


def describe(value: Any) -> str:
    """Its repr, whatever that raises, as text that JSON can hold."""
    return _text(_repr(value))


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - whatever a __repr__ of the user's raises
        return object.__repr__(value)


def _format(error: BaseException) -> str:
    return _text("".join(traceback.format_exception(error)))


def _text(given: str) -> str:
    """`given` with lone surrogates escaped, as in the name of a file that is not UTF-8: JSON cannot hold them."""
    return given.encode("utf-8", "backslashreplace").decode()


def _now() -> str:
    return datetime.now(UTC).isoformat()
