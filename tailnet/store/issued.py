"""Tokens beside an agent's own: for who proved to be on the cloud instance that an agent runs on (layer L2).

An issued token is as good as the agent's own, and lives no longer: it goes with the agent, when the agent's own token
or its instance changes (importing.py), when somebody revokes it, and when newer ones push it out.  callers.py looks
both kinds up.  Next hop: services/instance_identity.py.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from tailnet.store.callers import change_callers, pieces
from tailnet.store.part import Part, reads, writes
from tailnet.store.rows import InstanceAgent
from tailnet.store.schema import agent_tokens, agents
from tailnet.types import PeerID

# An agent asks for one at each start and keeps it in memory.  A machine that starts over and over needs the last one
# alone; eight are for the few processes of one that live side by side.
MAX_ISSUED_TOKENS: Final = 8
# Of one instance; templates have a handful of agents on a machine, and of replaced ones the oldest are of no use.
MAX_INSTANCE_AGENTS: Final = 64


class IssuedTokenTables(Part):
    """The part of the store that knows instances and issued tokens.  Every method raises StoreError."""

    @reads
    def agents_of_instance(self, connection: sa.Connection, instance_id: str) -> list[InstanceAgent]:
        """The agents that run on an instance, the newest first.  Sub-agents have tokens from their parents."""
        if not instance_id:
            return []
        query = (
            sa.select(agents.c.id, agents.c.name, agents.c.workspace_id)
            .where(agents.c.instance_id == instance_id, agents.c.parent_id.is_(None))
            .order_by(agents.c.created_at.desc(), agents.c.name, agents.c.id)
            .limit(MAX_INSTANCE_AGENTS)
        )
        return [InstanceAgent(*row) for row in connection.execute(query)]

    @writes
    def issue_agent_token(self, connection: sa.Connection, agent_id: PeerID, digest: bytes, now: datetime) -> bool:
        """Keep the digest of a further token of an agent, and as many before it as MAX_ISSUED_TOKENS allows.

        Returns False if there is no such agent.
        """
        # Locked, so that two at a time do not each leave the other one out of the count.
        row = connection.execute(sa.select(agents.c.id).where(agents.c.id == agent_id).with_for_update()).first()
        if row is None:
            return False
        table = agent_tokens.c
        newest = sa.select(table.digest).where(table.agent_id == agent_id)
        newest = newest.order_by(table.created_at.desc(), table.digest)
        kept = connection.execute(newest).scalars().all()
        pushed_out = kept[MAX_ISSUED_TOKENS - 1 :]
        if pushed_out:
            change_callers(connection, agent_tokens.delete().where(table.digest.in_(pushed_out)))
        # No cache knows this digest: nobody had it until now.  So none need forget.
        connection.execute(agent_tokens.insert().values(digest=digest, agent_id=agent_id, created_at=now))
        return True

    @writes
    def remove_expired(self, connection: sa.Connection, now: datetime) -> int:
        """End the tokens whose time of grace is over.  Returns how many there were."""
        return change_callers(connection, agent_tokens.delete().where(agent_tokens.c.expires_at <= now))

    @reads
    def find_expired(self, connection: sa.Connection, now: datetime) -> bool:
        """Whether there is one whose time of grace is over."""
        found = sa.select(agent_tokens.c.digest).where(agent_tokens.c.expires_at <= now).limit(1)
        return connection.execute(found).first() is not None

    @reads
    def count_issued(self, connection: sa.Connection, agent_id: PeerID) -> int:
        """How many issued tokens of an agent are good."""
        count = sa.select(sa.func.count()).select_from(agent_tokens).where(agent_tokens.c.agent_id == agent_id)
        return int(connection.execute(count).scalar_one())


def keep_for_grace(
    connection: sa.Connection, agent_id: PeerID, digest: bytes, now: datetime, expires_at: datetime
) -> None:
    """Have a token that was an agent's own be good until then, inside a write transaction."""
    connection.execute(
        agent_tokens.insert().values(digest=digest, agent_id=agent_id, created_at=now, expires_at=expires_at)
    )


def revoke_issued(connection: sa.Connection, agent_ids: Iterable[PeerID]) -> int:
    """End all issued tokens of these agents, inside a write transaction.  Returns how many there were."""
    ended = [agent_tokens.delete().where(agent_tokens.c.agent_id.in_(piece)) for piece in pieces(agent_ids)]
    return change_callers(connection, *ended)
