"""Clients that go with their sockets from one process to the one that replaces it, and notice nothing.  Layer L3.

One after the other: the old process stops reading a client and hands it over, the new one reads on, and packets between
those who went and those who have not cross by the mesh of the two (succession.py), in order (protocol/settle.py).
Workers, which have no such mesh, read none of those who go before all have come.  Each client is one message on a pair
of Unix sockets that the new process inherits, with the client's own socket; TLS clients go if their records are ours
(transport/tls_records.py).  Who cannot go is drained.  Called by life.py.
"""

import logging
import math
import socket
from typing import Any, Final, NamedTuple

import msgpack
import trio

from derp.close_reason import CloseReason
from derp.log import fields
from derp.protocol.websocket import WebSocketDecoder
from derp.relay.clients import Client
from derp.relay.queue import STEP_BYTES
from derp.relay.router import Router
from derp.server.handover import Handed
from derp.server.session import ClientSession, Sessions
from derp.server.succession import Succession
from derp.server.upgrade import MAX_WEBSOCKET_MESSAGE_BYTES
from derp.text import error_text
from derp.transport.descriptors import receive_with_socket, send_with_socket
from derp.transport.links import Link
from derp.transport.tls_records import RecordKeeper, RecordLink

_log = logging.getLogger("derp.server")

# What a client's message may have of its own bytes: unparsed ones, and those that its socket did not take.  Whoever
# reads so slowly that there are more is drained.  A message is one datagram of the kernel, 208 KiB at most by default.
_MAX_BYTES: Final = 64 * 1024
# Keys of whose end the client wants to hear: 1,024 of them, 32 KiB.  It hears of more when it sends to them.
_MAX_HEARD_KEYS: Final = 1_024
_MESSAGE_BYTES: Final = 256 * 1024
# How long the other process may take to fetch one client, or to give the next one.
_STUCK_SECONDS: Final = 5.0
# So many are on their way at once: each is away until those before it have arrived, and takes 0.5 to 1 ms.
_MOST_UNDERWAY: Final = 16
# If none arrives for so long, nobody says so any more: without an end 10,000 clients would wait half an hour for that.
_ARRIVAL_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.001
_END: Final = msgpack.packb(None)
# Changed with what a message holds: a process that does not know the number lets its clients be drained.
_VERSION: Final = 1
KIND: Final = f"moving-{_VERSION}"
# What a message raises that another program made.  One of a version with the same number is as we make it.
_NOT_UNDERSTOOD: Final = (ValueError, TypeError, LookupError, msgpack.UnpackException)
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


async def move_clients(sessions: Sessions, channel: socket.socket, *, one_by_one: bool = False) -> int:
    """Hand over all clients that can go; return how many went.  `channel` is closed.

    `one_by_one`: those who have not gone are read on, since packets between them and the others keep their order: the
    two processes are meshed.
    """
    host, router = sessions.host, sessions.router
    router.is_leaving = True  # packets for those who went wait until the other process has them, or follow them there
    going = [client for client in router.clients.values() if _can_go(sessions, client)]
    paused = [] if one_by_one else [client.wire for client in going if not client.wire.paused]
    for wire in paused:
        host.pause(wire)
    moved, hears = 0, one_by_one
    with trio.socket.from_stdlib_socket(channel) as end:
        try:
            for client in going:
                hears = hears and await _few_underway(router)
                host.tick()
                if client.member is None or not _can_go(sessions, client):
                    continue  # it was sent away meanwhile, or much came for it
                await _hand_over(sessions, client, end)
                moved += 1
            with trio.fail_after(_STUCK_SECONDS):
                await end.send(_END)
        except (OSError, trio.TooSlowError):
            _log.warning("! the other process takes no more clients: the others are drained")
    for wire in paused:
        if wire in host.wires:
            host.resume(wire)
    host.flush()
    _log.info("= %d clients went with their connections", moved, extra=fields(event="moved", clients_count=moved))
    return moved


async def _few_underway(router: Router) -> bool:
    """Wait until most of those who went have arrived; False if the other process, which announces them, does not."""
    with trio.move_on_after(_ARRIVAL_SECONDS):
        while len(router.mailboxes) >= _MOST_UNDERWAY:  # noqa: ASYNC110
            await trio.sleep(_LOOK_SECONDS)
    return len(router.mailboxes) < _MOST_UNDERWAY


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
    host.release(wire)
    packed = _pack(client, host.now)
    member = client.member
    sessions.router.send_off(client, host.now)
    sessions.mail_alarm.look()
    sessions.advisor.note_departure(client, member)
    try:
        with trio.fail_after(_STUCK_SECONDS):
            await send_with_socket(end, packed, wire.sock)
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
    told |= {"tenant": client.named_tenant}
    told |= {"caller": list(wire.address), "kept": bytes(wire.kept), "tail": bytes(wire.tail), "queued": queued}
    told |= {"is_websocket": wire.codec is not None, "tls": wire.export() if isinstance(wire, RecordLink) else None}
    packed: bytes = msgpack.packb(told)
    return packed


