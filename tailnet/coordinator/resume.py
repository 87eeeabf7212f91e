"""Resume tokens: how a client that dials again gets its old peer id (layer L1).

Compact JWT (RFC 7515, 7519) signed with HS512; claims sub (the peer id), aud (who may bring it, and at which door) and
exp; the header's `kid` says which key.
Several keys are accepted while one signs, so that keys can rotate and every replica reads every token; the keys come
from tailnet/store through services/tailnet_rpc.py, `now` is Unix time in seconds.  Clients treat the token as opaque.
"""

import hmac
import json
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from tailnet.errors import LocalProtocolError, RemoteProtocolError
from tailnet.types import PeerID

ALGORITHM: Final = "HS512"
# RFC 7518 3.2: a key at least as long as the hash.
MIN_SECRET_BYTES: Final = 64
# 24 hours, as the reference; a client refreshes at half of it.
LIFE_SECONDS: Final = 24 * 3600
# Ours have about 250 characters.  The bound on the header, the one part that is parsed before the signature is
# checked, also bounds the nesting that the JSON parser can be led into.
MAX_TOKEN_LENGTH: Final = 2048
MAX_HEADER_LENGTH: Final = 512

_BASE64URL: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
_TO_URL: Final = bytes.maketrans(b"+/", b"-_")


class ResumeTokenRefused(RemoteProtocolError):
    """The token is no good.  The text may be shown to its bearer; the client drops the token and dials again."""


@dataclass(frozen=True, slots=True)
class ResumeKey:
    """A signing key and the name that tokens call it by.  Raises LocalProtocolError for a weak or nameless one."""

    kid: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not self.kid:
            raise LocalProtocolError("a resume key needs a kid: tokens without one count as no token")
        if len(self.secret) < MIN_SECRET_BYTES:
            raise LocalProtocolError(f"a resume key has at least {MIN_SECRET_BYTES} bytes, got {len(self.secret)}")


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """What RefreshResumeToken answers."""

    token: str = field(repr=False)
    expires_at: int  # Unix seconds
    refresh_in_seconds: int


class ResumeTokens:
    """Issues and verifies.  Made anew when the keys rotate; holds nothing else.

    `signing` signs and is accepted; `accepted` are older keys, and newer ones that another replica may sign with.
    Raises LocalProtocolError when one kid names two keys.
    """

    def __init__(
        self, signing: ResumeKey, accepted: Iterable[ResumeKey] = (), life_seconds: int = LIFE_SECONDS
    ) -> None:
        self._keys = {signing.kid: signing.secret}
        for key in accepted:
            if not hmac.compare_digest(self._keys.setdefault(key.kid, key.secret), key.secret):
                raise LocalProtocolError(f"two resume keys are called {key.kid!r}")
        self._signing = signing
        self._life_seconds = life_seconds
        self._header = _encode({"alg": ALGORITHM, "kid": signing.kid, "typ": "JWT"})

    def issue(self, peer_id: PeerID, audience: str, now: float) -> IssuedToken:
        """A token that gives `peer_id` to whoever is `audience` until it expires.

        `audience` names a door and a user (`audience` below): an id is the right to be that peer to everybody else, so
        it goes back to the one it was given to, and nobody comes through another door with it.
        """
        expires_at = int(now) + self._life_seconds
        signed = self._header + b"." + _encode({"sub": str(peer_id), "aud": audience, "exp": expires_at})
        signature = _to_base64url(hmac.digest(self._signing.secret, signed, "sha512"))
        return IssuedToken((signed + b"." + signature).decode(), expires_at, self._life_seconds // 2)

    def verify(self, token: str, audience: str, now: float) -> PeerID | None:
        """The peer id that the token gives to `audience`.

        None for an empty token and for one that names no key: both mean a new id and no error, as in the reference.
        Raises ResumeTokenRefused for everything else that we did not sign, or not for now.
        """
        if not token:
            return None
        parts = token.split(".") if len(token) <= MAX_TOKEN_LENGTH and token.isascii() else []
        if len(parts) != 3 or len(parts[0]) > MAX_HEADER_LENGTH:
            raise ResumeTokenRefused("this is not a resume token: it should be three base64url parts joined by dots")
        header = _decode_object(parts[0], "header")
        # The algorithm is ours to choose: what the token says may only agree, and "none" is never no token.
        if header.get("alg") != ALGORITHM:
            raise ResumeTokenRefused(f"resume token is not signed with {ALGORITHM}")
        kid = header.get("kid")
        if kid is None or kid == "":
            return None
        secret = self._keys.get(kid) if isinstance(kid, str) else None
        if secret is None:
            raise ResumeTokenRefused("resume token names a key that is not, or no longer, accepted")
        expected = hmac.digest(secret, f"{parts[0]}.{parts[1]}".encode(), "sha512")
        if not hmac.compare_digest(_decode(parts[2], "signature"), expected):
            raise ResumeTokenRefused("resume token has a wrong signature")
        return _read_claims(_decode_object(parts[1], "claims"), audience, now)


def audience(door: str, user_id: UUID) -> str:
    """Who may bring a token: a user, at one kind of door."""
    return f"{door} {user_id}"


def _read_claims(claims: dict[str, Any], wanted: str, now: float) -> PeerID:
    expires_at, subject = claims.get("exp"), claims.get("sub")
    if isinstance(expires_at, bool) or not isinstance(expires_at, int | float):
        raise ResumeTokenRefused("resume token has no expiry")
    # Written so that NaN, which compares false with everything, is refused too.
    if not now < expires_at:
        raise ResumeTokenRefused("resume token has expired")
    # Those of earlier versions name nobody; their bearers get a new id, as they would a day later.
    if claims.get("aud") != wanted:
        raise ResumeTokenRefused("resume token was given to another user, or at another door")
    try:
        return PeerID.parse(subject if isinstance(subject, str) else "")
    except ValueError:
        raise ResumeTokenRefused("resume token has no peer id as its subject") from None


def _encode(claims: dict[str, Any]) -> bytes:
    return _to_base64url(json.dumps(claims, separators=(",", ":")).encode())


def _to_base64url(raw: bytes) -> bytes:
    return b64encode(raw).translate(_TO_URL).rstrip(b"=")


def _decode(part: str, what: str) -> bytes:
    # The library's decoder skips characters outside the alphabet; one text must not stand for another.
    if not _BASE64URL.issuperset(part) or len(part) % 4 == 1:
        raise ResumeTokenRefused(f"resume token has a {what} that is not base64url")
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _decode_object(part: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(_decode(part, what))
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        value = None
    if not isinstance(value, dict):
        raise ResumeTokenRefused(f"resume token has a {what} that is not a JSON object")
    return value
