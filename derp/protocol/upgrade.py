"""From HTTP to DERP: what an upgrade request asks for, and what its answer means.  Layer L1: no I/O, no HTTP parser.

Headers come as a mapping of lower-case names, repeated ones joined with ", " (transport/http.py).  A relay calls
judge_request and sends `.answer` or the refusal.  A client sends derp_request_headers or websocket_request_headers and
judges the answer.  After either: protocol/handshake.py, behind protocol/websocket.py if that was chosen.
Facts: the genuine relay of release 1.102.5; RFC 6455 section 4; RFC 9110 section 15.5.22.
"""

import binascii
import enum
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from derp.errors import LocalProtocolError
from derp.protocol.frames import PROTOCOL_VERSION
from derp.protocol.websocket import accept_token
from derp.text import without_secrets

Headers: TypeAlias = Mapping[str, str]
HeaderLines: TypeAlias = tuple[tuple[str, str], ...]

SUBPROTOCOL: Final = "derp"
WEBSOCKET_KEY_BYTES: Final = 16
_UPGRADE_TO_WEBSOCKET: Final = (("Connection", "Upgrade"), ("Upgrade", "websocket"))


class UpgradeKind(enum.Enum):
    """The four ways into a relay."""

    DERP = "derp"
    DERP_FAST_START = "derp-fast-start"  # no HTTP answer: the client has begun to speak DERP already
    WEBSOCKET = "websocket"
    LEGACY = "legacy"  # the oldest clients said `Upgrade: WebSocket` and spoke plain DERP


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Granted: send `answer` (may be empty), then the connection speaks DERP."""

    kind: UpgradeKind
    answer: bytes
    ideal_node: str = ""
    """The node that the client would rather be on; empty: this one."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not granted: answer with this status, these headers, and the sentence as text/plain."""

    status: int
    sentence: str
    headers: HeaderLines = ()


# --- the relay's side ---


def judge_request(method: str, http_version: str, headers: Headers, public_key: bytes) -> Upgrade | Refusal:
    """Decide about a request for /derp.  `http_version`: "1.1"; `public_key`: the relay's, 32 bytes.

    As the genuine relay does, any method will do for DERP itself and the Connection header is not looked at.
    """
    wanted = headers.get("upgrade", "").strip().lower()
    if wanted not in ("derp", "websocket"):
        return Refusal(426, "DERP requires connection upgrade", (("Connection", "Upgrade"), ("Upgrade", "DERP")))
    ideal_node = headers.get("ideal-node", "")
    if wanted == "websocket" and _is_websocket(headers):
        judged = judge_websocket_request(method, http_version, headers, SUBPROTOCOL)
        if isinstance(judged, Refusal):
            return judged
        return Upgrade(UpgradeKind.WEBSOCKET, judged, ideal_node)
    if headers.get("derp-fast-start", "") == "1":
        return Upgrade(UpgradeKind.DERP_FAST_START, b"", ideal_node)
    kind = UpgradeKind.DERP if wanted == "derp" else UpgradeKind.LEGACY
    return Upgrade(kind, derp_answer(public_key), ideal_node)


def derp_answer(public_key: bytes) -> bytes:
    """The 101 of the genuine relay, to the byte."""
    return (
        "HTTP/1.1 101 Switching Protocols\r\n"
        "Upgrade: DERP\r\n"
        "Connection: Upgrade\r\n"
        f"Derp-Version: {PROTOCOL_VERSION}\r\n"
        f"Derp-Public-Key: {public_key.hex()}\r\n\r\n"
    ).encode()


