"""Apps, scripts and metadata descriptions of agents; what happened to them; sessions that agents report."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# SQLite numbers rows by this very type; elsewhere 32 bits would be too few.
_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "agent_apps",
        _text("id"),
        _text("agent_id"),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("definition", sa.JSON, nullable=False),
        sa.Column("health", sa.SmallInteger, nullable=False),
        *_keys("agent_apps", "agent_id", "agents"),
    )
    op.create_table(
        "agent_scripts",
        _text("id"),
        _text("agent_id"),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("definition", sa.JSON, nullable=False),
        *_keys("agent_scripts", "agent_id", "agents"),
    )
    op.create_table(
        "agent_metadata_descriptions",
        _text("agent_id"),
        _text("key"),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("definition", sa.JSON, nullable=False),
        *_keys("agent_metadata_descriptions", "agent_id", "agents", ("agent_id", "key")),
    )
    op.create_table(
        "agent_app_statuses",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        _text("app_id"),
        _text("status_id"),
        _time("created_at"),
        sa.Column("state", sa.SmallInteger, nullable=False),
        _text("message"),
        _text("uri"),
        *_keys("agent_app_statuses", "app_id", "agent_apps"),
    )
    op.create_table(
        "agent_script_runs",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        _text("script_id"),
        _time("started_at"),
        _time("ended_at"),
        sa.Column("exit_code", sa.Integer, nullable=False),
        sa.Column("stage", sa.SmallInteger, nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        *_keys("agent_script_runs", "script_id", "agent_scripts"),
    )
    op.create_table(
        "agent_connections",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        _text("agent_id"),
        _text("connection_id"),
        sa.Column("action", sa.SmallInteger, nullable=False),
        sa.Column("type", sa.SmallInteger, nullable=False),
        _time("at"),
        _text("ip"),
        sa.Column("status_code", sa.Integer, nullable=False),
        _text("reason"),
        _text("app_name"),
        *_keys("agent_connections", "agent_id", "agents"),
    )
    for table, column in (
        ("agent_apps", "agent_id"),
        ("agent_scripts", "agent_id"),
        ("agent_app_statuses", "app_id"),
        ("agent_script_runs", "script_id"),
        ("agent_connections", "agent_id"),
    ):
        op.create_index(f"ix_{table}_{column}", table, [column])


# Steps never import schema.py: it moves on, and a released step must keep doing what it did.


def _time(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, nullable=False)


def _text(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.Text, nullable=False)


def _keys(table: str, column: str, parent: str, primary: tuple[str, ...] = ("id",)) -> tuple[sa.Constraint, ...]:
    return (
        sa.ForeignKeyConstraint([column], [f"{parent}.id"], name=f"fk_{table}_{column}", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint(*primary, name=f"pk_{table}"),
    )
