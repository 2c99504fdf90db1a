from __future__ import annotations

import builtins
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict
from pydantic import BaseModel, computed_field

from celeriq import record
from celeriq.errors import EncodeError
from celeriq.record import Record

CELERY_FIELDS = ["status", "result", "traceback", "children", "date_done", "task_id"]

# How fast the machine is decides nothing.
steadily = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


UNEXTENDED = dict.fromkeys(("name", "args", "kwargs", "worker", "retries", "queue"))


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    at: datetime


@dataclass
class Measured:
    value: float


class Model(BaseModel):
    x: float


class Address(BaseModel):
    street: str
    since: date


class Customer(BaseModel):
    id: UUID
    addresses: list[Address]


class Shop:
    class ClosedError(Exception):
        pass

    opening_hours = "never"


class OrderError(Exception):
    def __init__(self, order: int, reason: str) -> None:
        super().__init__(order, reason)
        self.order, self.reason = order, reason


class KeywordOnlyError(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class ChoosyError(Exception):
    def __init__(self, text: str) -> None:
        if text != "the one and only":
            raise ZeroDivisionError
        super().__init__(text + "!")


class Unshowable:
    def __repr__(self) -> str:
        raise KeyError("on purpose")


class NotUtf8:
    def __repr__(self) -> str:
        return "\udcff"


class Unserialisable(BaseModel):
    @computed_field  # type: ignore[prop-decorator]
    @property
    def total(self) -> int:
        raise AttributeError("on purpose")


def stored(given: Record) -> Record:
    return record.decode(record.encode(given))


def as_others_see(error: BaseException) -> BaseException:
    """`error`, after it was stored as the result of a task and read again."""
    return record.decode_exception(stored(record.failure("id", error, 0)).result)


def nested_lists(depth: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


@steadily
@given(plain_data, st.text(), st.floats(0, 1e9))
def test_plain_data_come_back_as_they_were(value: Any, task_id: str, runtime: float) -> None:
    given = record.success(task_id, value, runtime)
    assert asdict(stored(given)) == asdict(given) | UNEXTENDED


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (datetime(2026, 11, 20, 12, 30, 0, 5, tzinfo=UTC), datetime),
        (datetime(2026, 11, 20, 12, 30), datetime),  # noqa: DTZ001 - a value without a zone
        (date(2026, 11, 20), date),
        (time(12, 30), time),
        (timedelta(days=1, microseconds=5), timedelta),
        (UUID(int=5), UUID),
        (Decimal("0.10"), Decimal),
        (Colour.RED, Colour),
        (b"\xff\x00", bytes),
        ((1, "two"), tuple[int, str]),
        ({1, 2}, set[int]),
        (frozenset({"a"}), frozenset[str]),
        (Point(1, datetime(2026, 11, 20, tzinfo=UTC)), Point),
        ([Point(1, datetime(2026, 11, 20, tzinfo=UTC))], list[Point]),
        ({UUID(int=5): (Decimal("0.10"),)}, dict[UUID, tuple[Decimal]]),
        ({1: "one"}, dict[int, str]),
    ],
    ids=repr,
)
def test_values_of_the_standard_library_come_back_in_a_form_that_their_type_reads(value: Any, kind: Any) -> None:
    read = stored(record.success("id", value, 0)).result
    assert msgspec.convert(read, kind, strict=False) == value


@steadily
@given(st.decimals(allow_nan=False), st.uuids(), st.datetimes(), st.timedeltas(timedelta(-9999), timedelta(9999)))
def test_no_digit_is_lost(number: Decimal, unique: UUID, moment: datetime, length: timedelta) -> None:
    read = stored(record.success("id", (number, unique, moment, length), 0)).result
    assert msgspec.convert(read, tuple[Decimal, UUID, datetime, timedelta]) == (number, unique, moment, length)


def test_pydantic_models_are_stored_as_they_dump_themselves() -> None:
    customer = Customer(id=UUID(int=5), addresses=[Address(street="Main", since=date(2026, 11, 20))])
    assert Customer.model_validate(stored(record.success("id", customer, 0)).result) == customer


