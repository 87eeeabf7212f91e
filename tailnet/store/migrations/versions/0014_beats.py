"""Which servers take the beat of another one for a sign of life of the agents that it holds."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A server of a release before this one, which may be beside us now, leaves the column out.
    op.add_column("servers", sa.Column("reads_beats", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("ix_agents_seen_by", "agents", ["seen_by", "id"])
