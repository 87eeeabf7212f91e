"""From gather lists to kernels: slow readers, sockets that fail under packets, notices, other relays' links; every
packet is delivered whole and in order, or counted as dropped, and nobody else waits."""

import contextlib
import gc
import random
import socket
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from derp.close_reason import CloseReason
from derp.keys import NodePrivate
from derp.protocol.connection import ClientConnection
from derp.protocol.frames import FrameReader, FrameType
from derp.protocol.messages import (
    ClosePeer,
    ForwardPacket,
    KeepAlive,
    Message,
    PeerGone,
    PeerPresent,
    Ping,
    Pong,
    RecvPacket,
    SendPacket,
    WatchConns,
    encode,
    parse_from_client,
)
from derp.relay.clients import Client
from derp.relay.counters import DropReason, PacketKind
from derp.relay.forward import forward_again
from derp.relay.mesh import MeshRoute
from derp.relay.queue import PacketQueue
from derp.server.mesh import MeshSession
from derp.transport.links import Link
from tests.derp.server.bare_relay import KINDS, MESH_KEY, BareRelay, Peer
from tests.support.wires import PlainWire, socket_pair

SMALL = 4096
DISCO = b"TS\xf0\x9f\x92\xac" + bytes(56)


@pytest.fixture
def bare() -> Iterator[BareRelay]:
    with BareRelay() as bare:
        yield bare


def numbered(count: int, size: int = 1000) -> list[bytes]:
    return [number.to_bytes(4, "big") * (size // 4) for number in range(count)]


def packets_of(messages: list[Message], source: Peer | None = None) -> list[bytes]:
    return [
        message.packet
        for message in messages
        if isinstance(message, RecvPacket) and (source is None or message.src == source.key)
    ]


def send_in_turns(bare: BareRelay, sender: Peer, receiver: Peer, packets: list[bytes]) -> None:
    """A few at a time, so that the relay sees them in several batches."""
    for at in range(0, len(packets), 20):
        sender.send_packets(receiver, *packets[at : at + 20])
        bare.serve()


def queue_of(peer: Peer) -> PacketQueue | None:
    return peer.client.queue


# --- slow readers


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_reader_that_stopped_finds_what_was_on_the_way_and_the_freshest(kind: str, tcp: bool) -> None:
    with BareRelay(queue_depth=50) as bare:
        sender, bystander = bare.connect(), bare.connect("websocket")
        receiver = bare.connect(kind, buffer_bytes=SMALL, tcp=tcp)
        packets = numbered(1000)
        for at in range(0, len(packets), 100):
            send_in_turns(bare, sender, receiver, packets[at : at + 100])
            sender.send_packets(bystander, b"not delayed")
            bare.serve()
            assert bystander.read_packets() == [b"not delayed"]
        queue = queue_of(receiver)
        assert queue is not None
        assert queue.packets <= 50
        got = packets_of(bare.serve_reading(receiver)[receiver])
        on_the_way = len(got) - 50
        assert on_the_way > 0
        if not tcp:  # kernels of TCP hand on what they hold at their leisure, so there may be several gaps
            assert got[:on_the_way] == packets[:on_the_way]
        assert got == sorted(set(got))
        assert got[-50:] == packets[-50:]
        counters = bare.router.counters
        assert counters.dropped(DropReason.QUEUE_HEAD) == sum(counters.packets_dropped) == 1000 - len(got)
        assert bare.totals() == (len(got) + 10, sum(map(len, got)) + 110)
        assert queue_of(receiver) is None
        assert bare.reactor.blocked == set()
        # It reads again, so nothing detours through a queue.
        queued = counters.queued_packets
        sender.send_packets(receiver, b"direct")
        assert packets_of(bare.serve_reading(receiver)[receiver]) == [b"direct"]
        assert counters.queued_packets == queued >= 50


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
    sizes=st.lists(st.one_of(st.integers(0, 100), st.integers(0, 65_536)), min_size=1, max_size=25),
)
def test_a_kernel_that_is_full_at_any_byte_breaks_no_frame(kind: str, seed: int, sizes: list[int]) -> None:
    """Room for everything, two senders, a reader that takes bits now and then: each sender's packets arrive whole."""
    generator = random.Random(seed)
    with BareRelay(queue_depth=10_000, queue_bytes=1 << 26) as bare:
        senders = [bare.connect(), bare.connect("websocket")]
        receiver = bare.connect(kind, buffer_bytes=SMALL)
        sent: dict[Peer, list[bytes]] = {sender: [] for sender in senders}
        got: list[Message] = []
        for size in sizes:
            sender = generator.choice(senders)
            sent[sender].append(generator.randbytes(size))
            sender.send_packets(receiver, sent[sender][-1])
            if generator.random() < 0.5:
                bare.serve()
            if generator.random() < 0.5:
                got += receiver.read()
        got += bare.serve_reading(receiver)[receiver]
        for sender in senders:
            assert packets_of(got, sender) == sent[sender]
        assert bare.totals() == (len(sizes), sum(sizes))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), depth=st.sampled_from((3, 20)))
