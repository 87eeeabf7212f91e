"""Hostile peers at the doors of a relay, ours and the genuine one in turn, and of a coordinator: what do others pay?

    python bench/floods.py                          every flood, some four minutes
    python bench/floods.py --only pings --seconds 5

Twenty strangers without any login send as fast as the relay takes it, and dial again whenever they are turned away.
Beside them one genuine pair exchanges 500 packets a second (bench/load).  A row has its p50 and p99, what the process
grew by, the lines it logged, and how often the strangers had to dial.  Writes bench/out/floods.json.
"""

import os
import selectors
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import click

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.cases import Carrier
from bench.compare import write_rows
from bench.generator import RunFailed, generate
from bench.servers import Server, serve
from derp.protocol.frames import HEADER, MAX_CLIENT_INFO_BYTES, FrameType
from tests.support.relay_command import HOST
from tests.support.tailnet_servers import Seed, running_server

SERVERS = ("ours", "derper", "coordinator")
STRANGERS = 20
# One write of a stranger; the kernels on the way hold several.
CHUNK_BYTES = 256 * 1024
# A pair that exchanges packets, at a rate that costs next to nothing.
INNOCENTS = ("-pairs", "1", "-frames", "1", "-rate", "500", "-warmup", "1s")

_MASKED_EMPTY = b"\x80\x00\x00\x00\x00"
_WEBSOCKET = (
    b"GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: derp\r\n\r\n"
)
_DERP = b"GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Flood:
    """What a stranger sends: a request, and once it is answered the same bytes over and over."""

    name: str
    title: str
    request: bytes
    unit: bytes
    first: bytes = b""  # before the units
    carrier: Carrier = "plain"
    record_bytes: int = 0  # of each TLS record; 0: as it comes
    servers: tuple[str, ...] = ("ours", "derper")  # those that have this door


# The doors of a coordinator want a token: its bearer is no stranger, but may be hostile all the same.
_SEED = Seed()
_AGENT = _SEED.add_agent(_SEED.add_user("load"))
_RPC = (
    "GET /api/v2/workspaceagents/me/%s HTTP/1.1\r\nHost: tailnet\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    f"Coder-Session-Token: {_AGENT.token}\r\n\r\n"
)
_COORDINATOR = ("coordinator",)


def _rpc(door: str) -> bytes:
    return (_RPC % door).encode()


def _message(payload: bytes) -> bytes:
    """One message of a websocket, of up to 64 KiB, under the mask of nothing."""
    size = len(payload)
    head = bytes([0x82, 0x80 | size]) if size < 126 else b"\x82\xfe" + size.to_bytes(2, "big")
    return head + bytes(4) + payload


def _yamux(kind: int, flags: int, stream: int, length: int, body: bytes = b"") -> bytes:
    return struct.pack(">BBHII", 0, kind, flags, stream, length) + body


