"""Calls over one connection: against the recorded bytes of genuine peers, side against side, and under abuse."""

from typing import Any

import pytest

from tailnet.errors import Flood, PeerSilent, RemoteProtocolError, RpcError, Unimplemented
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.proto.services import TAILNET, Rpc
from tailnet.rpc.connection import (
    IDLE_STREAM_SECONDS,
    MAX_HELD_BYTES,
    MAX_MESSAGES,
    MAX_MESSAGES_AT_ONCE,
    ClientConnection,
    ConnectionEvent,
    ServerConnection,
)
from tailnet.rpc.drpc import DONE, PacketKind, ServerStream, encode_frame
from tailnet.rpc.yamux import (
    FLAG_FIN,
    FLAG_RST,
    FLAG_SYN,
    HEADER,
    TYPE_DATA,
    TYPE_PING,
    TYPE_WINDOW_UPDATE,
    WINDOW_BYTES,
    SessionLimits,
)
from tests.tailnet.rpc.link import feed, joined, one_byte_each, sent, settle, transcript, whole
from tests.tailnet.rpc.test_yamux import frames

CALLED, MESSAGE, HALF_CLOSED = ConnectionEvent.CALLED, ConnectionEvent.MESSAGE, ConnectionEvent.HALF_CLOSED
ENDED, PONG, GO_AWAY = ConnectionEvent.ENDED, ConnectionEvent.PONG, ConnectionEvent.GO_AWAY
PREFIX = "/coder.tailnet.v2.Tailnet/"
COORDINATE, REFRESH = TAILNET[PREFIX + "Coordinate"], TAILNET[PREFIX + "RefreshResumeToken"]
TELEMETRY, DERP_MAPS = TAILNET[PREFIX + "PostTelemetry"], TAILNET[PREFIX + "StreamDERPMaps"]


def server(**limits: Any) -> ServerConnection[Rpc]:
    return ServerConnection(TAILNET, now=0.0, limits=SessionLimits(**limits))


def client(**limits: Any) -> ClientConnection:
    return ClientConnection(now=0.0, limits=SessionLimits(**limits))


def by_stream(wire: bytes) -> dict[int, bytes]:
    """The data of each yamux stream."""
    found: dict[int, bytes] = {}
    for word, stream_id, _, body in frames(wire):
        if word >> 16 == 0:
            found[stream_id] = found.get(stream_id, b"") + body
    return found


def syn(stream_id: int) -> bytes:
    return HEADER.pack(TYPE_WINDOW_UPDATE | FLAG_SYN, stream_id, 0)


def flag(stream_id: int, flags: int) -> bytes:
    return HEADER.pack(TYPE_WINDOW_UPDATE | flags, stream_id, 0)


def data(stream_id: int, body: bytes) -> bytes:
    return HEADER.pack(TYPE_DATA, stream_id, len(body)) + body


def packet(kind: PacketKind, body: bytes = b"", message: int = 1, flags: int = DONE) -> bytes:
    return encode_frame(kind << 1 | flags, 1, message, body)


def calling(rpc: Rpc = COORDINATE, stream_id: int = 1) -> bytes:
    return syn(stream_id) + data(stream_id, packet(PacketKind.INVOKE, rpc.path.encode()))


