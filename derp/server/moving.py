"""Clients that go with their sockets from one process to the one that replaces it, and notice nothing.  Layer L3.

The old process stops reading all that can go, and only then hands over the first, so no byte is read twice; the new one
reads none of them before it has the last, so no packet finds its receiver not there yet.  Meanwhile their bytes wait in
the kernel.  Each is one message on a pair of Unix sockets that the new process inherits, with the client's own socket;
TLS clients go if their records are ours (transport/tls_records.py).  Who cannot go is drained.  Called by life.py.
"""

import array
import logging
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import msgpack
import trio

from derp.close_reason import CloseReason
from derp.log import fields
from derp.protocol.websocket import WebSocketDecoder
from derp.relay.clients import Client
from derp.relay.queue import STEP_BYTES
from derp.server.handover import Handed
from derp.server.session import ClientSession, Sessions
from derp.server.upgrade import MAX_WEBSOCKET_MESSAGE_BYTES
from derp.transport.links import Link
from derp.transport.tls_records import RecordKeeper, RecordLink

_log = logging.getLogger("derp.server")

# What a client's message may have of its own bytes: unparsed ones, and those that its socket did not take.  Whoever
# reads so slowly that there are more is drained.  A message is one datagram of the kernel, 208 KiB at most by default.
_MAX_BYTES: Final = 64 * 1024
# Keys of whose end the client wants to hear: 1,024 of them, 32 KiB.  It hears of more when it sends to them.
_MAX_HEARD_KEYS: Final = 1_024
_MESSAGE_BYTES: Final = 256 * 1024
_FD_BYTES: Final = socket.CMSG_SPACE(array.array("i").itemsize)
# How long the other process may take to fetch one client: it has nothing else to do yet.
_STUCK_SECONDS: Final = 5.0
_END: Final = msgpack.packb(None)
# Changed with what a message holds: a process that does not know the number lets its clients be drained.
_VERSION: Final = 1
KIND: Final = f"moving-{_VERSION}"
# Of Client: what stays as it is in the new process.
_KEPT: Final = (
    *("key", "address", "port", "is_prober", "is_ideal", "can_ack_pings", "app_name"),
    *("skip_bytes", "packets_in", "bytes_in", "packets_out", "bytes_out"),
)


def open_channel() -> tuple[socket.socket | None, list[Handed]]:
    """Our end, and the other process's as one of the sockets that it is handed; neither where the system has none."""
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:  # macOS
        return None, []
    ours.setblocking(False)
    return ours, [Handed(KIND, "", 0, theirs)]


# --- the process that leaves


async def move_clients(sessions: Sessions, channel: socket.socket) -> int:
    """Hand over all clients that can go; return how many went.  `channel` is closed."""
    host, router = sessions.host, sessions.router
    host.tick()
    host.flush()
    going = [client for client in router.clients.values() if _can_go(sessions, client)]
    wires = [client.wire for client in going]
    for wire in wires:
        host.release(wire)  # nobody reads it any more; what is sent to it still goes
    router.is_leaving = True  # packets for those who went wait until the other process has them, or follow there
    moved = 0
    with trio.socket.from_stdlib_socket(channel) as end:
        try:
            for client in going:
                if client.member is None or not _can_go(sessions, client):
                    continue  # it was sent away meanwhile, or much came for it
                await _hand_over(sessions, client, end)
                moved += 1
            with trio.fail_after(_STUCK_SECONDS):
                await end.send(_END)
        except (OSError, trio.TooSlowError):
            _log.warning("! the other process takes no more clients: the others are drained")
    _take_back(sessions, wires)
    _log.info("= %d clients went with their connections", moved, extra=fields(event="moved", clients_count=moved))
    return moved


def _can_go(sessions: Sessions, client: Client) -> bool:
    """Whether all that a client is can be told in a message.  Relays and guests on terms come anew."""
    wire = client.wire
    if type(wire.session) is not ClientSession or sessions.guests.terms_of(client) is not None:
        return False
    if client.is_mesh_peer or client.is_own or client.is_watcher or wire.ending is not None:
        return False
    if wire.codec is not None and not wire.codec.is_between_messages:
        return False
    if isinstance(wire, RecordLink):
        if wire.export() is None:
            return False
    elif type(wire) is not Link:
        return False
    queued = client.queue.held_bytes + client.queue.notice_bytes if client.queue is not None else 0
    return len(wire.kept) + len(wire.tail) + queued <= _MAX_BYTES


