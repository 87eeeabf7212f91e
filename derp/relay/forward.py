"""The hot path: packets relayed in place, a run of frames at a time.  Layer L1: no I/O.

SendPacket (type, length, destination key) and RecvPacket (type, length, source key) have equal lengths, so relaying is
overwriting 37 bytes where they were received.  Nothing here allocates, awaits or logs per packet.  What goes to one
destination without a gap stays one slice.  Next hop: the router's `dirty` list, flushed by server/session.py.
"""

from typing import Final

from derp.errors import RemoteProtocolError
from derp.protocol.frames import HEADER, HEADER_BYTES, KEY_BYTES, MAX_FORWARD_BYTES, MAX_SEND_BYTES
from derp.relay.clients import Client
from derp.relay.counters import DISCO_MAGIC, DISCO_MIN_BYTES, Counters, DropReason
from derp.relay.queue import count_lost, frame_starts
from derp.relay.router import Route, Router
from derp.relay.siblings import Arrivals, SiblingRoute

_SEND: Final = 0x04
_FORWARD: Final = 0x0A
_RECV_BYTE: Final = b"\x05"
_HEAD: Final = HEADER_BYTES + KEY_BYTES
_FORWARD_HEAD: Final = HEADER_BYTES + 2 * KEY_BYTES
_DISCO_FIRST: Final = DISCO_MAGIC[0]
_DISCO_SEND_BYTES: Final = KEY_BYTES + DISCO_MIN_BYTES


def relay_packets(
    buffer: bytearray, view: memoryview, at: int, end: int, source: Client, router: Router | Arrivals, now: float
) -> int:
    """Relay the SendPacket frames that lie whole in `buffer[at:end]`; return where the first other or unfinished
    frame begins.  RemoteProtocolError, once all before it was relayed, for a length no SendPacket may have.

    Slices of `view`, a memoryview of `buffer`, go to destinations: the bytes must stay until these were flushed.
    """
    routes = router.routes
    source_key = source.key
    reached = source.member.sent_to if source.member is not None else None
    packets = packet_bytes = discos_seen = 0
    pending_to: Route | None = None  # where the frames from `start` on go; it has not got them yet
    start = at
    while end - at >= _HEAD:
        head = buffer[at : at + _HEAD]
        if head[0] != _SEND:
            break
        length = (head[1] << 24) | (head[2] << 16) | (head[3] << 8) | head[4]
        size = HEADER_BYTES + length
        stop = at + size
        if stop > end or not KEY_BYTES <= length <= MAX_SEND_BYTES:
            break  # a wrong length is judged below, when the packets before it are on their way
        destination = routes.get(bytes(head[HEADER_BYTES:]))
        if destination is not pending_to:
            if pending_to is not None:
                pending_to.pending.append(view[start:at])
                pending_to.pending_bytes += at - start
            start, pending_to = at, None
        run_start, discos = at, 0
        new_head: bytes | bytearray = head
        if destination is not None and not destination.is_forwarder:
            new_head = _RECV_BYTE + head[1:HEADER_BYTES] + source_key
            pending_to = destination
        # Frames with the same first 37 bytes (type, length, destination): a tunnel's full-size packets come so.
        if length >= _DISCO_SEND_BYTES:
            while True:
                buffer[at : at + _HEAD] = new_head
                if buffer[at + _HEAD] == _DISCO_FIRST and buffer.startswith(DISCO_MAGIC, at + _HEAD):
                    discos += 1
                at = stop
                stop += size
                if stop > end or buffer[at : at + _HEAD] != head:
                    break
        else:
            while True:
                buffer[at : at + _HEAD] = new_head
                at = stop
                stop += size
                if stop > end or buffer[at : at + _HEAD] != head:
                    break
        count = (at - run_start) // size
        packets += count
        packet_bytes += count * (length - KEY_BYTES)
        discos_seen += discos
        if destination is None:
            router.drop_unknown(source, bytes(head[HEADER_BYTES:]), count, length - KEY_BYTES, discos, now)
            continue
        if not destination.is_dirty:
            destination.is_dirty = True
            router.dirty.append(destination)
        destination.packets_out += count
        destination.bytes_out += count * (length - KEY_BYTES)
        if destination.is_forwarder:
            _wrap_for_mesh(view, run_start, at, size, source_key, destination, router.counters)
        elif reached is None or destination not in reached:
            reached = router.remember(source, destination)
    if pending_to is not None:
        pending_to.pending.append(view[start:at])
        pending_to.pending_bytes += at - start
    if packets:
        counters = router.counters
        source.packets_in += packets
        source.bytes_in += packet_bytes
        counters.packets_received += packets
        counters.bytes_received += packet_bytes
        counters.disco_received += discos_seen
    if end - at >= HEADER_BYTES and buffer[at] == _SEND:
        _check_length("SendPacket", buffer, at, KEY_BYTES, MAX_SEND_BYTES)
    return at


def _check_length(name: str, buffer: bytearray, at: int, least: int, most: int) -> None:
    """Raise for a length that `name` may not have; the five bytes of its header suffice, so nobody waits for more."""
    length = int.from_bytes(buffer[at + 1 : at + HEADER_BYTES], "big")
    if not least <= length <= most:
        raise RemoteProtocolError(f"{name} of {length} bytes, allowed are {least} to {most}")