class TestTranscript:
    """Bytes between a genuine client and a genuine server, with ours in the place of either."""

    def serve(self, sizes: Any) -> tuple[list[Any], dict[str, bytes]]:
        """Play the recorded client; answer as the recorded server did.  Events, and what we sent per section."""
        connection, events, answers = server(), [], {}
        for section, writes in transcript().items():
            for wire in (wire for way, wire in writes if way == "C>S"):
                for event in feed(connection, wire, sizes()):
                    events.append(event)
                    self.answer(connection, *event[:2])
            answers[section] = sent(connection)
        return events, answers

    def answer(self, connection: ServerConnection[Rpc], kind: ConnectionEvent, call_id: int) -> None:
        if kind is not MESSAGE:
            return
        rpc = connection.rpc_of(call_id)
        if rpc is REFRESH:
            response = tailnet.RefreshResumeTokenResponse(token="T")
            connection.send_message(call_id, response.SerializeToString())
        elif rpc is TELEMETRY:
            connection.send_error(call_id, Unimplemented())
        else:
            connection.send_message(call_id, tailnet.CoordinateResponse(error="hi").SerializeToString())
            connection.finish(call_id)

    @pytest.mark.parametrize("sizes", [whole, one_byte_each], ids=["whole", "byte by byte"])
    def test_our_server_answers_byte_for_byte(self, sizes: Any) -> None:
        _, answers = self.serve(sizes)
        recorded = {section: joined(writes, "S>C").hex() for section, writes in transcript().items()}
        assert {section: wire.hex() for section, wire in answers.items()} == recorded

    def test_our_server_understands_what_the_genuine_client_did(self) -> None:
        events, _ = self.serve(one_byte_each)
        request = tailnet.CoordinateRequest()
        request.add_tunnel.id = bytes(16)
        assert events == [
            (CALLED, 1, REFRESH),
            (MESSAGE, 1, b""),
            (HALF_CLOSED, 1, None),
            (ENDED, 1, "closed"),
            (CALLED, 3, TELEMETRY),
            (MESSAGE, 3, b""),
            (HALF_CLOSED, 3, None),
            (CALLED, 5, COORDINATE),
            (MESSAGE, 5, request.SerializeToString()),
        ]

    @pytest.mark.parametrize("rpc", [REFRESH, TELEMETRY], ids=["answer", "error"])
    def test_our_client_calls_byte_for_byte(self, rpc: Rpc) -> None:
        connection, sections = client(), list(transcript().values())
        if rpc is TELEMETRY:  # the recorded call is the second
            connection.cancel(connection.open_call(COORDINATE.path))
            connection.data_to_send()
        writes = sections[0] if rpc is REFRESH else sections[1]
        call_id = connection.call(rpc.path, b"")
        wire, seen = sent(connection), []
        for answer in (data for way, data in writes if way == "S>C"):
            for _, _, value in feed(connection, answer):
                seen.append(value.text if isinstance(value, RpcError) else value)
                connection.close(call_id)
            wire += sent(connection)
        assert wire.hex() == joined(writes, "C>S").hex()
        assert seen == ([b"\x0a\x01T"] if rpc is REFRESH else ["Unimplemented"])

    def test_our_client_streams_the_same_bytes(self) -> None:
        # Grouped otherwise: a genuine client holds the Invoke back until the first message.
        connection, sections = client(), transcript()
        for _ in range(2):  # the recorded call is the third
            connection.cancel(connection.open_call(COORDINATE.path))
        connection.data_to_send()
        call_id = connection.open_call(COORDINATE.path)
        request = tailnet.CoordinateRequest()
        request.add_tunnel.id = bytes(16)
        connection.send_message(call_id, request.SerializeToString())
        writes = sections["bidi Coordinate: open only"] + sections["bidi: first send"]
        assert by_stream(sent(connection)) == by_stream(joined(writes, "C>S"))
        events = feed(connection, joined(writes, "S>C"))
        assert events == [(MESSAGE, 5, tailnet.CoordinateResponse(error="hi").SerializeToString()), (ENDED, 5, None)]
        assert sent(connection) == writes[-2][1] == flag(5, FLAG_FIN)


class Peers:
    """A client and a server of ours on a virtual link."""

    def __init__(self, **limits: Any) -> None:
        self.client, self.server = client(**limits), server(**limits)

    def settle(self, serve: Any = None) -> tuple[list[Any], list[Any]]:
        """Events of the client and of the server; `serve` answers the server's."""
        return settle(
            self.client, self.server, lambda core, event: serve(*event) if serve and core is self.server else None
        )