def judge_websocket_request(
    method: str, http_version: str, headers: Headers, subprotocol: str | None
) -> bytes | Refusal:
    """The 101 that answers a websocket request, or why not.  Any Origin is welcome; extensions are never agreed on.

    `subprotocol`: what the client must offer; None asks for nothing and answers none.
    """
    if method != "GET":
        return Refusal(405, f"a websocket begins with GET, not {method[:20]}", (("Allow", "GET"),))
    if http_version in ("0.9", "1.0"):
        return Refusal(426, "a websocket needs HTTP/1.1: set it in the proxy before this server", _UPGRADE_TO_WEBSOCKET)
    if "upgrade" not in _tokens(headers, "connection") or "websocket" not in _tokens(headers, "upgrade"):
        return Refusal(
            426, "send Connection: Upgrade and Upgrade: websocket, and let proxies pass them on", _UPGRADE_TO_WEBSOCKET
        )
    version = headers.get("sec-websocket-version", "").strip()
    if version != "13":
        return Refusal(400, "Sec-WebSocket-Version must be 13", (("Sec-WebSocket-Version", "13"),))
    key = headers.get("sec-websocket-key", "").strip()
    if not _is_websocket_key(key):
        return Refusal(400, "Sec-WebSocket-Key must be given once, as 16 bytes in base64")
    lines = [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept_token(key))]
    if subprotocol is not None:
        chosen = _offered(headers, subprotocol)
        if chosen is None:
            return Refusal(400, f"Sec-WebSocket-Protocol must offer {subprotocol}")
        lines.append(("Sec-WebSocket-Protocol", chosen))
    return _head("HTTP/1.1 101 Switching Protocols", lines)


# --- the client's side ---


class AnswerKind(enum.Enum):
    """What a client does next."""

    UPGRADED = "upgraded"
    TRY_WEBSOCKET = "try-websocket"  # something on the way does not let DERP's upgrade through
    FAILED = "failed"  # the relay itself says no, or not now: try again later, or elsewhere


@dataclass(frozen=True, slots=True)
class Answer:
    """A judged answer, with one sentence for the log."""

    kind: AnswerKind
    reason: str = ""


def derp_request_headers(
    host: str, *, fast_start: bool = False, ideal_node: str = "", extra: Sequence[tuple[str, str]] = ()
) -> HeaderLines:
    """The headers of `GET /derp`.  `host`: with the port unless it is the scheme's own; `extra`: e.g. Authorization.

    `fast_start` only when the relay's key is known and the connection is TLS: there will be no HTTP answer to judge.
    """
    lines = [("Host", host), ("User-Agent", "derp"), ("Connection", "Upgrade"), ("Upgrade", "DERP")]
    if fast_start:
        lines.append(("Derp-Fast-Start", "1"))
    if ideal_node:
        lines.append(("Ideal-Node", ideal_node))
    return _with_extra(lines, extra)


def websocket_request_headers(
    host: str, nonce: bytes, *, subprotocol: str | None = SUBPROTOCOL, extra: Sequence[tuple[str, str]] = ()
) -> HeaderLines:
    """The headers of a websocket's GET.  `nonce`: 16 fresh random bytes, wanted again by judge_websocket_answer."""
    lines = [
        ("Host", host),
        ("User-Agent", "derp"),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", _websocket_key(nonce)),
    ]
    if subprotocol is not None:
        lines.append(("Sec-WebSocket-Protocol", subprotocol))
    return _with_extra(lines, extra)


def judge_derp_answer(status: int, headers: Headers) -> Answer:
    """What became of `Upgrade: DERP`.  Websockets pass where proxies, portals and HTTP/2 front ends stop DERP."""
    if status == 101:
        switched_to = headers.get("upgrade", "derp").strip()
        if switched_to.lower() == "derp":
            return Answer(AnswerKind.UPGRADED)
        return Answer(AnswerKind.FAILED, f"the upgrade to DERP was answered with one to {switched_to[:40]!r}")
    if 200 <= status <= 299:
        return Answer(AnswerKind.TRY_WEBSOCKET, f"the upgrade was answered with a page (status {status}): a portal?")
    if 300 <= status <= 399:
        return Answer(AnswerKind.TRY_WEBSOCKET, f"the upgrade was redirected (status {status}) to {_target(headers)}")
    if 400 <= status <= 499:
        return Answer(AnswerKind.TRY_WEBSOCKET, f"the upgrade was refused with status {status}")
    return Answer(AnswerKind.FAILED, f"the upgrade was answered with status {status}")


