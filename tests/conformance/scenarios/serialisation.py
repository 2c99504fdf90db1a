"""What arguments and results may be, on the wire and in the log."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID, uuid4

from tests.conformance.observation import brief, plain, raised
from tests.conformance.scenario import App, Bound, Log, scenario, task

log = Log("serialisation")

VALUES = {
    "datetime": datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
    "naive datetime": datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001 - as many have it
    "date": date(2026, 1, 2),
    "time": time(3, 4, 5),
    "Decimal": Decimal("1.10"),
    "UUID": UUID(int=7),
    "bytes": b"\x00\xff",
    "tuple": (1, 2),
    "int keys": {1: "one"},
    "float": 0.1,
    "large int": 2**70,
    "text": "ü 漢 \u0000",
    "None": None,
}


@task("serialisation.kind")
async def kind_of(value: Any) -> Any:
    return [type(value).__name__, str(value), value]


@scenario("SEC-02", "CALL-18")
async def what_comes_through_as_it_was(app: App) -> Any:
    seen: dict[str, Any] = {}
    for name, value in VALUES.items():
        try:
            inside, text, back = await (await kind_of.delay(value)).get()
        except Exception as error:  # noqa: BLE001 - whatever it is, it was seen
            seen[name] = type(error).__name__
        else:
            seen[name] = {"inside": inside, "same": text == str(value), "back": type(back).__name__}
    return seen


class Colour(Enum):
    RED = "red"


class Own:
    pass


class Telling:
    def __json__(self) -> Any:
        return {"told": "by itself"}


@scenario("SEC-02", "ERR-09")
async def what_cannot_be_sent_is_refused_at_the_call(app: App) -> Any:
    queue = "serialisation.refused"
    values = {"set": {1}, "timedelta": timedelta(1), "Enum": Colour.RED, "object": Own(), "in a list": [Own()]}
    told = {name: await raised(kind_of.apply_async((value,), queue=queue)) for name, value in values.items()}
    return {**told, "sent": await app.queued(queue)}


@task("serialisation.returns")
async def returns(what: str) -> Any:
    return {"set": {1}, "Enum": Colour.RED, "object": Own(), "nan": math.nan, "infinity": math.inf}[what]


@scenario("SEC-02", "ST-12", "ERR-09")
async def what_cannot_be_stored_fails_the_task(app: App) -> Any:
    seen: dict[str, Any] = {}
    for what in ("set", "Enum", "object", "nan", "infinity"):
        told = await brief((await returns.delay(what)).get())
        seen[what] = str(told["value"]) if "value" in told else told
    return seen


@scenario("SEC-02")
async def an_object_may_say_how_it_is_sent(app: App) -> Any:
    try:
        return (await (await kind_of.delay(Telling())).get())[2]
    except Exception as error:  # noqa: BLE001 - whatever it is, it was seen
        return type(error).__name__


@scenario("SEC-01", "SEC-03", "ACK-11")
async def a_worker_reads_json_alone(app: App) -> Any:
    queue = "serialisation.pickled"
    try:
        sent = await kind_of.apply_async((1,), serializer="pickle", queue=queue)
    except TypeError as refused:
        return type(refused).__name__
    async with app.worker(queue):
        await (await kind_of.apply_async((1,), queue=queue)).get()
        return [await app.queued(queue), await sent.state(), await app.held(sent.id)]


@scenario("SEC-03")
async def a_worker_may_be_told_to_read_more(app: App) -> Any:
    queue = "serialisation.more"
    try:
        async with app.worker(queue, accept_content=["json", "pickle"]):
            sent = await kind_of.apply_async(({1},), serializer="pickle", queue=queue)
            return [(await brief(sent.get())), await sent.state()]
    except (TypeError, ValueError) as refused:
        return type(refused).__name__


@scenario("SEC-05")
async def a_message_may_be_compressed(app: App) -> Any:
    try:
        sent = await kind_of.apply_async(("x" * 1000,), compression="gzip")
    except TypeError as refused:
        return type(refused).__name__
    return len((await sent.get())[1])


@task("serialisation.secretive", bind=True)
async def secretive(self: Bound, secret: str) -> Any:
    return [plain(self.request.argsrepr), plain(self.request.kwargsrepr)]


@scenario("SEC-07")
async def what_is_shown_of_arguments(app: App) -> Any:
    shown = await (await secretive.delay("the password")).get()
    hidden = await (await secretive.apply_async(("the password",), argsrepr="(***)", kwargsrepr="{}")).get()
    return {"shown": shown, "hidden": hidden}


@scenario("SEC-02")
async def what_is_stored_may_name_no_other_types(app: App) -> Any:
    record: dict[str, Any] = {
        "status": "SUCCESS",
        "result": {"__type__": "unheard_of", "__value__": 1},
        "traceback": None,
        "children": [],
        "date_done": "2026-01-01T00:00:00+00:00",
        "task_id": str(uuid4()),
    }
    await app.store(record)
    told = await brief(app.result(str(record["task_id"])).get(timeout=2))
    return json.loads(json.dumps(told))