class TestSideBySide:
    def test_unary(self) -> None:
        peers = Peers()

        def serve(kind: ConnectionEvent, call_id: int, value: Any) -> None:
            if kind is MESSAGE:
                peers.server.reply(call_id, value + b"!")

        call_id = peers.client.call(REFRESH.path, b"request")
        seen, served = peers.settle(serve)
        assert seen == [(MESSAGE, call_id, b"request!"), (ENDED, call_id, None)]
        assert [kind for kind, _, _ in served] == [CALLED, MESSAGE, HALF_CLOSED]
        assert peers.server.calls_in_hand() == []

    def test_a_reply_is_one_write_that_ends_the_call(self) -> None:
        peers = Peers()
        call_id = peers.client.call(REFRESH.path, b"")
        peers.settle()
        peers.server.reply(call_id, b"\x0a\x01T")
        assert sent(peers.server) == data(1, bytes.fromhex("050101030a0154 0d010200"))

    def test_server_stream(self) -> None:
        peers = Peers()
        call_id = peers.client.call(DERP_MAPS.path, b"")
        peers.settle()
        assert peers.server.calls_in_hand() == [call_id]
        for number in range(3):
            assert peers.server.send_message(call_id, b"map %d" % number)
        seen, _ = peers.settle()
        assert [value for _, _, value in seen] == [b"map 0", b"map 1", b"map 2"]
        peers.client.close(call_id)
        assert peers.settle() == ([], [(ENDED, call_id, "closed")])
        assert peers.server.send_message(call_id, b"nobody there")
        assert not peers.server.has_output

    def test_both_ways_until_both_close(self) -> None:
        peers = Peers()
        call_id = peers.client.open_call(COORDINATE.path)
        peers.client.send_message(call_id, b"up")
        peers.settle()
        peers.server.send_message(call_id, b"down")
        peers.client.close_send(call_id)
        seen, served = peers.settle()
        assert (seen, served) == ([(MESSAGE, call_id, b"down")], [(HALF_CLOSED, call_id, None)])
        peers.server.finish(call_id)
        assert peers.settle() == ([(ENDED, call_id, None)], [])

    def test_the_server_closes_its_direction_first(self) -> None:
        connection = client()
        call_id = connection.open_call(COORDINATE.path)
        assert feed(connection, data(1, packet(PacketKind.CLOSE_SEND))) == [(HALF_CLOSED, call_id, None)]
        connection.data_to_send()
        connection.send_message(call_id, b"still allowed")
        connection.close_send(call_id)  # both have said it: the call is over, and its byte stream with it
        assert frames(sent(connection))[-1][:2] == (TYPE_WINDOW_UPDATE | FLAG_FIN, 1)

    def test_the_server_ends_a_stream_while_the_client_still_could_speak(self) -> None:
        peers = Peers()
        call_id = peers.client.open_call(COORDINATE.path)
        peers.settle()
        peers.server.finish(call_id)
        assert peers.settle() == ([(ENDED, call_id, None)], [])
        assert peers.client.send_message(call_id, b"too late")
        assert not peers.client.has_output

    def test_errors_of_a_service(self) -> None:
        peers = Peers()
        call_id = peers.client.call(REFRESH.path, b"")
        peers.settle(lambda kind, cid, _: peers.server.send_error(cid, RpcError("no", 7)) if kind is MESSAGE else None)
        other = peers.client.call("/coder.agent.v2.Agent/GetManifest", b"")
        seen, served = peers.settle()
        [(kind, cid, error)] = seen
        assert (kind, cid, type(error), error.code) == (ENDED, other, Unimplemented, 12)
        assert "GetManifest" in error.text
        assert served == []  # a path the door does not know never reaches the service
        assert call_id != other

    def test_a_cancelling_client_drops_the_byte_stream(self) -> None:
        peers = Peers()
        call_id = peers.client.open_call(COORDINATE.path)
        peers.settle()
        peers.client.cancel(call_id)
        assert peers.settle() == ([], [(ENDED, call_id, "cancelled")])

    def test_long_messages_both_ways(self) -> None:
        peers, payload = Peers(), bytes(range(256)) * 12_000  # 3 MB: split by dRPC, and far beyond the window
        call_id = peers.client.open_call(COORDINATE.path)
        peers.client.send_message(call_id, payload)
        peers.settle()
        assert peers.server.send_message(call_id, payload)
        assert peers.server.send_message(call_id, b"behind")
        seen, _ = peers.settle()
        assert [value for _, _, value in seen] == [payload, b"behind"]

    def test_many_calls_at_once_and_after_each_other(self) -> None:
        peers = Peers()

        def serve(kind: ConnectionEvent, call_id: int, value: Any) -> None:
            if kind is MESSAGE:
                peers.server.reply(call_id, value[::-1])

        for _ in range(10):
            ids = [peers.client.call(REFRESH.path, b"call %d" % number) for number in range(50)]
            seen, _ = peers.settle(serve)
            answers = {call_id: value for kind, call_id, value in seen if kind is MESSAGE}
            assert answers == {call_id: (b"call %d" % number)[::-1] for number, call_id in enumerate(ids)}

    def test_pings_and_go_away_pass_through(self) -> None:
        peers = Peers()
        peers.client.ping(77)
        peers.server.go_away()
        seen, served = peers.settle()
        assert (sorted(seen, key=str), served) == ([(GO_AWAY, 0, 0), (PONG, 0, 77)], [])

    def test_a_whole_day_of_silence(self) -> None:
        peers = Peers()
        call_id = peers.client.open_call(COORDINATE.path)
        peers.settle()
        for now in range(15, 24 * 3600, 15):
            peers.client.handle_timeout(float(now))
            peers.server.handle_timeout(float(now))
            peers.settle()
        peers.server.send_message(call_id, b"good morning")
        assert (MESSAGE, call_id, b"good morning") in peers.settle()[0]

    def test_the_end_of_the_transport_ends_the_calls(self) -> None:
        peers = Peers()
        live = peers.client.open_call(COORDINATE.path)
        peers.settle()
        assert peers.server.receive_eof() == [(ENDED, live, "cancelled")]
        [(kind, call_id, error)] = peers.client.receive_eof()
        assert (kind, call_id) == (ENDED, live)
        assert isinstance(error, RpcError)