def test_everybody_to_everybody_with_readers_of_all_sorts(data: st.DataObject, depth: int) -> None:
    """Each packet arrives whole, in the order of its pair, or is counted as dropped."""
    with BareRelay(queue_depth=depth, queue_bytes=200_000) as bare:
        peers = [bare.connect(kind, buffer_bytes=SMALL) for kind in KINDS]
        sent: dict[tuple[Peer, Peer], list[bytes]] = {(one, other): [] for one in peers for other in peers}
        got: dict[Peer, list[Message]] = {peer: [] for peer in peers}
        serial = 0
        for _ in range(data.draw(st.integers(1, 25))):
            sender, receiver = data.draw(st.sampled_from(peers)), data.draw(st.sampled_from(peers))
            size = data.draw(st.sampled_from((0, 100, 1300, 20_000, 65_536)))
            batch = []
            for _ in range(data.draw(st.integers(1, 8))):
                serial += 1
                batch.append(serial.to_bytes(4, "big") + bytes(max(size - 4, 0)))
            sender.send_packets(receiver, *batch)
            sent[sender, receiver] += batch
            if data.draw(st.booleans()):
                bare.serve()
            for peer in data.draw(st.sets(st.sampled_from(peers))):
                got[peer] += peer.read()
        for peer, messages in bare.serve_reading(*peers).items():
            got[peer] += messages
        arrived = 0
        for (sender, receiver), packets in sent.items():
            mine = packets_of(got[receiver], sender)
            remaining = iter(packets)
            assert all(packet in remaining for packet in mine), "damaged, doubled or out of order"
            arrived += len(mine)
        counters = bare.router.counters
        assert counters.packets_received == serial == arrived + sum(counters.packets_dropped)
        assert counters.dropped(DropReason.QUEUE_HEAD) == sum(counters.packets_dropped)
        assert bare.totals()[0] == arrived
        assert bare.reactor.blocked == set()


def test_a_queue_is_bounded_in_bytes() -> None:
    with BareRelay(queue_depth=10_000, queue_bytes=300_000) as bare:
        sender, receiver = bare.connect(), bare.connect(buffer_bytes=SMALL)
        for _ in range(30):
            sender.send_packets(receiver, bytes(60_000), DISCO)
            bare.serve()
        queue = receiver.client.queue
        assert queue is not None
        assert queue.held_bytes <= 300_000 + 32 * (37 + 62)
        assert len(receiver.near.tail) < 70_000


def test_a_sparse_sender_is_not_stuck_behind_a_bulk_sender(bare: BareRelay) -> None:
    bulk, sparse, receiver = bare.connect(), bare.connect(), bare.connect(buffer_bytes=SMALL)
    send_in_turns(bare, bulk, receiver, numbered(400))
    sparse.send_packets(receiver, b"sparse")
    bare.serve()
    got = packets_of(bare.serve_reading(receiver)[receiver])
    # Before it: what the kernels held already, and one take from the queue.
    assert got.index(b"sparse") < 400 - 300
    assert len(got) == 401


def test_notices_overtake_the_packets_of_a_slow_reader(bare: BareRelay) -> None:
    sender, leaving, receiver = bare.connect(), bare.connect(), bare.connect(buffer_bytes=SMALL)
    leaving.send_packets(receiver, b"before")
    bare.serve()
    send_in_turns(bare, sender, receiver, numbered(300))
    leaving.wire.close()
    bare.serve()
    bare.sessions.keep_alive(receiver.client)
    bare.reactor.flush()
    got = bare.serve_reading(receiver)[receiver]
    places = [number for number, message in enumerate(got) if not isinstance(message, RecvPacket)]
    assert [got[place] for place in places] == [PeerGone(leaving.key, 0), KeepAlive()]
    assert places[1] < len(got) - 200
    assert packets_of(got, sender) == numbered(300)


