"""Version 1 of the coordinate protocol: JSON nodes over a websocket, no RPC.  Layer L3.

A peer sends Node objects, one after the other, and gets arrays of Nodes; the version has no word for a peer that left.
Agents before 2.13 and clients before 2.0 speak it.  The same coordinator serves them, so that old and new peers meet.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, Final

from derp.close_reason import CloseReason
from derp.errors import KeyFormatError
from derp.keys import NodePublic
from derp.protocol.websocket import CloseCode, Opcode, close_frame, encode_header
from derp.text import error_text
from derp.transport.host import Wire, WireEnded
from tailnet.coordinator.core import OVERWRITTEN, REASON_CLOSE, REASON_OVERFLOW, REASON_REVOKED
from tailnet.coordinator.messages import Kind, Request, Update
from tailnet.errors import Flood, MalformedField, RemoteProtocolError
from tailnet.proto import convert
from tailnet.proto.coordination import node_value
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.proto.json_objects import ObjectCutter
from tailnet.services.hub import Hub
from tailnet.services.tailnet_rpc import Caller
from tailnet.transport.accounts import Account
from tailnet.transport.channel import Channels
from tailnet.types import PeerID

# The reference's rhythm; it also keeps proxies from closing a websocket on which nothing changes for hours.
PING_SECONDS: Final = 15.0
# A Node in JSON is about twice as long as in protobuf; the core judges it by the latter.
_JSON_FACTOR: Final = 4
# A node costs some 100 us, and is told to others.  A peer that changes networks sends a few.
MAX_NODES_AT_ONCE: Final = 64
MAX_NODES: Final = 3000  # in PING_SECONDS
# Arrays that wait for a peer that does not read: the reference's buffer of 512 updates, at 1 KiB each.
MAX_WAITING_BYTES: Final = 512 * 1024
_TEXTS: Final = ("addresses", "allowed_ips", "endpoints")
# Why the core ends a connection; everything else is a request that it refused.
_ENDINGS: Final = {
    REASON_CLOSE: (CloseCode.GOING_AWAY, CloseReason.DRAINED),
    REASON_OVERFLOW: (CloseCode.GOING_AWAY, CloseReason.TOO_SLOW),
    REASON_REVOKED: (CloseCode.POLICY_VIOLATION, CloseReason.NOT_ADMITTED),
    OVERWRITTEN: (CloseCode.NORMAL, CloseReason.CLOSED_BY_PEER),
}
# Go's zero time, for moments that RFC 3339 cannot say.
_NO_MOMENT: Final = "0001-01-01T00:00:00Z"


class LegacyChannel:
    """One websocket of a version 1 peer: a session of the reactor, by which the core names the connection.

    `start` it once it is the session of its wire.  `agent_id`: the one agent a client wants to reach; None for agents.
    """

    __slots__ = (
        "_agent_id",
        "_channels",
        "_ending",
        "_hub",
        "_left",
        "_max_waiting",
        "_nodes",
        "_waiting",
        "account",
        "caller",
        "charged_bytes",
        "wire",
    )

    def __init__(
        self,
        channels: Channels,
        hub: Hub,
        wire: Wire,
        caller: Caller,
        agent_id: PeerID | None,
        account: Account | None = None,
    ) -> None:
        self._channels = channels
        self.account = account
        self.charged_bytes = 0
        self._hub = hub
        self.wire = wire
        self.caller = caller
        longest = _JSON_FACTOR * hub.coordinator.limits.node_bytes
        self._nodes = ObjectCutter(longest, "a version 1 node")
        self._max_waiting = max(MAX_WAITING_BYTES, longest)
        self._left = MAX_NODES  # that may come before the next look
        self._waiting = b""
        self._ending = False
        self._agent_id = agent_id

    def start(self) -> None:
        """Become a peer.  Not before the wire has this session: the core may end the connection at once."""
        now = self._channels.host.now
        self._channels.open.add(self)
        self._channels.set_deadline(self, now + PING_SECONDS)
        hub = self._hub
        hub.carry_out(hub.coordinator.handle_connect(self.caller.peer_id, self.caller.policy, self, now), now)
        if self._agent_id is not None:
            hub.handle_request(self, Request(add_tunnel=self._agent_id), now)

    # --- towards the core

    def received(self, at: int, end: int) -> int:
        now = self._channels.host.now
        for at_once, value in enumerate(self._nodes.receive_data(bytes(self._channels.host.view[at:end]))):
            self._left -= 1
            if at_once >= MAX_NODES_AT_ONCE or self._left < 0:
                raise Flood(
                    f"a version 1 peer sends more than {MAX_NODES_AT_ONCE} nodes at once, or {MAX_NODES} in 15 s"
                )
            request = Request(node=node_value(node_from_json(value)))
            self._hub.handle_request(self, request, now)
        if self._nodes.held_bytes or self.charged_bytes:
            self._charge()
        return end

    def _charge(self) -> None:
        if not self._ending:
            self._channels.charge(self, self._nodes.held_bytes + len(self._waiting) + len(self.wire.tail))

    def ended(self, reason: CloseReason, text: str) -> None:
        now = self._channels.host.now
        self._hub.carry_out(self._hub.coordinator.handle_disconnect(self, False, now), now)
        self._channels.forget(self, reason, text)

    def handle_timeout(self, now: float) -> None:
        """Ask for a sign of life.  Nobody waits for it: a peer that is gone does not even acknowledge the question,
        and the kernel ends such a socket after its own time-out."""
        self._channels.set_deadline(self, now + PING_SECONDS)
        self._left = MAX_NODES
        wire = self.wire
        try:
            if not wire.tail:
                wire.send_raw(encode_header(Opcode.PING, 0))
            if wire.tail:
                self._channels.host.await_room(wire)
        except WireEnded as error:
            self._channels.host.fail(wire, error)

    # --- towards the peer

    @property
    def tenant(self) -> str:
        return self.caller.tenant

    def send_updates(self, payload: bytes, updates: Sequence[Update]) -> bool:
        nodes = [
            node_to_json(tailnet.Node.FromString(update.node.raw))
            for update in updates
            if update.kind is Kind.NODE and update.node is not None
        ]
        if not nodes:
            return True
        data = json.dumps(nodes, separators=(",", ":")).encode()
        if len(self._waiting) + len(data) > self._max_waiting:
            return False
        self._waiting += data
        self._send()
        return True

    def send_error(self, text: str) -> None:
        """This version has no word for errors; the close frame carries the reason."""

    def end(self, text: str) -> None:
        code, reason = _ENDINGS.get(text, (CloseCode.POLICY_VIOLATION, CloseReason.PROTOCOL_ERROR))
        self.close(code, text, reason)

    def close(self, code: CloseCode, text: str, reason: CloseReason) -> None:
        """Say why, and end."""
        if self._ending or self.wire.session is not self:
            return
        self._ending = True
        host = self._channels.host
        try:
            self.wire.send_raw(close_frame(code, text))
        except WireEnded as error:
            # A peer that took the id over may have caused this end; how this socket fails is no matter of its.
            host.fail(self.wire, error)
            return
        host.close(self.wire, reason, text)

    def writable(self) -> None:
        self._send()

    def _send(self) -> None:
        wire = self.wire
        if self._waiting and not wire.blocked:
            data, self._waiting = self._waiting, b""
            try:
                sent = wire.send([data], len(data))
            except WireEnded as error:
                self._channels.host.fail(wire, error)
                return
            if sent < len(data):
                wire.push(data[sent:])
        if wire.blocked:
            self._channels.host.await_room(wire)
        if wire.blocked or self.charged_bytes:
            self._charge()


def node_from_json(value: Any) -> tailnet.Node:
    """A Node as version 1 writes it.  RemoteProtocolError says which field is wrong."""
    if not isinstance(value, dict):
        raise RemoteProtocolError("a version 1 node is a JSON object")
    node = tailnet.Node()
    try:
        node.id = int(value.get("id") or 0)
        if value.get("as_of"):
            node.as_of.FromJsonString(value["as_of"])
        node.key = convert.node_key_bytes(NodePublic.parse(value.get("key") or ""))
        node.disco = value.get("disco") or ""
        node.preferred_derp = int(value.get("preferred_derp") or 0)
        for name, latency in (value.get("derp_latency") or {}).items():
            node.derp_latency[name] = latency
        for region, reason in (value.get("derp_forced_websockets") or {}).items():
            node.derp_forced_websocket[int(region)] = reason
        for name in _TEXTS:
            getattr(node, name).extend(value.get(name) or ())
    except (TypeError, ValueError, OverflowError, KeyFormatError, MalformedField, AttributeError) as error:
        raise RemoteProtocolError(f"malformed version 1 node: {error_text(error)}") from error
    return node


def node_to_json(node: tailnet.Node) -> dict[str, Any]:
    """A Node as version 1 reads it.  What a newer peer says and JSON cannot carry is left out, never an error."""
    try:
        # in Go's way, with as many digits as there are
        as_of = node.as_of.ToJsonString()
    except ValueError:
        as_of = _NO_MOMENT
    return {
        "id": node.id,
        "as_of": as_of,
        "key": str(convert.node_key(node.key)),
        "disco": node.disco,
        "preferred_derp": node.preferred_derp,
        "derp_latency": {name: seconds for name, seconds in node.derp_latency.items() if math.isfinite(seconds)},
        "derp_forced_websockets": {str(region): why for region, why in node.derp_forced_websocket.items()},
        "addresses": list(node.addresses),
        "allowed_ips": list(node.allowed_ips),
        "endpoints": list(node.endpoints),
    }
