"""Which cloud instance an agent runs on, and the tokens that its proofs were given."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("agents", sa.Column("instance_id", sa.Text, nullable=False, server_default=""))
    op.create_index("ix_agents_instance_id", "agents", ["instance_id"])
    op.create_table(
        "agent_tokens",
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_agent_tokens"),
        sa.ForeignKeyConstraint(["agent_id"], ["agents.id"], "fk_agent_tokens_agent_id", ondelete="CASCADE"),
    )
    op.create_index("ix_agent_tokens_agent_id", "agent_tokens", ["agent_id"])
