"""Tables of the durable state (layer L2): who may call, what exists, what agents last reported.

SQLAlchemy Core and plain types: one schema for every dialect.  A change here needs a new file in migrations/versions;
tests/tailnet/store/test_schema.py compares the two.  Who is connected to whom is not
here: that state is soft and lives in coordinator/.  Next hop: database.py opens the file, callers.py and reports.py
read and write it.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from derp.text import without_halves
from tailnet.store.rows import Right, Role
from tailnet.types import PeerID

# The newest file in migrations/versions.  Kept as a constant so that an up-to-date store opens without importing
# Alembic.
HEAD_REVISION: Final = "0014"
# The oldest schema whose programs can serve on this one, beside newer ones or after them.  A migration that takes away
# or changes what they use raises it, and a release never raises it above the schema of the release before.
READABLE_FROM: Final = "0012"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def as_microseconds(moment: datetime) -> int:
    """Since 1970 UTC."""
    return (moment - _EPOCH) // _MICROSECOND


class UtcTime(sa.types.TypeDecorator[datetime]):
    """An instant as microseconds since 1970 UTC.

    An integer sorts and compares alike in every database; SQLite has no time type, and its text forms lose the zone.
    """

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else as_microseconds(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class UuidText(sa.types.TypeDecorator[UUID]):
    """An id as 36 characters: an operator who opens the file with sqlite3 reads what the logs say."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: UUID | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> UUID | None:
        return None if value is None else UUID(value)


class PeerIdText(sa.types.TypeDecorator[PeerID]):
    """The same for agents, whose id is their peer id."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: PeerID | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> PeerID | None:
        return None if value is None else PeerID.parse(value)


def storable(text: str) -> str:
    """Text as every kind of store takes it."""
    return without_halves(text).replace("\0", "\N{REPLACEMENT CHARACTER}")


class Text(sa.types.TypeDecorator[str]):
    """Text as agents and people write it.  PostgreSQL takes no NUL, and a row that one store takes, each must take.

    Halves of surrogate pairs, which come in JSON, no store takes: a line of a log would be lost for one.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return storable(value) if value is not None else None


class RoleText(sa.types.TypeDecorator[Role]):
    """A role as its word."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Role | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else value.value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Role | None:
        return None if value is None else Role(value)


class RightsText(sa.types.TypeDecorator[frozenset[Right]]):
    """Rights as their words with blanks between them, in the order of their definition."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: frozenset[Right] | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else " ".join(right.value for right in Right if right in value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> frozenset[Right] | None:
        return None if value is None else frozenset(map(Right, value.split()))


