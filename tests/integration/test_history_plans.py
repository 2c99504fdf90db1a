"""What a monitor asks of the history is answered from an index, however many rows there are."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy.dialects import postgresql

from celeriq.history import FAILURES, Question, attempts_of, counts, latest, slowest
from celeriq.history_rows import DAY
from tests import databases
from tests.conftest import Figure

FULL = bool(os.environ.get("PROVE"))
ROWS = 1_000_000 if FULL else 50_000
DAYS = 30

pytestmark = [pytest.mark.proof(of="transaction"), pytest.mark.timeout(600 if FULL else 120)]

FILL = """
    insert into celeriq_history
    select 'celeriq', ((extract(epoch from now()) - $2 + n * $2 / $1) * 1000)::bigint << 20,
           now() - ($2 - n * $2 / $1) * interval '1 second', md5(n::text), 'task' || n % 50, 'default',
           case n % 1000 when 0 then 'FAILURE' when 1 then 'RETRY' when 2 then 'DEAD' else 'SUCCESS' end,
           'worker', random(), 0, null, md5(n::text), null, null, null
    from generate_series(1, $1::bigint) n
"""


@pytest.fixture(scope="module")
def questions() -> dict[str, Question]:
    yesterday = time.time() - DAY
    return {
        "the latest": latest("celeriq", 100, None, None, None),
        "a later page": latest("celeriq", 100, None, None, int((time.time() - 10 * DAY) * 1000) << 20),
        "the latest failures": latest("celeriq", 100, None, FAILURES, None),
        "the latest of a task": latest("celeriq", 100, "task7", None, None),
        "the latest failures of a task": latest("celeriq", 100, "task0", FAILURES, None),
        "the latest of a state that there is none of": latest("celeriq", 100, None, ["REVOKED"], None),
        "the attempts of a task": attempts_of("celeriq", "c4ca4238a0b923820dcc509a6f75849b"),
        "counts by hour over a day": counts("celeriq", yesterday, 3600, None),
        "counts of a task by hour over a day": counts("celeriq", yesterday, 3600, "task7"),
        "the slowest of a day": slowest("celeriq", 20, yesterday, None),
        "the slowest of a task in a day": slowest("celeriq", 20, yesterday, "task7"),
    }


@pytest.fixture
async def connection(database_url: str) -> AsyncIterator[Any]:
    connection = await databases.connect(database_url)
    await connection.execute(FILL, ROWS, DAYS * DAY, timeout=500)
    await connection.execute("vacuum analyze celeriq_history", timeout=500)
    yield connection
    await connection.close()


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


async def test_every_question_is_answered_from_an_index(
    connection: Any, questions: dict[str, Question], figure: Figure
) -> None:
    longest = 0.0
    for question, statement in questions.items():
        dialect: Any = postgresql.dialect()  # type: ignore[no-untyped-call]
        asked = str(statement.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
        [told] = json.loads(await connection.fetchval(f"explain (analyze, buffers, format json) {asked}"))
        kinds = [node["Node Type"] for node in nodes(told["Plan"])]
        assert "Seq Scan" not in kinds, (question, kinds)
        assert any(kind.startswith(("Index", "Bitmap Index")) for kind in kinds), (question, kinds)
        # Neither does it look at all there is in the index.
        read = sum(
            node.get("Actual Rows", 0) * node.get("Actual Loops", 1)
            for node in nodes(told["Plan"])
            if "Index Name" in node
        )
        assert read <= 2 * ROWS / DAYS, (question, read)
        longest = max(longest, told["Execution Time"])
    figure(f"History of {ROWS} rows: {len(questions)} questions, each from an index, the longest {longest:.0f} ms")