def judge_websocket_answer(
    status: int, headers: Headers, nonce: bytes, *, subprotocol: str | None = SUBPROTOCOL
) -> Answer:
    """What became of a websocket request: upgraded, or failed."""
    if 300 <= status <= 399:
        reason = f"the websocket upgrade was redirected (status {status}) to {_target(headers)}"
        return Answer(AnswerKind.FAILED, reason)
    if status != 101:
        return Answer(AnswerKind.FAILED, f"the websocket upgrade was answered with status {status}")
    if "websocket" not in _tokens(headers, "upgrade") or "upgrade" not in _tokens(headers, "connection"):
        return Answer(AnswerKind.FAILED, "the answer lacks Upgrade: websocket or Connection: Upgrade")
    if headers.get("sec-websocket-accept", "").strip() != accept_token(_websocket_key(nonce)):
        return Answer(AnswerKind.FAILED, "Sec-WebSocket-Accept does not fit our key: a cache answered?")
    if headers.get("sec-websocket-extensions", "").strip():
        return Answer(AnswerKind.FAILED, "the server switched on a websocket extension that nobody asked for")
    agreed = headers.get("sec-websocket-protocol", "").strip()
    if agreed.lower() != (subprotocol or "").lower():
        return Answer(AnswerKind.FAILED, f"the server speaks the subprotocol {agreed[:40]!r}, not {subprotocol!r}")
    return Answer(AnswerKind.UPGRADED)


# --- below ---


def _target(headers: Headers) -> str:
    where = without_secrets(headers.get("location", ""))[:200]
    return repr(where) if where else "somewhere that it does not say"


def _is_websocket(headers: Headers) -> bool:
    # The genuine relay looks for "derp" in the subprotocol alone, and answers every other websocket client with a 101
    # it cannot understand.  The oldest DERP clients sent neither of these two, so a refusal can tell the rest.
    return "sec-websocket-key" in headers or "sec-websocket-protocol" in headers


def _is_websocket_key(key: str) -> bool:
    try:
        return len(b64decode(key.encode("latin-1"), validate=True)) == WEBSOCKET_KEY_BYTES
    except (binascii.Error, UnicodeEncodeError):
        return False


def _websocket_key(nonce: bytes) -> str:
    if len(nonce) != WEBSOCKET_KEY_BYTES:
        raise LocalProtocolError(f"a websocket nonce has {WEBSOCKET_KEY_BYTES} bytes, got {len(nonce)}")
    return b64encode(nonce).decode()


def _tokens(headers: Headers, name: str) -> list[str]:
    return [token.strip().lower() for token in headers.get(name, "").split(",")]


def _offered(headers: Headers, subprotocol: str) -> str | None:
    """The client's own spelling of the subprotocol: browsers compare the answer with what they sent."""
    for token in headers.get("sec-websocket-protocol", "").split(","):
        if token.strip().lower() == subprotocol.lower():
            return token.strip()
    return None


def _with_extra(lines: list[tuple[str, str]], extra: Sequence[tuple[str, str]]) -> HeaderLines:
    ours = {name.lower() for name, _ in lines}
    for name, value in extra:
        if "\r" in name + value or "\n" in name + value:
            raise LocalProtocolError(f"header {name[:40]!r} must not hold a line end")
        if name.lower() in ours - {"user-agent"}:
            raise LocalProtocolError(f"header {name[:40]!r} belongs to the upgrade and cannot be set")
    chosen = {name.lower() for name, _ in extra}
    return (*(line for line in lines if line[0].lower() not in chosen), *extra)


def _head(first: str, lines: Sequence[tuple[str, str]]) -> bytes:
    return "".join((first, "\r\n", *(f"{name}: {value}\r\n" for name, value in lines), "\r\n")).encode("latin-1")