# --- the process that comes


class _Came(NamedTuple):
    """A client, and what of it is no attribute.  `heard`: the keys from which it has had packets."""

    client: Client
    age: float
    is_preferred: bool
    heard: list[bytes]
    queued: list[bytes]


async def receive_clients(
    sessions: Sessions, keeper: RecordKeeper | None, channel: socket.socket, *, predecessor: Succession | None = None
) -> int:
    """Take clients until the old process has no more; return how many came.  `channel` is closed.

    `keeper`: that of our TLS; without one, whoever comes with TLS gets one of his own kind.  `predecessor`: the mesh
    with the old process, which reads its clients until they go; without one nobody is read before all have come.
    """
    keeper = keeper or RecordKeeper()
    waiting: list[_Came] = []
    came = 0
    with trio.socket.from_stdlib_socket(channel) as end:
        while True:
            try:
                with trio.fail_after(_STUCK_SECONDS if came else math.inf):
                    packed, sock = await receive_with_socket(end, _MESSAGE_BYTES)
            except (OSError, trio.TooSlowError):
                _log.warning("! the other process gives no more clients: they come anew")
                break
            if sock is None:  # it has said that there are no more, or has ended
                break
            try:
                one = _read(sessions, keeper, sock, packed)
            except _NOT_UNDERSTOOD as error:
                sock.close()
                sessions.lobby.count_closed(CloseReason.INTERNAL_ERROR)
                _log.error("! a client of the other process is not understood, and comes anew: %s", error_text(error))
                continue
            if predecessor is not None:
                predecessor.note_leaving()
            _adopt(sessions, one)
            came += 1
            if predecessor is None:
                waiting.append(one)
            else:
                _go_on(sessions, one)
    sessions.host.tick()
    for one in waiting:
        _go_on(sessions, one)
    if came:
        text = "= %d clients came with their connections"
        _log.info(text, came, extra=fields(event="moved in", clients_count=came))
    return came


def _go_on(sessions: Sessions, came: _Came) -> None:
    """Read a client that is here, behind what it sent to the old process."""
    members, client = sessions.router.members, came.client
    for key in came.heard:
        if client.member is not None and key in members:
            members[key].remember(client)
    sessions.read_in_order(client)
    sessions.host.flush()


def _read(sessions: Sessions, keeper: RecordKeeper, sock: socket.socket, packed: bytes) -> _Came:
    """What a message says of a client, of which nobody here knows yet.  Raises _NOT_UNDERSTOOD."""
    told = msgpack.unpackb(packed)
    host_name, port, *_ = told["caller"]
    address = (host_name, port)
    sock.setblocking(False)
    wire = Link(sock, address) if told["tls"] is None else RecordLink.restored(sock, address, keeper, *told["tls"])
    if told["is_websocket"]:
        wire.codec = WebSocketDecoder(True, MAX_WEBSOCKET_MESSAGE_BYTES)
    wire.kept, wire.tail = told["kept"], told["tail"]
    client = Client(told["key"], sessions.router.next_number(), wire, sessions.host.tick())
    for name in _KEPT:
        setattr(client, name, told[name])
    client.named_tenant = str(told.get("tenant", ""))  # a process that knows no tenants sends none
    client.tenant = sessions.tenant_of(client.key, client.named_tenant)
    wire.session = ClientSession(sessions, client)
    return _Came(client, told["age"], told["is_preferred"], told["heard"], told["queued"])


def _adopt(sessions: Sessions, came: _Came) -> None:
    """The client is here as it was, and not read yet."""
    host, router, client = sessions.host, sessions.router, came.client
    wire, now = client.wire, host.now
    for notify in sessions.on_adopt:
        notify(client)
    host.add(wire)
    host.pause(wire)
    router.register(client)
    if came.is_preferred:
        router.handle_note_preferred(client, True, now)
    client.connected_at = now - came.age  # only now: to come with one's home is no move of it
    if came.queued or wire.tail:
        client.queue = router.new_queue(client)
        for frames in came.queued:
            client.queue.push_frames(frames, now)
        wire.blocked = True  # until the set says otherwise, at once if there is room
        host.await_room(wire)
    sessions.advisor.note_arrival(client)
    for notify in sessions.on_register:
        notify(client)
    host.flush()
