"""Tokens in requests and in the store (layer L0).

An agent's token is a UUID.  A user's is `<10>-<22>` characters, of which the first part is an id and no secret; seeds
may bring others, which get a derived id.  The store holds SHA-256 digests: the secrets are random and longer than 120
bits, so a slow password hash would protect nothing and cost every reconnect its time.  Next hop: auth/chain.py finds
who it is.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl
from uuid import UUID

from derp.text import MASK
from tailnet import refusals

COOKIE: Final = "coder_session_token"
HEADER: Final = "coder-session-token"

# A request head has at most 64 KiB, so it could hold 30,000 parameters; no genuine caller sends ten.
MAX_QUERY_FIELDS: Final = 200
# Longer ones are refused unread.  Genuine tokens have 33 and 36 characters.
MAX_TOKEN_CHARS: Final = 1024
# Signed ones carry their claims: with 50 grants some 6 KB.
MAX_SIGNED_CHARS: Final = 16 * 1024

_USER_TOKEN: Final = re.compile(r"([0-9A-Za-z]{10})-([0-9A-Za-z]{22})")
_OPAQUE_PREFIX: Final = "opaque:"


@dataclass(frozen=True, slots=True)
class PresentedToken:
    """A user's token as it came: where to look, and what has to be found there."""

    id: str
    secret_digest: bytes = field(repr=False)
    opaque: bool


def without_user_tokens(text: str) -> str:
    """The text with every user's token in it masked: for paths, where one stands by mistake."""
    return _USER_TOKEN.sub(MASK, text) if "-" in text else text


def query_values(query: str) -> dict[str, str]:
    """The first value of each parameter, as Go's Query().Get reads them; nothing of a query with absurdly many."""
    values: dict[str, str] = {}
    if "%" not in query and "+" not in query and query.count("&") < MAX_QUERY_FIELDS:
        # As every genuine peer writes it: nothing to decode, and a third of what parse_qsl takes.
        for part in query.split("&") if query else ():
            name, _, value = part.partition("=")
            if part:
                values.setdefault(name, value)
        return values
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        return {}
    for name, value in pairs:
        values.setdefault(name, value)
    return values


def find_token(headers: Mapping[str, str], query: Mapping[str, str]) -> str:
    """The token of a request, "" if it has none.

    `headers` have lower-case names, `query` is from `query_values`.  The order is the reference's: old agents send a
    cookie, newer ones a header, websockets of browsers a query; the first that is not empty wins.
    """
    return (
        _cookie(headers.get("cookie", ""))
        or query.get(COOKIE, "")
        or headers.get(HEADER, "").strip()
        or bearer(headers.get("authorization", ""))
        or query.get("access_token", "")
    )


def looks_signed(token: str) -> bool:
    """Whether it is a JSON Web Token in the compact form, whose header begins with `{"`; nothing is verified."""
    return token.startswith("eyJ") and token.count(".") == 2


def parse_agent_token(token: str) -> UUID:
    """Raises Refused: nothing given, or no UUID."""
    if not token:
        raise refusals.agent_token_missing()
    try:
        return UUID(token[:MAX_TOKEN_CHARS])
    except ValueError:
        raise refusals.agent_token_malformed(len(token)) from None


def can_be_sent(token: str) -> bool:
    """Whether requests can carry it: visible ASCII characters, and none of those that end a header or a cookie."""
    return token.isascii() and token.isprintable() and not set(token) & set(' ";,\\')


def agent_token_digest(token: UUID) -> bytes:
    """What the store holds of an agent's token, 32 bytes, whatever way the UUID was spelt."""
    return hashlib.sha256(str(token).encode()).digest()


def parse_user_token(token: str) -> PresentedToken:
    """Raises Refused: nothing given, or absurdly long."""
    if not token:
        raise refusals.user_token_missing()
    if len(token) > MAX_TOKEN_CHARS:
        raise refusals.user_token_malformed()
    match = _USER_TOKEN.fullmatch(token)
    if match is None:
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        # 64 bits of the digest find the row; they help nobody to guess the token.
        return PresentedToken(_OPAQUE_PREFIX + digest[:8].hex(), digest, opaque=True)
    return PresentedToken(match[1], hashlib.sha256(match[2].encode()).digest(), opaque=False)


def _cookie(header: str) -> str:
    # Some layers join repeated headers by commas, so both separators count; a token holds neither.
    for part in re.split("[;,]", header):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            value = value.strip()
            if len(value) >= 2 and value[0] == value[-1] == '"':
                value = value[1:-1]
            if value:
                return value
    return ""


def bearer(header: str) -> str:
    """The token of an Authorization header, "" if it has another scheme."""
    scheme, _, value = header.strip().partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""
