"""celeriq's own tables: messages that wait for their transaction, and what has run once."""

from __future__ import annotations

from alembic import op

from celeriq import schema

revision = "b04f6a1c7d25"
down_revision = "6259cca3fc17"
branch_labels = None
depends_on = None


def upgrade() -> None:
    schema.upgrade(op, version=1)


def downgrade() -> None:
    schema.downgrade(op, version=1)
