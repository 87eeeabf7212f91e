"""Messages of OAuth 2 (RFC 6749) with PKCE (RFC 7636): forms out, answers in; no I/O (layer L2).

Written here and not taken from a library: what is needed is two forms and one answer, and the libraries that have
them bring clients that follow redirects, read answers of any length, and are told by the environment when plain HTTP is
allowed.  Next hop: services/external_auth.py, whose transport has those bounds.
"""

import hashlib
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import quote, urlencode

from derp.text import printable
from tailnet.config.external_auth import Provider

VERIFIER_BYTES: Final = 32
# Tokens that are JWTs with many claims have some kilobytes; they travel in a header.
MAX_TOKEN_CHARS: Final = 16 * 1024
# Beyond it a number is no length of a life.
_MAX_LIFE_SECONDS: Final = 10 * 366 * 86_400
# What the answer to a refresh says when that token is of no use any more: RFC 6749's word and GitHub's.
_ENDED: Final = frozenset({"invalid_grant", "bad_refresh_token"})


class OAuthRefused(Exception):
    """The provider said no.  `code` is its word for it; `is_final`: what was shown is of no use any more."""

    def __init__(self, code: str, description: str = "", *, is_final: bool | None = None) -> None:
        super().__init__(f"{printable(code, 60)}: {printable(description)}" if description else printable(code, 60))
        self.code = code
        self.is_final = code in _ENDED if is_final is None else is_final


class OAuthNonsense(Exception):
    """The provider answered something else than a token or a refusal; the text says what."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a provider gave."""

    access_token: str = field(repr=False)
    refresh_token: str = field(default="", repr=False)
    expires_at: datetime | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def to_json(self) -> bytes:
        """Without the time, which lies beside it."""
        return json.dumps([self.access_token, self.refresh_token, dict(self.extra)]).encode()

    @classmethod
    def from_json(cls, text: bytes, expires_at: datetime | None) -> "Tokens":
        access_token, refresh_token, extra = json.loads(text)
        return cls(access_token, refresh_token, expires_at, extra)


def authorization_url(provider: Provider, redirect_uri: str, state: str, verifier: str) -> str:
    """Where a user's browser goes."""
    challenge = urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    query = {
        "response_type": "code",
        "client_id": provider.client_id,
        "redirect_uri": redirect_uri,
        "state": state,
        "code_challenge": challenge,
        "code_challenge_method": "S256",
    }
    if provider.scopes:
        query["scope"] = " ".join(provider.scopes)
    return f"{provider.auth_url}{'&' if '?' in provider.auth_url else '?'}{urlencode(query)}"


def code_form(provider: Provider, redirect_uri: str, code: str, verifier: str) -> dict[str, str]:
    """Exchanges the code that the browser brought."""
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": verifier,
    }
    return form | _own_secret(provider)


def refresh_form(provider: Provider, refresh_token: str) -> dict[str, str]:
    """Exchanges a refresh token."""
    return {"grant_type": "refresh_token", "refresh_token": refresh_token} | _own_secret(provider)


def token_headers(provider: Provider) -> dict[str, str]:
    """What goes with those forms.  RFC 6749 section 2.3.1: the parts of Basic are form-encoded first."""
    if not provider.basic_auth:
        return {}
    pair = f"{quote(provider.client_id, safe='')}:{quote(provider.client_secret, safe='')}"
    return {"authorization": f"Basic {b64encode(pair.encode()).decode()}"}


def read_tokens(provider: Provider, status: int, body: bytes, now: datetime, refresh_token: str = "") -> Tokens:
    """The answer to one of the forms.  `refresh_token`: what was shown, which stays good where none comes back.

    Raises OAuthRefused and OAuthNonsense; neither repeats a token.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise OAuthNonsense(f"answers {status} and no JSON: is it the right token_url?") from None
    if not isinstance(answer, dict):
        raise OAuthNonsense(f"answers {status} and no JSON object: is it the right token_url?")
    error = answer.get("error")
    if isinstance(error, str) and error:  # some say it with a 200
        description = answer.get("error_description", "")
        raise OAuthRefused(error, description if isinstance(description, str) else "")
    if status != 200:
        raise OAuthNonsense(f"answers {status}")
    token, kind = answer.get("access_token"), answer.get("token_type", "bearer")
    if not _is_token(token):
        raise OAuthNonsense("answers no access_token that could be used")
    if not isinstance(kind, str) or kind.lower() not in ("bearer", "token"):
        raise OAuthNonsense(f"answers a token of another type than bearer: {printable(str(kind), 40)}")
    fresh = answer.get("refresh_token", "") or refresh_token
    if fresh and not _is_token(fresh):
        raise OAuthNonsense("answers no refresh_token that could be used")
    extra = {name: answer[name] for name in provider.extra_token_keys if name in answer}
    return Tokens(str(token), str(fresh), _expiry(answer.get("expires_in"), now), extra)


def _own_secret(provider: Provider) -> dict[str, str]:
    if provider.basic_auth:
        return {}
    return {"client_id": provider.client_id, "client_secret": provider.client_secret}


def _is_token(value: object) -> bool:
    # RFC 6749 appendix A.12: visible ASCII.  Anything else could end a header.
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_TOKEN_CHARS
        and value.isascii()
        and value.isprintable()
        and " " not in value
    )


def _expiry(value: object, now: datetime) -> datetime | None:
    """`expires_in` is seconds, of some as text; nought and nonsense are those who do not say it."""
    try:
        seconds = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else 0
    except ValueError:
        seconds = 0
    return now + timedelta(seconds=seconds) if 0 < seconds <= _MAX_LIFE_SECONDS else None