def test_a_keep_alive_is_one_empty_frame(bare: BareRelay) -> None:
    peer = bare.connect()
    bare.sessions.keep_alive(peer.client)
    bare.reactor.flush()
    assert peer.read() == [KeepAlive()]


def test_a_slow_reader_that_pings_gets_one_pong(bare: BareRelay) -> None:
    sender, receiver = bare.connect(), bare.connect(buffer_bytes=SMALL)
    send_in_turns(bare, sender, receiver, numbered(300))
    receiver.send(*[Ping(b"12345678")] * 100)
    bare.serve()
    got = bare.serve_reading(receiver)[receiver]
    assert [message for message in got if not isinstance(message, RecvPacket)] == [Pong(b"12345678")]


def test_a_login_behind_a_full_kernel_begins_with_a_queue() -> None:
    """ServerInfo is the first frame a client may see, and packets come after it, whatever the kernel takes."""
    with BareRelay() as bare:
        sender = bare.connect()
        peer = bare.open("plain", buffer_bytes=SMALL)
        filler = b"\x7f" + (60_000).to_bytes(4, "big") + bytes(60_000)  # a frame the client skips
        peer.near.push(filler)
        peer.read()
        peer.near.push(filler)
        bare.serve()
        sender.send_packets(peer, *numbered(10))
        bare.serve()
        got = bare.serve_reading(peer)[peer]
        assert packets_of(got) == numbered(10)
        names = [type(message).__name__ for message in got]
        assert names.index("ServerInfo") < names.index("RecvPacket")
        assert bare.reactor.blocked == set()


def fill_kernel(peer: Peer) -> None:
    """Until the relay's side takes no byte more, with frames that a client skips and that are never cut."""
    with contextlib.suppress(BlockingIOError):
        while True:
            peer.near.sock.send(b"\x7f\0\0\0\0")


def test_a_login_that_the_kernel_does_not_take_waits_for_room(bare: BareRelay) -> None:
    peer = bare.open(buffer_bytes=SMALL)
    peer.read()
    fill_kernel(peer)
    bare.serve()
    assert bare.reactor.blocked == {peer.near}
    assert [type(message).__name__ for message in bare.serve_reading(peer)[peer]][-1] == "ServerInfo"
    assert queue_of(peer) is None


@pytest.mark.parametrize("kind", ["plain", "websocket over tls"])
def test_a_mesh_peer_gets_the_whole_list_through_a_narrow_kernel(bare: BareRelay, kind: str) -> None:
    keys = [number.to_bytes(32, "big") for number in range(100, 4100)]
    for key in keys:
        bare.router.register(Client(key, bare.router.next_number(), None, bare.time, address="192.0.2.1"))
    mesh = bare.connect(kind, buffer_bytes=SMALL, mesh_key=MESH_KEY)
    mesh.send(WatchConns())
    bare.serve()
    late = bare.connect()
    got = bare.serve_reading(mesh)[mesh]
    announced = [message.key for message in got if isinstance(message, PeerPresent)]
    assert Counter(announced) == Counter([*keys, mesh.key, late.key])
    assert bare.router.counters.notices_dropped == 0


