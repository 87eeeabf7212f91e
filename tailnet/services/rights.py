"""Rights while they are used: who lost one is sent away, with its sockets, tunnels and streams.  Layer L3.

Admission asks once, when a peer comes in.  Whoever says who is calling (auth/callers.py) notes every change, and says
until when an answer holds that ends by itself: a token that expires, a word of the control plane.  This service asks
about every peer that is inside whenever something changed, and about those whose answer has ended twice a second.  It
ends connections through transport/channel.py and tunnels through coordinator/core.py.  A user's websockets of the API
watch their own token (api/streams.py).
"""

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from typing import Final

import trio

from derp.close_reason import CloseReason
from derp.log import fields
from derp.protocol.websocket import CloseCode
from derp.transport.host import Host
from tailnet.auth.callers import (
    CHECK_SECONDS,
    EXPIRY_SECONDS,
    TICK_SECONDS,
    Callers,
    Credential,
    OutsideToken,
    Standing,
)
from tailnet.coordinator.core import REASON_REVOKED
from tailnet.coordinator.policy import ClientPolicy, ManyAgentsPolicy
from tailnet.refusals import Refused
from tailnet.services.hub import Hub
from tailnet.store.rows import Right, Scope
from tailnet.transport.channel import Connected
from tailnet.types import PeerID

_log = logging.getLogger("tailnet.server")

# Peers asked about in one look at the store: it takes some milliseconds, in which the reactor serves nobody.
MAX_ASKED: Final = 500


class Rights:
    """One per server; `run` is one task.  `open_channels` gives all that are open now."""

    def __init__(
        self,
        callers: Callers,
        host: Host,
        hub: Hub,
        open_channels: Iterable[Connected],
        revoke_keys: Callable[[Collection[bytes], str], None] = lambda keys, tenant: None,
    ) -> None:
        """`revoke_keys`: relays should not let these of a tenant in any more, raw public keys."""
        self._revoke_keys = revoke_keys
        self._callers = callers
        self._host = host
        self._hub = hub
        self._open = open_channels
        self.revoked_connections = 0
        self.revoked_tunnels = 0

    async def run(self) -> None:
        """Send away whoever lost a right, within a second, until cancelled."""
        async with trio.open_nursery() as nursery:
            # Those about whom somebody outside is asked do not hold the others up.
            nursery.start_soon(self._follow, lambda channel: not _is_from_outside(channel))
            nursery.start_soon(self._follow, _is_from_outside)

    async def _follow(self, concerns: Callable[[Connected], bool]) -> None:
        changes = self._callers.changes
        seen = changes.count
        everybody_at = trio.current_time() + EXPIRY_SECONDS
        # Somebody may be let in during a look by what was known before the change; a second look finds him.
        recent: list[tuple[float, Scope | None]] = []
        while True:
            before = seen
            with trio.move_on_after(TICK_SECONDS):
                seen = await changes.wait(seen)
            now = trio.current_time()
            if seen != before:
                recent.append((now, changes.since(before)))
            if now >= everybody_at:
                everybody_at = now + EXPIRY_SECONDS
                await self.look(concerns)
            elif seen != before or (recent and now >= recent[0][0] + CHECK_SECONDS):
                await self.look(self._concerned(concerns, [scope for _, scope in recent]))
                recent = [each for each in recent if each[0] > now - CHECK_SECONDS]
            else:
                await self.look(lambda channel: channel.caller.ask_again_at <= now and concerns(channel), seen)  # noqa: B023  # called in place

    def _concerned(
        self, concerns: Callable[[Connected], bool], scopes: Iterable[Scope | None]
    ) -> Callable[[Connected], bool]:
        """Those of them whom changes may have been about.  To ask about all of 50,000 would be a second of CPU."""
        about = Scope()
        for scope in scopes:
            if scope is None:
                return concerns
            about |= scope
        return lambda channel: concerns(channel) and self._is_in(channel, about)

    def _is_in(self, channel: Connected, scope: Scope) -> bool:
        return (
            _is_from_outside(channel)
            or scope.concerns(channel.caller.identity)
            or any(scope.concerns(self._callers.remembered(each)) for each in self._reached_by(channel))
        )

    async def look(
        self, concerns: Callable[[Connected], bool] = lambda channel: True, unless_after: int | None = None
    ) -> None:
        """Ask about peers, and carry out what follows.  Who cannot be asked takes no rights away.

        `unless_after`: a count of changes; if there were some since, everybody is about to be asked about together.
        """
        everybody = iter([channel for channel in self._open if concerns(channel)])
        while some := tuple(islice(everybody, MAX_ASKED)):
            try:
                standing = await self._ask(some)
            except Refused:
                return
            if unless_after is not None and self._callers.changes.count != unless_after:
                return
            self._host.tick()
            for channel in some:
                if channel in self._open:
                    self._judge(channel, standing)
            self._host.flush()

    async def _ask(self, channels: Sequence[Connected]) -> Standing:
        asked: dict[Credential, Collection[PeerID]] = {}
        for channel in channels:
            caller = channel.caller
            if caller.credential is not None:
                asked[caller.credential] = {*asked.get(caller.credential, ()), *self._reached_by(channel)}
        return await self._callers.standing(asked)

    def _reached_by(self, channel: Connected) -> Collection[PeerID]:
        """The agents that it needs a right on, as long as it is inside."""
        policy = channel.caller.policy
        if isinstance(policy, ClientPolicy):
            return (policy.agent_id,)
        return self._tunnels_of(channel) if isinstance(policy, ManyAgentsPolicy) else ()

    def _judge(self, channel: Connected, standing: Standing) -> None:
        caller = channel.caller
        credential = caller.credential
        caller.ask_again_at = standing.until.get(credential, float("inf"))
        if credential in standing.unanswered:
            return
        now = standing.callers.get(credential)
        if now is None or now.id != caller.identity.id:
            self._revoke(channel, "its token is good no more")
            return
        caller.be(now)
        lost = [each for each in self._reached_by(channel) if Right.SSH not in standing.rights(credential, each)]
        connection = self._hub.connection_of(channel)
        if lost and isinstance(caller.policy, ClientPolicy):
            self._revoke(channel, "its agent is gone, or may not be reached by it any more")
        elif lost and connection is not None:
            self.revoked_tunnels += len(lost)
            _log.info("! %s: %d tunnels end, for what they lead to is gone or not its own", caller.name, len(lost))
            effects = self._hub.coordinator.handle_revoke_tunnels(connection, lost)
            self._hub.carry_out(effects, self._host.now)

    def _revoke(self, channel: Connected, why: str) -> None:
        self.revoked_connections += 1
        told = fields(event="revoked", caller=channel.caller.name, reason=why)
        _log.info("! %s is sent away: %s", channel.caller.name, why, extra=told)
        connection = self._hub.connection_of(channel)
        if connection is not None:
            now = self._host.now
            node = self._hub.coordinator.node_of(channel.caller.peer_id)
            if node is not None:
                self._revoke_keys((node.public_key,), channel.caller.tenant)
            self._hub.carry_out(self._hub.coordinator.handle_revoke(connection, now), now)
        channel.close(CloseCode.POLICY_VIOLATION, f"{REASON_REVOKED}: {why}", CloseReason.NOT_ADMITTED)

    def _tunnels_of(self, channel: Connected) -> list[PeerID]:
        connection = self._hub.connection_of(channel)
        return [] if connection is None else self._hub.coordinator.tunnels_of(connection)


def _is_from_outside(channel: Connected) -> bool:
    return isinstance(channel.caller.credential, OutsideToken)
