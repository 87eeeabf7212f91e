"""Rights while they are used: who lost one is sent away, with its sockets, tunnels and streams.  Layer L3.

Admission asks the store once, when a peer comes in.  The store counts every change of callers, and auth/backends.py
reads that count twice a second; whenever the count has moved, this service asks about every peer that is inside.  It
ends connections through transport/channel.py and tunnels through coordinator/core.py.  A user's websockets of the API
watch their own token (api/streams.py).
"""

import logging
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

import trio

from derp.close_reason import CloseReason
from derp.log import fields
from derp.protocol.websocket import CloseCode
from derp.transport.host import Host
from tailnet.auth.backends import CHECK_SECONDS, EXPIRY_SECONDS, Credential, Standing, StoreCallers
from tailnet.coordinator.core import REASON_REVOKED
from tailnet.coordinator.policy import ClientPolicy, ManyAgentsPolicy
from tailnet.refusals import Refused
from tailnet.services.hub import CoordinateCall, Hub, Receiver
from tailnet.store.rows import AgentIdentity, Right, UserIdentity
from tailnet.transport.channel import Connected
from tailnet.types import PeerID

_log = logging.getLogger("tailnet.server")

# Peers asked about in one look at the store: it takes some milliseconds, in which the reactor serves nobody.
MAX_ASKED: Final = 500


class Rights:
    """One per server; `run` is one task.  `open_channels` gives all that are open now."""

    def __init__(self, callers: StoreCallers, host: Host, hub: Hub, open_channels: Iterable[Connected]) -> None:
        self._callers = callers
        self._host = host
        self._hub = hub
        self._open = open_channels
        self.revoked_connections = 0
        self.revoked_tunnels = 0

    async def run(self) -> None:
        """Send away whoever lost a right, within a second, until cancelled."""
        generation = self._callers.generation
        while True:
            before = generation
            with trio.move_on_after(EXPIRY_SECONDS):
                generation = await self._callers.wait_changed(generation)
            await self.look()
            if generation != before:
                # Somebody may have been let in meanwhile by what was known before; a second look finds him.
                await trio.sleep(CHECK_SECONDS)
                await self.look()

    async def look(self) -> None:
        """Ask about every peer, and carry out what follows.  A store that cannot be read takes no rights away."""
        everybody = iter(tuple(self._open))
        while some := tuple(islice(everybody, MAX_ASKED)):
            try:
                standing = await self._ask(some)
            except Refused:
                return
            self._host.tick()
            for channel in some:
                if channel in self._open:
                    self._judge(channel, standing)
            self._host.flush()

    async def _ask(self, channels: Sequence[Connected]) -> Standing:
        credentials: set[Credential] = set()
        agent_ids: set[PeerID] = set()
        for channel in channels:
            caller = channel.caller
            if caller.credential is not None:
                credentials.add(caller.credential)
            if isinstance(caller.policy, ClientPolicy):
                agent_ids.add(caller.policy.agent_id)
            elif isinstance(caller.policy, ManyAgentsPolicy):
                agent_ids.update(self._tunnels_of(channel))
        return await self._callers.standing(credentials, agent_ids)

    def _judge(self, channel: Connected, standing: Standing) -> None:
        caller = channel.caller
        now = standing.callers.get(caller.credential)
        if now is None or now.id != caller.identity.id:
            self._revoke(channel, "its token is good no more")
            return
        caller.identity = now  # names, and whose it is, may be others now
        policy = caller.policy
        if isinstance(policy, ClientPolicy) and not self._may_reach(now, standing.agents.get(policy.agent_id)):
            self._revoke(channel, "its agent is gone, or may not be reached by it any more")
        elif isinstance(policy, ManyAgentsPolicy):
            connection = self._connection_of(channel)
            lost = [each for each in self._tunnels_of(channel) if not self._may_reach(now, standing.agents.get(each))]
            if lost and connection is not None:
                self.revoked_tunnels += len(lost)
                _log.info("! %s: %d tunnels end, for what they lead to is gone or not its own", caller.name, len(lost))
                effects = self._hub.coordinator.handle_revoke_tunnels(connection, lost)
                self._hub.carry_out(effects, self._host.now)

    def _revoke(self, channel: Connected, why: str) -> None:
        self.revoked_connections += 1
        told = fields(event="revoked", caller=channel.caller.name, reason=why)
        _log.info("! %s is sent away: %s", channel.caller.name, why, extra=told)
        connection = self._connection_of(channel)
        if connection is not None:
            now = self._host.now
            self._hub.carry_out(self._hub.coordinator.handle_revoke(connection, now), now)
        channel.close(CloseCode.POLICY_VIOLATION, f"{REASON_REVOKED}: {why}", CloseReason.NOT_ADMITTED)

    def _tunnels_of(self, channel: Connected) -> list[PeerID]:
        connection = self._connection_of(channel)
        return [] if connection is None else self._hub.coordinator.tunnels_of(connection)

    def _connection_of(self, channel: Connected) -> Receiver | None:
        """The channel as the core knows it; None when it does not coordinate, or another one has its id now."""
        connection = self._hub.coordinator.connection_of(channel.caller.peer_id)
        # Of version 1 the channel itself is the connection, of others the Coordinate call of a channel.
        holder: object = connection.channel if isinstance(connection, CoordinateCall) else connection
        return connection if holder is channel else None

    def _may_reach(self, user: AgentIdentity | UserIdentity, agent: AgentIdentity | None) -> bool:
        return isinstance(user, UserIdentity) and agent is not None and Right.SSH in self._callers.rights(user, agent)
