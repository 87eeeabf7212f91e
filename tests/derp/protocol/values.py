"""Hypothesis strategies for DERP messages, and the genuine client's descriptions of them."""

from ipaddress import IPv4Address, IPv6Address
from typing import Any

from hypothesis import strategies as st

from derp.keys import MeshKey
from derp.protocol.messages import (
    ClientInfo,
    ClosePeer,
    ForwardPacket,
    Health,
    KeepAlive,
    Message,
    NotePreferred,
    PeerGone,
    PeerPresent,
    Ping,
    PlainMessage,
    Pong,
    RecvPacket,
    Restarting,
    SendPacket,
    ServerInfo,
    WatchConns,
)

keys = st.binary(min_size=32, max_size=32)
packets = st.binary(max_size=200)
pings = st.binary(min_size=8, max_size=8)
u32 = st.integers(0, 0xFFFFFFFF)
# ::ffff:0:0/96 and :: are other values on the wire (an IPv4 address, no address).
ipv6 = st.integers(1, (1 << 128) - 1).filter(lambda number: number >> 32 != 0xFFFF).map(IPv6Address)
addresses = st.one_of(st.none(), st.ip_addresses(v=4), ipv6)
# No lone surrogates: UTF-8 has none.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)

client_messages: st.SearchStrategy[PlainMessage] = st.one_of(
    st.builds(SendPacket, keys, packets),
    st.builds(ForwardPacket, keys, keys, packets),
    st.builds(NotePreferred, st.booleans()),
    st.builds(WatchConns),
    st.builds(ClosePeer, keys),
    st.builds(Ping, pings),
    st.builds(Pong, pings),
)
server_messages: st.SearchStrategy[PlainMessage] = st.one_of(
    st.builds(RecvPacket, keys, packets),
    st.builds(KeepAlive),
    st.builds(PeerGone, keys, st.integers(0, 255)),
    st.builds(PeerPresent, keys, addresses, st.integers(0, 65535), st.integers(0, 255)),
    st.builds(Ping, pings),
    st.builds(Pong, pings),
    st.builds(Health, texts),
    st.builds(Restarting, u32, u32),
)
mesh_keys = keys.filter(any).map(MeshKey)
int64 = st.integers(-(1 << 63), (1 << 63) - 1)
client_infos = st.builds(ClientInfo, st.one_of(st.none(), mesh_keys), int64, st.booleans(), st.booleans(), texts)
server_infos = st.builds(ServerInfo, int64, int64, int64, int64)


def from_description(described: dict[str, Any]) -> Message:
    """A message as tests/interop/go/cmd/derpvectors describes what the genuine client received."""
    match described["type"]:
        case "ServerInfo":  # the genuine client does not pass the version on
            return ServerInfo(2, described["bytes_per_second"], described["burst"])
        case "RecvPacket":
            return RecvPacket(bytes.fromhex(described["src"]), bytes.fromhex(described["packet"]))
        case "KeepAlive":
            return KeepAlive()
        case "PeerGone":
            return PeerGone(bytes.fromhex(described["key"]), described["reason"])
        case "PeerPresent":
            text = described["address"]
            address = None if not text else IPv6Address(text) if ":" in text else IPv4Address(text)
            return PeerPresent(bytes.fromhex(described["key"]), address, described["port"], described["flags"])
        case "Ping":
            return Ping(bytes.fromhex(described["payload"]))
        case "Pong":
            return Pong(bytes.fromhex(described["payload"]))
        case "Health":
            return Health(described["text"])
        case "Restarting":
            return Restarting(described["reconnect_in_ms"], described["try_for_ms"])
    raise AssertionError(described)
