"""Direct links between replicas: TLS over TCP or a Unix socket, a proof of both sides, then frames.  Layer L2.

Each process makes itself a certificate.  Nobody vouches for it: both sides prove that they have the cluster's key, and
the proof holds the certificate's digest, so who sits in between has neither.  A stranger sees a TLS server that closes.

    dialler  -> magic, id, nonce            40 bytes
    listener -> magic, id, nonce, proof     72 bytes
    dialler  -> proof                       32 bytes
    both     -> u32 length, frame (replica/pair.py), and again
The magic says what the link is for: with the other one DERP follows, between the two relays (services/relay_mesh.py).
"""

import hashlib
import hmac
import logging
import secrets
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Final, TypeAlias

import trio

from derp.errors import ConnectError, TransportError
from derp.log import Rarely, and_more
from derp.text import host_port
from derp.transport.stream import mapped_errors, reason_of
from derp.transport.tcp import TcpTarget, dial_tcp
from derp.transport.tls import load_chain, make_self_signed
from tailnet.bus.contract import MAX_REPLICAS, Address, is_path, join_frames, place_text, split_frames
from tailnet.bus.unix import dial_unix
from tailnet.replica.messages import REPLICA_ID_BYTES, ReplicaID
from tailnet.replica.proof import NONCE_BYTES, ClusterKey

_log = logging.getLogger("tailnet.replicas")

_MAGIC_BYTES: Final = 16
_HEAD_BYTES: Final = _MAGIC_BYTES + REPLICA_ID_BYTES + NONCE_BYTES
_PROOF_BYTES: Final = 32
# TCP, TLS and the proof: three round trips of at most 100 ms, and a busy machine.
OPEN_SECONDS: Final = 5.0
# Strangers and replicas that are proving themselves; more are closed at once.  64 replicas may all dial in one moment.
MAX_UNPROVED: Final = 2 * MAX_REPLICAS
RECEIVE_BYTES: Final = 64 * 1024
# A Sync of 2,400 tunnels with their nodes is 5.5 MB; a replica that sends more than this without end would keep us from
# serving anybody else.
MAX_BYTES_PER_SECOND: Final = 32 * 1024 * 1024
_TELL_SECONDS: Final = 60.0
# Certificates name nobody, see above.
_NOBODY: Final = "replica.invalid"
_WRONG_KEY: Final = "it has another cluster's key or name"

TlsStream: TypeAlias = trio.SSLStream[trio.abc.Stream]


class Use(Enum):
    """What a link is for, by its magic."""

    FRAMES = b"tailnet-replica1"
    RELAY = b"tailnet-relays-1"


