"""Keys of nodes that relays may let in."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "relay_keys",
        sa.Column("key", sa.LargeBinary(32), nullable=False),
        sa.Column("is_revoked", sa.Boolean, nullable=False),
        sa.Column("heard_at", sa.BigInteger, nullable=False),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_relay_keys"),
    )
    op.create_index("ix_relay_keys_heard_at", "relay_keys", ["heard_at"])
    op.create_index("ix_relay_keys_changed_at", "relay_keys", ["changed_at"])
    op.create_table(
        "relay_key_state",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("removed_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_relay_key_state"),
    )
