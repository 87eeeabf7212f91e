"""Keys and tokens as a control plane signs them, and as forgers would."""

import base64
import json
import warnings
from collections.abc import Mapping
from typing import Any

from joserfc import jws
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OKPKey, RSAKey

ISSUER, AUDIENCE = "https://control.example", "tailnet"
PrivateKey = RSAKey | ECKey | OKPKey
RSA = RSAKey.generate_key(2048, private=True)
EC = ECKey.generate_key("P-256", private=True)
ED = OKPKey.generate_key("Ed25519", private=True)
ALGORITHMS: dict[str, tuple[str, PrivateKey]] = {"rsa": ("RS256", RSA), "ec": ("ES256", EC), "ed": ("EdDSA", ED)}


def public(kid: str, key: PrivateKey | None = None, **more: object) -> dict[str, Any]:
    return {**(key or ALGORITHMS[kid][1]).as_dict(private=False), "kid": kid, **more}


def key_set(*keys: Mapping[str, Any]) -> bytes:
    return json.dumps({"keys": list(keys) or [public(kid) for kid in ALGORITHMS]}).encode()


def sign(
    claims: Mapping[str, Any], kid: str = "ec", *, key: PrivateKey | None = None, alg: str = "", **header: Any
) -> str:
    algorithm, usual = ALGORITHMS.get(kid, ("ES256", EC))
    algorithm = alg or algorithm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # of the name EdDSA
        return jws.serialize_compact(
            {"alg": algorithm, "kid": kid, **header}, json.dumps(claims), key or usual, algorithms=[algorithm]
        )


def unsigned(header: Mapping[str, Any], claims: Mapping[str, Any], signature: str = "") -> str:
    parts = (json.dumps(part).encode() for part in (header, claims))
    return ".".join([*(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts), signature])


def standard(now: float, seconds: float = 3600, **claims: object) -> dict[str, Any]:
    return {"iss": ISSUER, "aud": AUDIENCE, "exp": int(now + seconds), "iat": int(now), **claims}
