"""What administrators do: an account of it, answers kept for those who ask again, and what tokens are for."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
# Nothing removes a row of the account before it has this age.
_KEPT_SECONDS = 30 * 86_400
_NOW = {
    "sqlite": "CAST(strftime('%s', 'now') AS INTEGER)",
    "postgresql": "CAST(extract(epoch FROM now()) AS BIGINT)",
}


def upgrade() -> None:
    op.add_column("agent_tokens", sa.Column("expires_at", sa.BigInteger, nullable=True))
    op.add_column("user_tokens", sa.Column("purpose", sa.Text, server_default="", nullable=False))
    op.create_table(
        "audit_log",
        sa.Column("id", _ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor_kind", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("before", sa.JSON, nullable=True),
        sa.Column("after", sa.JSON, nullable=True),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit_log"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_log_at", "audit_log", ["at"])
    op.create_index("ix_audit_log_target", "audit_log", ["target"])
    op.create_table(
        "kept_answers",
        sa.Column("key_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("request_digest", sa.LargeBinary(32), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key_digest", name="pk_kept_answers"),
    )
    op.create_index("ix_kept_answers_created_at", "kept_answers", ["created_at"])
    _append_only()


def _append_only() -> None:
    database = op.get_bind().dialect.name
    young = f"OLD.at > ({_NOW[database]} - {_KEPT_SECONDS}) * 1000000"
    if database == "sqlite":
        op.execute(
            "CREATE TRIGGER audit_log_unchanged BEFORE UPDATE ON audit_log "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END"
        )
        op.execute(
            f"CREATE TRIGGER audit_log_kept BEFORE DELETE ON audit_log WHEN {young} "
            "BEGIN SELECT RAISE(ABORT, 'the audit log is append-only: this row is younger than 30 days'); END"
        )
        return
    op.execute(
        "CREATE FUNCTION audit_log_append_only() RETURNS trigger LANGUAGE plpgsql AS $$ "
        "BEGIN RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'restrict_violation'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_log_unchanged BEFORE UPDATE ON audit_log "
        "FOR EACH ROW EXECUTE FUNCTION audit_log_append_only()"
    )
    op.execute(
        f"CREATE TRIGGER audit_log_kept BEFORE DELETE ON audit_log FOR EACH ROW WHEN ({young}) "
        "EXECUTE FUNCTION audit_log_append_only()"
    )
