"""celeriq's tables, version by version, for the application's own migrations.

    def upgrade() -> None:
        celeriq.schema.upgrade(op, version=1)

What stands here for a version is never changed: a later one is a step of its own.
"""

from __future__ import annotations

from typing import Protocol

LATEST = 3
"""The version that this release of celeriq reads and writes."""


class Operations(Protocol):
    """What is used of Alembic's `op`."""

    def execute(self, sqltext: str, /) -> object: ...


UP: dict[int, tuple[str, ...]] = {
    1: (
        """
        CREATE TABLE celeriq_outbox (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            namespace text NOT NULL,
            transaction bigint NOT NULL,
            task_id text NOT NULL,
            message text NOT NULL,
            due double precision,
            created_at timestamp with time zone NOT NULL,
            error text
        )
        """,
        "COMMENT ON COLUMN celeriq_outbox.transaction IS 'in which it was written'",
        "COMMENT ON COLUMN celeriq_outbox.due IS 'seconds since 1970; at once if there is none'",
        "COMMENT ON COLUMN celeriq_outbox.error IS 'why it cannot be sent: nobody tries again'",
        "CREATE INDEX ix_celeriq_outbox_waiting ON celeriq_outbox (namespace, id) WHERE error IS NULL",
        """
        CREATE TABLE celeriq_inbox (
            namespace text NOT NULL,
            task_id text NOT NULL,
            value bytea NOT NULL,
            created_at timestamp with time zone NOT NULL,
            PRIMARY KEY (namespace, task_id)
        )
        """,
        "COMMENT ON COLUMN celeriq_inbox.value IS 'what the task returned, as JSON'",
        "CREATE INDEX ix_celeriq_inbox_created_at ON celeriq_inbox USING brin (created_at)",
    ),
    2: (
        """
        CREATE TABLE celeriq_schedules (
            namespace text NOT NULL,
            name text NOT NULL,
            task text NOT NULL,
            schedule text NOT NULL,
            args jsonb NOT NULL,
            kwargs jsonb NOT NULL,
            options jsonb NOT NULL,
            labels jsonb NOT NULL,
            policy jsonb NOT NULL,
            paused boolean NOT NULL,
            declared jsonb,
            last_due timestamp with time zone NOT NULL,
            next_due timestamp with time zone,
            last_run_at timestamp with time zone,
            last_task_id text,
            runs bigint NOT NULL,
            missed bigint NOT NULL,
            skipped bigint NOT NULL,
            error text,
            version integer NOT NULL,
            updated_at timestamp with time zone NOT NULL,
            PRIMARY KEY (namespace, name)
        )
        """,
        """COMMENT ON COLUMN celeriq_schedules.schedule IS 'as JSON: {"cron": "0 2 * * *"}'""",
        "COMMENT ON COLUMN celeriq_schedules.options IS 'of the call'",
        """
        COMMENT ON COLUMN celeriq_schedules.declared
        IS 'what the code says; none if it was made while the application ran'
        """,
        "COMMENT ON COLUMN celeriq_schedules.last_due IS 'the last tick that was dealt with'",
        "COMMENT ON COLUMN celeriq_schedules.next_due IS 'nothing comes any more if there is none'",
        "COMMENT ON COLUMN celeriq_schedules.missed IS 'ticks that came too late'",
        "COMMENT ON COLUMN celeriq_schedules.skipped IS 'ticks that came while the run before went on'",
        "COMMENT ON COLUMN celeriq_schedules.error IS 'why it cannot run'",
        "COMMENT ON COLUMN celeriq_schedules.version IS 'how often it was edited'",
        "CREATE INDEX ix_celeriq_schedules_due ON celeriq_schedules (namespace, next_due) WHERE NOT paused",
    ),
    3: (
        """
        CREATE TABLE celeriq_history (
            namespace text NOT NULL,
            entry bigint NOT NULL,
            finished_at timestamp with time zone NOT NULL,
            task_id text NOT NULL,
            task text NOT NULL,
            queue text NOT NULL,
            state text NOT NULL,
            worker text NOT NULL,
            runtime double precision NOT NULL,
            retries integer NOT NULL,
            error text,
            root text NOT NULL,
            parent text,
            group_id text,
            logs text,
            PRIMARY KEY (namespace, entry) INCLUDE (task, state, runtime)
        )
        """,
        "COMMENT ON COLUMN celeriq_history.entry IS 'its place in the stream: milliseconds << 20 | number'",
        "COMMENT ON COLUMN celeriq_history.runtime IS 'seconds'",
        "CREATE INDEX ix_celeriq_history_task ON celeriq_history (namespace, task, state, entry)",
        "CREATE INDEX ix_celeriq_history_state ON celeriq_history (namespace, state, entry) WHERE state <> 'SUCCESS'",
        "CREATE INDEX ix_celeriq_history_task_id ON celeriq_history (namespace, task_id)",
        """
        CREATE TABLE celeriq_history_gaps (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            namespace text NOT NULL,
            stream text NOT NULL,
            reason text NOT NULL,
            entries bigint,
            total bigint NOT NULL,
            began_at timestamp with time zone,
            ended_at timestamp with time zone NOT NULL
        )
        """,
        "COMMENT ON COLUMN celeriq_history_gaps.stream IS 'a stream that begins anew has another name'",
        "COMMENT ON COLUMN celeriq_history_gaps.entries IS 'how many are missing; none if nobody knows'",
        "COMMENT ON COLUMN celeriq_history_gaps.total IS 'how many of the stream are missing by then'",
        "COMMENT ON COLUMN celeriq_history_gaps.began_at IS 'none is the beginning of the stream'",
        "CREATE INDEX ix_celeriq_history_gaps_stream ON celeriq_history_gaps (namespace, stream)",
    ),
}
DOWN: dict[int, tuple[str, ...]] = {
    1: ("DROP TABLE celeriq_inbox", "DROP TABLE celeriq_outbox"),
    2: ("DROP TABLE celeriq_schedules",),
    3: ("DROP TABLE celeriq_history_gaps", "DROP TABLE celeriq_history"),
}


def upgrade(op: Operations, version: int) -> None:
    """From the version before to `version`. Raises `ValueError` for one that there is not."""
    _execute(op, UP, version)


def downgrade(op: Operations, version: int) -> None:
    """From `version` to the one before: what its tables hold is lost. Raises `ValueError` for one that there is not."""
    _execute(op, DOWN, version)


def _execute(op: Operations, steps: dict[int, tuple[str, ...]], version: int) -> None:
    if version not in steps:
        raise ValueError(f"celeriq's tables have no version {version!r}: say 1 to {LATEST}, one in each revision")
    for statement in steps[version]:
        op.execute(statement)
