"""One SSH connection of an agent's: the protocol is AsyncSSH's, everything around it is trio's.  Layer L3.

    stream -> receive -> _Protocol (AsyncSSH) -> Channel, a trio stream -> ssh.py, ssh_forward.py
The one file that knows AsyncSSH and trio-asyncio, which the extra `agent` installs; why these, and every bound, is in
docs/agent-ssh.md.  RFC 4251 to 4254, and OpenSSH's PROTOCOL.  Next hop: ssh.py.
"""

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import asyncssh
import trio
import trio_asyncio
from asyncssh.channel import SSHChannel
from asyncssh.constants import EXTENDED_DATA_STDERR, OPEN_CONNECT_FAILED, OPEN_RESOURCE_SHORTAGE
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from derp.text import error_text, printable

# A browser behind `ssh -D` has some hundred connections at once; a client asks for more than that by mistake.
MAX_CHANNELS: Final = 256
# Editors and multiplexed terminals have some ten; each is at least one process.
MAX_SESSIONS: Final = 64
MAX_LISTENERS: Final = 64
# A window: what a client may send that nobody takes.  All channels together hold at most 128 MiB; one carries
# 80 Mbit/s at a round trip of 50 ms.
WINDOW_BYTES: Final = 512 * 1024
# What of it a channel holds here; the rest stays in the library until somebody takes this.
_HELD_BYTES: Final = 64 * 1024
_PACKET_BYTES: Final = 32 * 1024
# What waits for the stream before channels wait with what they have: two turns of the stack's own send buffer.
_WAITING_BYTES: Final = 256 * 1024
_RECEIVE_BYTES: Final = 64 * 1024
# Of one write; a client may ask for packets of one byte, and each costs 30 us.
_PACKETS_A_TURN: Final = 64
# The environment of one session, names and values; OpenSSH's clients send a handful.
MAX_VARIABLES: Final = 128
MAX_VARIABLES_BYTES: Final = 64 * 1024
# That wait, each of another name; clients know 13 of them.
MAX_SIGNALS: Final = 16
# From connecting to the first channel: the tunnel is there already, so this is two round trips and some arithmetic.
HANDSHAKE_SECONDS: Final = 30
# After five minutes without an answer a client is gone: as long as a detached terminal is kept.
KEEPALIVE_SECONDS: Final = 30
KEEPALIVES: Final = 10
# What the last words of a connection may take.
_GOODBYE_SECONDS: Final = 5
_OPEN_SECONDS: Final = 30

