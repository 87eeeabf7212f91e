"""HTTP heads: requests whole and cut anywhere, bounds, answers, upgrades, and the client's half."""

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import LocalProtocolError, RemoteProtocolError
from derp.transport.http import MAX_HEAD_LINES, ClientHttp, HttpError, Request, Response, ServerHttp, last_answer

UPGRADE = (
    b"GET /derp HTTP/1.1\r\nHost: relay.example:3340\r\nUser-Agent: Go-http-client/1.1\r\n"
    b"Connection: Upgrade\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n"
)
POST = b"POST /verify HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"


def read_one(server: ServerHttp, data: bytes) -> Request:
    request = server.receive_data(data)
    assert request is not None
    return request


def test_an_upgrade_request_is_read_whole() -> None:
    request = read_one(ServerHttp(), UPGRADE)
    assert (request.method, request.target, request.http_version, request.body) == ("GET", "/derp", "1.1", b"")
    assert request.headers["upgrade"] == "DERP"
    assert request.headers["host"] == "relay.example:3340"
    assert request.headers["derp-fast-start"] == "1"


def test_what_follows_an_upgrade_is_kept_for_the_next_protocol() -> None:
    server = ServerHttp()
    read_one(server, UPGRADE + b"\x02\x00\x00\x00\x38client info")
    assert server.trailing_data() == b"\x02\x00\x00\x00\x38client info"


@pytest.mark.parametrize("raw", [UPGRADE, POST, CHUNKED])
def test_byte_by_byte_gives_the_same_request(raw: bytes) -> None:
    whole = read_one(ServerHttp(max_body_bytes=5), raw)
    server = ServerHttp(max_body_bytes=5)
    answers = [server.receive_data(raw[at : at + 1]) for at in range(len(raw))]
    assert answers[-1] == whole
    assert answers[:-1] == [None] * (len(raw) - 1)


@given(st.lists(st.integers(0, len(UPGRADE)), max_size=6), st.binary(max_size=40))
def test_cuts_never_change_request_or_trailing_bytes(cuts: list[int], behind: bytes) -> None:
    server, request, held = ServerHttp(), None, b""
    edges = [0, *sorted(cuts), len(UPGRADE + behind)]
    for start, end in itertools.pairwise(edges):
        piece = (UPGRADE + behind)[start:end]
        if request is None and piece:
            request = server.receive_data(piece)
        else:
            held += piece
    assert request is not None
    assert server.trailing_data() + held == behind


@given(st.binary(min_size=1, max_size=300), st.integers(0, len(UPGRADE)))
def test_perturbed_bytes_raise_only_http_errors(junk: bytes, at: int) -> None:
    server = ServerHttp()
    try:
        server.receive_data(UPGRADE[:at] + junk + UPGRADE[at:])
    except HttpError as caught:
        error = caught
    else:
        return
    assert 400 <= error.status <= 505
    assert server.send_response(error.status, [], b"no\n").startswith(b"HTTP/1.1 %d " % error.status)
    assert not server.keep_alive


def test_repeated_headers_are_joined() -> None:
    request = read_one(
        ServerHttp(), b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\nX-FORWARDED-FOR: b\r\n\r\n"
    )
    assert request.headers["x-forwarded-for"] == "1.1.1.1, b"