def test_pydantic_models_are_found_inside_of_other_data() -> None:
    address = Address(street="Main", since=date(2026, 11, 20))
    assert stored(record.success("id", {"to": [address]}, 0)).result == {"to": [address.model_dump(mode="json")]}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "object"),
        (1j, "complex"),
        (Shop(), "Shop"),
        ([{"deep": iter(())}], "tuple_iterator"),
        ({(1, 2): 3}, "tuple"),
        (ValueError("returned, not raised"), "ValueError"),
        (Path("a"), "Path"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_value_that_json_cannot_hold_is_refused_by_the_name_of_its_type(value: Any, named: str) -> None:
    with pytest.raises(
        EncodeError, match=rf"cannot be stored as JSON: .*{named}.*return plain data or a pydantic model"
    ):
        record.encode(record.success("id", value, 0))


@pytest.mark.parametrize("value", ["\udcff", nested_lists(100_000)], ids=["not UTF-8", "too deep"])
def test_a_value_that_json_cannot_express_is_refused(value: Any) -> None:
    with pytest.raises(EncodeError, match="cannot be stored as JSON"):
        record.encode(record.success("id", value, 0))


def test_a_record_has_the_fields_of_celerys_in_their_order() -> None:
    """ST-05; the runtime is ours."""
    assert list(json.loads(record.encode(record.success("id", 1, 0.5)))) == [*CELERY_FIELDS, "runtime"]


@pytest.mark.parametrize("empty", [None, [], {}, "", 0])
def test_a_field_is_written_even_if_it_is_empty(empty: Any) -> None:
    assert json.loads(record.encode(Record(status="PROGRESS", result=empty, task_id="id"))) == {
        "status": "PROGRESS",
        "result": empty,
        "traceback": None,
        "children": [],
        "date_done": None,
        "task_id": "id",
        "runtime": 0,
    }


@steadily
@given(plain_data)
def test_a_success_begins_with_the_bytes_that_make_it_final(value: Any) -> None:
    """ST-07: the scripts look at nothing else."""
    assert record.encode(record.success("id", value, 0)).startswith(b'{"status":"SUCCESS"')


@steadily
@given(st.text().filter(lambda state: state != "SUCCESS"))
def test_no_other_state_begins_like_a_success(state: str) -> None:
    assert not record.encode(Record(status=state, task_id="id")).startswith(b'{"status":"SUCCESS"')


def test_success_and_failure_are_done_at_a_moment_in_utc() -> None:
    before = datetime.now(UTC)
    for ended in (record.success("id", 1, 0), record.failure("id", ValueError(), 0)):
        assert ended.date_done is not None
        done = datetime.fromisoformat(ended.date_done)
        assert done.utcoffset() == timedelta(0)
        assert before <= done <= datetime.now(UTC)


def test_a_retry_bears_its_exception_and_is_not_done() -> None:
    """RETRY-07."""
    retried = stored(record.retry("id", OSError("on purpose"), 1.5))
    assert (retried.status, retried.date_done, retried.ready, retried.failed) == ("RETRY", None, False, False)
    assert retried.result == {"exc_type": "OSError", "exc_message": ["on purpose"], "exc_module": "builtins"}
    assert retried.traceback == "OSError: on purpose\n"
    assert retried.runtime == 1.5


@pytest.mark.parametrize(
    ("state", "ready", "failed"),
    [
        ("SUCCESS", True, False),
        ("FAILURE", True, True),
        ("REVOKED", True, True),
        ("PENDING", False, False),
        ("RECEIVED", False, False),
        ("STARTED", False, False),
        ("REJECTED", False, False),
        ("RETRY", False, False),
        ("PROGRESS", False, False),
    ],
)
def test_success_failure_and_revoked_are_ready(state: str, ready: bool, failed: bool) -> None:
    """ST-01, ST-04."""
    given = Record(status=state, task_id="id")
    assert (given.ready, given.failed) == (ready, failed)


def test_two_records_do_not_share_their_children() -> None:
    first, second = Record(status="STARTED", task_id="1"), Record(status="STARTED", task_id="2")
    first.children.append("child")
    assert second.children == []


def test_a_field_of_a_newer_version_is_passed_over() -> None:
    read = record.decode(b'{"status":"STARTED","task_id":"id","shadow":"later"}')
    assert asdict(read) == asdict(Record(status="STARTED", task_id="id")) | UNEXTENDED


def test_a_record_may_be_extended_by_the_call() -> None:
    """ST-06."""
    plain = record.success("id", 5, 0.5)
    read = record.decode(record.extended(record.encode(plain), name="mail.send", args=[1], kwargs={}, retries=2))
    known = {"name": "mail.send", "args": [1], "kwargs": {}, "retries": 2}
    assert asdict(read) == asdict(plain) | UNEXTENDED | known


@pytest.mark.parametrize(
    "value", [math.nan, [1, math.inf], {"a": {"b": -math.inf}}, Measured(math.nan), Model(x=math.nan)]
)
def test_a_number_that_json_lacks_is_refused(value: Any) -> None:
    with pytest.raises(EncodeError, match=r"JSON, which has no -?(nan|inf): give None or text"):
        record.refuse_what_is_lost(value, record.encode(value))


@pytest.mark.parametrize("value", [None, 0.5, [1, "x", None], {"a": {"b": 1e300}}, Measured(1.0), Model(x=1.0)])
def test_other_numbers_are_not(value: Any) -> None:
    record.refuse_what_is_lost(value, record.encode(value))


def test_a_failure_tells_where_it_was_raised_and_what_caused_it() -> None:
    """ST-11."""

    def order() -> None:
        try:
            vars(Shop)["the cause"]
        except KeyError as cause:
            raise OrderError(5, "sold out") from cause

    with pytest.raises(OrderError) as raised:
        order()
    told = stored(record.failure("id", raised.value, 0)).traceback or ""
    assert told.index("KeyError: 'the cause'") < told.index("OrderError: (5, 'sold out')")
    assert Path(__file__).name in told


def test_an_exception_is_stored_by_class_arguments_and_module() -> None:
    """ST-08."""
    assert record.encode_exception(OrderError(5, "sold out")) == {
        "exc_type": "OrderError",
        "exc_message": [5, "sold out"],
        "exc_module": __name__,
    }


def test_an_exception_of_a_loaded_class_comes_back() -> None:
    """ST-09."""
    error = as_others_see(OrderError(5, "sold out"))
    assert isinstance(error, OrderError)
    assert (error.args, error.order, error.reason) == ((5, "sold out"), 5, "sold out")


def test_an_exception_of_a_class_inside_of_a_class_comes_back() -> None:
    error = as_others_see(Shop.ClosedError("on Sundays"))
    assert type(error) is Shop.ClosedError
    assert error.args == ("on Sundays",)


def test_an_exception_that_is_no_failure_of_the_body_comes_back() -> None:
    assert type(as_others_see(SystemExit(3))) is SystemExit


def builtin_exceptions() -> Iterator[type[BaseException]]:
    return (one for one in vars(builtins).values() if isinstance(one, type) and issubclass(one, BaseException))


@steadily
@given(st.sampled_from(sorted(builtin_exceptions(), key=str)), st.lists(plain_data, max_size=5))
def test_every_built_in_exception_comes_back_whatever_its_arguments(
    kind: type[BaseException], arguments: list[Any]
) -> None:
    try:
        error = kind(*arguments)
    except Exception:  # noqa: BLE001 - some take text only, or a certain number of arguments
        return
    seen = as_others_see(error)
    assert type(seen) is type(error)
    assert seen.args == error.args


def test_a_group_of_exceptions_comes_back_as_an_exception_that_names_its_members() -> None:
    error = as_others_see(ExceptionGroup("two", [KeyError("first"), OSError("second")]))
    assert "KeyError('first')" in str(error)
    assert "OSError('second')" in str(error)


@pytest.mark.parametrize(
    "module", ["no.such.module", "builtins", __name__], ids=["unknown module", "known module", "this module"]
)
def test_an_unknown_class_is_made_up(module: str) -> None:
    """ST-09."""
    error = record.decode_exception({"exc_type": "GoneError", "exc_message": ["x", 1], "exc_module": module})
    assert isinstance(error, Exception)
    assert (type(error).__name__, type(error).__module__, error.args) == ("GoneError", module, ("x", 1))


def test_a_class_of_a_function_is_made_up() -> None:
    class LocalError(Exception):
        pass

    error = as_others_see(LocalError("x"))
    assert not isinstance(error, LocalError)
    assert type(error).__name__.endswith("<locals>.LocalError")
    assert error.args == ("x",)


def test_a_name_that_is_no_exception_class_is_never_called(tmp_path: Path) -> None:
    called = tmp_path / "called"
    error = record.decode_exception(
        {"exc_type": "system", "exc_message": [f"touch '{called}'"], "exc_module": os.__name__}
    )
    assert isinstance(error, Exception)
    assert type(error).__name__ == "system"
    assert not called.exists()


@pytest.mark.parametrize("name", ["function", "Class", "instance", "instance.method", "instance.value", "lazy", "a.b"])
def test_nothing_but_an_exception_class_is_ever_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    class Anything:
        def __init__(self, *_: Any) -> None:
            ran.append("__init__")

        def __call__(self, *_: Any) -> None:
            ran.append("__call__")

        def method(self, *_: Any) -> None:
            ran.append("method")

        @property
        def value(self) -> None:
            ran.append("value")

    module = ModuleType("trap")
    vars(module).update(function=ran.append, Class=Anything, instance=Anything(), __getattr__=ran.append)
    ran.clear()
    monkeypatch.setitem(sys.modules, "trap", module)

    error = record.decode_exception({"exc_type": name, "exc_message": ["x"], "exc_module": "trap"})

    assert ran == []
    assert isinstance(error, Exception)
    assert error.args == ("x",)


@steadily
@given(st.sampled_from(["os", "sys", "builtins", "subprocess", "celeriq.record"]), st.data())
def test_whatever_a_record_names_an_exception_is_what_it_gives(module: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(vars(sys.modules[module]))))
    arguments = data.draw(st.lists(plain_data, max_size=3))
    error = record.decode_exception({"exc_type": name, "exc_message": arguments, "exc_module": module})
    assert isinstance(error, BaseException)