class TestBadClients:
    def test_a_broken_stream_is_reset_and_the_others_live(self) -> None:
        connection = server()
        feed(connection, calling(stream_id=1) + calling(stream_id=3))
        connection.data_to_send()
        events = feed(connection, data(1, b"\x01\x01\x01\x00") + data(3, packet(PacketKind.MESSAGE, b"m", 2)))
        assert [(kind, call_id) for kind, call_id, _ in events] == [(ENDED, 1), (MESSAGE, 3)]
        assert events[0][2].startswith("protocol error: ")
        assert sent(connection) == flag(1, FLAG_RST)

    def test_garbage_before_a_call_is_no_event(self) -> None:
        connection = server()
        assert feed(connection, syn(1) + data(1, bytes(8))) == []
        assert frames(sent(connection))[-1][:2] == (TYPE_WINDOW_UPDATE | FLAG_RST, 1)

    def test_an_unknown_rpc_whose_stream_is_reset_in_the_same_bytes(self) -> None:
        connection = server()
        wire = syn(1) + data(1, packet(PacketKind.INVOKE, b"/no/such")) + flag(1, FLAG_RST)
        assert feed(connection, wire) == []
        assert by_stream(sent(connection)) == {}

    def test_an_unknown_rpc_that_is_over_at_once(self) -> None:
        connection = server()
        wire = packet(PacketKind.INVOKE, b"/no/such") + packet(PacketKind.CLOSE, b"", 2)
        assert feed(connection, syn(1) + data(1, wire)) == []
        assert by_stream(sent(connection)) == {}

    def test_an_unknown_path_is_quoted_in_part(self) -> None:
        connection = server()
        feed(connection, syn(1) + data(1, packet(PacketKind.INVOKE, b"/" + b"x" * 50_000)))
        assert len(sent(connection)) < 300

    def test_streams_without_a_call_are_dropped(self) -> None:
        connection = server(ping_seconds=None, tick_seconds=15.0)
        feed(connection, syn(1) + calling(stream_id=3) + syn(5))
        connection.data_to_send()
        now = 0.0
        while now < IDLE_STREAM_SECONDS:
            now += 15.0
            connection.handle_timeout(now)
            assert not connection.has_output
        connection.handle_timeout(now + 15.0)
        assert sorted(frames(sent(connection))) == sorted(frames(flag(1, FLAG_RST) + flag(5, FLAG_RST)))
        assert feed(connection, data(3, packet(PacketKind.MESSAGE, b"m", 2))) == [(MESSAGE, 3, b"m")]

    def test_a_client_that_lingers_after_its_answer_is_dropped_too(self) -> None:
        connection = server(ping_seconds=None)
        feed(connection, calling(REFRESH) + data(1, packet(PacketKind.MESSAGE, b"", 2)))
        connection.reply(1, b"")
        connection.data_to_send()
        for now in (15.0, 90.0, 105.0):
            connection.handle_timeout(now)
        assert sent(connection) == flag(1, FLAG_RST)

    def test_a_thousand_half_open_calls(self) -> None:
        connection = server()
        events = feed(connection, b"".join(calling(stream_id=number) for number in range(1, 2001, 2)))
        assert [kind for kind, _, _ in events] == [CALLED] * 256
        refused = [word for word, *_ in frames(sent(connection)) if word == TYPE_WINDOW_UPDATE | FLAG_RST]
        assert len(refused) == 1000 - 256
        assert feed(connection, data(511, packet(PacketKind.MESSAGE, b"m", 2))) == [(MESSAGE, 511, b"m")]

    def test_many_unfinished_messages_end_the_connection(self) -> None:
        connection = server()
        part = packet(PacketKind.MESSAGE, bytes(100_000), 2, flags=0)
        feed(connection, b"".join(calling(stream_id=number) for number in range(1, 401, 2)))
        parts = b"".join(data(number, part) for number in range(1, 401, 2))
        with pytest.raises(RemoteProtocolError, match="unfinished messages, limit 16777216"):
            feed(connection, parts)

    def test_finished_messages_are_never_too_many(self) -> None:
        connection = server()
        feed(connection, calling())
        for number in range(2, 30):
            for at in range(0, 1 << 20, WINDOW_BYTES // 2):
                part = packet(PacketKind.MESSAGE, bytes(WINDOW_BYTES // 2 - 16), number, flags=int(at >= 917504))
                feed(connection, data(1, part))

    def test_a_client_that_never_reads_is_reported_then_dropped(self) -> None:
        connection = server(max_unsent_bytes=100_000)
        feed(connection, calling())
        update, sends = bytes(500), 0
        while connection.send_message(1, update):
            sends += 1
        assert sends > WINDOW_BYTES // 510
        assert 100_000 - 510 < connection.unsent_bytes(1) <= 100_000
        connection.data_to_send()
        connection.send_error(1, RpcError("too slow" * 100))  # no room either: the stream is dropped
        assert sent(connection) == flag(1, FLAG_RST)
        assert connection.calls_in_hand() == []

    def test_answers_nobody_waits_for_are_dropped_with_the_stream(self) -> None:
        connection = server()
        feed(connection, calling())
        connection.send_message(1, bytes(WINDOW_BYTES + 1))
        connection.data_to_send()
        assert feed(connection, flag(1, FLAG_FIN)) == [(ENDED, 1, "cancelled")]
        assert sent(connection) == flag(1, FLAG_RST)
        assert connection.unsent_bytes(1) == 0

    def test_errors_and_cancels_of_a_client(self) -> None:
        connection = server()
        wires = [packet(PacketKind.ERROR, bytes(8) + b"oops", 2), packet(PacketKind.CANCEL, b"", 2)]
        events = feed(
            connection, b"".join(calling(stream_id=n) + data(n, wire) for n, wire in zip((1, 3), wires, strict=True))
        )
        assert [value for kind, _, value in events if kind is ENDED] == ["error of the client: oops", "cancelled"]

    def test_messages_without_end_are_a_flood(self) -> None:
        connection = server()
        feed(connection, calling())
        empty = [packet(PacketKind.MESSAGE, b"", number) for number in range(2, MAX_MESSAGES_AT_ONCE + 3)]
        assert len(connection.receive_data(data(1, b"".join(empty[:-1])))) == MAX_MESSAGES_AT_ONCE
        with pytest.raises(Flood, match="messages at once"):
            connection.receive_data(
                data(1, b"".join(packet(PacketKind.MESSAGE, b"", number) for number in range(5000, 7000)))
            )
        assert connection.receive_eof() == [(ENDED, 1, "cancelled")]

    def test_messages_that_keep_coming_are_a_flood_and_some_a_second_are_none(self) -> None:
        connection = server(ping_seconds=None)
        feed(connection, calling())
        number = 1

        def send(count: int) -> None:
            nonlocal number
            for _ in range(count):
                number += 1
                connection.receive_data(data(1, packet(PacketKind.MESSAGE, b"message", number)))

        for now in range(15, 60, 15):
            send(MAX_MESSAGES // 2)
            connection.handle_timeout(float(now))
        send(MAX_MESSAGES)
        with pytest.raises(Flood, match="in 15 s"):
            send(1)

    def test_a_message_cut_into_single_bytes_is_a_flood(self) -> None:
        connection = server()
        feed(connection, calling())
        pieces = b"".join(packet(PacketKind.MESSAGE, b"x", 2, flags=0) for _ in range(MAX_MESSAGES_AT_ONCE + 1))
        with pytest.raises(Flood):
            connection.receive_data(data(1, pieces))

    def test_an_end_before_a_flood_is_heard(self) -> None:
        connection = server()
        feed(connection, calling() + calling(stream_id=3))
        flood = b"".join(packet(PacketKind.MESSAGE, b"", number) for number in range(2, 2000))
        with pytest.raises(Flood):
            connection.receive_data(data(1, packet(PacketKind.CLOSE, b"", 2)) + data(3, flood))
        assert [(kind, call_id) for kind, call_id, _ in connection.receive_eof()] == [(ENDED, 1), (ENDED, 3)]

    def test_a_silent_client_is_dead(self) -> None:
        connection = server()
        connection.handle_timeout(15.0)
        assert frames(sent(connection))[0][0] == TYPE_PING | FLAG_SYN
        with pytest.raises(PeerSilent):
            connection.handle_timeout(45.0)

    def test_calls_of_a_silent_client_are_ended(self) -> None:
        connection = server()
        feed(connection, calling())
        connection.handle_timeout(15.0)
        with pytest.raises(PeerSilent):
            connection.handle_timeout(46.0)
        assert connection.receive_eof() == [(ENDED, 1, "cancelled")]
        assert connection.receive_eof() == []

    def test_an_end_that_was_read_just_before_the_fault_is_told_too(self) -> None:
        connection = server()
        streams = range(3, 3 + 2 * (MAX_HELD_BYTES // WINDOW_BYTES + 1), 2)
        feed(connection, calling())
        for stream_id in streams:
            feed(connection, calling(stream_id=stream_id))
        unfinished = encode_frame(PacketKind.MESSAGE << 1, 1, 2, bytes(WINDOW_BYTES))[: WINDOW_BYTES - 100]
        wire = data(1, packet(PacketKind.CLOSE, b"", 2)) + b"".join(data(each, unfinished) for each in streams)
        with pytest.raises(RemoteProtocolError, match="unfinished messages"):
            connection.receive_data(wire)
        ended = connection.receive_eof()
        assert ended[0] == (ENDED, 1, "closed")
        assert [call_id for _, call_id, _ in ended] == [1, *streams]

    def test_a_fault_of_the_session_ends_the_connection_and_later_calls_are_harmless(self) -> None:
        connection = server()
        feed(connection, calling())
        with pytest.raises(RemoteProtocolError):
            connection.receive_data(syn(1))
        connection.data_to_send()
        # The coordinator may still have deliveries for this peer in hand.
        assert connection.send_message(1, b"update")
        connection.finish(1)
        assert not connection.has_output


class TestCallsInARowOnOneStream:
    """No genuine coordinator's client does it, but the protocol allows it."""

    INVOKE = packet(PacketKind.INVOKE, COORDINATE.path.encode())

    def next_call(self, path: str, number: int = 2) -> bytes:
        return encode_frame(PacketKind.INVOKE << 1 | DONE, number, 1, path.encode())

    def test_each_gets_an_id_of_its_own(self) -> None:
        connection = server()
        [(_, first, _)] = feed(connection, calling())
        connection.finish(first)
        [(kind, second, rpc)] = feed(connection, data(1, self.next_call(REFRESH.path)))
        assert (kind, rpc) == (CALLED, REFRESH)
        assert first != second
        assert connection.calls_in_hand() == [second]

    def test_a_late_answer_never_reaches_the_next_call(self) -> None:
        connection = server()
        [(_, first, _)] = feed(connection, calling())
        events = feed(connection, data(1, self.next_call(REFRESH.path)))
        second = events[1][1]
        assert events == [(ENDED, first, "cancelled"), (CALLED, second, REFRESH)]
        connection.data_to_send()
        assert connection.send_message(first, b"for the first")
        connection.finish(first)
        connection.send_error(first, RpcError("late"))
        assert not connection.has_output
        connection.reply(second, b"")
        assert by_stream(sent(connection)) == {1: bytes.fromhex("05020100 0b020200")}

    def test_an_unknown_rpc_is_refused_only_if_it_is_still_in_hand(self) -> None:
        connection = server()
        unknown = packet(PacketKind.INVOKE, b"/no/such") + packet(PacketKind.MESSAGE, b"m", 2)
        events = feed(connection, syn(1) + data(1, unknown + self.next_call(REFRESH.path)))
        assert [(kind, rpc) for kind, _, rpc in events] == [(CALLED, REFRESH)]
        assert by_stream(sent(connection)) == {}
        assert feed(connection, data(1, self.next_call("/no/such", 3) + self.next_call("/neither", 4)))[0][0] is ENDED
        assert by_stream(sent(connection))[1].endswith(b"unknown rpc: '/neither'")

    def test_an_end_that_a_fault_hides_is_told(self) -> None:
        connection = server()
        [(_, first, _)] = feed(connection, calling())
        [(kind, call_id, words)] = feed(connection, data(1, packet(PacketKind.CLOSE, b"", 2) + bytes(8)))
        assert (kind, call_id) == (ENDED, first)
        assert words.startswith("protocol error")


class TestBadServers:
    def serving(self, answer: bytes) -> tuple[ClientConnection, list[Any]]:
        connection = client()
        connection.call(REFRESH.path, b"")
        connection.data_to_send()
        return connection, feed(connection, answer)

    def test_a_broken_answer_fails_the_call(self) -> None:
        connection, [(kind, call_id, error)] = self.serving(data(1, b"\x01\x01\x01\x00"))
        assert (kind, call_id) == (ENDED, 1)
        assert "broke the protocol" in error.text
        assert sent(connection) == flag(1, FLAG_RST)

    @pytest.mark.parametrize("flags", [FLAG_FIN, FLAG_RST])
    def test_a_dropped_stream_fails_the_call(self, flags: int) -> None:
        _, [(kind, _, error)] = self.serving(flag(1, flags))
        assert kind is ENDED
        assert "dropped the call" in error.text

    def test_a_cancelling_server_fails_the_call(self) -> None:
        _, [(kind, _, error)] = self.serving(data(1, packet(PacketKind.CANCEL)))
        assert (kind, error.text) == (ENDED, "the server cancelled the call")

    def test_streams_of_a_server_are_refused(self) -> None:
        connection, events = self.serving(syn(2))
        assert events == []
        assert frames(sent(connection))[-1][:2] == (TYPE_WINDOW_UPDATE | FLAG_RST, 2)

    def test_a_fault_of_its_session_fails_every_call(self) -> None:
        connection, _ = self.serving(b"")
        other = connection.open_call(COORDINATE.path)
        with pytest.raises(RemoteProtocolError):
            connection.receive_data(HEADER.pack(1 << 24, 1, 0))
        ended = connection.receive_eof()
        assert [(kind, call_id) for kind, call_id, _ in ended] == [(ENDED, 1), (ENDED, other)]
        assert connection.receive_eof() == []

    def test_a_silent_one_fails_every_call(self) -> None:
        connection, _ = self.serving(b"")
        connection.handle_timeout(15.0)
        with pytest.raises(PeerSilent):
            connection.handle_timeout(46.0)
        assert [(kind, call_id) for kind, call_id, _ in connection.receive_eof()] == [(ENDED, 1)]

    def test_data_behind_the_end_is_skipped(self) -> None:
        answer = data(1, packet(PacketKind.CLOSE)) + data(1, packet(PacketKind.MESSAGE, b"late", 2))
        _, events = self.serving(answer)
        assert events == [(ENDED, 1, None)]


def test_a_delivery_is_encoded_once_for_all_receivers() -> None:
    payload = bytes(700)
    pieces = []
    for _ in range(5):
        connection = server()
        feed(connection, calling())
        connection.data_to_send()
        connection.send_message(1, payload)
        head, body = connection.data_to_send()
        assert body is payload
        pieces.append(bytes(head))
    assert pieces == [HEADER.pack(TYPE_DATA, 1, 705) + bytes.fromhex("050101bc05")] * 5


def test_a_server_stream_alone_needs_little() -> None:
    # Two of these per idle peer: an instance dictionary would double them.
    assert not hasattr(ServerStream(), "__dict__")
    assert not hasattr(server(), "__dict__")
