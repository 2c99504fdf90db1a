"""celeriq's history: what became of each attempt, and what of it is missing."""

from __future__ import annotations

from alembic import op

from celeriq import schema

revision = "7c1d92e05ab3"
down_revision = "3d9e58b7a1f0"
branch_labels = None
depends_on = None


def upgrade() -> None:
    schema.upgrade(op, version=3)


def downgrade() -> None:
    schema.downgrade(op, version=3)
