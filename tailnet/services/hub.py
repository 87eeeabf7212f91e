"""Carries the coordinator's effects out: every update is encoded once, however many peers receive it.  Layer L3.

tailnet_rpc.py -> coordinator/core.py -> Hub.carry_out -> transport/channel.py.  The hub drops a receiver that does not
read, so that no other peer waits for it.
"""

import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from tailnet.coordinator.core import OVERWRITTEN, Coordinator
from tailnet.coordinator.messages import Deliver, Effect, EndConnection, Request, SendError, Update
from tailnet.proto.coordination import encode_error, encode_updates
from tailnet.transport.channel import Channel, Connected

_log = logging.getLogger("tailnet.server")


class Receiver(Hashable, Protocol):
    """A peer's Coordinate stream, or a websocket of version 1 (legacy.py)."""

    @property
    def tenant(self) -> str:
        """Whose peer it is, for the limits of relays; empty: nobody's."""
        ...

    def send_updates(self, payload: bytes, updates: Sequence[Update]) -> bool:
        """Send one CoordinateResponse, encoded in `payload`; False when the peer's buffer is full."""
        ...

    def send_error(self, text: str) -> None:
        """Tell the peer what it did wrong, if its protocol has a word for it."""
        ...

    def end(self, text: str) -> None:
        """End the stream; the core has forgotten the peer already."""
        ...


class CoordinateCall:
    """A Coordinate RPC in hand.  The core names the connection by this object, which is hashed by its identity."""

    __slots__ = ("_send", "call_id", "channel", "deciding", "waiting")

    def __init__(self, channel: Channel, call_id: int) -> None:
        self.channel = channel
        self.call_id = call_id
        self._send = channel.connection.send_message
        # The request that waits for a decision, and those that came behind it; None while nothing is being decided.
        self.deciding: Request | None = None
        self.waiting: deque[bytes] | None = None

    @property
    def tenant(self) -> str:
        tenant: str = self.channel.caller.tenant
        return tenant

    def send_updates(self, payload: bytes, updates: Sequence[Update]) -> bool:
        if not self._send(self.call_id, payload):
            return False
        channel = self.channel
        if not channel.is_dirty:
            channel.touch()
        return True

    def send_error(self, text: str) -> None:
        self._send(self.call_id, encode_error(text))
        self.channel.touch()

    def end(self, text: str) -> None:
        self.channel.calls.pop(self.call_id, None)
        self.channel.connection.finish(self.call_id)
        self.channel.touch()


class Hub:
    """Joins one Coordinator to the channels of its peers.  Called from the reactor's thread only."""

    def __init__(
        self,
        coordinator: Coordinator[Receiver],
        announced: Callable[[bytes, str], None] = lambda key, tenant: None,
        outward: Callable[[Effect[Receiver], float], None] | None = None,
    ) -> None:
        """`announced` is told the raw key of each node that the core takes, and whose peer it is; `outward` gets what a
        core with replicas says to those."""
        self.coordinator = coordinator
        self._announced = announced
        self._outward = outward
        self.on_overtaken: list[Callable[[Receiver], None]] = []
        """Called with a connection that another one of its peer's id is about to end."""
        self.overflow_count = 0
        self.delivered_count = 0

    def handle_request(self, connection: Receiver, request: Request, now: float) -> None:
        """Give the core a peer's request, and do what it says."""
        effects = self.coordinator.handle_request(connection, request, now)
        node = request.node
        if node is not None and self.coordinator.node_is(connection, node):
            self._announced(node.public_key, connection.tenant)
        if effects:
            self.carry_out(effects, now)

    def connection_of(self, channel: Connected) -> Receiver | None:
        """The channel as the core knows it; None when it does not coordinate, or another one has its id now."""
        connection = self.coordinator.connection_of(channel.caller.peer_id)
        # Of version 1 the channel itself is the connection, of others the Coordinate call of a channel.
        holder: object = connection.channel if isinstance(connection, CoordinateCall) else connection
        return connection if holder is channel else None

    def carry_out(self, effects: Sequence[Effect[Receiver]], now: float) -> None:
        """Do what the core said, in its order, and whatever the core says about receivers that were full."""
        waiting = deque(effects)
        while waiting:
            effect = waiting.popleft()
            if isinstance(effect, Deliver):
                updates = effect.updates
                payload = encode_updates(updates)
                self.delivered_count += len(effect.receivers)
                for receiver in effect.receivers:
                    if not receiver.send_updates(payload, updates):
                        self.overflow_count += 1
                        waiting.extend(self.coordinator.handle_overflow(receiver, now))
            elif isinstance(effect, SendError):
                effect.connection.send_error(effect.text)
            elif isinstance(effect, EndConnection):
                if effect.reason == OVERWRITTEN:
                    for notify in self.on_overtaken:
                        notify(effect.connection)
                effect.connection.end(effect.reason)
            elif self._outward is not None:
                self._outward(effect, now)
