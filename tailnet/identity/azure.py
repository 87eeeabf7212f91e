"""Azure: an attested document, PKCS #7 signed by the metadata service.  Layer L2.

Facts: the content is JSON with vmId; the one signer's common name is a metadata.azure name; its chain leads over
published intermediates to public roots.  `timeStamp.expiresOn` bounds how long a document may be shown: within that
time it may be shown again, as an agent does that restarts.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from tailnet.identity.anchors import Anchors
from tailnet.identity.envelope import open_signed_data
from tailnet.identity.instance import CLOCK_SKEW_SECONDS, IdentityRefused, Instance, decode_base64

_SIGNER_NAME: Final = re.compile(r"(?:.*\.)?metadata\.(?:azure\.(?:com|us|cn)|microsoftazure\.de)")
_USAGES: Final = {
    ExtendedKeyUsageOID.SERVER_AUTH,
    ExtendedKeyUsageOID.CLIENT_AUTH,
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
}
_TIME_FORMAT: Final = "%m/%d/%y %H:%M:%S %z"


def verify_azure(signature: str, anchors: Anchors, now: float) -> Instance:
    """The instance of an attested document.  `now` is in seconds since 1970.  Raises IdentityRefused."""
    if not anchors.azure_roots:
        raise IdentityRefused("this server trusts no Azure roots")
    signed = open_signed_data(decode_base64(signature))
    try:
        names = signed.signer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        names = []
    if len(names) != 1 or not _SIGNER_NAME.fullmatch(str(names[0].value)):
        raise IdentityRefused("the signer is not Azure's metadata service")
    _check_chain(signed.signer, [*signed.others, *anchors.azure_intermediates], anchors, now)
    content = _read(signed.content)
    vm_id = content.get("vmId")
    if not isinstance(vm_id, str) or not vm_id:
        raise IdentityRefused("the document names no vmId")
    _check_time(content, now)
    return Instance(vm_id)


def _check_chain(signer: x509.Certificate, others: list[x509.Certificate], anchors: Anchors, now: float) -> None:
    signing = (
        ExtensionPolicy.permit_all()
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_sign)
        .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _may_speak)
        .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_no_authority)
    )
    verifier = (
        PolicyBuilder()
        .store(Store(list(anchors.azure_roots)))
        .time(datetime.fromtimestamp(now, UTC))
        .extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=signing)
        .build_client_verifier()
    )
    try:
        verifier.verify(signer, others)
    except VerificationError:
        # The library's reasons name every candidate that it tried; the certificate's own dates are the usual one.
        late = signer.not_valid_after_utc.timestamp() < now
        reason = "has expired" if late else "does not lead to a root that this server trusts, or may not sign"
        raise IdentityRefused(f"the signer's certificate {reason}") from None


def _may_sign(policy: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.digital_signature:
        raise ValueError("the certificate may not sign")


def _may_speak(policy: Policy, certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    if usage is not None and not _USAGES & set(usage):
        raise ValueError("the certificate is for something else")


def _is_no_authority(policy: Policy, certificate: x509.Certificate, basic: x509.BasicConstraints | None) -> None:
    if basic is not None and basic.ca:
        raise ValueError("an authority signs no documents")


def _read(document: bytes) -> Mapping[str, Any]:
    try:
        content = json.loads(document)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise IdentityRefused("the document is no JSON object")
    return content


def _check_time(content: Mapping[str, Any], now: float) -> None:
    """Documents that state no time are as old as their signer's certificate allows, as for genuine servers."""
    stamp = content.get("timeStamp")
    if not isinstance(stamp, dict):
        return
    try:
        created, expires = (
            datetime.strptime(str(stamp[name]), _TIME_FORMAT).timestamp() for name in ("createdOn", "expiresOn")
        )
    except (KeyError, ValueError):
        raise IdentityRefused("the document's timeStamp cannot be read") from None
    if created > now + CLOCK_SKEW_SECONDS:
        raise IdentityRefused("the document is from the future: is this server's clock right?")
    if expires < now - CLOCK_SKEW_SECONDS:
        raise IdentityRefused("the document has expired: the agent should ask its cloud for a new one")
