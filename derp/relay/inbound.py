"""What a registered client sends: from the bytes of one receive to the router.  Layer L1: no I/O.

Packets stay where they were received (relay/forward.py).  Every other frame becomes a value here, and then a call of
the router.  server/session.py calls `handle_frames` once for each receive; next hop: relay/forward.py, relay/router.py.
"""

from typing import Final

from derp.errors import Flood, RemoteProtocolError
from derp.protocol.frames import HEADER, HEADER_BYTES, MAX_UNKNOWN_BYTES, FrameType
from derp.protocol.messages import ClosePeer, NotePreferred, Ping, UnknownFrame, WatchConns, parse_from_client
from derp.protocol.settle import SETTLE, parse_settle
from derp.relay.clients import Client
from derp.relay.forward import relay_forwarded, relay_packets
from derp.relay.router import Router

# Control frames of one client in a second.  An honest one sends a handful; each costs us some 3 us, so this keeps a
# flood below 10 ms of everybody's time, and then its sender is closed.  Not per receive: a client whose bytes are dear
# is read in small pieces, and a slow machine makes them smaller.
MAX_CONTROL_FRAMES: Final = 3000
# The longest control frame a client may send is a ping; anything longer is unknown or wrong.
_MAX_KNOWN_CONTROL_BYTES: Final = 1000

_SEND: Final = FrameType.SEND_PACKET.value
_FORWARD: Final = FrameType.FORWARD_PACKET.value
_MESH_ONLY: Final = (FrameType.FORWARD_PACKET, FrameType.WATCH_CONNS, FrameType.CLOSE_PEER)


def handle_frames(
    buffer: bytearray, view: memoryview, at: int, end: int, client: Client, router: Router, now: float
) -> int:
    """Serve the whole frames in `buffer[at:end]`; return where an unfinished one begins, `end` if there is none.

    `view` is a memoryview of `buffer`; slices of it go to destinations, so the bytes must stay until these were
    flushed.  RemoteProtocolError for a frame no client may send, Flood for too many control frames at once: what came
    before is served, and the client has to be closed.
    """
    if client.is_duplicate:
        router.note_writer(client)
    if client.skip_bytes:
        skipped = min(client.skip_bytes, end - at)
        client.skip_bytes -= skipped
        at += skipped
    while True:
        at = relay_packets(buffer, view, at, end, client, router, now)
        if end - at < HEADER_BYTES:
            return at
        frame_type, length = HEADER.unpack_from(buffer, at)
        if frame_type == _SEND:
            return at
        if frame_type in _MESH_ONLY and not client.is_mesh_peer:
            raise RemoteProtocolError(f"frame 0x{frame_type:02x} is for mesh peers only")
        if frame_type == _FORWARD:
            before = at
            at = relay_forwarded(buffer, view, at, end, client, router, now)
            if at == before:
                return at
            continue
        if length > MAX_UNKNOWN_BYTES:
            raise RemoteProtocolError(f"frame 0x{frame_type:02x} of {length} bytes, limit {MAX_UNKNOWN_BYTES}")
        if now - client.controls_since >= 1.0:
            client.controls_since, client.controls = now, 0
        # A relay asks for each client that comes to it from another one, which may be thousands in a second.
        client.controls += not (client.is_mesh_peer and frame_type == SETTLE)
        if client.controls > MAX_CONTROL_FRAMES:
            raise Flood(f"more than {MAX_CONTROL_FRAMES} control frames at once")
        stop = at + HEADER_BYTES + length
        if length > _MAX_KNOWN_CONTROL_BYTES:
            # This raises for a known type, whose length is then wrong; an unknown frame is skipped as it arrives.
            parse_from_client(frame_type, bytes(length))
            router.counters.unknown_frames += 1
            if stop > end:
                client.skip_bytes = stop - end
                return end
        elif stop > end:
            return at
        else:
            handle_control(frame_type, bytes(buffer[at + HEADER_BYTES : stop]), client, router, now)
        at = stop


def handle_control(frame_type: int, payload: bytes, client: Client, router: Router, now: float) -> None:
    """Serve one frame that carries no packet.  RemoteProtocolError where the genuine relay closes its client."""
    if client.is_mesh_peer and frame_type == SETTLE:
        router.handle_settle(parse_settle(payload))
        return
    if client.member is None:
        return  # it was told that nothing more comes: its packets are relayed, and no question is answered
    match parse_from_client(frame_type, payload):
        case Ping(ping):
            router.handle_ping(client, ping)
        case NotePreferred(preferred):
            router.handle_note_preferred(client, preferred, now)
        case WatchConns():
            router.handle_watch_conns(client)
        case ClosePeer(key):
            router.handle_close_peer(key)
        case UnknownFrame():
            router.counters.unknown_frames += 1
        case _:
            pass  # a pong, or a frame that only relays send: genuine relays read past them too
