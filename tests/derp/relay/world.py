"""A router whose clients have no sockets: what each was sent is read from the gather lists, as the flush does."""

from collections import defaultdict
from collections.abc import Sequence

from derp.close_reason import CloseReason
from derp.protocol.frames import FrameReader
from derp.protocol.messages import Message, SendPacket, encode, parse_from_server
from derp.relay.clients import Client
from derp.relay.counters import DISCO_MAGIC
from derp.relay.forward import relay_packets
from derp.relay.inbound import handle_frames
from derp.relay.mailbox import Mailbox
from derp.relay.mesh import MeshRoute
from derp.relay.router import Route, Router

OWN_KEY = b"R" * 32


def key(name: str) -> bytes:
    """A public key that is easy to recognise."""
    return name.encode().ljust(32, b".")


def disco(size: int = 62, fill: bytes = b"d") -> bytes:
    """A packet that looks like path discovery."""
    return DISCO_MAGIC + fill * (size - len(DISCO_MAGIC))


class World:
    """One relay's brain.  `now` moves only when a test moves it."""

    def __init__(
        self,
        *,
        queue_depth: int = 512,
        queue_bytes: int = 2 * 1024 * 1024,
        queue_total: int = 1 << 40,
        own_key: bytes = OWN_KEY,
    ) -> None:
        self.router = Router(own_key, queue_depth=queue_depth, queue_bytes=queue_bytes, queue_total=queue_total)
        self.now = 1000.0
        self.sent: dict[Route, bytearray] = defaultdict(bytearray)
        self.closed: list[tuple[Client, CloseReason]] = []

    def connect(
        self,
        name: str,
        *,
        address: str = "",
        port: int = 0,
        is_mesh_peer: bool = False,
        is_prober: bool = False,
        is_ideal: bool = True,
        wire: object = None,
    ) -> Client:
        number = self.router.next_number()
        client = Client(
            key(name),
            number,
            wire,
            self.now,
            address=address,
            port=port,
            is_mesh_peer=is_mesh_peer,
            is_prober=is_prober,
            is_ideal=is_ideal,
        )
        self.router.register(client)
        return client

    def leave(self, client: Client) -> None:
        self.router.unregister(client)

    def mesh(self, name: str, *keys: str, max_keys: int = 1000) -> MeshRoute:
        """A link to another relay that announced these clients."""
        route = MeshRoute(self.router, key(name), None, max_keys)
        self.router.mesh_links.append(route)
        for announced in keys:
            route.keys.add(key(announced))
            self.router.add_forwarder(key(announced), route)
        return route

    def packet(self, source: Client, to: str | bytes, packet: bytes = b"hello") -> None:
        """A SendPacket frame arrives from `source`, alone."""
        dst = key(to) if isinstance(to, str) else to
        buffer = bytearray(encode(SendPacket(dst, packet)))
        assert relay_packets(buffer, memoryview(buffer), 0, len(buffer), source, self.router, self.now) == len(buffer)
        self.flush()

    def receive(self, source: Client, *receives: bytes) -> None:
        """Bytes of `source` arrive in so many receives; what is unfinished is kept and put before the next, as the
        reactor does.  RemoteProtocolError as from handle_frames, once what came before it was delivered."""
        kept = b""
        for received in receives:
            buffer = bytearray(kept + received)
            try:
                rest = handle_frames(buffer, memoryview(buffer), 0, len(buffer), source, self.router, self.now)
            finally:
                self.flush()
            kept = bytes(buffer[rest:])

    def flush(self) -> None:
        """What the plane does after a batch, without sockets."""
        router = self.router
        while router.dirty or router.closing:
            dirty, router.dirty = router.dirty, []
            for route in dirty:
                assert route.is_dirty
                route.is_dirty = False
                pieces = tuple(route.pending)
                joined = b"".join(pieces)
                assert len(joined) == route.pending_bytes
                route.pending.clear()
                route.pending_bytes = 0
                if not joined:
                    continue
                if isinstance(route, Mailbox):
                    route.wire.send([joined], len(joined))
                elif route.queue is not None:
                    for piece in (joined,) if route.is_forwarder else pieces:
                        route.queue.push_frames(piece, self.now, of_one_source=not route.is_forwarder)
                else:
                    self.sent[route] += joined
            closing, router.closing = router.closing, []
            for client, reason in closing:
                self.closed.append((client, reason))
                router.unregister(client)

    def take(self, route: Route) -> Sequence[Message]:
        """What the route was sent since it was last asked, as messages."""
        self.flush()
        reader = FrameReader(1 << 24)
        messages = [
            parse_from_server(kind, payload) for kind, payload in reader.receive_data(self.sent.pop(route, b""))
        ]
        assert reader.trailing_data() == b""
        return messages
