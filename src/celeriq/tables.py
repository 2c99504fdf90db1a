"""celeriq's tables in the application's database. Give `metadata` to Alembic beside your own, so that it is silent:
`target_metadata=[Base.metadata, celeriq.tables.metadata]`; `celeriq.schema` makes them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.exc import ProgrammingError

from celeriq.errors import TablesMissingError

metadata = MetaData()

outbox = Table(
    "celeriq_outbox",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("namespace", Text, nullable=False),
    Column("transaction", BigInteger, nullable=False, comment="in which it was written"),
    Column("task_id", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("due", Double, comment="seconds since 1970; at once if there is none"),
    Column("created_at", TIMESTAMP(timezone=True), nullable=False),
    Column("error", Text, comment="why it cannot be sent: nobody tries again"),
    Index("ix_celeriq_outbox_waiting", "namespace", "id", postgresql_where=text("error IS NULL")),
)
"""Messages that wait until their transaction is committed."""

inbox = Table(
    "celeriq_inbox",
    metadata,
    Column("namespace", Text, primary_key=True),
    Column("task_id", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False, comment="what the task returned, as JSON"),
    Column("created_at", TIMESTAMP(timezone=True), nullable=False),
    # Rows come in the order of time, and are looked for by it to be deleted: a few pages are all that it needs.
    Index("ix_celeriq_inbox_created_at", "created_at", postgresql_using="brin"),
)
"""Tasks with `once` that have succeeded."""

history = Table(
    "celeriq_history",
    metadata,
    Column("namespace", Text, nullable=False),
    Column("entry", BigInteger, nullable=False, comment="its place in the stream: milliseconds << 20 | number"),
    Column("finished_at", TIMESTAMP(timezone=True), nullable=False),
    Column("task_id", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("queue", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("worker", Text, nullable=False),
    Column("runtime", Double, nullable=False, comment="seconds"),
    Column("retries", Integer, nullable=False),
    Column("error", Text),
    Column("root", Text, nullable=False),
    Column("parent", Text),
    Column("group_id", Text),
    Column("logs", Text),
    # An entry's number is its time as well. With what is counted beside it, a day is counted in the index alone.
    PrimaryKeyConstraint("namespace", "entry", postgresql_include=["task", "state", "runtime"]),
    Index("ix_celeriq_history_task", "namespace", "task", "state", "entry"),
    # Nearly all rows are successes, and who looks for those finds them anywhere.
    Index("ix_celeriq_history_state", "namespace", "state", "entry", postgresql_where=text("state <> 'SUCCESS'")),
    Index("ix_celeriq_history_task_id", "namespace", "task_id"),
    info={"version": 3},
)
"""What became of each attempt."""

history_gaps = Table(
    "celeriq_history_gaps",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("namespace", Text, nullable=False),
    Column("stream", Text, nullable=False, comment="a stream that begins anew has another name"),
    Column("reason", Text, nullable=False),
    Column("entries", BigInteger, comment="how many are missing; none if nobody knows"),
    Column("total", BigInteger, nullable=False, comment="how many of the stream are missing by then"),
    Column("began_at", TIMESTAMP(timezone=True), comment="none is the beginning of the stream"),
    Column("ended_at", TIMESTAMP(timezone=True), nullable=False),
    Index("ix_celeriq_history_gaps_stream", "namespace", "stream"),
    info={"version": 3},
)
"""What the history has not got."""

schedules = Table(
    "celeriq_schedules",
    metadata,
    Column("namespace", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("task", Text, nullable=False),
    Column("schedule", Text, nullable=False, comment='as JSON: {"cron": "0 2 * * *"}'),
    Column("args", JSONB, nullable=False),
    Column("kwargs", JSONB, nullable=False),
    Column("options", JSONB, nullable=False, comment="of the call"),
    Column("labels", JSONB, nullable=False),
    Column("policy", JSONB, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("declared", JSONB, comment="what the code says; none if it was made while the application ran"),
    Column("last_due", TIMESTAMP(timezone=True), nullable=False, comment="the last tick that was dealt with"),
    Column("next_due", TIMESTAMP(timezone=True), comment="nothing comes any more if there is none"),
    Column("last_run_at", TIMESTAMP(timezone=True)),
    Column("last_task_id", Text),
    Column("runs", BigInteger, nullable=False),
    Column("missed", BigInteger, nullable=False, comment="ticks that came too late"),
    Column("skipped", BigInteger, nullable=False, comment="ticks that came while the run before went on"),
    Column("error", Text, comment="why it cannot run"),
    Column("version", Integer, nullable=False, comment="how often it was edited"),
    Column("updated_at", TIMESTAMP(timezone=True), nullable=False),
    Index("ix_celeriq_schedules_due", "namespace", "next_due", postgresql_where=text("NOT paused")),
    info={"version": 2},
)
"""Which task is called when: see `celeriq.schedule_rows`."""


UNDEFINED_TABLE = "42P01"
"""PostgreSQL's code for a table that is not there."""


def is_missing(error: BaseException) -> bool:
    """Whether PostgreSQL said that there is no such table."""
    return isinstance(error, ProgrammingError) and getattr(error.orig, "sqlstate", None) == UNDEFINED_TABLE


def missing(table: Table) -> TablesMissingError:
    """What to tell whoever needs `table`."""
    version = table.info.get("version", 1)
    return TablesMissingError(
        f"the database has no table {table.name}: call celeriq.schema.upgrade(op, version={version}) in a migration"
    )
