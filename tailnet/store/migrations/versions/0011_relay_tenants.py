"""Whose the keys are that relays may let in."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("relay_keys", sa.Column("tenant", sa.Text, nullable=False, server_default=""))