@pytest.mark.parametrize(
    ("raw", "status", "said"),
    [
        (b"\x16\x03\x01\x02\x00\x01", 400, "TLS"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/2"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
        (b"nonsense\r\n\r\n", 400, "request line"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "chunked"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "Content-Length"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 2000 + b"\r\n\r\n", 431, "1024 bytes"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 2000, 431, "1024 bytes"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n", 413, "5 bytes"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n", 413, "5 bytes"),
    ],
)
def test_bad_requests_say_what_to_change(raw: bytes, status: int, said: str) -> None:
    server = ServerHttp(max_head_bytes=1024, max_body_bytes=5)
    with pytest.raises(HttpError, match=said) as caught:
        server.receive_data(raw)
    assert caught.value.status == status
    with pytest.raises(HttpError):  # it stays dead
        server.receive_data(UPGRADE)
    answer = server.send_response(status, [("Content-Type", "text/plain")], b"x\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close\r\n" in answer.lower()
    assert not server.keep_alive


def test_many_tiny_header_lines_are_refused_before_they_are_parsed() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n"
    lines = MAX_HEAD_LINES - head.count(b"\n") - 1  # the blank line counts
    assert ServerHttp().receive_data(head + b"a:\r\n" * lines + b"\r\n") is not None
    with pytest.raises(HttpError, match="header lines") as caught:
        ServerHttp().receive_data(head + b"a:\r\n" * (lines + 1) + b"\r\n")
    assert caught.value.status == 431


def test_body_lines_are_not_taken_for_header_lines() -> None:
    body = b"\n" * 1000
    raw = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + body
    cut = raw.index(b"\r\n\r\n") + 2
    server = ServerHttp(max_body_bytes=1000)
    assert server.receive_data(raw[:cut]) is None
    assert read_one(server, raw[cut:]).body == body


def test_answers_and_keep_alive() -> None:
    server = ServerHttp()
    read_one(server, b"GET /derp/probe HTTP/1.1\r\nHost: a\r\n\r\n")
    answer = server.send_response(200, [("Content-Type", "text/plain")], b"ok\n")
    assert answer == b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n"
    assert server.keep_alive
    assert server.next_cycle() is None
    assert read_one(server, UPGRADE).target == "/derp"


def test_bounds_are_per_request_not_per_connection() -> None:
    server = ServerHttp(max_head_bytes=100)
    for _ in range(MAX_HEAD_LINES):
        read_one(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        server.send_response(204)
        server.next_cycle()


def test_a_pipelined_upgrade_comes_out_of_next_cycle() -> None:
    server = ServerHttp()
    read_one(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + UPGRADE + b"rest")
    server.send_response(204)
    request = server.next_cycle()
    assert request is not None
    assert request.target == "/derp"
    assert server.trailing_data() == b"rest"


@pytest.mark.parametrize(
    "raw",
    [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"],
)
def test_a_connection_that_must_close_says_so(raw: bytes) -> None:
    server = ServerHttp()
    read_one(server, raw)
    assert b"connection: close" in server.send_response(200).lower()
    assert not server.keep_alive
    with pytest.raises(LocalProtocolError, match="closed"):
        server.next_cycle()


def test_head_and_204_answers_have_no_body() -> None:
    server = ServerHttp()
    read_one(server, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert server.send_response(200, [], b"1234") == b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
    server.next_cycle()
    read_one(server, b"GET /generate_204 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert server.send_response(204, [("X", "y")]) == b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"
    assert server.keep_alive


def test_an_upgrade_may_be_refused_and_the_connection_kept() -> None:
    server = ServerHttp()
    read_one(server, UPGRADE)
    server.send_response(426, [], b"DERP requires connection upgrade\n")
    assert server.keep_alive


def test_misuse_is_a_local_error_and_changes_nothing() -> None:
    server = ServerHttp()
    read_one(server, UPGRADE)
    with pytest.raises(LocalProtocolError, match="next_cycle"):
        server.receive_data(b"more")
    with pytest.raises(LocalProtocolError, match="final"):
        server.send_response(101)
    assert server.send_response(200).startswith(b"HTTP/1.1 200")
    with pytest.raises(LocalProtocolError, match="cannot be sent now"):
        server.send_response(200)


def test_head_only_leaves_the_body_to_the_next_reader() -> None:
    server = ServerHttp(head_only=True)
    request = read_one(server, POST[:-2])
    assert request.method == "POST"
    assert server.trailing_data() == b"hel"
    with pytest.raises(LocalProtocolError):
        server.receive_data(b"lo")


def test_head_only_requests_that_are_answered_leave_the_connection_open() -> None:
    server = ServerHttp(head_only=True)
    first = b"GET /derp/latency-check HTTP/1.1\r\nHost: a\r\n\r\n"
    assert read_one(server, first + UPGRADE).target == "/derp/latency-check"
    assert b"Connection" not in server.send_response(200)
    assert server.keep_alive
    upgrade = server.next_cycle()
    assert upgrade is not None
    assert upgrade.target == "/derp"


@pytest.mark.parametrize("raw", [POST, CHUNKED, POST[:-3]])
def test_head_only_answers_say_that_an_unread_body_ends_the_connection(raw: bytes) -> None:
    server = ServerHttp(head_only=True)
    read_one(server, raw)
    assert b"Connection: close\r\n" in server.send_response(405)
    assert not server.keep_alive


UPGRADE_WITH = b"GET /derp HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n%s\r\n\r\n%s"


@pytest.mark.parametrize("head_only", [False, True])
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("header", "body"), [(b"Content-Length: 0", b""), (b"Transfer-Encoding: chunked", b"0\r\n\r\n")]
)
def test_an_empty_body_of_an_upgrade_is_read_away(head_only: bool, size: int, header: bytes, body: bytes) -> None:
    raw, http, got = UPGRADE_WITH % (header, body), ServerHttp(head_only=head_only), None
    for at in range(0, len(raw), size):
        assert got is None
        got = http.receive_data(raw[at : at + size])
    assert got is not None
    assert (got.target, http.trailing_data()) == ("/derp", b"")
    http = ServerHttp(head_only=head_only)
    assert http.receive_data(raw + b"what follows") is not None
    assert http.trailing_data() == b"what follows"


@pytest.mark.parametrize("head_only", [False, True])
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("header", "body"),
    [(b"Content-Length: 5", b"hello"), (b"Transfer-Encoding: chunked", b"1\r\nx\r\n0\r\n\r\n")],
)
def test_a_body_of_an_upgrade_is_refused(head_only: bool, size: int, header: bytes, body: bytes) -> None:
    raw, http = UPGRADE_WITH % (header, body), ServerHttp(head_only=head_only)
    with pytest.raises(HttpError, match="an upgrade has no body") as caught:  # noqa: PT012  # one of the pieces
        for at in range(0, len(raw), size):
            assert http.receive_data(raw[at : at + size]) is None
    assert caught.value.status == 400
    assert b"Connection: close" in http.send_response(400)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"], ids=["plain head", "h11"])
def test_targets_have_one_spelling_however_their_head_is_read(method: bytes) -> None:
    request = ServerHttp().receive_data(
        method + b" http://relay.example:80/%64erp?x=%31 HTTP/1.1\r\nHost: proxy\r\n\r\n"
    )
    assert request is not None
    assert (request.target, request.headers["host"]) == ("/derp?x=%31", "relay.example:80")


def test_whom_to_connect_to_is_no_path() -> None:
    request = ServerHttp().receive_data(b"CONNECT relay.example:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert request is not None
    assert (request.target, request.headers["host"]) == ("relay.example:443", "x")


def test_expect_continue_is_answered_once() -> None:
    server = ServerHttp(max_body_bytes=5)
    assert server.continue_response() == b""
    head = POST.replace(b"Host: a", b"Host: a\r\nExpect: 100-continue")[:-5]
    assert server.receive_data(head) is None
    assert server.continue_response().startswith(b"HTTP/1.1 100 Continue\r\n")
    assert server.continue_response() == b""
    assert read_one(server, b"hello").body == b"hello"


# The client's half.

UPGRADE_HEADERS = [("Host", "a"), ("Connection", "Upgrade"), ("Upgrade", "DERP")]
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n\r\n"


def answer_to(raw: bytes, *, method: str = "GET", head_only: bool = False) -> tuple[ClientHttp, Response | None]:
    client = ClientHttp(head_only=head_only, max_body_bytes=20)
    client.send_request(method, "/derp", UPGRADE_HEADERS)
    return client, client.receive_data(raw)


def test_both_halves_agree() -> None:
    client, server = ClientHttp(), ServerHttp(max_body_bytes=10)
    request = read_one(server, client.send_request("POST", "/verify?x=1", [("Host", "b"), ("X", "y")], b"body"))
    assert (request.method, request.target, request.headers["x"], request.body) == ("POST", "/verify?x=1", "y", b"body")
    response = client.receive_data(server.send_response(403, [("Content-Type", "text/plain")], b"closed\n"))
    assert response is not None
    assert (response.status, response.reason, response.body) == (403, "Forbidden", b"closed\n")
    assert response.headers["content-type"] == "text/plain"


def test_a_granted_upgrade_keeps_what_follows() -> None:
    client, response = answer_to(SWITCHING + b"\x01server key")
    assert response is not None
    assert (response.status, response.headers["derp-version"]) == (101, "2")
    assert client.trailing_data() == b"\x01server key"


def test_a_granted_tunnel_keeps_what_follows() -> None:
    client, response = answer_to(b"HTTP/1.1 200 Connection established\r\n\r\nSSH-2.0", method="CONNECT")
    assert response is not None
    assert (response.status, client.trailing_data()) == (200, b"SSH-2.0")


def test_interim_answers_are_skipped() -> None:
    _, response = answer_to(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")
    assert response is not None
    assert response.status == 404


def test_a_body_without_length_ends_with_the_stream() -> None:
    client, response = answer_to(b"HTTP/1.1 200 OK\r\n\r\n<html>")
    assert response is None
    response = client.receive_data(b"")
    assert response is not None
    assert response.body == b"<html>"


def test_head_only_answers_at_once_with_what_there_is() -> None:
    _, response = answer_to(
        b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n<html> a very long login page", head_only=True
    )
    assert response is not None
    assert response.body == b"<html> a very long l"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ((b"SSH-2.0-OpenSSH_9.6\r\n\r\n",), "malformed"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n" + b"x" * 50,), "larger than 20"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", b""), "malformed"),
        ((b"HTTP/1.1 200 O", b""), "malformed"),
        ((b"",), "instead of answering"),
        ((b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000,), "malformed"),
    ],
)
def test_bad_answers_are_remote_errors(raw: tuple[bytes, ...], said: str) -> None:
    client = ClientHttp(max_body_bytes=20)
    client.send_request("GET", "/derp", UPGRADE_HEADERS)

    def feed() -> None:
        for piece in raw:
            client.receive_data(piece)

    with pytest.raises(RemoteProtocolError, match=said):
        feed()


def test_a_request_that_would_be_malformed_is_refused_locally() -> None:
    with pytest.raises(LocalProtocolError):
        ClientHttp().send_request("GET", "/", [("Host", "a"), ("X", "a\r\nInjected: yes")])
    with pytest.raises(LocalProtocolError):
        ClientHttp().send_request("GET", "/", [])


@given(st.binary(max_size=200), st.integers(0, len(SWITCHING)))
def test_perturbed_answers_raise_only_http_errors(junk: bytes, at: int) -> None:
    client = ClientHttp()
    client.send_request("GET", "/derp", UPGRADE_HEADERS)
    try:
        response = client.receive_data(SWITCHING[:at] + junk + SWITCHING[at:])
    except HttpError:
        return
    assert response is None or 100 <= response.status <= 999


def test_a_genuine_client_of_h11_reads_our_answer() -> None:
    server = ServerHttp()
    read_one(server, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    peer.receive_data(server.send_response(200, [("X", "caf\xe9")], b"abc"))
    response = peer.next_event()
    assert isinstance(response, h11.Response)
    assert dict(response.headers)[b"x"] == b"caf\xe9"


# The plain reader: a head that comes whole must mean what h11 reads when it comes in two pieces.

NAMES = st.sampled_from(
    ["Host", "host", "Upgrade", "X-a", "Connection", "Content-Length", "Expect", "Transfer-Encoding", "x_y!"]
)
VALUES = st.sampled_from(
    ["", "a", " a ", "\ta b\t", "a, b", "close", "0", "5", "100-continue", "chunked", "\xe9", "\x01", "\x7f", "\x0b"]
)
LINES = st.lists(st.tuples(NAMES, VALUES), max_size=5)
STARTS = st.sampled_from(
    [
        "GET / HTTP/1.1",
        "GET /derp?x=%20 HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET / HTTP/1.0",
        "get / HTTP/1.1",
        "HEAD / HTTP/1.1",
        "GET /\xe9 HTTP/1.1",
        "GET http://h/ HTTP/1.1",
    ]
)
ENDS = st.sampled_from(["\r\n", "\n", "\r\n folded\r\n"])
BEHIND = st.sampled_from([b"", b"\x01\x02", b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n"])


def read(pieces: list[bytes], head_only: bool) -> tuple[object, ...]:
    """Everything that a server does with a connection on which these pieces come."""
    http = ServerHttp(head_only=head_only)
    request = None
    for piece in pieces:
        try:
            request = http.receive_data(piece)
        except HttpError as error:
            return (error.status, http.send_response(error.status, [], b"no"), http.keep_alive)
    if request is None:
        return (None,)
    behind = http.trailing_data()
    answer = http.send_response(200, [("X-b", "c")], b"body")
    kept = http.keep_alive
    try:
        following: object = http.next_cycle() if kept else None
    except HttpError as error:
        following = (error.status, str(error))
    return (request, behind, answer, kept, following, http.trailing_data())


@given(STARTS, LINES, ENDS, BEHIND, st.booleans(), st.booleans())
def test_a_head_that_comes_whole_means_what_it_means_in_pieces(
    start: str, lines: list[tuple[str, str]], end: str, behind: bytes, has_host: bool, head_only: bool
) -> None:
    fields = ([("Host", "a")] if has_host else []) + lines
    head = (start + "\r\n" + "".join(f"{name}:{value}\r\n" for name, value in fields)).encode("latin-1")
    head += end.encode() if end != "\r\n folded\r\n" else b"X: y" + end.encode() + b"\r\n"
    assert read([head + behind], head_only) == read([head[:3], head[3:] + behind], head_only)


def test_a_plain_head_has_its_bounds() -> None:
    lines = b"".join(b"a%d: b\r\n" % number for number in range(MAX_HEAD_LINES - 3))
    most = b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n"
    assert ServerHttp().receive_data(most) is not None
    with pytest.raises(HttpError) as caught:
        ServerHttp().receive_data(most[:-2] + b"one: more\r\n\r\n")
    assert caught.value.status == 431
    with pytest.raises(HttpError) as caught:
        ServerHttp(max_head_bytes=len(most) - 1).receive_data(most)
    assert caught.value.status == 431
    assert ServerHttp(max_head_bytes=len(most)).receive_data(most) is not None


def test_a_plain_request_is_answered_once_and_read_on_after_it() -> None:
    http = ServerHttp()
    request = http.receive_data(b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n")
    assert request is not None
    with pytest.raises(LocalProtocolError):
        http.receive_data(b"more")
    assert b"200" in http.send_response(200, [], b"x")
    assert http.keep_alive
    assert http.next_cycle() is None
    second = http.receive_data(b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n")
    assert second is not None
    assert second.target == "/b"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_last_answer_needs_nothing_of_its_request(method: str) -> None:
    answer = last_answer(503, (("Retry-After", "2"),), b"later", method=method)
    client = ClientHttp()
    client.send_request(method, "/", [("Host", "x")])
    response = client.receive_data(answer)
    assert response is not None
    assert (response.status, response.reason, response.body) == (
        503,
        "Service Unavailable",
        b"later" * (method == "GET"),
    )
    assert response.headers == {"retry-after": "2", "content-length": "5", "connection": "close"}
