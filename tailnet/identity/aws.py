"""AWS: a JSON document with a raw RSA signature beside it.  Layer L2.

Facts: the signature is base64 of PKCS #1 v1.5 over SHA-256 of the document's exact text, made with a key per region
whose certificate AWS publishes; genuine servers read instanceId and look at no date.  The document of an instance is
the same until it stops and carries no nonce, so that it may be shown again; one from the future is a wrong clock.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from tailnet.identity.anchors import Anchors
from tailnet.identity.instance import CLOCK_SKEW_SECONDS, MAX_PROOF_BYTES, IdentityRefused, Instance, decode_base64


def verify_aws(document: str, signature: str, anchors: Anchors, now: float) -> Instance:
    """The instance that a document is of.  `now` is in seconds since 1970.  Raises IdentityRefused."""
    if not anchors.aws:
        raise IdentityRefused("this server trusts no AWS certificates")
    if len(document) > MAX_PROOF_BYTES:
        raise IdentityRefused(f"the document has more than {MAX_PROOF_BYTES} bytes")
    signed = document.encode()
    mark = decode_base64(signature)
    signers = [anchor for anchor in anchors.aws if _signed_by(anchor.public_key, mark, signed)]
    if not signers:
        raise IdentityRefused("the signature is of none of the certificates that this server trusts")
    content = _read(document)
    instance_id, region = content.get("instanceId"), content.get("region", "")
    if not isinstance(instance_id, str) or not instance_id or not isinstance(region, str):
        raise IdentityRefused("the document names no instanceId")
    if not any(anchor.region in ("", region) for anchor in signers):
        raise IdentityRefused("the document is signed with the key of another region than it names")
    if _pending_time(content) > now + CLOCK_SKEW_SECONDS:
        raise IdentityRefused("the document is from the future: is this server's clock right?")
    return Instance(instance_id, region)


def _signed_by(key: Any, mark: bytes, signed: bytes) -> bool:
    try:
        key.verify(mark, signed, padding.PKCS1v15(), hashes.SHA256())
    except InvalidSignature:
        return False
    return True


def _read(document: str) -> Mapping[str, Any]:
    try:
        content = json.loads(document)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise IdentityRefused("the document is no JSON object")
    return content


def _pending_time(content: Mapping[str, Any]) -> float:
    """When the instance was last started, in seconds since 1970; 0 where the document does not say."""
    try:
        moment = datetime.fromisoformat(content.get("pendingTime", ""))
    except (TypeError, ValueError):
        return 0.0
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
