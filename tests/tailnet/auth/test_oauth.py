"""Messages of OAuth: what goes to a provider, and what of its answers is taken."""

import hashlib
import json
from base64 import b64decode, urlsafe_b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tailnet.auth.oauth import (
    MAX_TOKEN_CHARS,
    OAuthNonsense,
    OAuthRefused,
    Tokens,
    authorization_url,
    code_form,
    read_tokens,
    refresh_form,
    token_headers,
)
from tailnet.config.external_auth import Provider

NOW = datetime(2026, 1, 2, tzinfo=UTC)
GIT = Provider(
    "git", "gitlab", "me & you", "https://git.example/authorize?x=1", "https://git.example/token", "pass:word"
)


def read(answer: Any, status: int = 200, refresh_token: str = "", provider: Provider = GIT) -> Tokens:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return read_tokens(provider, status, body, NOW, refresh_token)


def test_where_a_browser_goes() -> None:
    url = authorization_url(replace(GIT, scopes=("a", "b")), "https://us/callback", "the state", "verifier")
    assert url.startswith("https://git.example/authorize?x=1&response_type=code&")
    query = {name: values for name, values in parse_qs(urlsplit(url).query).items() if name != "x"}
    challenge = urlsafe_b64encode(hashlib.sha256(b"verifier").digest()).rstrip(b"=").decode()
    assert query == {
        "response_type": ["code"],
        "client_id": ["me & you"],
        "redirect_uri": ["https://us/callback"],
        "state": ["the state"],
        "scope": ["a b"],
        "code_challenge": [challenge],
        "code_challenge_method": ["S256"],
    }
    assert "verifier" not in url
    assert "pass" not in url


def test_forms() -> None:
    secret = {"client_id": "me & you", "client_secret": "pass:word"}
    rest = {"code": "c", "redirect_uri": "https://us", "code_verifier": "v"}
    assert code_form(GIT, "https://us", "c", "v") == {"grant_type": "authorization_code", **rest, **secret}
    assert refresh_form(GIT, "r") == {"grant_type": "refresh_token", "refresh_token": "r", **secret}
    assert token_headers(GIT) == {}


def test_a_secret_in_a_header() -> None:
    basic = replace(GIT, basic_auth=True)
    assert refresh_form(basic, "r") == {"grant_type": "refresh_token", "refresh_token": "r"}
    pair = token_headers(basic)["authorization"].removeprefix("Basic ")
    assert b64decode(pair) == b"me%20%26%20you:pass%3Aword"


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ({"access_token": "t"}, Tokens("t")),
        ({"access_token": "t", "token_type": "BEARER", "refresh_token": "r"}, Tokens("t", "r")),
        ({"access_token": "t", "expires_in": 60}, Tokens("t", "", NOW + timedelta(seconds=60))),
        ({"access_token": "t", "expires_in": "60"}, Tokens("t", "", NOW + timedelta(seconds=60))),
        ({"access_token": "t", "expires_in": 0}, Tokens("t")),
        ({"access_token": "t", "expires_in": -1}, Tokens("t")),
        ({"access_token": "t", "expires_in": 10**30}, Tokens("t")),
        ({"access_token": "t", "expires_in": "soon"}, Tokens("t")),
        ({"access_token": "t", "expires_in": True}, Tokens("t")),
        ({"access_token": "t", "error": None, "team": "x"}, Tokens("t")),
    ],
)
def test_answers_that_are_taken(answer: Any, tokens: Tokens) -> None:
    assert read(answer) == tokens


def test_what_stays_and_what_comes_along() -> None:
    assert read({"access_token": "t"}, refresh_token="old").refresh_token == "old"
    assert read({"access_token": "t", "refresh_token": "new"}, refresh_token="old").refresh_token == "new"
    with_team = replace(GIT, extra_token_keys=("team", "absent"))
    tokens = read({"access_token": "t", "team": {"id": 1}}, provider=with_team)
    assert tokens.extra == {"team": {"id": 1}}
    again = Tokens.from_json(tokens.to_json(), NOW)
    assert again == replace(tokens, expires_at=NOW)
    assert "t" not in repr(Tokens("secrets", "words", extra={"team": "x"})).replace("Tokens", "").replace("at=", "")


@pytest.mark.parametrize("status", [200, 400, 401])
def test_refusals(status: int) -> None:
    for code, is_final in (("invalid_grant", True), ("bad_refresh_token", True), ("temporarily_unavailable", False)):
        with pytest.raises(OAuthRefused) as refused:
            read({"error": code, "error_description": "no\x1b[2J"}, status)
        assert refused.value.is_final is is_final
        assert str(refused.value) == f"{code}: no\\x1b[2J"
    with pytest.raises(OAuthRefused, match="x" * 60):
        read({"error": "x" * 5000, "error_description": 7}, status)


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (b"<html>", 200, "no JSON"),
        (b"", 502, "answers 502"),
        (b"[" * 100_000, 200, "no JSON"),
        (b"\xff", 200, "no JSON"),
        ([], 200, "no JSON object"),
        ({}, 200, "no access_token"),
        ({"access_token": ""}, 200, "no access_token"),
        ({"access_token": 7}, 200, "no access_token"),
        ({"access_token": "two\r\nlines"}, 200, "no access_token"),
        ({"access_token": "t" * (MAX_TOKEN_CHARS + 1)}, 200, "no access_token"),
        ({"access_token": "é"}, 200, "no access_token"),
        ({"access_token": "t", "token_type": "mac"}, 200, "another type"),
        ({"access_token": "t", "refresh_token": "a b"}, 200, "no refresh_token"),
        ({"access_token": "t"}, 302, "answers 302"),
        ({"access_token": "t"}, 500, "answers 500"),
    ],
)
def test_nonsense(answer: Any, status: int, reason: str) -> None:
    with pytest.raises(OAuthNonsense, match=reason):
        read(answer, status)