# SQLite numbers rows by this very type; elsewhere 32 bits are two years of 10,000 agents' statistics.
_ROW_NUMBER: Final = sa.BigInteger().with_variant(sa.Integer, "sqlite")

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row per number that has to survive; `callers` rises with every change of who may do what (auth/store_callers.py).
counters = sa.Table(
    "counters",
    metadata,
    sa.Column("name", Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

# Whom a change of callers was about, so that who has others at hand keeps them: the counter `callers` went from
# `previous` to `serial`.  A change without rows, of an older release for example, was about anybody.
revocations = sa.Table(
    "revocations",
    metadata,
    sa.Column("serial", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", Text, primary_key=True),  # "user", "workspace", or "anybody"
    sa.Column("id", Text, primary_key=True),
    sa.Column("previous", sa.BigInteger, nullable=False),
    sa.Column("at", UtcTime, nullable=False, index=True),
)

users = sa.Table(
    "users",
    metadata,
    sa.Column("id", UuidText, primary_key=True),
    sa.Column("username", Text, nullable=False, unique=True),
    sa.Column("active", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("role", RoleText, nullable=False, server_default=Role.USER.value),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("updated_at", UtcTime, nullable=False),
)

# `id` is the part of the token that is no secret (tokens.py); the secret itself is never stored.
user_tokens = sa.Table(
    "user_tokens",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("user_id", UuidText, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("secret_digest", sa.LargeBinary(32), nullable=False),
    sa.Column("seeded", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("purpose", Text, nullable=False, server_default=""),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("expires_at", UtcTime),
)

workspaces = sa.Table(
    "workspaces",
    metadata,
    sa.Column("id", UuidText, primary_key=True),
    sa.Column("owner_id", UuidText, sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("name", Text, nullable=False),
    sa.Column("status", sa.SmallInteger, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("updated_at", UtcTime, nullable=False),
)

# Rights on a workspace for others than its owner.
workspace_grants = sa.Table(
    "workspace_grants",
    metadata,
    sa.Column("workspace_id", UuidText, sa.ForeignKey("workspaces.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("user_id", UuidText, sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True),
    sa.Column("rights", RightsText, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("updated_at", UtcTime, nullable=False),
)

agents = sa.Table(
    "agents",
    metadata,
    sa.Column("id", PeerIdText, primary_key=True),
    sa.Column("workspace_id", UuidText, sa.ForeignKey("workspaces.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("parent_id", PeerIdText, sa.ForeignKey("agents.id", ondelete="CASCADE"), index=True),
    sa.Column("name", Text, nullable=False),
    sa.Column("token_digest", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("updated_at", UtcTime, nullable=False),
    sa.Column("connection_timeout_seconds", sa.Integer, nullable=False, server_default="120"),
    # what the manifest tells the agent
    sa.Column("directory", Text, nullable=False, server_default=""),
    sa.Column("motd_path", Text, nullable=False, server_default=""),
    sa.Column("architecture", Text, nullable=False, server_default=""),
    sa.Column("operating_system", Text, nullable=False, server_default=""),
    sa.Column("environment", sa.JSON, nullable=False, server_default="{}"),
    # the cloud's id of the machine that it runs on; "" where its token is all that it proves itself with
    sa.Column("instance_id", Text, nullable=False, server_default="", index=True),
    # what the connection tells us
    sa.Column("first_connected_at", UtcTime),
    sa.Column("last_connected_at", UtcTime),
    sa.Column("disconnected_at", UtcTime),
    sa.Column("seen_by", Text),  # the server that holds its connection; NULL when none does
    # what the agent tells us
    sa.Column("lifecycle_state", sa.SmallInteger, nullable=False, server_default="1"),
    sa.Column("started_at", UtcTime),
    sa.Column("ready_at", UtcTime),
    sa.Column("version", Text, nullable=False, server_default=""),
    sa.Column("api_version", Text, nullable=False, server_default=""),
    sa.Column("expanded_directory", Text, nullable=False, server_default=""),
    sa.Column("subsystems", sa.JSON, nullable=False, server_default="[]"),
    sa.Column("logs_bytes", sa.Integer, nullable=False, server_default="0"),
    sa.Column("logs_overflowed", sa.Boolean, nullable=False, server_default=sa.false()),
    # A server reads those that it holds by their ids, 1,000 at a time: a page is found at once, and needs no sorting.
    sa.Index("ix_agents_seen_by", "seen_by", "id"),
)

# Further tokens of agents, given to who proved to be on an agent's machine (issued.py).  An agent's own token is in its
# row: it is known by its digest alone, so that it cannot be given out again.
agent_tokens = sa.Table(
    "agent_tokens",
    metadata,
    sa.Column("digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("agent_id", PeerIdText, sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("expires_at", UtcTime),  # of one that was the agent's own and is good for a while yet; NULL: never
)

agent_stats = sa.Table(
    "agent_stats",
    metadata,
    sa.Column("id", _ROW_NUMBER, primary_key=True, autoincrement=True),
    sa.Column("agent_id", PeerIdText, sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("created_at", UtcTime, nullable=False, index=True),
    sa.Column("connection_count", sa.BigInteger, nullable=False),
    sa.Column("rx_bytes", sa.BigInteger, nullable=False),
    sa.Column("tx_bytes", sa.BigInteger, nullable=False),
    sa.Column("report", sa.JSON, nullable=False),
)

# Only the latest value of a key is of use; there is no history.
agent_metadata = sa.Table(
    "agent_metadata",
    metadata,
    sa.Column("agent_id", PeerIdText, sa.ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("key", Text, primary_key=True),
    sa.Column("value", Text, nullable=False),
    sa.Column("error", Text, nullable=False),
    sa.Column("collected_at", UtcTime, nullable=False),
)

agent_log_sources = sa.Table(
    "agent_log_sources",
    metadata,
    sa.Column("agent_id", PeerIdText, sa.ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("id", UuidText, primary_key=True),
    sa.Column("display_name", Text, nullable=False),
    sa.Column("icon", Text, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
)

# AUTOINCREMENT: readers page by id, so an id is never used twice, also after deletions.
agent_logs = sa.Table(
    "agent_logs",
    metadata,
    sa.Column("id", _ROW_NUMBER, primary_key=True, autoincrement=True),
    sa.Column("agent_id", PeerIdText, sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("source_id", UuidText, nullable=False),
    sa.Column("level", sa.SmallInteger, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("output", Text, nullable=False),
    sqlite_autoincrement=True,
)

# What the control plane says an agent should run and show.  A definition is JSON in the API's spelling, complete, since
# nothing here asks for one of its parts; `position` keeps the order of the seed.
agent_apps = sa.Table(
    "agent_apps",
    metadata,
    sa.Column("id", UuidText, primary_key=True),
    sa.Column("agent_id", PeerIdText, sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("definition", sa.JSON, nullable=False),
    # what the agent says of it, the wire's number
    sa.Column("health", sa.SmallInteger, nullable=False),
)

agent_scripts = sa.Table(
    "agent_scripts",
    metadata,
    sa.Column("id", UuidText, primary_key=True),
    sa.Column("agent_id", PeerIdText, sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("definition", sa.JSON, nullable=False),
)

# The values of these keys are in agent_metadata.
agent_metadata_descriptions = sa.Table(
    "agent_metadata_descriptions",
    metadata,
    sa.Column("agent_id", PeerIdText, sa.ForeignKey("agents.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("key", Text, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("definition", sa.JSON, nullable=False),
)

# What happened, of each app, script and agent the last few (apps.py, reports.py): `id` is their order.
agent_app_statuses = sa.Table(
    "agent_app_statuses",
    metadata,
    sa.Column("id", _ROW_NUMBER, primary_key=True, autoincrement=True),
    sa.Column("app_id", UuidText, sa.ForeignKey("agent_apps.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("status_id", UuidText, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("message", Text, nullable=False),
    sa.Column("uri", Text, nullable=False),
)

agent_script_runs = sa.Table(
    "agent_script_runs",
    metadata,
    sa.Column("id", _ROW_NUMBER, primary_key=True, autoincrement=True),
    sa.Column("script_id", UuidText, sa.ForeignKey("agent_scripts.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("started_at", UtcTime, nullable=False),
    sa.Column("ended_at", UtcTime, nullable=False),
    sa.Column("exit_code", sa.Integer, nullable=False),
    sa.Column("stage", sa.SmallInteger, nullable=False),
    sa.Column("status", sa.SmallInteger, nullable=False),
)

# In the store and not in memory: sessions outlive this server, so the end of one often comes after a restart, and who
# was on a machine is asked when something has already happened.
agent_connections = sa.Table(
    "agent_connections",
    metadata,
    sa.Column("id", _ROW_NUMBER, primary_key=True, autoincrement=True),
    sa.Column("agent_id", PeerIdText, sa.ForeignKey("agents.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("connection_id", UuidText, nullable=False),
    sa.Column("action", sa.SmallInteger, nullable=False),
    sa.Column("type", sa.SmallInteger, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("ip", Text, nullable=False),
    sa.Column("status_code", sa.Integer, nullable=False),
    sa.Column("reason", Text, nullable=False),
    sa.Column("app_name", Text, nullable=False),
    # by the clock of the server; `at` is the agent's, which may be wrong by years
    sa.Column("stored_at", UtcTime, nullable=False, server_default="0"),
)

# What happened to agents, for the control plane.  No foreign key: that an agent went away outlives the agent.
# AUTOINCREMENT: readers page by id.
events = sa.Table(
    "events",
    metadata,
    sa.Column("id", _ROW_NUMBER, primary_key=True, autoincrement=True),
    sa.Column("event_id", UuidText, nullable=False),
    sa.Column("type", Text, nullable=False),
    sa.Column("at", UtcTime, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
    sqlite_autoincrement=True,
)

# Who reads events for all servers together, and which server does it now.
event_readers = sa.Table(
    "event_readers",
    metadata,
    sa.Column("name", Text, primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("held_by", Text, nullable=False),
    sa.Column("held_until", UtcTime, nullable=False),
)

# The servers that share this store.  Each says once in a while that it is there: a write that also tells it whether the
# store takes writes.
servers = sa.Table(
    "servers",
    metadata,
    sa.Column("id", Text, primary_key=True),  # another one at each start
    sa.Column("host", Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("version", Text, nullable=False),
    sa.Column("started_at", UtcTime, nullable=False),
    sa.Column("seen_at", UtcTime, nullable=False),
    # whether it takes the beat of another one for a sign of life of the agents that it holds
    sa.Column("reads_beats", sa.Boolean, nullable=False, server_default=sa.false()),
)
_beat: Final = sa.select(servers.c.seen_at).where(servers.c.id == agents.c.seen_by).correlate(agents).scalar_subquery()
# When an agent was connected last.  The beat of the server that holds it is its sign of life; its own row is written
# when it comes and goes, and rarely between.  500,000 agents that are written every 15 s are 33,000 writes a second.
LAST_CONNECTED_AT: Final = sa.case(
    (_beat > agents.c.last_connected_at, _beat),
    (
        sa.and_(agents.c.seen_by.is_(None), agents.c.disconnected_at > agents.c.last_connected_at),
        agents.c.disconnected_at,
    ),
    else_=agents.c.last_connected_at,
)
# Rows of agents as they are shown: with that one in its place.
AGENT_COLUMNS: Final = tuple(
    LAST_CONNECTED_AT.label(each.name) if each is agents.c.last_connected_at else each for each in agents.c
)

# The coordinators that serve as one; `beat` grows while one lives, so that no clocks are compared.
replicas = sa.Table(
    "replicas",
    metadata,
    sa.Column("id", Text, primary_key=True),  # another one at each start
    sa.Column("beat", sa.BigInteger, nullable=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
)

# Not encrypted: who can read this file can read every row in it, and the file is created readable by its owner only.
signing_keys = sa.Table(
    "signing_keys",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("purpose", Text, nullable=False, index=True),
    sa.Column("secret", sa.LargeBinary, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
)

# What users let their workspaces come in with elsewhere.  `sealed` is encrypted (sealing.py); its keys are not here.
external_auth_links = sa.Table(
    "external_auth_links",
    metadata,
    sa.Column("user_id", UuidText, sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("provider_id", Text, primary_key=True),
    sa.Column("sealed", sa.LargeBinary),  # NULL when the provider takes the tokens no more
    sa.Column("expires_at", UtcTime),
    sa.Column("failure", Text, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("updated_at", UtcTime, nullable=False),
    sa.Column("refreshing_until", UtcTime),  # by one server, which has it for so long
)

git_keys = sa.Table(
    "git_keys",
    metadata,
    sa.Column("user_id", UuidText, sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("public_key", Text, nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False),
    sa.Column("updated_at", UtcTime, nullable=False),
)

# Who changed what through administration/: rows are added, never changed, and removed when they are old alone; the
# migration has triggers for that.  `actor`: the name of a token of administrators, or of a user of this machine.
audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("id", _ROW_NUMBER, primary_key=True, autoincrement=True),
    sa.Column("at", UtcTime, nullable=False, index=True),
    sa.Column("actor_kind", Text, nullable=False),
    sa.Column("actor", Text, nullable=False),
    sa.Column("action", Text, nullable=False),
    sa.Column("kind", Text, nullable=False),
    sa.Column("target", Text, nullable=False, index=True),
    sa.Column("before", sa.JSON(none_as_null=True)),
    sa.Column("after", sa.JSON(none_as_null=True)),
    sa.Column("request_id", Text, nullable=False),
    sqlite_autoincrement=True,
)

# What requests with an Idempotency-Key were answered.  An answer may hold a new token, so it is sealed with what its
# caller alone knows.
kept_answers = sa.Table(
    "kept_answers",
    metadata,
    sa.Column("key_digest", sa.LargeBinary(32), primary_key=True),
    sa.Column("request_digest", sa.LargeBinary(32), nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("created_at", UtcTime, nullable=False, index=True),
)

# The last good map of each source, so that a restart while the source is away does not lose regions.
kept_maps = sa.Table(
    "kept_maps",
    metadata,
    sa.Column("source", Text, primary_key=True),
    sa.Column("body", Text, nullable=False),
    sa.Column("fetched_at", UtcTime, nullable=False),
)

# Of nodes, for relays elsewhere: who may come in, and who may no more.  `changed_at`: the version of the set that the
# row came with.
relay_keys = sa.Table(
    "relay_keys",
    metadata,
    sa.Column("key", sa.LargeBinary(32), primary_key=True),
    sa.Column("is_revoked", sa.Boolean, nullable=False),
    sa.Column("heard_at", UtcTime, nullable=False, index=True),
    sa.Column("changed_at", sa.BigInteger, nullable=False, index=True),
    sa.Column("tenant", sa.Text, nullable=False, server_default=""),
)

# One row.  `removed_at`: the version at which keys were removed last, which no row can say.
relay_key_state = sa.Table(
    "relay_key_state",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("removed_at", sa.BigInteger, nullable=False),
)