@dataclass(slots=True, eq=False)
class Link:
    """A link to a replica that has proved itself."""

    use: Use
    other: ReplicaID
    is_dialled: bool  # by us
    address: str  # of the other end, for people
    binding: bytes
    """The same at both ends, and different for whoever sits in between."""
    stream: TlsStream
    wake: trio.Event = field(default_factory=trio.Event)
    """There is something to send."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    """Cancelled: the link is of no use any more."""
    ended: trio.Event = field(default_factory=trio.Event)
    _buffer: bytearray = field(default_factory=bytearray)
    _second_ends_at: float = 0.0
    _second_bytes: int = 0

    async def send(self, frames: list[bytes]) -> None:
        """All in one piece.  Raises TransportError."""
        with mapped_errors(f"the link to replica {self.other}"):
            await self.stream.send_all(join_frames(frames))

    async def receive(self) -> list[bytes]:
        """Frames that came; empty at the end of the link.  Raises TransportError, and RemoteProtocolError for a frame
        that is too long."""
        while True:
            frames = self._take_frames()
            if frames:
                return frames
            with mapped_errors(f"the link to replica {self.other}"):
                received = await self.stream.receive_some(RECEIVE_BYTES)
            if not received:
                return []
            self._buffer += received
            await self._keep_rate(len(received))

    def _take_frames(self) -> list[bytes]:
        frames, end = [], 0
        for frame, end in split_frames(self._buffer):  # noqa: B007  # of the last one
            frames.append(frame)
        del self._buffer[:end]
        return frames

    async def _keep_rate(self, size: int) -> None:
        now = trio.current_time()
        if now >= self._second_ends_at:
            self._second_ends_at, self._second_bytes = now + 1, 0
        self._second_bytes += size
        if self._second_bytes > MAX_BYTES_PER_SECOND:
            await trio.sleep_until(self._second_ends_at)


Serve: TypeAlias = Callable[[Link], Awaitable[None]]


class Links:
    """Dials and accepts for one replica.  `serve` has a proved link for as long as it runs."""

    def __init__(self, own: ReplicaID, key: ClusterKey, serve: Serve) -> None:
        self.refused_count = 0  # connections that did not prove themselves
        self._own = own
        self._key = key
        self._serve = serve
        self._server, self._digest = _make_server()
        self._client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # The proof says who it is; see above.
        self._client.check_hostname, self._client.verify_mode = False, ssl.CERT_NONE
        self._client.minimum_version = ssl.TLSVersion.TLSv1_3
        self._unproved = 0
        self._rarely = Rarely(_TELL_SECONDS)

    async def dial(self, address: Address, use: Use = Use.FRAMES) -> Link:
        """A proved link; the caller serves it and closes its stream.  Raises TransportError."""
        place = place_text(address)
        below: trio.SocketStream = (
            await dial_unix(address[0], OPEN_SECONDS)
            if is_path(address)
            else await dial_tcp(TcpTarget(*address), timeout_seconds=OPEN_SECONDS)
        )
        stream: TlsStream = trio.SSLStream(below, self._client, server_hostname=_NOBODY, https_compatible=True)
        doing = f"link to {place}"
        try:
            with mapped_errors(doing, connecting=True), trio.fail_after(OPEN_SECONDS):
                await stream.do_handshake()
                certificate = stream.getpeercert(binary_form=True)
                assert certificate is not None  # a TLS server shows one
                binding = hashlib.sha256(certificate).digest()
                other = await self._prove_as_dialler(stream, binding, use)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return Link(use, other, True, place, binding, stream)

    async def accept(self, tcp: trio.SocketStream) -> None:
        """Serve one connection to our listener, until it ends."""
        if self._unproved >= MAX_UNPROVED:
            self._note_refused("somebody", f"{MAX_UNPROVED} others are about to prove themselves")
            await trio.aclose_forcefully(tcp)
            return
        self._unproved += 1
        stream: TlsStream = trio.SSLStream(tcp, self._server, server_side=True, https_compatible=True)
        place = "somebody"
        try:
            with mapped_errors("proof", connecting=True), trio.fail_after(OPEN_SECONDS):
                peer = tcp.socket.getpeername()  # who has left already has no name
                place = "this machine" if isinstance(peer, str) else host_port(*peer[:2])
                await stream.do_handshake()
                use, other = await self._prove_as_listener(stream)
        except TransportError as error:
            self._note_refused(place, reason_of(error))
            await trio.aclose_forcefully(stream)
            return
        finally:
            self._unproved -= 1
        await self._serve(Link(use, other, False, place, self._digest, stream))

    def _note_refused(self, host: str, why: str) -> None:
        self.refused_count += 1
        more = self._rarely.held_back("refused", trio.current_time())
        if more is not None:
            _log.warning("! %s did not prove to be a replica of ours: %s%s", host, why, and_more(more))

    async def _prove_as_dialler(self, stream: TlsStream, binding: bytes, use: Use) -> ReplicaID:
        nonce = secrets.token_bytes(NONCE_BYTES)
        await stream.send_all(use.value + self._own + nonce)
        _, other, other_nonce = _take_head(await _receive_exactly(stream, _HEAD_BYTES))
        proof = await _receive_exactly(stream, _PROOF_BYTES)
        prove = self._key.link_proof
        if not hmac.compare_digest(proof, prove(b"listener", other, self._own, other_nonce, nonce, binding)):
            raise ConnectError(_WRONG_KEY)
        await stream.send_all(prove(b"dialler", self._own, other, nonce, other_nonce, binding))
        return other

    async def _prove_as_listener(self, stream: TlsStream) -> tuple[Use, ReplicaID]:
        use, other, other_nonce = _take_head(await _receive_exactly(stream, _HEAD_BYTES))
        nonce, prove = secrets.token_bytes(NONCE_BYTES), self._key.link_proof
        own_proof = prove(b"listener", self._own, other, nonce, other_nonce, self._digest)
        await stream.send_all(use.value + self._own + nonce + own_proof)
        proof = await _receive_exactly(stream, _PROOF_BYTES)
        if not hmac.compare_digest(proof, prove(b"dialler", other, self._own, other_nonce, nonce, self._digest)):
            raise ConnectError(_WRONG_KEY)
        return use, other


def _make_server() -> tuple[ssl.SSLContext, bytes]:
    """A TLS server with a certificate of its own, and the digest of that."""
    chain, key = make_self_signed(_NOBODY, datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    load_chain(context, chain, key, "the replica's certificate", "the replica's certificate")
    return context, hashlib.sha256(ssl.PEM_cert_to_DER_cert(chain.decode())).digest()


async def _receive_exactly(stream: TlsStream, size: int) -> bytes:
    received = b""
    while len(received) < size:
        some = await stream.receive_some(size - len(received))
        if not some:
            raise ConnectError("it closed the connection before its proof: it may have another cluster's key")
        received += some
    return received


def _take_head(head: bytes) -> tuple[Use, ReplicaID, bytes]:
    try:
        use = Use(head[:_MAGIC_BYTES])
    except ValueError:
        raise ConnectError("it is no replica, or one of another version") from None
    at = _MAGIC_BYTES + REPLICA_ID_BYTES
    return use, ReplicaID(head[_MAGIC_BYTES:at]), head[at:]
