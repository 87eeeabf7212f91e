"""Resume tokens: what we sign we read, and nothing else."""

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from contextlib import suppress
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.coordinator.resume import LIFE_SECONDS, ResumeKey, ResumeTokenRefused, ResumeTokens, audience
from tailnet.errors import LocalProtocolError
from tailnet.types import PeerID

NOW = 1_800_000_000.5
ALICE = audience("client", UUID("01010101-0101-4000-8000-000000000001"))
PEER = PeerID.parse("01234567-89ab-cdef-0123-456789abcdef")
OLD, NEW = ResumeKey("2026-01", bytes(range(64))), ResumeKey("2026-02", b"k" * 64)
TOKENS = ResumeTokens(NEW, [OLD])


def base64url(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def forge(
    header: object,
    claims: object,
    secret: bytes = NEW.secret,
    algorithm: str = "sha512",
    signature: bytes | None = None,
) -> str:
    """A token made by hand, signed as told: not by the code under test."""
    signed = f"{base64url(json.dumps(header).encode())}.{base64url(json.dumps(claims).encode())}"
    if signature is None:
        signature = hmac.new(secret, signed.encode(), getattr(hashlib, algorithm)).digest()
    return f"{signed}.{base64url(signature)}"


HEADER = {"alg": "HS512", "kid": NEW.kid}
CLAIMS = {"sub": str(PEER), "aud": ALICE, "exp": NOW + 100}


@given(st.binary(min_size=16, max_size=16), st.floats(0, 1e11))
def test_what_we_sign_we_read(raw: bytes, now: float) -> None:
    issued = TOKENS.issue(PeerID(raw), ALICE, now)
    assert TOKENS.verify(issued.token, ALICE, now) == raw
    assert (issued.expires_at, issued.refresh_in_seconds) == (int(now) + LIFE_SECONDS, LIFE_SECONDS // 2)


def test_a_token_by_hand_is_read_as_ours() -> None:
    assert TOKENS.verify(forge(HEADER, CLAIMS), ALICE, NOW) == PEER
    assert TOKENS.verify(forge(HEADER | {"typ": "JWT"}, CLAIMS | {"iss": "else"}), ALICE, NOW) == PEER


def test_our_token_is_a_jwt() -> None:
    header, claims, signature = TOKENS.issue(PEER, ALICE, NOW).token.split(".")
    assert "=" not in header + claims + signature
    secret = hmac.new(NEW.secret, f"{header}.{claims}".encode(), hashlib.sha512).digest()
    assert base64url(secret) == signature


def test_a_token_expires() -> None:
    issued = TOKENS.issue(PEER, ALICE, NOW)
    assert TOKENS.verify(issued.token, ALICE, issued.expires_at - 0.001) == PEER
    for late in (issued.expires_at, issued.expires_at + 1e9, float("nan")):
        with pytest.raises(ResumeTokenRefused, match="expired"):
            TOKENS.verify(issued.token, ALICE, late)


def test_keys_rotate() -> None:
    before = ResumeTokens(OLD, [NEW]).issue(PEER, ALICE, NOW).token
    assert TOKENS.verify(before, ALICE, NOW) == PEER
    with pytest.raises(ResumeTokenRefused, match="no longer, accepted"):
        ResumeTokens(NEW).verify(before, ALICE, NOW)


@pytest.mark.parametrize("token", ["", forge({"alg": "HS512"}, CLAIMS), forge(HEADER | {"kid": ""}, CLAIMS)])
def test_no_key_named_is_no_token(token: str) -> None:
    assert TOKENS.verify(token, ALICE, NOW) is None


GOOD = TOKENS.issue(PEER, ALICE, NOW).token
HEAD, BODY, SIGNATURE = GOOD.split(".")
STRANGER = TOKENS.issue(PeerID(bytes(16)), ALICE, NOW).token.split(".")[1]

REFUSED = {
    "forged signature": (forge(HEADER, CLAIMS, secret=b"x" * 64), "wrong signature"),
    "no signature": (f"{HEAD}.{BODY}.", "wrong signature"),
    "swapped subject": (f"{HEAD}.{STRANGER}.{SIGNATURE}", "wrong signature"),
    "signed by the key of another kid": (forge({"alg": "HS512", "kid": OLD.kid}, CLAIMS), "wrong signature"),
    "alg none": (forge(HEADER | {"alg": "none"}, CLAIMS, signature=b""), "not signed with HS512"),
    "alg None": (forge(HEADER | {"alg": None}, CLAIMS), "not signed with HS512"),
    "no alg": (forge({"kid": NEW.kid}, CLAIMS), "not signed with HS512"),
    "alg in lower case": (forge(HEADER | {"alg": "hs512"}, CLAIMS), "not signed with HS512"),
    "a weaker alg, rightly signed": (forge(HEADER | {"alg": "HS256"}, CLAIMS, algorithm="sha256"), "HS512"),
    "unknown kid": (forge(HEADER | {"kid": "2025-12"}, CLAIMS), "not, or no longer, accepted"),
    "kid of another type": (forge(HEADER | {"kid": [NEW.kid]}, CLAIMS), "not, or no longer, accepted"),
    "expired": (forge(HEADER, CLAIMS | {"exp": NOW - 1}), "expired"),
    "expires never": (forge(HEADER, {"sub": str(PEER)}), "no expiry"),
    "expiry is text": (forge(HEADER, CLAIMS | {"exp": "2099"}), "no expiry"),
    "expiry is a truth": (forge(HEADER, CLAIMS | {"exp": True}), "no expiry"),
    "expiry is no number": (forge(HEADER, CLAIMS | {"exp": float("nan")}), "expired"),
    "no subject": (forge(HEADER, {"aud": ALICE, "exp": NOW + 9}), "no peer id"),
    "subject is no id": (forge(HEADER, CLAIMS | {"sub": "me"}), "no peer id"),
    "subject is a number": (forge(HEADER, CLAIMS | {"sub": 7}), "no peer id"),
    "no audience, as those of earlier versions": (forge(HEADER, {"sub": str(PEER), "exp": NOW + 9}), "another user"),
    "another user": (forge(HEADER, CLAIMS | {"aud": audience("client", UUID(int=1))}), "another user"),
    "another door": (forge(HEADER, CLAIMS | {"aud": ALICE.replace("client", "client of many")}), "another door"),
    "the audience is a list": (forge(HEADER, CLAIMS | {"aud": [ALICE]}), "another user"),
    "claims are a list": (forge(HEADER, [CLAIMS]), "claims that is not a JSON object"),
    "header is a list": (forge([HEADER], CLAIMS), "header that is not a JSON object"),
    "header is not JSON": (f"{base64url(b'{')}.{BODY}.{SIGNATURE}", "header that is not a JSON object"),
    "header is not UTF-8": (f"{base64url(bytes([0x22, 0xFF, 0x22]))}.{BODY}.{SIGNATURE}", "not a JSON object"),
    "header nests deeply": (f"{base64url(b'[' * 380)}.{BODY}.{SIGNATURE}", "not a JSON object"),
    "header is endless": (f"{'A' * 513}.{BODY}.{SIGNATURE}", "three base64url parts"),
    "padding": (f"{HEAD}=.{BODY}.{SIGNATURE}", "header that is not base64url"),
    "signs of the other alphabet": (f"{HEAD}.{BODY}.+/{SIGNATURE[2:]}", "signature that is not base64url"),
    "a blank": (f"{HEAD}.{BODY}.{SIGNATURE} ", "signature that is not base64url"),
    "an impossible length": (f"{HEAD}.{BODY}.{SIGNATURE[:5]}", "signature that is not base64url"),
    "two parts": (f"{HEAD}.{BODY}", "three base64url parts"),
    "four parts": (f"{GOOD}.{SIGNATURE}", "three base64url parts"),
    "too long": (f"{HEAD}.{'A' * 3000}.{SIGNATURE}", "three base64url parts"),
    "not ASCII": (f"{HEAD}.\udc80.{SIGNATURE}", "three base64url parts"),
    "nonsense": ("token", "three base64url parts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    token, text = REFUSED[name]
    with pytest.raises(ResumeTokenRefused, match=text):
        TOKENS.verify(token, ALICE, NOW)


@given(st.integers(0, len(GOOD) - 1), st.characters())
def test_no_changed_sign_gives_another_peer(at: int, sign: str) -> None:
    """Most changes are refused; one that only touches the unused last bits of a part may still read as the same id."""
    with suppress(ResumeTokenRefused):
        assert TOKENS.verify(GOOD[:at] + sign + GOOD[at + 1 :], ALICE, NOW) in (PEER, None)


@given(st.text())
def test_any_text_is_refused_or_no_token(text: str) -> None:
    with suppress(ResumeTokenRefused):
        assert TOKENS.verify(text, ALICE, NOW) is None


def test_keys_are_judged_when_given() -> None:
    with pytest.raises(LocalProtocolError, match="at least 64 bytes, got 63"):
        ResumeKey("short", bytes(63))
    with pytest.raises(LocalProtocolError, match="needs a kid"):
        ResumeKey("", bytes(64))
    with pytest.raises(LocalProtocolError, match="two resume keys are called 'same'"):
        ResumeTokens(ResumeKey("same", bytes(64)), [ResumeKey("same", b"x" * 64)])
    ResumeTokens(NEW, [NEW, OLD, OLD])  # the same key twice is no contradiction


def test_secrets_and_tokens_stay_out_of_reprs() -> None:
    assert "kkkk" not in repr(NEW)
    assert SIGNATURE not in repr(TOKENS.issue(PEER, ALICE, NOW))
