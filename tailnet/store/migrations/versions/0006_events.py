"""What happened to agents, and who reads it; when sessions were stored; an empty line of a log counts one byte."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "event_readers",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("held_by", sa.Text, nullable=False),
        sa.Column("held_until", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_event_readers"),
    )
    op.add_column("agent_connections", sa.Column("stored_at", sa.BigInteger, server_default="0", nullable=False))
    op.execute("UPDATE agent_connections SET stored_at = at")
    op.execute(
        "UPDATE agents SET logs_bytes = logs_bytes + (SELECT count(*) FROM agent_logs"
        " WHERE agent_logs.agent_id = agents.id AND agent_logs.output = '')"
    )