def test_nothing_is_imported() -> None:
    assert "antigravity" not in sys.modules
    record.decode_exception({"exc_type": "GravityError", "exc_message": [], "exc_module": "antigravity"})
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ChoosyError("the one and only"), "ChoosyError'>('the one and only!')"),
        (KeywordOnlyError(code=5), "KeywordOnlyError'>('code 5')"),
    ],
)
def test_a_constructor_that_refuses_gives_an_exception_that_says_which(error: Exception, shown: str) -> None:
    """ST-09."""
    seen = as_others_see(error)
    assert type(seen) is Exception
    assert str(seen) == f"<class '{__name__}.{shown}"


def test_an_argument_that_json_cannot_hold_becomes_its_repr() -> None:
    """ST-08."""
    error = as_others_see(LookupError("kept", 5, {"also": ["kept"]}, 1j, [1j], Shop))
    assert error.args == ("kept", 5, {"also": ["kept"]}, "1j", "[1j]", repr(Shop))


@pytest.mark.parametrize(
    "argument",
    ["\udcff", Unshowable(), NotUtf8(), Unserialisable(), [Unshowable()], nested_lists(100_000)],
    ids=["surrogate", "repr raises", "repr is not UTF-8", "model raises", "nested", "too deep"],
)
@pytest.mark.parametrize("build", [record.failure, record.retry])
def test_a_failure_can_be_stored_whatever_its_exception_bears(argument: Any, build: Any) -> None:
    """A failure that could not be stored would leave its message unsettled, and whoever waits for it waiting."""
    seen = stored(build("id", ValueError(argument), 0))
    assert type(record.decode_exception(seen.result)) is ValueError
    assert "ValueError" in (seen.traceback or "")
