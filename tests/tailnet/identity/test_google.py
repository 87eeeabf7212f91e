"""Google's identity tokens: keys, algorithms, times, claims."""

import hmac
import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from joserfc.jwk import ECKey, RSAKey

from tailnet.identity.anchors import Anchors
from tailnet.identity.google import verify_google
from tailnet.identity.instance import CLOCK_SKEW_SECONDS, MAX_PROOF_BYTES, ClaimsUnreadable, IdentityRefused, Instance
from tests.support.clouds import NOW, Google

AT = NOW.timestamp()


def refused(token: str, anchors: Anchors, now: float = AT) -> str:
    with pytest.raises(IdentityRefused) as caught:
        verify_google(token, anchors, now)
    return str(caught.value)


def encoded(part: dict[str, Any]) -> str:
    return urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def test_both_kinds_of_key(google: Google, anchors: Anchors) -> None:
    claims = google.claims()
    for token in (google.sign(claims), google.sign(claims, google.ec, "ES256")):
        assert verify_google(token, anchors, AT) == Instance("777")


def test_forgeries(google: Google, anchors: Anchors) -> None:
    claims = google.claims()
    token = google.sign(claims)
    head, _, mark = token.split(".")
    other_rsa = RSAKey.generate_key(2048, {"kid": "r1"})
    unknown = ECKey.generate_key("P-256", {"kid": "e9"})
    unsigned = f"{encoded({'alg': 'none'})}.{encoded(claims)}."
    # The public key as the secret of an HMAC, which a verifier that believes `alg` would take.
    signed = f"{encoded({'alg': 'HS256', 'kid': 'r1'})}.{encoded(claims)}"
    mac = hmac.digest(google.rsa.as_pem(private=False), signed.encode(), "sha256")
    confused = f"{signed}.{urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    for forged in (
        google.sign(claims, other_rsa),
        google.sign(claims, unknown, "ES256"),
        f"{head}.{encoded(google.claims(google={'compute_engine': {'instance_id': '1'}}))}.{mark}",
        token[:-4] + "AAAA",
        unsigned,
        confused,
        "",
        "a.b.c",
        token + ".x",
    ):
        assert "none of the keys" in refused(forged, anchors)
    assert "more than" in refused("a" * (MAX_PROOF_BYTES + 1), anchors)
    assert "trusts no Google" in refused(token, Anchors())


def test_clocks(google: Google, anchors: Anchors) -> None:
    token = google.sign(google.claims())
    for now in (AT - CLOCK_SKEW_SECONDS, AT + 3600 + CLOCK_SKEW_SECONDS):
        assert verify_google(token, anchors, now).instance_id == "777"
    assert "future" in refused(token, anchors, AT - CLOCK_SKEW_SECONDS - 1)
    assert "expired" in refused(token, anchors, AT + 3600 + CLOCK_SKEW_SECONDS + 1)
    assert "future" in refused(google.sign(google.claims(nbf=AT + 600)), anchors)
    assert "no time" in refused(google.sign(google.claims(exp=None)), anchors)
    assert "no time" in refused(google.sign(google.claims(exp="soon")), anchors)


def test_another_issuer(google: Google, anchors: Anchors) -> None:
    assert "another issuer" in refused(google.sign(google.claims(iss="https://example.org")), anchors)


@pytest.mark.parametrize("claim", [None, 3, {}, {"compute_engine": 1}, {"compute_engine": {"instance_id": 7}}])
def test_claims_that_name_no_instance(google: Google, anchors: Anchors, claim: object) -> None:
    with pytest.raises(ClaimsUnreadable):
        verify_google(google.sign(google.claims(google=claim)), anchors, AT)
