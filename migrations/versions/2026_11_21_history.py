"""celeriq's history: what became of each attempt, and what of it is missing."""

from __future__ import annotations

from alembic import op

from celeriq import schema

revision = "7c1d92e05ab3"
down_revision = "b04f6a1c7d25"
branch_labels = None
depends_on = None


def upgrade() -> None:
    schema.upgrade(op, version=3)


def downgrade() -> None:
    schema.downgrade(op, version=3)