async def _hand_over(sessions: Sessions, client: Client, end: trio.socket.SocketType) -> None:
    host, wire = sessions.host, client.wire
    packed = _pack(client, host.now)
    member = client.member
    sessions.router.send_off(client, host.now)
    sessions.advisor.note_departure(client, member)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [wire.fd]))
    try:
        with trio.fail_after(_STUCK_SECONDS):
            await end.sendmsg([packed], [rights])
    finally:
        wire.sock.close()  # the other process has it, or nobody can tell any more what it has
        session, wire.session = wire.session, None
        session.ended(CloseReason.DRAINED, "went to the new process")
        host.flush()


def _pack(client: Client, now: float) -> bytes:
    wire, queued = client.wire, []
    while client.queue is not None and (taken := client.queue.take(STEP_BYTES, now)):
        queued += taken
    heard = [member.key for member in client.heard_from or ()][:_MAX_HEARD_KEYS]
    told: dict[str, Any] = {name: getattr(client, name) for name in _KEPT}
    told |= {"age": now - client.connected_at, "is_preferred": client.is_preferred, "heard": heard}
    told |= {"caller": list(wire.address), "kept": bytes(wire.kept), "tail": bytes(wire.tail), "queued": queued}
    told |= {"is_websocket": wire.codec is not None, "tls": wire.export() if isinstance(wire, RecordLink) else None}
    packed: bytes = msgpack.packb(told)
    return packed


def _take_back(sessions: Sessions, wires: list[Link]) -> None:
    """Those of them that are still here are read again."""
    host = sessions.host
    for wire in wires:
        if wire.session is None:  # it went
            continue
        wire.paused = wire.wants_out = False
        host.add(wire)
        if wire.blocked or wire.tail:
            host.await_room(wire)


# --- the process that comes


async def receive_clients(sessions: Sessions, keeper: RecordKeeper | None, channel: socket.socket) -> int:
    """Take clients until the old process has no more, then read them all; return how many came.  `channel` is closed.

    `keeper`: that of our TLS; without one, whoever comes with TLS gets one of his own kind.
    """
    keeper = keeper or RecordKeeper()
    came: list[tuple[Client, list[bytes]]] = []
    with trio.socket.from_stdlib_socket(channel) as end, suppress(OSError):
        while True:
            packed, rights, _, _ = await end.recvmsg(_MESSAGE_BYTES, _FD_BYTES)
            if not rights:  # it has said that there are no more, or has ended
                break
            (fd,) = array.array("i", rights[0][2])
            told = msgpack.unpackb(packed)
            came.append((_adopt(sessions, keeper, socket.socket(fileno=fd), told), told["heard"]))
    sessions.host.tick()
    members = sessions.router.members
    for client, heard in came:
        for key in heard:
            if client.member is not None and key in members:
                members[key].remember(client)
    for client, _ in came:
        if client.member is not None:
            sessions.host.resume(client.wire)
    sessions.host.flush()
    if came:
        text = "= %d clients came with their connections"
        _log.info(text, len(came), extra=fields(event="moved in", clients_count=len(came)))
    return len(came)


def _adopt(sessions: Sessions, keeper: RecordKeeper, sock: socket.socket, told: Mapping[str, Any]) -> Client:
    """A client as it was, which is not read yet."""
    host, router = sessions.host, sessions.router
    sock.setblocking(False)
    host_name, port, *_ = told["caller"]
    address = (host_name, port)
    wire = Link(sock, address) if told["tls"] is None else RecordLink.restored(sock, address, keeper, *told["tls"])
    if told["is_websocket"]:
        wire.codec = WebSocketDecoder(True, MAX_WEBSOCKET_MESSAGE_BYTES)
    now = host.tick()
    client = Client(told["key"], router.next_number(), wire, now)
    for name in _KEPT:
        setattr(client, name, told[name])
    wire.session = ClientSession(sessions, client)
    wire.kept, wire.tail = told["kept"], told["tail"]
    host.add(wire)
    host.pause(wire)
    router.register(client)
    if told["is_preferred"]:
        router.handle_note_preferred(client, True, now)
    client.connected_at = now - told["age"]  # only now: to come with one's home is no move of it
    if told["queued"] or wire.tail:
        client.queue = router.new_queue(client)
        for frames in told["queued"]:
            client.queue.push_frames(frames, now)
        wire.blocked = True  # until the set says otherwise, at once if there is room
        host.await_room(wire)
    sessions.advisor.note_arrival(client)
    for notify in sessions.on_register:
        notify(client)
    host.flush()
    return client
