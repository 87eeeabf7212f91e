"""Google: a compact JWT of the instance's service account.  Layer L2; this package's only file on joserfc.

Facts: RS256 or ES256 by a key of Google's set, found by `kid`; the claim is google.compute_engine.instance_id.  The
audience is the caller's choice and is not looked at; `exp` is, with CLOCK_SKEW_SECONDS.
"""

import json
from typing import Any, Final

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from tailnet.identity.anchors import Anchors
from tailnet.identity.instance import CLOCK_SKEW_SECONDS, MAX_PROOF_BYTES, ClaimsUnreadable, IdentityRefused, Instance

_ALGORITHMS: Final = ["RS256", "ES256"]
_ISSUERS: Final = ("https://accounts.google.com", "accounts.google.com")


def verify_google(token: str, anchors: Anchors, now: float) -> Instance:
    """The instance of an identity token.  `now` is in seconds since 1970.

    Raises ClaimsUnreadable when a token that is signed well says nothing of an instance, IdentityRefused otherwise.
    """
    if not anchors.google_keys:
        raise IdentityRefused("this server trusts no Google keys")
    if len(token) > MAX_PROOF_BYTES:
        raise IdentityRefused(f"the token has more than {MAX_PROOF_BYTES} bytes")
    try:
        keys = KeySet.import_key_set({"keys": [dict(key) for key in anchors.google_keys]})
        signed = jws.deserialize_compact(token, keys, algorithms=_ALGORITHMS)
    except (JoseError, ValueError, TypeError, KeyError):
        raise IdentityRefused("the token is signed by none of the keys that this server trusts") from None
    claims = _claims(signed.payload)
    if claims.get("iss", _ISSUERS[0]) not in _ISSUERS:
        raise IdentityRefused("the token is of another issuer than Google")
    expires, since = _seconds(claims.get("exp")), _seconds(claims.get("nbf", claims.get("iat", 0)))
    if expires < now - CLOCK_SKEW_SECONDS:
        raise IdentityRefused("the token has expired: the agent should ask its cloud for a new one")
    if since > now + CLOCK_SKEW_SECONDS:
        raise IdentityRefused("the token is from the future: is this server's clock right?")
    engine = claims.get("google")
    engine = engine.get("compute_engine") if isinstance(engine, dict) else None
    instance_id = engine.get("instance_id") if isinstance(engine, dict) else None
    if not isinstance(instance_id, str) or not instance_id:
        raise ClaimsUnreadable("the token names no google.compute_engine.instance_id: ask for it with format=full")
    return Instance(instance_id)


def _claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = json.loads(payload)
    except (ValueError, RecursionError):
        claims = None
    if not isinstance(claims, dict):
        raise ClaimsUnreadable("the token's claims are no JSON object")
    return claims


def _seconds(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise IdentityRefused("the token states no time until which it holds")
    return float(value)
