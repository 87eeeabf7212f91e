"""Users' links to providers, and their SSH keys, both encrypted."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "external_auth_links",
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("provider_id", sa.Text, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=True),
        sa.Column("expires_at", sa.BigInteger, nullable=True),
        sa.Column("failure", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "provider_id", name="pk_external_auth_links"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], "fk_external_auth_links_user_id", ondelete="CASCADE"),
    )
    op.create_table(
        "git_keys",
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("public_key", sa.Text, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("user_id", name="pk_git_keys"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], "fk_git_keys_user_id", ondelete="CASCADE"),
    )
