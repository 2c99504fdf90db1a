"""The second version of celeriq's tables: the schedules."""

from __future__ import annotations

from alembic import op

from celeriq import schema

revision = "3d9e58b7a1f0"
down_revision = "b04f6a1c7d25"
branch_labels = None
depends_on = None


def upgrade() -> None:
    schema.upgrade(op, version=2)


def downgrade() -> None:
    schema.downgrade(op, version=2)
