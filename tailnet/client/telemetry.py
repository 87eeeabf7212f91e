"""What a node tells its coordinator of its connections, if its user wants that: PostTelemetry.  Layer L3.

    telemetry = Telemetry("my program", node_key)
    telemetry.connected(...); telemetry.direct(...); telemetry.disconnected()
    await telemetry.post(rpc)       # a task of each connection
Off unless an application gives its name.  Addresses are told as hashes and by their kind; a coordinator that does not
serve the RPC (code 12) is told nothing more.  Caller: node/membership.py.  Schema: tailnet/proto/tailnet.proto.
"""

import hashlib
import logging
import os
import time
from collections import deque
from ipaddress import ip_address
from typing import Final

import trio

from tailnet.client.coordination import node_id
from tailnet.client.rpc import RpcClient
from tailnet.errors import CODE_UNIMPLEMENTED, RpcError
from tailnet.proto import convert
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.proto.services import POST_TELEMETRY

_log = logging.getLogger("tailnet.client")

# Events that wait for a connection; the oldest goes first.  A node has three for each connection that it makes.
MAX_WAITING: Final = 64
MAX_APPLICATION_CHARACTERS: Final = 64


class Telemetry:
    """Of one node.  Its methods note what happened and never wait."""

    def __init__(self, application: str, node_key: bytes) -> None:
        self.is_on = bool(application)
        self._application = application[:MAX_APPLICATION_CHARACTERS]
        self._node_id = node_id(node_key)
        self._began = trio.current_time()
        self._connected_at: float | None = None
        self._waiting: deque[tailnet.TelemetryEvent] = deque(maxlen=MAX_WAITING)
        self._is_posting = False
        self._changed = trio.lowlevel.ParkingLot()

    def connected(self, peer_key: bytes, home: int, relay_seconds: float | None) -> None:
        """A peer answered for the first time, by a relay or directly."""
        self._connected_at = trio.current_time()
        event = self._event(tailnet.TelemetryEvent.CONNECTED)
        event.node_id_remote, event.home_derp = node_id(peer_key), home
        event.connection_setup.CopyFrom(convert.duration(self._connected_at - self._began))
        if relay_seconds is not None:
            event.derp_latency.CopyFrom(convert.duration(relay_seconds))
        self._note(event)

    def direct(self, host: str, port: int, seconds: float) -> None:
        """The peer is reached directly."""
        event = self._event(tailnet.TelemetryEvent.CONNECTED)
        event.p2p_setup.CopyFrom(convert.duration(trio.current_time() - self._began))
        event.p2p_latency.CopyFrom(convert.duration(seconds))
        event.p2p_endpoint.CopyFrom(describe_endpoint(host, port))
        self._note(event)

    def disconnected(self) -> None:
        """The node ends."""
        if self._connected_at is not None:
            event = self._event(tailnet.TelemetryEvent.DISCONNECTED)
            event.connection_age.CopyFrom(convert.duration(trio.current_time() - self._connected_at))
            self._note(event)

    async def post(self, rpc: RpcClient) -> None:
        """Hand on what is noted, until cancelled, or refused.  Raises TransportError; what was in hand is lost then."""
        while self.is_on:
            while not self._waiting:
                await self._changed.park()
            events = list(self._waiting)
            self._waiting.clear()
            self._is_posting = True
            try:
                await rpc.call(POST_TELEMETRY, tailnet.TelemetryRequest(events=events), tailnet.TelemetryResponse)
            except RpcError as error:
                _log.debug("the coordinator takes no telemetry: %s", error)
                self.is_on = error.code != CODE_UNIMPLEMENTED
                return  # the next connection may
            finally:
                self._is_posting = False
                self._changed.unpark_all()

    async def wait_posted(self) -> None:
        """Until nothing waits; set a deadline."""
        while self.is_on and (self._waiting or self._is_posting):
            await self._changed.park()

    def _event(self, status: tailnet.TelemetryEvent.Status) -> tailnet.TelemetryEvent:
        event = tailnet.TelemetryEvent(id=os.urandom(16), application=self._application, status=status)
        event.time.FromNanoseconds(time.time_ns())
        event.client_type = tailnet.TelemetryEvent.CLI
        event.node_id_self = self._node_id
        return event

    def _note(self, event: tailnet.TelemetryEvent) -> None:
        if self.is_on:
            self._waiting.append(event)
            self._changed.unpark_all()


def describe_endpoint(host: str, port: int) -> tailnet.TelemetryEvent.P2PEndpoint:
    """An address without the address: a hash of it, its family and its kind."""
    address = ip_address(host)
    if address.is_loopback:
        kind = tailnet.IPFields.LOOPBACK
    elif address.is_link_local:
        kind = tailnet.IPFields.LINK_LOCAL
    else:
        kind = tailnet.IPFields.PRIVATE if address.is_private else tailnet.IPFields.PUBLIC
    fields = tailnet.IPFields(version=address.version)
    setattr(fields, "class", kind)
    return tailnet.TelemetryEvent.P2PEndpoint(hash=hashlib.sha256(address.packed).hexdigest(), port=port, fields=fields)
