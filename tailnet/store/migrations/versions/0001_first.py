"""The first schema: callers, workspaces, agents, what agents report, signing keys, kept DERP maps."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite numbers rows by this very type; elsewhere 32 bits would be too few.
_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _callers()
    _agents()
    _reports()
    op.create_table(
        "counters",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )
    op.execute("INSERT INTO counters (name, value) VALUES ('callers', 1)")
    op.create_table(
        "signing_keys",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("secret", sa.LargeBinary, nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_signing_keys"),
    )
    op.create_index("ix_signing_keys_purpose", "signing_keys", ["purpose"])
    op.create_table(
        "kept_maps",
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        _time("fetched_at"),
        sa.PrimaryKeyConstraint("source", name="pk_kept_maps"),
    )


def _callers() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("username", sa.Text, nullable=False),
        sa.Column("active", sa.Boolean, server_default=sa.true(), nullable=False),
        sa.Column("admin", sa.Boolean, server_default=sa.false(), nullable=False),
        _time("created_at"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("username", name="uq_users_username"),
    )
    op.create_table(
        "user_tokens",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("secret_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("seeded", sa.Boolean, server_default=sa.false(), nullable=False),
        _time("created_at"),
        _time("expires_at", nullable=True),
        _belongs("user_tokens", "user_id", "users"),
        sa.PrimaryKeyConstraint("id", name="pk_user_tokens"),
    )
    op.create_index("ix_user_tokens_user_id", "user_tokens", ["user_id"])
    op.create_table(
        "workspaces",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("owner_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        _time("created_at"),
        _time("updated_at"),
        _belongs("workspaces", "owner_id", "users"),
        sa.PrimaryKeyConstraint("id", name="pk_workspaces"),
    )
    op.create_index("ix_workspaces_owner_id", "workspaces", ["owner_id"])


def _agents() -> None:
    op.create_table(
        "agents",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("workspace_id", sa.Text, nullable=False),
        sa.Column("parent_id", sa.Text),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("token_digest", sa.LargeBinary(32), nullable=False),
        _time("created_at"),
        _time("updated_at"),
        sa.Column("connection_timeout_seconds", sa.Integer, server_default="120", nullable=False),
        _text("directory"),
        _text("motd_path"),
        _text("architecture"),
        _text("operating_system"),
        sa.Column("environment", sa.JSON, server_default="{}", nullable=False),
        _time("first_connected_at", nullable=True),
        _time("last_connected_at", nullable=True),
        _time("disconnected_at", nullable=True),
        sa.Column("lifecycle_state", sa.SmallInteger, server_default="1", nullable=False),
        _time("started_at", nullable=True),
        _time("ready_at", nullable=True),
        _text("version"),
        _text("api_version"),
        _text("expanded_directory"),
        sa.Column("subsystems", sa.JSON, server_default="[]", nullable=False),
        sa.Column("logs_bytes", sa.Integer, server_default="0", nullable=False),
        sa.Column("logs_overflowed", sa.Boolean, server_default=sa.false(), nullable=False),
        _belongs("agents", "workspace_id", "workspaces"),
        _belongs("agents", "parent_id", "agents"),
        sa.PrimaryKeyConstraint("id", name="pk_agents"),
        sa.UniqueConstraint("token_digest", name="uq_agents_token_digest"),
    )
    op.create_index("ix_agents_parent_id", "agents", ["parent_id"])
    op.create_index("ix_agents_workspace_id", "agents", ["workspace_id"])


def _reports() -> None:
    op.create_table(
        "agent_stats",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        _time("created_at"),
        sa.Column("connection_count", sa.BigInteger, nullable=False),
        sa.Column("rx_bytes", sa.BigInteger, nullable=False),
        sa.Column("tx_bytes", sa.BigInteger, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        _belongs("agent_stats", "agent_id", "agents"),
        sa.PrimaryKeyConstraint("id", name="pk_agent_stats"),
    )
    op.create_index("ix_agent_stats_agent_id", "agent_stats", ["agent_id"])
    op.create_index("ix_agent_stats_created_at", "agent_stats", ["created_at"])
    op.create_table(
        "agent_metadata",
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        _time("collected_at"),
        _belongs("agent_metadata", "agent_id", "agents"),
        sa.PrimaryKeyConstraint("agent_id", "key", name="pk_agent_metadata"),
    )
    op.create_table(
        "agent_log_sources",
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("display_name", sa.Text, nullable=False),
        sa.Column("icon", sa.Text, nullable=False),
        _time("created_at"),
        _belongs("agent_log_sources", "agent_id", "agents"),
        sa.PrimaryKeyConstraint("agent_id", "id", name="pk_agent_log_sources"),
    )
    op.create_table(
        "agent_logs",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("source_id", sa.Text, nullable=False),
        sa.Column("level", sa.SmallInteger, nullable=False),
        _time("created_at"),
        sa.Column("output", sa.Text, nullable=False),
        _belongs("agent_logs", "agent_id", "agents"),
        sa.PrimaryKeyConstraint("id", name="pk_agent_logs"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_agent_logs_agent_id", "agent_logs", ["agent_id"])


# Steps never import schema.py: it moves on, and a released step must keep doing what it did.


def _time(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _text(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Text, server_default="", nullable=False)


def _belongs(table: str, column: str, parent: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{parent}.id"], name=f"fk_{table}_{column}", ondelete="CASCADE")