# Without what takes long (groups of 8192 bits take 100 ms of everybody's time) and without compression, whose bombs
# no bound here would see.
_ALGORITHMS: Final[Mapping[str, Any]] = {
    "kex_algs": [
        *("curve25519-sha256", "curve25519-sha256@libssh.org"),
        *("ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "ecdh-sha2-nistp521"),
    ],
    "encryption_algs": [
        *("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"),
        *("aes128-ctr", "aes192-ctr", "aes256-ctr"),
    ],
    "mac_algs": [
        *("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"),
        *("hmac-sha2-256", "hmac-sha2-512"),
    ],
    "compression_algs": ["none"],
}

Address: TypeAlias = tuple[str, int] | str
"""A host and a port, or the path of a Unix socket."""

# AsyncSSH writes commands and environments into its log, which are secrets often enough.
asyncssh.set_log_level("ERROR")


@dataclass(frozen=True, slots=True)
class Size:
    """Of a terminal, in characters."""

    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class Terminal:
    """What a client says of its own, RFC 4254 section 6.2 and 8."""

    kind: str
    """TERM."""
    size: Size
    modes: Mapping[int, int]
    """Argument by opcode."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a session is for: a command, a subsystem, or neither of them: a shell."""

    command: str | None = None
    subsystem: str | None = None


class Service(Protocol):
    """Who answers what a client asks for.  All are called in tasks of the connection."""

    async def serve_session(self, session: "SessionChannel") -> None: ...

    async def dial(self, address: Address) -> trio.SocketStream:
        """Raises OSError."""

    async def listen(self, address: Address) -> "Listening":
        """Raises OSError."""

    async def join(self, channel: "Channel", local: trio.SocketStream) -> None:
        """Until both ends said their last; never raises for what they do."""


class Listening(asyncssh.SSHListener):
    """Sockets that listen for a client; of a Unix socket its path goes with it.  The methods are AsyncSSH's."""

    def __init__(self, listeners: list[trio.SocketListener], path: str | None = None) -> None:
        super().__init__()
        self.listeners = listeners
        self._port: int = 0 if path is not None else listeners[0].socket.getsockname()[1]
        self._path = path

    def get_port(self) -> int:
        return self._port

    def close(self) -> None:
        """At once: the client hears next that nobody listens any more, and may ask for the same again."""
        for listener in self.listeners:
            listener.socket.close()
        if self._path is not None:
            with suppress(OSError):
                os.unlink(self._path)
            self._path = None

    async def wait_closed(self) -> None:
        """There is nothing to wait for."""


class Channel(trio.abc.HalfCloseableStream):
    """One channel as a stream; what it raises are trio's errors.  `aclose` ends it at once."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._wire: Any = None
        self._held = bytearray()
        self._eof = self._is_held_up = False
        self._is_paused = False  # by the client's window
        self._is_lost = False  # with the whole connection, or because all was said
        self._changed = trio.lowlevel.ParkingLot()
        self._gone = trio.Event()

    async def wait_gone(self) -> None:
        """Until the client closed it, or is away altogether."""
        await self._gone.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._held:
            if self._eof:
                return b""
            if self._gone.is_set():
                raise trio.BrokenResourceError("the client closed the channel")
            await self._changed.park()
        part = bytes(self._held[:max_bytes])
        del self._held[: len(part)]
        if self._is_held_up and not self._held:
            self._is_held_up = False
            if not self._is_lost:
                self._wire.resume_reading()
        return part

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._send(data, None)

    async def _send(self, data: bytes | bytearray | memoryview, kind: int | None) -> None:
        await trio.lowlevel.checkpoint()
        with memoryview(data) as view:
            step = min(_PACKET_BYTES, _PACKETS_A_TURN * self._wire._send_pktsize)
            for at in range(0, len(view), step):
                await self._wait_room()
                try:
                    self._wire.write(bytes(view[at : at + step]), kind)
                except OSError as error:
                    raise trio.BrokenResourceError(error_text(error)) from None

    async def _wait_room(self) -> None:
        """Until what was written before is on its way."""
        while not self._gone.is_set() and (self._is_paused or self._connection.is_full()):
            await self._connection.changed.park()
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await self._wait_room()

    async def send_eof(self) -> None:
        await self._wait_room()
        self._wire.write_eof()

    async def aclose(self) -> None:
        self.abort()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()
        self._tell_gone()

    def _tell_gone(self) -> None:
        self._gone.set()
        self._changed.unpark_all()
        self._connection.changed.unpark_all()

    # What AsyncSSH calls; the names are its.

    def connection_made(self, chan: Any) -> None:
        self._wire = chan
        chan.listen_for_close(self._tell_gone)
        # Whoever writes waits until all of it is on its way, so that nothing piles up.
        chan.set_write_buffer_limits(0)

    def session_started(self) -> None:
        """A forwarded connection has nothing more to ask for."""

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._held += data
        if len(self._held) >= _HELD_BYTES and not self._is_held_up:
            self._is_held_up = True
            self._wire.pause_reading()
        self._changed.unpark_all()

    def eof_received(self) -> bool:
        self._eof = True
        self._changed.unpark_all()
        return True  # and the other direction stays open

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._connection.changed.unpark_all()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_lost = True
        self._tell_gone()


class SessionChannel(Channel):
    """A session: a stream with a second way out, signals, a terminal, and a status at its end."""

    def __init__(self, connection: "Connection") -> None:
        super().__init__(connection)
        self.request = Request()
        self.terminal: Terminal | None = None
        self.signals: list[str] = []
        """Names without SIG, not yet taken; `wait_asked` tells."""
        self.size: Size | None = None
        """A new one of the terminal, not yet taken."""
        self.environment: dict[str, str] = {}
        """What the client sent."""
        self.agent_path: str | None = None
        """Where the client's ssh-agent answers, if it forwards one."""
        self._asked = trio.lowlevel.ParkingLot()

    async def send_error(self, data: bytes) -> None:
        """To standard error."""
        await self._send(data, EXTENDED_DATA_STDERR)

    async def wait_asked(self) -> None:
        """Until there are signals or there is a new size."""
        while not self.signals and self.size is None:
            await self._asked.park()

    async def exit(self, status: int) -> None:
        """The last word, after all that was sent: a status from 0 to 255."""
        await self._wait_room()
        self._wire.exit(status)

    async def exit_signal(self, name: str) -> None:
        """The last word: the program was ended by a signal; its name without SIG."""
        await self._wait_room()
        self._wire.exit_with_signal(name)

    def session_started(self) -> None:
        # Now: when the session's task begins, its client may have gone already.
        self.environment = {
            name.decode(errors="replace"): value.decode(errors="replace") for name, value in self._wire.sent.items()
        }
        self.agent_path = self._wire.get_agent_path()
        self._connection.start_session(self)

    def pty_requested(self, kind: str, size: tuple[int, int, int, int], modes: Mapping[int, int]) -> bool:
        self.terminal = Terminal(kind, Size(*size[:2]), dict(modes))
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self.request = Request(command=command)
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        self.request = Request(subsystem=subsystem)
        return subsystem == "sftp"

    def terminal_size_changed(self, columns: int, rows: int, *pixels: int) -> None:
        self.size = Size(columns, rows)
        self._asked.unpark_all()

    def signal_received(self, name: str) -> None:
        # A client that sends them faster than a program takes them means the same by all of them.
        if name not in self.signals and len(self.signals) < MAX_SIGNALS:
            self.signals.append(name)
        self._asked.unpark_all()

    def break_received(self, milliseconds: int) -> bool:
        return False


class _Bounded(SSHChannel[bytes]):
    """What all channels have: close is told at once, and what waits for a reader takes no more than its bytes."""

    _listener: Any = None

    def listen_for_close(self, listener: Any) -> None:
        self._listener = listener

    def _close_send(self) -> None:
        # Also when the client closes while nobody reads what it sent before: the library says nothing until then.
        super()._close_send()
        if self._listener is not None:
            self._listener()

    def process_connection_close(self, exc: Exception | None) -> None:
        # What the client sent before it went is its program's all the same; the library would drop what waits.
        if self._session is not None:
            for data, datatype in self._recv_buf:
                self._session.data_received(data, datatype)
            if self._recv_state == "eof_pending":
                self._session.eof_received()
        super().process_connection_close(exc)

    def _accept_data(self, data: bytes, datatype: int | None = None) -> None:
        buffer: list[Any] = self._recv_buf
        before = len(buffer)
        super()._accept_data(data, datatype)
        if before and len(buffer) > before and buffer[-2][1] == datatype:
            # An object of its own for each packet of one byte would be 100 times the window.
            waiting = buffer[-2][0]
            if not isinstance(waiting, bytearray):
                waiting = bytearray(waiting)
            waiting += data
            buffer[-2:] = [(waiting, datatype)]


class _SessionWire(_Bounded, asyncssh.SSHServerChannel[bytes]):
    @property
    def sent(self) -> Mapping[bytes, bytes]:
        return self._env

    def _process_env_request(self, packet: Any) -> bool:
        name, value = packet.get_string(), packet.get_string()
        packet.check_end()
        taken = {**self._env, name: value}
        size = sum(len(each) + len(of) for each, of in taken.items())
        if len(taken) > MAX_VARIABLES or size > MAX_VARIABLES_BYTES:
            return False
        self._env = taken
        return True


class _TcpWire(_Bounded, asyncssh.SSHTCPChannel[bytes]):
    pass


class _UnixWire(_Bounded, asyncssh.SSHUNIXChannel[bytes]):
    pass


class _Protocol(asyncssh.SSHServerConnection):
    """AsyncSSH's connection with channels of ours, and not more of them than there may be."""

    def __init__(self, loop: Any, options: Any) -> None:
        super().__init__(loop, options)
        # It asks `begin_auth` when a name is not the last one, which is "" at first: the name that SDKs' clients give.
        self._username = "\0"

    def check_room(self, kind: type[SSHChannel[bytes]] = SSHChannel) -> None:
        """Raises ChannelOpenError if there may be no more channels of a kind."""
        sessions = sum(isinstance(each, _SessionWire) for each in self._channels.values())
        if len(self._channels) >= MAX_CHANNELS or (kind is _SessionWire and sessions >= MAX_SESSIONS):
            raise asyncssh.ChannelOpenError(OPEN_RESOURCE_SHORTAGE, "too many channels are open")

    def add_channel(self, chan: Any) -> int:
        self.check_room(type(chan))
        return super().add_channel(chan)

    def create_server_channel(self, *how: Any) -> _SessionWire:
        return _SessionWire(self, self._loop, True, False, False, 0, 0, None, "strict", WINDOW_BYTES, _PACKET_BYTES)

    def create_tcp_channel(self, *how: Any) -> _TcpWire:
        return _TcpWire(self, self._loop, None, "strict", WINDOW_BYTES, _PACKET_BYTES)

    def create_unix_channel(self, *how: Any) -> _UnixWire:
        return _UnixWire(self, self._loop, None, "strict", WINDOW_BYTES, _PACKET_BYTES)

    def is_holding_back(self) -> bool:
        """Packets wait for the end of a key exchange, which is the client's to end."""
        return bool(self._deferred_packets)


class _Transport(asyncio.Transport):
    """What AsyncSSH writes to; `Connection` sends it."""

    def __init__(self, changed: trio.lowlevel.ParkingLot) -> None:
        super().__init__()
        self.waiting = bytearray()
        self.is_over = False
        self._changed = changed

    def write(self, data: Any) -> None:
        self.waiting += data
        self._changed.unpark_all()

    def abort(self) -> None:
        self.is_over = True
        self._changed.unpark_all()

    def close(self) -> None:
        self.abort()


class Connection(asyncssh.SSHServer):
    """Made by `serve_connection`."""

    def __init__(self, service: Service, nursery: trio.Nursery) -> None:
        self.changed = trio.lowlevel.ParkingLot()
        """Something was sent, or may be sent now."""
        self.reason = ""
        self._service = service
        self._nursery = nursery
        self._protocol: _Protocol
        self._transport = _Transport(self.changed)
        self._listeners = 0
        self._is_over = False

    def is_full(self) -> bool:
        """Whether channels have to wait."""
        return len(self._transport.waiting) >= _WAITING_BYTES or self._protocol.is_holding_back()

    def start_session(self, session: SessionChannel) -> None:
        self._nursery.start_soon(self._service.serve_session, session)

    async def run(self, stream: trio.abc.Stream, options: Any, loop: Any) -> None:
        """Until one side has ended it.  Sessions may go on in the nursery: they hear that their client is gone."""
        self._protocol = _Protocol(loop, options)
        self._protocol.connection_made(self._transport)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._receive, stream)
                await self._send(stream)
                nursery.cancel_scope.cancel()
        finally:
            self._protocol.connection_lost(None)

    async def _receive(self, stream: trio.abc.Stream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await stream.receive_some(_RECEIVE_BYTES):
                self._protocol.data_received(bytes(data))
                self.changed.unpark_all()
        self._protocol.eof_received()

    async def _send(self, stream: trio.abc.Stream) -> None:
        transport = self._transport
        try:
            while not transport.is_over:
                if transport.waiting:
                    await self._send_waiting(stream)
                else:
                    await self.changed.park()
            with trio.move_on_after(_GOODBYE_SECONDS):
                await self._send_waiting(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            transport.abort()

    async def _send_waiting(self, stream: trio.abc.Stream) -> None:
        data, self._transport.waiting = self._transport.waiting, bytearray()
        self.changed.unpark_all()
        await stream.send_all(data)

    # What AsyncSSH asks; the names are its.

    def begin_auth(self, username: str) -> bool:
        return False  # the tunnel has proved who is calling

    def connection_lost(self, error: Exception | None) -> None:
        self._is_over = True
        if error is not None and not isinstance(error, asyncssh.ConnectionLost):
            self.reason = printable(error_text(error))

    def session_requested(self) -> Any:
        return SessionChannel(self)

    def connection_requested(self, host: str, port: int, from_host: str, from_port: int) -> Any:
        self._protocol.check_room()  # before there is a coroutine, which the library would not await
        return self._dial((host, port))

    def unix_connection_requested(self, path: str) -> Any:
        self._protocol.check_room()
        return self._dial(path)

    def server_requested(self, host: str, port: int) -> Any:
        return self._listen((host, port))

    def unix_server_requested(self, path: str) -> Any:
        return self._listen(path)

    async def _dial(self, address: Address) -> "_Forwarded":
        try:
            local = await trio_asyncio.trio_as_aio(self._service.dial)(address)
        except OSError as error:
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, printable(error_text(error))) from None
        if self._is_over:
            await trio_asyncio.trio_as_aio(local.aclose)()
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, "the client is gone")
        return _Forwarded(self, local)

    def start_joining(self, channel: Channel, local: trio.SocketStream) -> None:
        self._nursery.start_soon(self._service.join, channel, local)

    async def _listen(self, address: Address) -> "Listening":
        if self._listeners >= MAX_LISTENERS:
            raise OSError("too many ports are forwarded")
        self._listeners += 1
        try:
            listening: Listening = await trio_asyncio.trio_as_aio(self._service.listen)(address)
        except BaseException:
            self._listeners -= 1
            raise
        self._nursery.start_soon(self._accept, listening, address)
        if self._is_over:
            listening.close()
        return listening

    async def _accept(self, listening: "Listening", address: Address) -> None:
        """Until the client takes the forward back, or is gone; connections that came stay as long as they want."""
        if not isinstance(address, str):
            address = address[0], listening.get_port()
        call = partial(self._call_client, address=address)
        try:
            await trio.serve_listeners(call, listening.listeners, handler_nursery=self._nursery)
        except* trio.ClosedResourceError:
            pass  # by `close`
        finally:
            listening.close()
            self._listeners -= 1

    async def _call_client(self, local: trio.SocketStream, address: Address) -> None:
        """Open a channel to the client for a connection that came to a port of its."""
        async with local:
            try:
                with trio.fail_after(_OPEN_SECONDS):
                    if isinstance(address, str):
                        opening = self._protocol.create_unix_connection, lambda: Channel(self), address
                    else:
                        peer = local.socket.getpeername()[:2]
                        opening = self._protocol.create_connection, lambda: Channel(self), *address, *peer
                    _, channel = await trio_asyncio.aio_as_trio(opening[0])(*opening[1:])
            except (asyncssh.ChannelOpenError, OSError, trio.TooSlowError):
                return  # the client takes no more, which whoever connected sees
            await self._service.join(channel, local)


