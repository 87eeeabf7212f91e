"""Upgrade requests judged as the genuine relay judged them, its answers judged, and where we differ on purpose."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.errors import LocalProtocolError
from derp.protocol.upgrade import (
    AnswerKind,
    Refusal,
    Upgrade,
    UpgradeKind,
    derp_answer,
    derp_request_headers,
    judge_derp_answer,
    judge_request,
    judge_websocket_answer,
    judge_websocket_request,
    websocket_request_headers,
)
from tests.vectors.derp import PUBLIC, VECTORS

KEY = PUBLIC["server"]
NONCE = b"the sample nonce"  # of RFC 6455 section 1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def parse_head(head: str) -> tuple[str, dict[str, str]]:
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, value = line.split(": ", 1)
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return first, headers


def as_headers(lines: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {name.lower(): value for name, value in lines}


def websocket_request(**changes: str | None) -> dict[str, str]:
    headers: dict[str, str | None] = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-protocol": "derp",
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    return {name: value for name, value in headers.items() if value is not None}


# --- the relay's side, against the genuine relay ---

# The genuine relay looks for "derp" in lower case only and takes this websocket client for one of the oldest DERP
# clients; ours speaks websocket with it.
OURS_IS_BETTER = "Sec-WebSocket-Protocol: foo, DERP"


@pytest.mark.parametrize("vector", VECTORS["upgrades"], ids=lambda v: v["request"][4:].replace("\r\n", "|")[43:100])
def test_requests_are_judged_as_the_genuine_relay_judges_them(vector: dict[str, object]) -> None:
    first, headers = parse_head(str(vector["request"]))
    judged = judge_request(first.split()[0], "1.1", headers, KEY)
    if OURS_IS_BETTER in str(vector["request"]):
        assert isinstance(judged, Upgrade)
        assert judged.kind is UpgradeKind.WEBSOCKET
        return
    genuine = vector.get("headers", {})
    assert isinstance(genuine, dict)
    if isinstance(judged, Refusal):
        assert judged.status == vector["status"]
        # A header that the genuine relay sends with its refusal, ours sends too.
        ours = as_headers(judged.headers)
        told = {name: genuine[name] for name in ("connection", "upgrade", "sec-websocket-version") if name in genuine}
        assert told.items() <= ours.items()
    elif judged.kind is UpgradeKind.DERP_FAST_START:
        assert (vector["status"], judged.answer) == (0, b"")
    elif judged.kind is UpgradeKind.WEBSOCKET:
        status, answered = parse_head(judged.answer.decode())
        assert status == f"HTTP/1.1 {vector['status']} Switching Protocols"
        assert answered == genuine
    else:
        assert judged.answer.decode() == vector["raw"]


def test_the_vectors_hold_every_kind_of_upgrade_and_refusal() -> None:
    judged = []
    for vector in VECTORS["upgrades"]:
        first, headers = parse_head(vector["request"])
        judged.append(judge_request(first.split()[0], "1.1", headers, KEY))
    assert {j.kind for j in judged if isinstance(j, Upgrade)} == set(UpgradeKind)
    assert {j.status for j in judged if isinstance(j, Refusal)} == {400, 405, 426}


def test_the_ideal_node_is_told_for_every_kind() -> None:
    for headers in (
        {"upgrade": "DERP"},
        {"upgrade": "DERP", "derp-fast-start": "1"},
        {"upgrade": "websocket"},
        websocket_request(),
    ):
        judged = judge_request("GET", "1.1", headers | {"ideal-node": "1a"}, KEY)
        assert isinstance(judged, Upgrade)
        assert judged.ideal_node == "1a"


def test_fast_start_belongs_to_plain_derp() -> None:
    judged = judge_request("GET", "1.1", websocket_request(derp_fast_start="1"), KEY)
    assert isinstance(judged, Upgrade)
    assert judged.kind is UpgradeKind.WEBSOCKET
    assert judged.answer


@pytest.mark.parametrize("protocol", [None, "", "tailnet", "xderp", "derpx"])
def test_websocket_clients_of_another_protocol_are_told_so(protocol: str | None) -> None:
    judged = judge_request("GET", "1.1", websocket_request(sec_websocket_protocol=protocol), KEY)
    assert isinstance(judged, Refusal)
    assert (judged.status, judged.sentence) == (400, "Sec-WebSocket-Protocol must offer derp")


@pytest.mark.parametrize("offered", ["derp", "foo, derp", "derp,foo", " foo ,\tDeRp "])
def test_the_answer_spells_the_subprotocol_as_the_client_did(offered: str) -> None:
    answer = judge_websocket_request("GET", "1.1", websocket_request(sec_websocket_protocol=offered), "derp")
    assert isinstance(answer, bytes)
    chosen = parse_head(answer.decode())[1]["sec-websocket-protocol"]
    assert chosen in [token.strip() for token in offered.split(",")]
    assert chosen.lower() == "derp"


def test_a_websocket_without_subprotocol_is_for_whoever_wants_none() -> None:
    answer = judge_websocket_request("GET", "1.1", websocket_request(), None)
    assert isinstance(answer, bytes)
    assert parse_head(answer.decode()) == (
        "HTTP/1.1 101 Switching Protocols",
        {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": ACCEPT},
    )


@pytest.mark.parametrize(
    ("method", "version", "changes", "status", "sentence"),
    [
        ("POST", "1.1", {}, 405, "GET"),
        ("GET", "1.0", {}, 426, "HTTP/1.1"),
        ("GET", "1.1", {"connection": None}, 426, "Connection: Upgrade"),
        ("GET", "1.1", {"connection": "keep-alive"}, 426, "Connection: Upgrade"),
        ("GET", "1.1", {"sec_websocket_version": None}, 400, "13"),
        ("GET", "1.1", {"sec_websocket_version": "13, 8"}, 400, "13"),
        ("GET", "1.1", {"sec_websocket_key": ""}, 400, "Sec-WebSocket-Key"),
        ("GET", "1.1", {"sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ"}, 400, "Sec-WebSocket-Key"),
        ("GET", "1.1", {"sec_websocket_key": "dGhlIHNhbXBsZSBub25jZS4="}, 400, "Sec-WebSocket-Key"),
        ("GET", "1.1", {"sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ==\u20ac"}, 400, "Sec-WebSocket-Key"),
        ("GET", "1.1", {"sec_websocket_key": "dGhlIHNhbXBsZSB\xffub25jZQ=="}, 400, "Sec-WebSocket-Key"),
    ],
)
def test_wrong_websocket_requests_are_told_what_to_change(
    method: str, version: str, changes: dict[str, str | None], status: int, sentence: str
) -> None:
    judged = judge_request(method, version, websocket_request(**changes), KEY)
    assert isinstance(judged, Refusal)
    assert judged.status == status
    assert sentence in judged.sentence


def test_the_answer_to_a_page_visitor_is_valid_http() -> None:
    judged = judge_request("GET", "1.1", {"host": "relay.example"}, KEY)
    assert isinstance(judged, Refusal)
    assert judged.status == 426
    assert as_headers(judged.headers) == {"connection": "Upgrade", "upgrade": "DERP"}  # RFC 9110 wants both


# --- the client's side ---


def test_our_derp_request_is_taken_by_our_relay() -> None:
    for fast_start, kind in ((False, UpgradeKind.DERP), (True, UpgradeKind.DERP_FAST_START)):
        lines = derp_request_headers("relay.example:3340", fast_start=fast_start, ideal_node="1a")
        assert lines[0] == ("Host", "relay.example:3340")
        judged = judge_request("GET", "1.1", as_headers(lines), KEY)
        assert isinstance(judged, Upgrade)
        assert (judged.kind, judged.ideal_node) == (kind, "1a")


def test_our_derp_request_is_plain_unless_told_otherwise() -> None:
    names = [name for name, _ in derp_request_headers("relay.example")]
    assert names == ["Host", "User-Agent", "Connection", "Upgrade"]


def test_our_websocket_request_and_answer_fit_each_other() -> None:
    lines = websocket_request_headers("relay.example", NONCE)
    judged = judge_request("GET", "1.1", as_headers(lines), KEY)
    assert isinstance(judged, Upgrade)
    assert judged.kind is UpgradeKind.WEBSOCKET
    status, headers = parse_head(judged.answer.decode())
    assert judge_websocket_answer(int(status.split()[1]), headers, NONCE).kind is AnswerKind.UPGRADED
    assert judge_websocket_answer(101, headers, bytes(16)).kind is AnswerKind.FAILED


def test_our_answers_are_read_by_a_strict_parser() -> None:
    websocket = judge_websocket_request("GET", "1.1", websocket_request(), "derp")
    assert isinstance(websocket, bytes)
    for answer in (derp_answer(KEY), websocket):
        client = h11.Connection(h11.CLIENT)
        request = h11.Request(
            method="GET", target="/derp", headers=[("host", "x"), ("connection", "upgrade"), ("upgrade", "derp")]
        )
        client.send(request)
        client.send(h11.EndOfMessage())
        client.receive_data(answer)
        event = client.next_event()
        assert isinstance(event, h11.InformationalResponse)
        assert event.status_code == 101
        assert client.next_event() is h11.PAUSED
        assert client.trailing_data == (b"", False)


def test_extra_headers_travel_and_may_replace_the_user_agent_only() -> None:
    extra = [("Authorization", "Bearer x"), ("user-agent", "mine"), ("Cookie", "a=b")]
    for lines in (derp_request_headers("h", extra=extra), websocket_request_headers("h", NONCE, extra=extra)):
        assert lines[-3:] == tuple(extra)
        assert [value for name, value in lines if name.lower() == "user-agent"] == ["mine"]
        assert lines[0] == ("Host", "h")
    for name in ("Host", "upgrade", "CONNECTION", "Sec-WebSocket-Key"):
        with pytest.raises(LocalProtocolError, match="belongs to the upgrade"):
            websocket_request_headers("h", NONCE, extra=[(name, "x")])
    for smuggled in (("X", "a\r\nHost: b"), ("X\n", "a")):
        with pytest.raises(LocalProtocolError, match="line end"):
            derp_request_headers("h", extra=[smuggled])


@pytest.mark.parametrize("nonce", [b"", bytes(15), bytes(17)])
def test_websocket_nonces_have_16_bytes(nonce: bytes) -> None:
    with pytest.raises(LocalProtocolError, match="16"):
        websocket_request_headers("h", nonce)


@pytest.mark.parametrize(
    ("status", "headers", "kind", "word"),
    [
        (101, {"upgrade": "DERP"}, AnswerKind.UPGRADED, ""),
        (101, {"upgrade": "derp"}, AnswerKind.UPGRADED, ""),
        (101, {}, AnswerKind.UPGRADED, ""),  # the genuine client looks at the status alone
        (101, {"upgrade": "websocket"}, AnswerKind.FAILED, "websocket"),
        (100, {}, AnswerKind.FAILED, "100"),
        (200, {"content-type": "text/html"}, AnswerKind.TRY_WEBSOCKET, "portal"),
        (199, {}, AnswerKind.FAILED, "199"),
        (204, {}, AnswerKind.TRY_WEBSOCKET, "204"),
        (299, {}, AnswerKind.TRY_WEBSOCKET, "299): a portal"),
        (300, {}, AnswerKind.TRY_WEBSOCKET, "redirected (status 300)"),
        (399, {}, AnswerKind.TRY_WEBSOCKET, "redirected (status 399)"),
        (302, {"location": "https://login.example/"}, AnswerKind.TRY_WEBSOCKET, "to 'https://login.example/'"),
        (302, {}, AnswerKind.TRY_WEBSOCKET, "to somewhere that it does not say"),
        (
            302,
            {"location": "https://u:p@x/?token=p\x1b"},
            AnswerKind.TRY_WEBSOCKET,
            "'https://<secret>@x/?token=<secret>'",
        ),
        (400, {}, AnswerKind.TRY_WEBSOCKET, "400"),
        (401, {}, AnswerKind.TRY_WEBSOCKET, "401"),
        (426, {}, AnswerKind.TRY_WEBSOCKET, "426"),
        (499, {}, AnswerKind.TRY_WEBSOCKET, "499"),
        (500, {}, AnswerKind.FAILED, "500"),
        (503, {}, AnswerKind.FAILED, "503"),
    ],
)
def test_answers_to_a_derp_upgrade(status: int, headers: dict[str, str], kind: AnswerKind, word: str) -> None:
    answer = judge_derp_answer(status, headers)
    assert answer.kind is kind
    assert word in answer.reason


GOOD = {
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec-websocket-accept": ACCEPT,
    "sec-websocket-protocol": "derp",
}


@pytest.mark.parametrize(
    ("status", "headers", "kind", "word"),
    [
        (101, GOOD, AnswerKind.UPGRADED, ""),
        (101, GOOD | {"upgrade": "WebSocket", "connection": "keep-alive, upgrade"}, AnswerKind.UPGRADED, ""),
        (200, GOOD, AnswerKind.FAILED, "200"),
        (404, {}, AnswerKind.FAILED, "404"),
        (308, {"location": "/login"}, AnswerKind.FAILED, "redirected (status 308) to '/login'"),
        (101, GOOD | {"upgrade": "derp"}, AnswerKind.FAILED, "Upgrade"),
        (101, GOOD | {"connection": "close"}, AnswerKind.FAILED, "Connection"),
        (101, GOOD | {"sec-websocket-accept": ACCEPT.lower()}, AnswerKind.FAILED, "Accept"),
        (101, GOOD | {"sec-websocket-protocol": ""}, AnswerKind.FAILED, "subprotocol"),
        (101, GOOD | {"sec-websocket-protocol": "other"}, AnswerKind.FAILED, "other"),
        (101, GOOD | {"sec-websocket-extensions": "permessage-deflate"}, AnswerKind.FAILED, "extension"),
    ],
)
def test_answers_to_a_websocket_request(status: int, headers: dict[str, str], kind: AnswerKind, word: str) -> None:
    answer = judge_websocket_answer(status, headers, NONCE)
    assert answer.kind is kind
    assert word in answer.reason


def test_a_subprotocol_nobody_asked_for_is_refused() -> None:
    assert judge_websocket_answer(101, GOOD, NONCE, subprotocol=None).kind is AnswerKind.FAILED
    without = {name: value for name, value in GOOD.items() if name != "sec-websocket-protocol"}
    assert judge_websocket_answer(101, without, NONCE, subprotocol=None).kind is AnswerKind.UPGRADED


# --- the law: every request and answer gets a verdict ---

header_values = st.text(st.characters(max_codepoint=255), max_size=30)
header_names = st.sampled_from(
    [
        "connection",
        "upgrade",
        "derp-fast-start",
        "ideal-node",
        "sec-websocket-version",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-accept",
        "location",
    ]
)
any_headers = st.dictionaries(header_names, st.one_of(header_values, st.sampled_from(["websocket", "DERP", "13", "1"])))


@given(st.sampled_from(["GET", "POST", "x" * 50]), st.sampled_from(["1.0", "1.1"]), any_headers)
def test_any_request_is_upgraded_or_refused(method: str, version: str, headers: dict[str, str]) -> None:
    judged = judge_request(method, version, headers, KEY)
    if isinstance(judged, Refusal):
        assert 400 <= judged.status <= 499
        assert "\n" not in judged.sentence
        return
    assert judged.answer.count(b"\r\n\r\n") == (judged.kind is not UpgradeKind.DERP_FAST_START)
    assert judged.answer.endswith(b"\r\n\r\n") or not judged.answer


@given(st.integers(100, 999), any_headers)
def test_any_answer_gets_a_verdict(status: int, headers: dict[str, str]) -> None:
    for answer in (judge_derp_answer(status, headers), judge_websocket_answer(status, headers, NONCE)):
        assert answer.kind is not AnswerKind.UPGRADED or status == 101
        assert bool(answer.reason) == (answer.kind is not AnswerKind.UPGRADED)
