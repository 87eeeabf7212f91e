"""What is thrown at the DERP cores, and the law: any bytes either parse or raise RemoteProtocolError.

A target takes bytes and returns; every other exception is a find.  Where bytes do parse, a target also checks that the
result does not depend on how the stream was cut, and that what was read can be written and read again.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from derp.errors import RemoteProtocolError
from derp.protocol.connection import ClientConnection, ServerHandshake
from derp.protocol.frames import FrameReader, encode_frame
from derp.protocol.handshake import (
    open_client_info,
    open_server_info,
    parse_client_info_json,
    parse_server_info_json,
    parse_server_key,
    seal_client_info,
    server_key_frame,
)
from derp.protocol.messages import (
    ClientInfo,
    ForwardPacket,
    Ping,
    SendPacket,
    UnknownFrame,
    encode,
    parse_from_client,
    parse_from_server,
)
from derp.protocol.states import ServerState
from derp.protocol.stun import encode_request, encode_response, parse_request, parse_response
from derp.protocol.upgrade import (
    AnswerKind,
    Refusal,
    judge_derp_answer,
    judge_request,
    judge_websocket_answer,
    websocket_request_headers,
)
from derp.protocol.websocket import (
    MAX_IDLE_PER_RECEIVE,
    WebSocketDecoder,
    WebSocketError,
    WebSocketFlood,
    encode_header,
    encode_masked,
)
from tests.derp.relay.world import World, key
from tests.fuzz.laws import Target
from tests.vectors.derp import MESH_KEY, PRIVATE, PUBLIC, VECTORS, wire

NONCE: Final = bytes(24)


def cut(data: bytes) -> tuple[bytes, list[bytes]]:
    """The first byte says how the rest is cut."""
    step, rest = (data[0] % 40 + 1, data[1:]) if data else (1, b"")
    return rest, [rest[i : i + step] for i in range(0, len(rest), step)]


def fuzz_frames(data: bytes) -> None:
    whole, pieces = cut(data)

    def read(parts: Iterable[bytes]) -> list[tuple[int, bytes]] | None:
        reader = FrameReader(4096)
        try:
            return [(kind, bytes(payload)) for part in parts for kind, payload in reader.receive_data(part)]
        except RemoteProtocolError:
            return None

    assert read([whole]) == read(pieces)


def fuzz_messages(data: bytes) -> None:
    if not data:
        return
    for parse in (parse_from_client, parse_from_server):
        try:
            message = parse(data[0], memoryview(data)[1:])
        except RemoteProtocolError:
            assert parse is parse_from_client
            continue
        if not isinstance(message, UnknownFrame):
            frame = encode(message)
            assert parse(frame[0], frame[5:]) == message


def fuzz_handshake(data: bytes) -> None:
    for attempt in (
        lambda: parse_server_key(data),
        lambda: open_client_info(PRIVATE["server"], data),
        lambda: open_server_info(PRIVATE["a"], PUBLIC["server"], data),
        lambda: seal_client_info(PRIVATE["a"], data, ClientInfo(), NONCE) if len(data) == 32 else None,
        lambda: parse_server_info_json(data),
    ):
        try:
            attempt()
        except RemoteProtocolError:
            continue
    try:
        info = parse_client_info_json(data)
    except RemoteProtocolError:
        return
    frame = seal_client_info(PRIVATE["a"], PUBLIC["server"], info, NONCE)
    assert open_client_info(PRIVATE["server"], frame[5:]).info == info


def fuzz_client(data: bytes) -> None:
    whole, pieces = cut(data)

    def run(parts: Iterable[bytes]) -> object:
        client = ClientConnection(PRIVATE["a"], random_bytes=bytes, mesh_key=MESH_KEY)
        try:
            events = [*client.receive_data(server_key_frame(PUBLIC["server"]))]
            for part in parts:
                events += client.receive_data(part)
        except RemoteProtocolError:
            assert client.data_to_send() == []
            return None
        return events, b"".join(client.data_to_send()), client.state

    assert run([whole]) == run(pieces)


def fuzz_server(data: bytes) -> None:
    whole, pieces = cut(data)
    login = seal_client_info(PRIVATE["a"], PUBLIC["server"], ClientInfo(MESH_KEY), NONCE)

    def run(parts: Iterable[bytes]) -> object:
        server = ServerHandshake(PRIVATE["server"], random_bytes=bytes, mesh_key=MESH_KEY)
        who: list[object] = []
        behind = b""
        try:
            for part in parts:
                if server.state is ServerState.ADMITTED:
                    behind += part
                    continue
                who += server.receive_data(part)
                if server.state is ServerState.JUDGING:
                    server.accept()
                    behind = server.trailing_data()
        except RemoteProtocolError:
            assert server.data_to_send() == []
            return None
        return who, behind, b"".join(server.data_to_send()), server.state

    assert run([whole]) == run(pieces)
    assert run([login, whole]) == run([login, *pieces])


def fuzz_relay(data: bytes) -> None:
    """What a registered client, or another relay, sends: everybody gets the same, however it was cut."""
    whole, pieces = cut(data)

    def run(parts: Iterable[bytes], is_mesh_peer: bool) -> object:
        world = World()
        sender = world.connect("sender", is_mesh_peer=is_mesh_peer)
        others = [world.connect(name) for name in ("a", "b")]
        try:
            world.receive(sender, *parts)
        except RemoteProtocolError as error:
            closed = str(error)
        else:
            closed = ""
        counters = world.router.counters
        return closed, [world.take(client) for client in (sender, *others)], counters.unknown_frames, counters.got_ping

    for is_mesh_peer in (False, True):
        assert run([whole], is_mesh_peer) == run(pieces, is_mesh_peer)


def fuzz_websocket(data: bytes) -> None:
    whole, pieces = cut(data)

    def run(parts: Iterable[bytes], masked: bool) -> tuple[bytes | None, int]:
        decoder, payload = WebSocketDecoder(masked, 1000), b""
        for part in parts:
            out = bytearray(len(part) + 1)
            out[-1] = 0xEE
            try:
                end = decoder.receive_into(memoryview(part), out, 0)
            except WebSocketFlood:
                raise  # so many at once, which the cut decides
            except WebSocketError as error:
                return None, error.close_code
            assert end <= len(part)
            assert out[-1] == 0xEE
            payload += out[:end]
            assert len(decoder.control) <= MAX_IDLE_PER_RECEIVE
            decoder.control.clear()
        return payload, 0

    for masked in (True, False):
        with suppress(WebSocketFlood):
            assert run([whole], masked) == run(pieces, masked)


def fuzz_upgrade(data: bytes) -> None:
    method, _, rest = data.decode("latin-1").partition("\n")
    headers = {}
    for line in rest.split("\n"):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    judged = judge_request(method, "1.1", headers, PUBLIC["server"])
    if isinstance(judged, Refusal):
        assert 400 <= judged.status <= 499
        assert "\n" not in judged.sentence
    elif judged.answer:
        # Nobody may write lines of his own into our head.
        assert judged.answer.count(b"\r\n") <= 6
        assert judged.answer.index(b"\r\n\r\n") == len(judged.answer) - 4
    status = len(data) + 100
    assert judge_derp_answer(status, headers).kind is not AnswerKind.UPGRADED or status == 101
    judge_websocket_answer(101, headers, bytes(16))


def fuzz_stun(data: bytes) -> None:
    transaction = parse_request(data)
    if transaction is not None:
        assert data[8:20] == transaction
    try:
        transaction, ip, port = parse_response(data)
    except RemoteProtocolError:
        return
    assert parse_response(encode_response(transaction, ip, port)) == (transaction, ip, port)


def _frames(key: str) -> list[bytes]:
    return [bytes.fromhex(entry["hex"]) for entry in VECTORS[key]]


_STREAMS: Final = [wire(peer, side) for peer in ("a", "b", "mesh", "prober") for side in ("client", "server")]
_JSON: Final = [
    bytes.fromhex(entry["hex"]) for key in ("client_info_json", "server_info_json") for entry in VECTORS[key]
]
_MASK: Final = b"\x01\x02\x03\x04"
_SOCKET: Final = [
    *(encode_masked(opcode, body, _MASK) for opcode in range(16) for body in (b"", b"\x03\xe8bye", bytes(130))),
    *(encode_header(opcode, len(body)) + body for opcode in range(16) for body in (b"", b"\x03\xe8bye", bytes(130))),
    b"\x02\x81" + _MASK + b"a" + b"\x00\x81" + _MASK + b"b" + b"\x80\x81" + _MASK + b"c",
    b"\x02\x01a\x89\x00\x00\x01b\x80\x01c",
]
_TO_CLIENTS: Final = [
    *(encode(SendPacket(key(name), packet)) for name in ("a", "nobody") for packet in (b"", b"packet", bytes(90))),
    encode(ForwardPacket(key("far"), key("b"), b"forwarded"))
    + encode_frame(0x7F, bytes(1001))
    + encode(Ping(bytes(8))),
]
_UPGRADES: Final = [
    *(
        entry["request"].split(" ")[0].encode() + b"\n" + entry["request"].partition("\r\n")[2].encode()
        for entry in VECTORS["upgrades"]
    ),
    "\n".join(["GET", *(f"{n}: {v}" for n, v in websocket_request_headers("h", bytes(16)))]).encode(),
]

TARGETS: Final[dict[str, tuple[Target, list[bytes]]]] = {
    "frames": (fuzz_frames, [b"\x04" + stream for stream in _STREAMS]),
    "messages": (
        fuzz_messages,
        [frame[:1] + frame[5:] for key in ("session", "client_reads", "server_reads") for frame in _frames(key)],
    ),
    "handshake": (fuzz_handshake, [*(frame[5:] for frame in _frames("session") if frame[0] <= 3), *_JSON]),
    "client": (fuzz_client, [b"\x04" + frame for frame in (*_frames("client_reads"), *_frames("session"))]),
    "server": (fuzz_server, [b"\x04" + frame for frame in (*_frames("server_reads"), *_STREAMS)]),
    "relay": (fuzz_relay, [b"\x04" + frame for frame in (*_frames("server_reads"), *_TO_CLIENTS)]),
    "websocket": (fuzz_websocket, [b"\x04" + frame for frame in _SOCKET]),
    "upgrade": (fuzz_upgrade, _UPGRADES),
    "stun": (fuzz_stun, [*_frames("stun_requests"), *_frames("stun_responses"), encode_request(bytes(12))]),
}
"""Name: the target, and inputs worth changing."""
