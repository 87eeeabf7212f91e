"""The relay uses itself, and says so when that fails: then probes get no answer.  Layer L3.

    run -> one connection to our own port, TLS and login as any client -> a packet to itself each second -> Wellness
A relay whose UDP still answers while its TCP is dead keeps its clients: they choose regions by STUN.  So the answers of
STUN, /derp/latency-check, /derp/probe and /healthz hang on what is seen here (life.py asks `problem`).  The rules of
patience are in relay/wellness.py.  The own client is a prober that no other relay hears of; limits do not count it.
"""

import logging
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Final

import trio

from derp.errors import DerpError, RemoteProtocolError
from derp.keys import NodePrivate
from derp.log import fields
from derp.metrics import SelfCheckReading
from derp.protocol.connection import ClientConnection
from derp.protocol.messages import RecvPacket
from derp.relay.wellness import Sign, Wellness
from derp.server.login import log_in
from derp.server.ports import Listening, Ports
from derp.server.session import Sessions
from derp.text import utc
from derp.transport.links import Link, TlsLink
from derp.transport.linkstream import LinkStream
from derp.transport.stream import reason_of

_log = logging.getLogger("derp.server")

# A packet a second costs 0.1 ms of CPU: a ten-thousandth of a core.
_LOOK_SECONDS: Final = 1.0
# Connections are tried anew after so many packets: a relay that only serves those inside is not to be chosen either.
_PACKETS_PER_CONNECTION: Final = 10
# From dialling to ServerInfo, and from a packet to its return.  Both take under 5 ms in a relay that is well.
_CONNECT_SECONDS: Final = 3.0
_RETURN_SECONDS: Final = 2.0
# The loop turns in under 50 ms with 100,000 clients; one that comes so late makes every packet as late.
_LATE_SECONDS: Final = 0.5
# Those who say who may come in are asked again so often while they are known not to answer.
_ADMISSION_SECONDS: Final = 5.0
_PAYLOAD_BYTES: Final = 16
_WILDCARDS: Final = {"": ("127.0.0.1", "::1"), "0.0.0.0": ("127.0.0.1",), "::": ("127.0.0.1", "::1")}