_INVOKE = b"\x03\x01\x01\x24/coder.tailnet.v2.Tailnet/Coordinate"
_OPEN = _message(_yamux(1, 1, 1, 0) + _yamux(0, 0, 1, len(_INVOKE), _INVOKE))
# A login that is announced and comes in tiny pieces: nothing is wrong with it before its last byte.
_LOGIN = HEADER.pack(FrameType.CLIENT_INFO, MAX_CLIENT_INFO_BYTES)
FLOODS = (
    Flood("pings", "empty pings", _WEBSOCKET, b"\x89" + _MASKED_EMPTY),
    Flood("pongs", "empty pongs", _WEBSOCKET, b"\x8a" + _MASKED_EMPTY),
    Flood("messages", "empty messages", _WEBSOCKET, b"\x82" + _MASKED_EMPTY),
    Flood("fragments", "empty fragments", _WEBSOCKET, b"\x00" + _MASKED_EMPTY, b"\x02" + _MASKED_EMPTY),
    Flood("bytes", "messages of one byte", _WEBSOCKET, b"\x82\x81\x00\x00\x00\x00\x02"),
    Flood("requests", "pipelined requests", b"", b"GET /generate_204 HTTP/1.1\r\nHost: relay\r\n\r\n"),
    Flood("records", "TLS records of one byte", _DERP, b"\x00", _LOGIN, carrier="tls", record_bytes=1),
    Flood("door", "empty pings at its relay", _WEBSOCKET, b"\x89" + _MASKED_EMPTY, servers=_COORDINATOR),
    Flood(
        "yamux",
        "yamux pings",
        _rpc("rpc?version=2.4"),
        _message(_yamux(2, 1, 0, 7) * 1000),
        servers=_COORDINATOR,
    ),
    Flood(
        "windows",
        "yamux windows of nobody",
        _rpc("rpc?version=2.4"),
        _message(_yamux(1, 0, 9, 1 << 17) * 1000),
        servers=_COORDINATOR,
    ),
    Flood(
        "drpc",
        "one-byte dRPC frames",
        _rpc("rpc?version=2.4"),
        _message(_yamux(0, 0, 1, 5000, b"\x04\x01\x02\x01x" * 1000)),
        _OPEN,
        servers=_COORDINATOR,
    ),
    Flood(
        "json",
        "version 1 in single bytes",
        _rpc("coordinate"),
        _message(b"}"),
        _message(b'{"a":"'),
        servers=_COORDINATOR,
    ),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One server under one flood."""

    server: str
    flood: str
    p50_ms: float | None
    p99_ms: float | None
    grew_mib: float
    log_lines: int
    dials: int


class Stranger:
    """One connection of a flood, dialled again whenever it ends."""

    def __init__(self, flood: Flood, port: int, selector: selectors.BaseSelector) -> None:
        self._flood, self._port, self._selector = flood, port, selector
        self._units = flood.unit * (CHUNK_BYTES // len(flood.unit))
        self.dials = 0
        self.dial()

    def dial(self) -> None:
        self.dials += 1
        self._tls: ssl.SSLObject | None = None
        self._sock = socket.create_connection((HOST, self._port), 10.0)
        if self._flood.carrier == "tls":
            self._shake_hands()
        self._sock.setblocking(False)
        self._wire = memoryview(self._encrypted(self._flood.request))
        self._is_answered = not self._flood.request
        self._selector.register(self._sock, selectors.EVENT_READ | selectors.EVENT_WRITE, self)

    def serve(self, mask: int) -> None:
        try:
            if mask & selectors.EVENT_READ:
                received = self._sock.recv(1 << 16)
                if not received:
                    raise ConnectionResetError
                if not self._is_answered:
                    self._is_answered = True
                    self._wire = memoryview(self._encrypted(self._flood.first))
            if mask & selectors.EVENT_WRITE:
                if not self._wire and self._is_answered:
                    self._wire = memoryview(self._next())
                self._wire = self._wire[self._sock.send(self._wire) :] if self._wire else self._wire
        except BlockingIOError:
            pass
        except OSError:
            self._selector.unregister(self._sock)
            self._sock.close()
            self.dial()

    def _next(self) -> bytes:
        if not self._flood.record_bytes:
            return self._encrypted(self._units)
        assert self._tls is not None
        # Records have numbers, so these are made anew each time; fewer, for they cost us as much as the relay.
        for _ in range(4000):
            self._tls.write(self._flood.unit * self._flood.record_bytes)
        return self._outgoing.read()

    def _shake_hands(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, self._outgoing, server_hostname=HOST)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._sock.sendall(self._outgoing.read())
                incoming.write(self._sock.recv(1 << 16) or _gone())
        self._sock.sendall(self._outgoing.read())
        self._tls = tls

    def _encrypted(self, data: bytes) -> bytes:
        if self._tls is None or not data:
            return data
        self._tls.write(data)
        return self._outgoing.read()


def _gone() -> bytes:
    raise ConnectionResetError


def attack(flood: Flood, port: int) -> None:
    """Flood until standard input is closed; then print how often was dialled."""
    selector = selectors.DefaultSelector()
    strangers = [Stranger(flood, port, selector) for _ in range(STRANGERS)]
    selector.register(sys.stdin, selectors.EVENT_READ, None)
    print("flooding", flush=True)
    while True:
        for key, mask in selector.select():
            if key.data is None:
                print(sum(each.dials for each in strangers), flush=True)
                return
            with suppress(OSError):  # dialled in vain: its turn comes again with the next one that ends
                key.data.serve(mask)


@contextmanager
def started(name: str, carrier: Carrier, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """A relay, or a coordinator with its own; `environment` is the coordinator's."""
    if name != "coordinator":
        with serve(name, carrier) as server:
            yield server
        return
    with tempfile.TemporaryDirectory(prefix="bench-coordinator-") as scratch:
        folder = Path(scratch)
        with running_server("ours", folder, _SEED, environment=environment) as coordinator:
            port = int(coordinator.url.rpartition(":")[2])
            yield Server(name, carrier, port, coordinator.pid, folder / "server.log")


def run(name: str, flood: Flood | None, seconds: float) -> Row:
    """One relay, freshly started, under one flood; None: under no flood at all."""
    carrier: Carrier = flood.carrier if flood is not None else "plain"
    with started(name, carrier) as server:
        url = server.url(websocket=False)
        generate(url, server.pid, [*INNOCENTS, "-measure", "1s"])  # the first traffic of a process is dearer
        memory, lines = resident_bytes(server.pid), count_lines(server.output)
        process = None
        dials = 0
        if flood is not None:
            process = subprocess.Popen(
                [sys.executable, __file__, "--attack", flood.name, "--port", str(server.port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdout.readline()
        latency: dict[str, float] = {}
        try:
            latency = generate(url, server.pid, [*INNOCENTS, "-measure", f"{seconds}s"])["traffic"]["latency_us"] or {}
        except RunFailed as failed:
            click.echo(f"  {name}, {flood.title if flood else 'nobody'}: {failed}", err=True)
        grew = resident_bytes(server.pid) - memory
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            dials = int(process.stdout.readline() or 0)
            process.wait()
        return Row(
            name,
            flood.name if flood is not None else "",
            latency["p50"] / 1e3 if latency else None,
            latency["p99"] / 1e3 if latency else None,
            grew / 2**20,
            count_lines(server.output) - lines,
            dials,
        )


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def line(row: Row, title: str) -> str:
    numbers = [f"{value:.2f}" if value is not None else "none" for value in (row.p50_ms, row.p99_ms)]
    return (
        f"{title:<26}{row.server:>12}{numbers[0]:>10}{numbers[1]:>10}{row.grew_mib:>10.1f}{row.log_lines:>10}"
        f"{row.dials:>10}"
    )


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--only", multiple=True, type=click.Choice([each.name for each in FLOODS]), help="these floods")
@click.option("--server", "servers", multiple=True, type=click.Choice(SERVERS), help="these relays")
@click.option("--seconds", default=5.0, help="the measured window of each run")
@click.option("--attack", "attacking", hidden=True)
@click.option("--port", default=0, hidden=True)
def main(only: tuple[str, ...], servers: tuple[str, ...], seconds: float, attacking: str, port: int) -> None:
    if attacking:
        attack(next(each for each in FLOODS if each.name == attacking), port)
        return
    floods: list[Flood | None] = [None, *(each for each in FLOODS if not only or each.name in only)]
    click.echo(f"{'':<26}{'':>12}{'p50 ms':>10}{'p99 ms':>10}{'grew MiB':>10}{'log lines':>10}{'dials':>10}")
    rows: list[Row] = []
    for flood in floods:
        for name in SERVERS if flood is None else flood.servers:
            if servers and name not in servers:
                continue
            row = run(name, flood, seconds)
            rows.append(row)
            click.echo(line(row, flood.title if flood is not None else "nobody"))
    write_rows("floods", [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