class _Forwarded(Channel):
    """A channel that a client opened, and the connection that was dialled for it."""

    def __init__(self, connection: Connection, local: trio.SocketStream) -> None:
        super().__init__(connection)
        self._local = local

    def connection_made(self, chan: Any) -> None:
        super().connection_made(chan)
        self._connection.start_joining(self, self._local)


async def serve_connection(
    stream: trio.abc.Stream, service: Service, host_key: bytes, *, is_agent_forwarded: bool = False
) -> str:
    """Serve one client until it is gone and its sessions are over; why it was sent away, or nothing.

    `host_key` is the seed of an Ed25519 key, 32 bytes.
    """
    private = Ed25519PrivateKey.from_private_bytes(host_key)
    key = asyncssh.import_private_key(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    options = asyncssh.SSHServerConnectionOptions(
        server_host_keys=[key],
        server_version="tailnet",
        login_timeout=HANDSHAKE_SECONDS,
        keepalive_interval=KEEPALIVE_SECONDS,
        keepalive_count_max=KEEPALIVES,
        agent_forwarding=is_agent_forwarded,
        config=None,
        gss_host=None,
        encoding=None,
        **_ALGORITHMS,
    )
    async with trio_asyncio.open_loop() as loop, trio.open_nursery() as nursery:
        connection = Connection(service, nursery)
        options.protocol_factory = lambda: connection
        await connection.run(stream, options, loop)
        return connection.reason