class SelfCheck:
    """One per server.  `run` it as a task, `problem` tells what it found.  Without a relay `sessions` is None, and only
    what can be seen without a packet is looked at."""

    def __init__(
        self,
        ports: Ports,
        kind: str,
        sessions: Sessions | None,
        *,
        hostname: str = "",
    ) -> None:
        self.wellness: Wellness | None = None
        self.round_trip_seconds = 0.0
        """Of the last packet that came back."""
        self.packets_returned = 0
        self.failure_count = 0
        self._ports = ports
        self._kind = kind
        self._sessions = sessions
        self._hostname = hostname or "localhost"
        self._private = NodePrivate.generate()
        self._told: str | None = None
        if sessions is not None:
            sessions.own_key = self._private.public().raw

    def problem(self) -> str | None:
        """Why no new client should come here; None if nothing speaks against it, or nobody looks."""
        return self.wellness.problem(trio.current_time()) if self.wellness is not None else None

    def read(self) -> SelfCheckReading | None:
        """For metrics; None while nobody looks."""
        if self.wellness is None:
            return None
        signs = self.wellness.counting(trio.current_time())
        return SelfCheckReading(signs, self.packets_returned, self.failure_count, self.round_trip_seconds)

    async def run(self) -> None:
        """Look until cancelled."""
        self.wellness = Wellness(trio.current_time())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_forever, self.wellness)
                if self._sessions is not None:
                    nursery.start_soon(self._use_forever, self._sessions, self.wellness)
                    nursery.start_soon(self._ask_forever, self._sessions, self.wellness)
        finally:
            self.wellness = None

    # --- what is seen without a packet

    async def _look_forever(self, wellness: Wellness) -> None:
        while True:
            due = trio.current_time() + _LOOK_SECONDS
            await trio.sleep_until(due)
            now = trio.current_time()
            late = now - due
            wellness.note(Sign.LOOP, f"the event loop was {late:.1f} s late" if late > _LATE_SECONDS else "", now)
            wellness.note(Sign.BACKLOG, self._full_backlog(), now)
            wellness.note(Sign.CERTIFICATE, self._expired(), now)
            self._tell(wellness.problem(now))

    def _full_backlog(self) -> str:
        for listener in self._ports.listeners:
            waiting, room = listener.read_backlog()
            if room and waiting >= room:
                return f"{waiting:,} connections wait to be accepted at port {listener.address[1]}, more find no room"
        return ""

    def _expired(self) -> str:
        expires_at = self._ports.certificate_expires_at()
        if expires_at is None or expires_at > time.time():
            return ""
        return f"the certificate expired at {utc(expires_at)}"

    def _tell(self, problem: str | None) -> None:
        if (problem is None) == (self._told is None):
            return
        self._told = problem
        if problem is None:
            _log.warning("= well again: probes are answered", extra=fields(event="self_check", reason=""))
        else:
            told = fields(event="self_check", reason=problem)
            _log.error("! probes get no answer, so that clients go elsewhere: %s", problem, extra=told)

    async def _ask_forever(self, sessions: Sessions, wellness: Wellness) -> None:
        """While those are known not to answer who decide who comes in, ask them: clients that could show that they do
        are kept away."""
        while True:
            await trio.sleep(_LOOK_SECONDS)
            admission = sessions.admission
            trouble = admission.closed_by
            wellness.note(Sign.ADMISSION, f"nobody can be admitted: {trouble}" if trouble else "", trio.current_time())
            if trouble:
                await admission.look_again(self._private.public().raw)
                await trio.sleep(_ADMISSION_SECONDS)

    # --- a packet to ourselves

    async def _use_forever(self, sessions: Sessions, wellness: Wellness) -> None:
        number = 0
        while True:
            await trio.sleep(_LOOK_SECONDS)
            places = [one for one in self._ports.listening if one.kind.removesuffix("+tls") == self._kind]
            if not places:
                continue
            place = places[number % len(places)]
            number += 1
            try:
                with sessions.admission.expecting(self._private.public().raw):
                    await self._use(place, wellness)
            except (DerpError, OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
                why = "no answer" if isinstance(error, trio.TooSlowError) else reason_of(error)
                self.failure_count += 1
                text = f"no packet comes back through our own port {place.port}: {why}"
                wellness.note(Sign.PATH, text, trio.current_time())

    async def _use(self, place: Listening, wellness: Wellness) -> None:
        async with self._logged_in(place) as (stream, connection):
            for _ in range(_PACKETS_PER_CONNECTION):
                began = trio.current_time()
                with trio.fail_after(_RETURN_SECONDS):
                    await self._send_and_receive(stream, connection)
                now = trio.current_time()
                self.round_trip_seconds = now - began
                self.packets_returned += 1
                wellness.note(Sign.PATH, "", now)
                await trio.sleep(_LOOK_SECONDS)

    @asynccontextmanager
    async def _logged_in(self, place: Listening) -> AsyncIterator[tuple[LinkStream, ClientConnection]]:
        """A client of ours at one of our ports, with TLS if it has that.  Its certificate is looked at elsewhere."""
        with trio.fail_after(_CONNECT_SECONDS):
            sock = await _connect(place, self._ports.own_places)
        own_place, address = sock.getsockname()[:2], (place.host, place.port)
        is_tls = place.kind.endswith("+tls")
        stream = LinkStream(TlsLink(sock, address, _context(), self._hostname) if is_tls else Link(sock, address), b"")
        connection = ClientConnection(
            self._private, random_bytes=secrets.token_bytes, is_prober=True, app_name="self-check"
        )
        try:
            with trio.fail_after(_CONNECT_SECONDS):
                if is_tls:
                    await stream.start_tls()
                await log_in(stream, self._hostname, connection)
            yield stream, connection
        finally:
            self._ports.own_places.discard(own_place)
            await trio.aclose_forcefully(stream)

    async def _send_and_receive(self, stream: LinkStream, connection: ClientConnection) -> None:
        payload = secrets.token_bytes(_PAYLOAD_BYTES)
        connection.send_packet(self._private.public().raw, payload)
        while True:
            if to_send := b"".join(connection.data_to_send()):
                await stream.send_all(to_send)
            received = await stream.receive_some()
            if not received:
                raise RemoteProtocolError("the connection was closed")
            for message in connection.receive_data(received):
                if isinstance(message, RecvPacket) and message.packet == payload:
                    return


async def _connect(place: Listening, own_places: set[tuple[str, int]]) -> socket.socket:
    """A connected, non-blocking socket, whose own address stands in `own_places` before the server can see it."""
    hosts = _WILDCARDS.get(place.host, (place.host,))
    for host in hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            await sock.bind((host, 0))
            own_places.add(sock.getsockname()[:2])
            await sock.connect((host, place.port))
        except BaseException as error:
            with suppress(OSError):
                own_places.discard(sock.getsockname()[:2])
            sock.close()
            if isinstance(error, OSError) and host != hosts[-1]:
                continue
            raise
        plain = socket.socket(fileno=sock.detach())
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return plain
    raise AssertionError("there is always one host")


@cache
def _context() -> ssl.SSLContext:
    """We know whom we dial: ourselves, on this machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