def _wrap_for_mesh(
    view: memoryview, at: int, end: int, size: int, source_key: bytes, link: Route, counters: Counters
) -> None:
    """Hand SendPacket frames of `size` bytes each to another relay as ForwardPacket: two pieces a packet, no copy."""
    count = (end - at) // size
    if isinstance(link, SiblingRoute):
        link.take_run(view, at, end, source_key, count, counters)
        return
    head = HEADER.pack(_FORWARD, size - HEADER_BYTES + KEY_BYTES) + source_key
    pieces = link.pending
    for frame_at in range(at, end, size):
        pieces.append(head)
        pieces.append(view[frame_at + HEADER_BYTES : frame_at + size])
    link.pending_bytes += count * (size + KEY_BYTES)
    counters.packets_forwarded_out += count
    counters.bytes_forwarded_out += count * (size - _HEAD)


def relay_forwarded(
    buffer: bytearray, view: memoryview, at: int, end: int, mesh: Client, router: Router, now: float
) -> int:
    """Deliver the ForwardPacket frames that lie whole in `buffer[at:end]` to clients of this relay, and while it leaves
    to where they went; return where the first other or unfinished frame begins.  The caller checked that `mesh` may
    forward.

    The source key is moved over the destination key, so each packet is again one slice of the buffer.
    """
    members = router.members
    counters = router.counters
    while end - at >= _FORWARD_HEAD and buffer[at] == _FORWARD:
        length = int.from_bytes(buffer[at + 1 : at + HEADER_BYTES], "big")
        if not 2 * KEY_BYTES <= length <= MAX_FORWARD_BYTES:
            break
        stop = at + HEADER_BYTES + length
        if stop > end:
            break
        source_key = bytes(buffer[at + HEADER_BYTES : at + _HEAD])
        key = bytes(buffer[at + _HEAD : at + _FORWARD_HEAD])
        packet_bytes = length - 2 * KEY_BYTES
        counters.packets_forwarded_in += 1
        counters.bytes_forwarded_in += packet_bytes
        member = members.get(key)
        destination = member.active if member is not None else None
        if destination is None:
            if router.pass_to_sibling(buffer, view, at, stop):
                pass
            elif router.is_leaving and member is not None:
                _pass_on(view, at, stop, source_key, router.routes[key], router)
            else:
                is_disco = packet_bytes >= DISCO_MIN_BYTES and buffer.startswith(DISCO_MAGIC, at + _FORWARD_HEAD)
                router.drop_forwarded(mesh, key, packet_bytes, is_disco, now)
        else:
            buffer[at + KEY_BYTES : at + _FORWARD_HEAD] = HEADER.pack(0x05, length - KEY_BYTES) + source_key
            if not destination.is_dirty:
                destination.is_dirty = True
                router.dirty.append(destination)
            destination.pending.append(view[at + KEY_BYTES : stop])
            destination.pending_bytes += stop - at - KEY_BYTES
            destination.packets_out += 1
            destination.bytes_out += packet_bytes
            source = members.get(source_key)
            if source is not None and (source.sent_to is None or destination not in source.sent_to):
                source.remember(destination)
        at = stop
    if end - at >= HEADER_BYTES and buffer[at] == _FORWARD:
        _check_length("ForwardPacket", buffer, at, 2 * KEY_BYTES, MAX_FORWARD_BYTES)
    return at


def forward_again(frames: bytes, link: Route, router: Router) -> None:
    """ForwardPackets that `link` did not take before it ended go where else their clients are, or are counted."""
    view = memoryview(frames)
    for at, end in frame_starts(view):
        member = router.members.get(frames[at + _HEAD : at + _FORWARD_HEAD]) if frames[at] == _FORWARD else None
        route = member.active or member.mailbox if member is not None else None
        if route is None and member is not None:
            route = next((other for other in member.forwarders if other is not link), None)
        if route is None:
            count_lost(frames[at:end], DropReason.WRITE_ERROR, router.counters)
        else:
            router.counters.packets_forwarded_in += 1  # back, or it would be sent twice in the sums of metrics.py
            router.counters.bytes_forwarded_in += end - at - _FORWARD_HEAD
            _pass_on(view, at, end, frames[at + HEADER_BYTES : at + _HEAD], route, router)


def _pass_on(view: memoryview, at: int, end: int, source_key: bytes, route: Route, router: Router) -> None:
    """Hand a ForwardPacket to where its client is now: to a mailbox of ours, a connection, or the relay that has it.

    Two relays that leave at once may pass one to and fro until each knows that the other has not got the client.
    """
    packet_bytes = end - at - _FORWARD_HEAD
    route.packets_out += 1
    route.bytes_out += packet_bytes
    if route.is_forwarder:
        router.counters.packets_forwarded_out += 1
        router.counters.bytes_forwarded_out += packet_bytes
        router.push(route, (view[at:end],))
    else:
        # One piece: queues of clients take whole frames.
        head = HEADER.pack(_RECV_BYTE[0], KEY_BYTES + packet_bytes) + source_key
        router.push(route, (b"".join((head, view[at + _FORWARD_HEAD : end])),))