def test_a_mesh_peer_whose_list_does_not_fit_is_closed(bare: BareRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("derp.relay.router.MAX_MESH_NOTICE_BYTES", 50_000)  # 16 MiB are 300,000 clients
    for number in range(100, 4100):
        bare.router.register(Client(number.to_bytes(32, "big"), bare.router.next_number(), None, bare.time))
    mesh = bare.connect(buffer_bytes=SMALL, mesh_key=MESH_KEY)
    mesh.send(WatchConns())
    bare.serve()
    assert bare.closed() == {CloseReason.TOO_SLOW: 1}
    assert mesh.near not in bare.reactor.wires


# --- what is counted of flushes


def test_a_sample_says_how_many_frames_each_client_gets_at_once(bare: BareRelay) -> None:
    sender, receiver, third, slow = bare.connect(), bare.connect(), bare.connect(), bare.connect(buffer_bytes=SMALL)
    written = bare.router.counters.written_frames
    while queue_of(slow) is None:
        sender.send_packets(slow, *numbered(20))
        bare.serve()
    before = written.count
    assert before == 1  # the first flush of all was a sample, and it was not yet time for another one
    bare.time += 0.5
    bare.serve()
    assert written.count == before  # and now nothing was sent
    seen = list(written.seen)
    sender.send_packets(receiver, *numbered(3), DISCO)
    sender.send(Ping(b"12345678"))
    sender.send_packets(third, *numbered(150))
    sender.send_packets(slow, *numbered(2))  # which join a queue
    bare.serve()
    assert (written.seen[1] - seen[1], written.seen[4], written.beyond_sum, written.count - before) == (1, 1, 150, 3)
    sender.send_packets(receiver, b"not part of it")
    bare.serve()
    assert written.count - before == 3


def test_announcements_are_counted_by_watcher_and_batch(bare: BareRelay) -> None:
    counters = bare.router.counters
    watchers = [bare.connect(mesh_key=MESH_KEY) for _ in range(2)]
    here = [bare.connect() for _ in range(3)]
    for watcher in watchers:
        watcher.send(WatchConns())
    bare.serve()
    assert (counters.mesh_update_batches.seen[5], counters.mesh_update_batches.count) == (2, 2)
    # one that comes and watches in one batch has itself in its list; one that leaves is told nothing
    late = bare.open(mesh_key=MESH_KEY)
    late.read()
    late.send(WatchConns())
    bare.serve()
    assert (counters.mesh_update_batches.seen[1], counters.mesh_update_batches.seen[6]) == (2, 1)
    bare.reactor.close(late.near, CloseReason.CLOSED_BY_PEER)
    bare.reactor.flush()
    assert (counters.mesh_update_batches.seen[1], counters.mesh_update_batches.count) == (4, 7)
    assert counters.peer_gone_disconnected_frames == 2
    for peer in here:
        bare.reactor.close(peer.near, CloseReason.CLOSED_BY_PEER)
    bare.reactor.flush()
    assert (counters.mesh_update_batches.seen[3], counters.mesh_update_batches.count) == (2, 9)
    assert (counters.mesh_update_loops.seen[1], counters.mesh_update_loops.count) == (9, 9)
    # the notices that clients get of each other are the same frames, and counted with them, as the genuine relay does
    assert counters.peer_gone_disconnected_frames == 2 + 6
    for watcher in watchers:
        assert [type(message) for message in watcher.read()] == [PeerPresent] * 6 + [PeerGone] * 4


# --- sockets that fail


def test_packets_for_a_socket_that_failed_are_counted(bare: BareRelay) -> None:
    sender, receiver = bare.connect(), bare.connect()
    sender.send_packets(receiver, b"1")
    bare.serve()
    receiver.near.sock.shutdown(socket.SHUT_WR)  # the reactor does not see it before it writes
    receiver.send_packets(sender, b"in the same batch")
    sender.send_packets(receiver, b"22", b"333", DISCO)
    bare.serve()
    lost = 2 * DropReason.WRITE_ERROR
    counters = bare.router.counters
    assert counters.packets_dropped[lost : lost + 2] == [2, 1]
    assert counters.bytes_dropped[lost : lost + 2] == [5, 62]
    assert bare.closed() == {CloseReason.SOCKET_FAILED: 1}
    assert sender.read() == [RecvPacket(receiver.key, b"in the same batch"), PeerGone(receiver.key, 0)]
    assert bare.totals() == (2, 1 + 17)


def test_a_socket_that_fails_while_its_queue_is_sent(bare: BareRelay) -> None:
    sender, receiver = bare.connect(), bare.connect(buffer_bytes=SMALL)
    # The kernel is full right between two frames: nothing is half sent, everything waits in the queue.
    fill_kernel(receiver)
    sender.send_packets(receiver, *numbered(100))
    bare.serve()
    assert receiver.client.queue is not None
    assert (receiver.client.queue.packets, receiver.near.tail) == (100, b"")
    receiver.near.sock.shutdown(socket.SHUT_WR)
    receiver.read()
    bare.serve()
    counters = bare.router.counters
    taken = counters.dropped(DropReason.WRITE_ERROR)
    assert taken == 16 * 1024 // 1037
    assert counters.dropped(DropReason.GONE_DISCONNECTED) == 100 - taken
    assert sum(counters.packets_dropped) == 100
    assert bare.totals() == (0, 0)


def test_who_leaves_with_packets_queued(bare: BareRelay) -> None:
    sender, receiver = bare.connect(), bare.connect(buffer_bytes=SMALL)
    send_in_turns(bare, sender, receiver, [*numbered(100), DISCO])
    assert receiver.client.queue is not None
    waiting = receiver.client.queue.packets
    receiver.wire.close()
    bare.serve()
    gone = 2 * DropReason.GONE_DISCONNECTED
    assert bare.router.counters.packets_dropped[gone : gone + 2] == [waiting - 1, 1]
    assert bare.totals()[0] == 101 - waiting
    assert (bare.reactor.blocked, sender.read()) == (set(), [])


def test_who_leaves_in_the_batch_that_brings_packets_and_an_heir_of_its_number(bare: BareRelay) -> None:
    """One batch: packets for a client, its end, and a newcomer that the kernel gives the same descriptor."""
    gc.collect()  # what other tests left would be closed any time, and its number given
    sender, receiver, bystander = bare.connect(), bare.connect(), bare.connect()
    receiver.send_packets(bystander, b"before")
    bare.serve()
    bell, ringer = socket_pair()
    heirs: list[Peer] = []

    def accept() -> None:
        bell.recv(1)
        heirs.append(bare.open())

    bare.reactor.watch(bell.fileno(), accept, can_wait=True)  # as listeners do
    number = receiver.near.fd
    sender.send_packets(receiver, b"too late", DISCO)
    receiver.wire.close()
    ringer.send(b"!")
    bare.serve()
    (heir,) = heirs
    assert heir.near.fd == number, "the kernel gives the lowest number that is free"
    heir.read()
    bare.serve()
    assert [type(message).__name__ for message in heir.read()] == ["ServerInfo"]
    sender.send_packets(heir, b"welcome")
    bare.serve()
    assert heir.read_packets() == [b"welcome"]
    assert bystander.read() == [RecvPacket(receiver.key, b"before"), PeerGone(receiver.key, 0)]
    assert bare.router.counters.dropped(DropReason.GONE_DISCONNECTED) == 2
    assert bare.totals() == (2, 6 + 7)
    bare.reactor.unwatch(bell.fileno())
    bell.close()
    ringer.close()


def test_a_client_is_closed_once_however_many_want_it(bare: BareRelay) -> None:
    first, second = bare.connect(mesh_key=MESH_KEY), bare.connect(mesh_key=MESH_KEY)
    doomed = [bare.connect(private=NodePrivate(b"d" * 32)) for _ in range(3)]
    for mesh in (first, second, first):
        mesh.send(ClosePeer(doomed[0].key))
    doomed[1].wire.close()
    bare.serve()
    assert bare.closed() == {CloseReason.CLOSED_BY_MESH: 2, CloseReason.CLOSED_BY_PEER: 1}
    assert len(bare.router.clients) == 2


def test_churn_on_sockets_leaves_nothing_behind(bare: BareRelay) -> None:
    stays = bare.connect()
    for number in range(60):
        peer = bare.connect(KINDS[number % 2 * 2], buffer_bytes=SMALL)
        stays.send_packets(peer, *numbered(number))
        peer.send_packets(stays, b"hello")
        bare.serve()
        peer.wire.close()
        bare.serve()
        stays.read()
    assert list(bare.reactor.wires) == [stays.near]
    assert set(bare.router.members) == set(bare.router.routes) == {stays.key}
    assert (bare.reactor.blocked, len(bare.lobby.waiting), bare.router.dirty) == (set(), 0, [])
    counters = bare.router.counters
    assert counters.packets_received == 60 + sum(range(60)) == bare.totals()[0] + sum(counters.packets_dropped)


# --- the link to another relay


class OtherRelay:
    """The far end of one of our mesh connections, past its handshake; it announced `key`."""

    key = b"far".ljust(32, b".")

    def __init__(self, bare: BareRelay) -> None:
        near, far = socket_pair(SMALL)
        self.wire = PlainWire(far)
        self.reader = FrameReader(1 << 20)
        link = Link(near, ("127.0.0.1", 2))
        core = ClientConnection(NodePrivate(b"R" * 32), random_bytes=random.Random(1).randbytes, server_key=b"o" * 32)
        self.route = MeshRoute(bare.router, b"o" * 32, link, 100)
        link.session = MeshSession(bare.sessions, link, core, self.route, "other")
        bare.reactor.add(link)
        self.route.handle_message(PeerPresent(self.key))

    def read(self) -> list[Message]:
        frames = self.reader.receive_data(self.wire.read())
        return [parse_from_client(kind, payload) for kind, payload in frames if kind == FrameType.FORWARD_PACKET]


def test_packets_to_another_relay_wait_their_turn_too(bare: BareRelay) -> None:
    other = OtherRelay(bare)
    senders = [bare.connect(), bare.connect("websocket")]
    packets = numbered(120)
    for at in range(0, len(packets), 20):
        for sender in senders:
            sender.send(*(SendPacket(other.key, packet) for packet in packets[at : at + 20]))
        bare.serve()
    assert other.route.queue is not None
    got: list[Message] = []
    while len(got) < 240:
        got += other.read()
        bare.serve()
    for sender in senders:
        assert [one for one in got if isinstance(one, ForwardPacket) and one.src == sender.key] == [
            ForwardPacket(sender.key, other.key, packet) for packet in packets
        ]
    assert bare.router.counters.packets_forwarded_out == len(got) == 240
    assert bare.totals() == (0, 0)
    other.wire.close()


def test_a_relay_that_breaks_off_takes_its_packets_and_keys_along(bare: BareRelay) -> None:
    other = OtherRelay(bare)
    sender = bare.connect()
    for packet in numbered(100):
        sender.send(SendPacket(other.key, packet))
    sender.send(SendPacket(other.key, DISCO))
    bare.serve()
    other.wire.close()
    bare.serve()
    counters = bare.router.counters
    assert counters.packets_forwarded_out == 101
    assert counters.mesh_packets_dropped == counters.dropped(DropReason.WRITE_ERROR) > 0
    assert counters.packets_dropped[2 * DropReason.WRITE_ERROR + PacketKind.DISCO] == 1
    assert bare.totals() == (0, 0)
    assert other.key not in bare.router.routes
    sender.send(SendPacket(other.key, DISCO))
    bare.serve()
    assert sender.read() == [PeerGone(other.key, 1)]


def test_packets_of_a_broken_relay_queue_for_a_client_that_came_here(bare: BareRelay) -> None:
    other, sender, receiver = OtherRelay(bare), bare.connect(), bare.connect(buffer_bytes=SMALL)
    before = numbered(30)
    sender.send_packets(receiver, *before[:10])
    bare.serve()
    sent = b"".join(encode(ForwardPacket(other.key, receiver.key, packet)) for packet in before[10:])
    for at in range(0, len(sent), len(sent) // 4):  # into a kernel that becomes full, and behind a queue
        forward_again(sent[at : at + len(sent) // 4], other.route, bare.router)
        bare.reactor.flush()
    assert queue_of(receiver) is not None
    got = packets_of(bare.serve_reading(receiver)[receiver])
    assert sorted(got) == before
    assert (receiver.client.packets_out, receiver.client.bytes_out) == (30, 30_000)
    other.wire.close()


def test_packets_kept_for_a_client_that_came_back_queue_by_their_senders(bare: BareRelay) -> None:
    private = NodePrivate.generate()
    senders, receiver = [bare.connect(), bare.connect()], bare.connect(private=private)
    bare.router.is_leaving = True
    bare.router.send_off(receiver.client, bare.time)
    packets = numbered(60)
    for packet in packets[:40]:
        for sender in senders:
            sender.send_packets(receiver, packet)
        bare.serve()  # both in one batch
    receiver = bare.open(private=private, buffer_bytes=SMALL)
    assert receiver.read() == []
    bare.serve()  # it is in, and got a part
    for packet in packets[40:]:
        for sender in senders:
            sender.send_packets(receiver, packet)
    bare.serve()
    assert queue_of(receiver) is not None
    client, got = receiver.client, bare.serve_reading(receiver)[receiver]
    for sender in senders:
        assert packets_of(got, sender) == packets
    assert (client.packets_out, client.bytes_out) == (120, sum(map(len, packets_of(got))))
