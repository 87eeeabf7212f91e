"""TLS towards a relay: whom to trust, and what its certificates tell beside that.  Layer L2.

Trust is the DERP map's: system roots and the host's name; CertName for another name; `sha256-raw:<hex>` pins the leaf,
which may then be self-signed; insecure_for_tests checks nothing.  Over TLS 1.3 the chain may hold a meta certificate
that names the relay's key: knowing it saves a round trip (fast start).  No ALPN is offered, as genuine clients do.
Server side: tls.py.  Next hop: client/dial.py.
"""

import hashlib
import hmac
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio
from cryptography import x509

from derp.errors import ConnectError
from derp.map import is_address
from derp.text import error_text
from derp.transport.stream import mapped_errors

PIN_PREFIX: Final = "sha256-raw:"
META_COMMON_NAME_PREFIX: Final = "derpkey"
# The serial number of a meta certificate is the protocol version; a larger one is somebody else's certificate.
MAX_META_SERIAL: Final = 255
_KEY_HEX_DIGITS: Final = 64
# A chain of a public authority has 2 to 4 certificates; whoever sends hundreds wants us to parse them.
_MAX_CHAIN: Final = 16

TlsStream: TypeAlias = trio.SSLStream[trio.abc.Stream]


@dataclass(frozen=True, slots=True)
class TlsTrust:
    """Who the other side must prove to be.

    server_name: sent as SNI unless it is an address, and checked unless cert_name or a pin takes its place; empty: a
    cert_name that is a name is sent, and without one any certificate that is trusted will do, as with genuine clients.
    The final dot of a name belongs to DNS: it is in no certificate, and RFC 6066 keeps it out of SNI.
    context: instead of the system's roots, e.g. with a private authority or a client certificate; its own settings
    for verification apply, a pin or cert_name is checked besides.
    """

    server_name: str
    cert_name: str = ""
    insecure_for_tests: bool = False
    context: ssl.SSLContext | None = None

    def in_tls(self) -> "TlsTrust":
        """The same with the names as TLS has them."""
        is_name = bool(self.cert_name) and not self.cert_name.startswith(PIN_PREFIX)
        cert_name = self.cert_name.removesuffix(".") if is_name else self.cert_name
        server_name = self.server_name.removesuffix(".") or (cert_name if is_name else "")
        return replace(self, server_name=server_name, cert_name=cert_name)

    def pin(self) -> bytes | None:
        """The SHA-256 of the leaf certificate that is expected, 32 bytes.  Raises ConnectError if it is malformed."""
        if not self.cert_name.startswith(PIN_PREFIX):
            return None
        digits = self.cert_name[len(PIN_PREFIX) :].strip()
        try:
            digest = bytes.fromhex(digits)
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise ConnectError(f"CertName {self.cert_name!r}: a pin is {PIN_PREFIX} and 64 hex digits")
        return digest


@dataclass(frozen=True, slots=True)
class TlsFacts:
    """What the handshake settled.  server_key: the relay's key from a meta certificate, or None.

    chain: the peer's certificates as DER, leaf first; the leaf alone where this Python cannot tell more.
    """

    version: str
    alpn: str | None = None
    server_key: bytes | None = None
    chain: tuple[bytes, ...] = field(default=(), repr=False, compare=False)

    def expires_at(self) -> float | None:
        """Unix time at which the first certificate of the chain expires; None without one.

        Meta certificates do not count: relays make a new one at each start, and clients do not look at its dates.
        """
        ends = []
        for der in self.chain[:_MAX_CHAIN]:
            if _serial_and_common_name(der)[1].startswith(META_COMMON_NAME_PREFIX):
                continue
            try:
                ends.append(x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp())
            except ValueError:
                continue  # the handshake took it, so it is no part of what was verified
        return min(ends, default=None)

    def leaf_pin(self) -> str:
        """What CertName must be to accept this leaf and no other; empty without TLS."""
        return f"{PIN_PREFIX}{hashlib.sha256(self.chain[0]).hexdigest()}" if self.chain else ""


async def start_tls(stream: trio.abc.Stream, trust: TlsTrust, label: str) -> tuple[TlsStream, TlsFacts]:
    """Shake hands over `stream`; on failure it is closed and a ConnectError says what to change."""
    trust = trust.in_tls()
    try:
        pin = trust.pin()
        context = trust.context or _context(_checks_roots(trust, pin), _checks_name(trust, pin))
        name = trust.server_name or None
        try:
            # https_compatible: relays close the socket without a closing alert, and DERP tells a cut by itself.
            tls: TlsStream = trio.SSLStream(stream, context, server_hostname=name, https_compatible=True)
        except ValueError as error:  # among them UnicodeError, for what IDNA cannot encode
            what = f"{name!r} is no name that TLS can ask for" if name else "there is no name to ask for"
            raise ConnectError(f"TLS with {label}: {what}: correct HostName or CertName") from error
        with mapped_errors(f"TLS with {label}", connecting=True):
            await tls.do_handshake()
        chain = _peer_chain(tls)
        _check_certificates(trust, pin, chain, label)
        version = tls.version() or ""
        # Before 1.3 certificates travel in the clear, where a middlebox may have looked and meddled.
        server_key = find_meta_key(chain) if version == "TLSv1.3" else None
        return tls, TlsFacts(version, tls.selected_alpn_protocol(), server_key, tuple(chain))
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def certificate_facts(
    chain: Sequence[bytes], trust: TlsTrust, label: str, check: Callable[[Sequence[bytes], ssl.SSLContext], str]
) -> TlsFacts:
    """What a handshake settled that checked no certificate (QUIC's): the whole trust is checked here.

    `check(chain, context)` says why the context's roots do not vouch for the chain.  Raises ConnectError.
    """
    trust = trust.in_tls()
    pin = trust.pin()
    if _checks_roots(trust, pin):
        context = trust.context or _context(True, _checks_name(trust, pin))
        why = check(chain, context)
        if why:
            raise ConnectError(f"TLS with {label}: its certificate is refused: {why}")
        if context.check_hostname:
            # OpenSSL would have looked for the name that was asked for: here it is looked for as a CertName is.
            trust = replace(trust, server_name="", cert_name=trust.server_name)
    _check_certificates(trust, pin, chain, label)
    return TlsFacts("TLSv1.3", None, find_meta_key(chain), tuple(chain))


def find_meta_key(chain: Sequence[bytes]) -> bytes | None:
    """The relay's key from the meta certificate in a DER chain; None if there is none, or it is not one we know."""
    for der in chain[:_MAX_CHAIN]:
        serial, name = _serial_and_common_name(der)
        digits = name.removeprefix(META_COMMON_NAME_PREFIX)
        if name == digits or not 0 < serial <= MAX_META_SERIAL or len(digits) != _KEY_HEX_DIGITS:
            continue
        try:
            return bytes.fromhex(digits)
        except ValueError:
            continue
    return None


def certificate_matches(certificate: x509.Certificate, name: str) -> bool:
    """Is the certificate for this host name or address?  Subject alternative names only, RFC 6125 wildcards."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    try:
        address = ip_address(name)
    except ValueError:
        wanted = name.rstrip(".").lower()
        return any(_dns_matches(pattern, wanted) for pattern in names.get_values_for_type(x509.DNSName))
    return address in names.get_values_for_type(x509.IPAddress)


def system_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """Trusts the system's roots (and SSL_CERT_FILE) as genuine clients do, or a file's instead; TLS 1.2 or later.

    From 3.13 on Python also refuses certificates without some extensions of RFC 5280 (the authority key identifier).
    Private authorities leave those out and Go takes their certificates, so we do.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@lru_cache(maxsize=4)
def _context(checks_roots: bool, checks_name: bool) -> ssl.SSLContext:
    # Cached: reading the system's roots takes some 20 ms, and a client reconnects.
    if checks_roots:
        context = system_context()
        context.check_hostname = checks_name
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _checks_roots(trust: TlsTrust, pin: bytes | None) -> bool:
    return pin is None and not trust.insecure_for_tests


def _checks_name(trust: TlsTrust, pin: bytes | None) -> bool:
    # Python checks the very name it sends as SNI.  A CertName that differs is checked by ourselves.
    return bool(trust.server_name) and _checks_roots(trust, pin) and trust.cert_name in ("", trust.server_name)


def _check_certificates(trust: TlsTrust, pin: bytes | None, chain: Sequence[bytes], label: str) -> None:
    """What neither OpenSSL nor Python checked already."""
    if pin is None and (trust.insecure_for_tests or trust.cert_name in ("", trust.server_name)):
        return
    try:
        leaf = x509.load_der_x509_certificate(chain[0])
    except (ValueError, IndexError) as error:
        raise ConnectError(
            f"TLS with {label}: its certificate is missing or cannot be read: {error_text(error)}"
        ) from error
    if pin is None:
        if not certificate_matches(leaf, trust.cert_name):
            raise ConnectError(f"TLS with {label}: its certificate is not for {trust.cert_name!r}: correct CertName")
        return
    # Only for the leaf did the peer prove that it holds the private key.  A certificate further down that matches the
    # pin proves nothing: anybody can send a copy of it behind a leaf that looks like a meta certificate.
    digest = hashlib.sha256(chain[0]).digest()
    if not hmac.compare_digest(digest, pin):
        raise ConnectError(
            f"TLS with {label}: its certificate is not the pinned one; if the relay renewed it, the map's CertName "
            f"must become {PIN_PREFIX}{digest.hex()}, otherwise somebody intercepts the connection"
        )
    if not all(_serial_and_common_name(other)[1].startswith(META_COMMON_NAME_PREFIX) for other in chain[1:]):
        # Genuine clients refuse it, so an operator should hear of it here too.
        raise ConnectError(f"TLS with {label}: a pinned relay must send its own certificate only, without a chain")
    if trust.server_name and not is_address(trust.server_name) and not certificate_matches(leaf, trust.server_name):
        raise ConnectError(f"TLS with {label}: the pinned certificate is not for {trust.server_name!r}")
    now = datetime.now(UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        raise ConnectError(
            f"TLS with {label}: the pinned certificate is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} to "
            f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC: renew it, or check this machine's clock"
        )


def _peer_chain(tls: TlsStream) -> list[bytes]:
    """All certificates the peer sent, DER, leaf first; the leaf alone where this Python cannot tell more."""
    # trio keeps the SSLObject to itself, and forwards no method that gives the chain.
    ssl_object: Any = getattr(tls, "_ssl_object", None)
    for holder in (ssl_object, getattr(ssl_object, "_sslobj", None)):  # public since 3.13, below before
        unverified_chain = getattr(holder, "get_unverified_chain", None)
        if unverified_chain is not None:
            chain = unverified_chain() or []
            return [one if isinstance(one, bytes) else one.public_bytes(_ENCODING_DER) for one in chain]
    leaf = tls.getpeercert(binary_form=True)
    return [leaf] if leaf else []


_ENCODING_DER: Final = 2  # of the ssl module's own certificate objects


def _serial_and_common_name(der: bytes) -> tuple[int, str]:
    """Serial number and the subject's first common name; (0, "") if it is no certificate."""
    # By hand, because a meta certificate's name has 71 characters where X.520 allows 64: cryptography prints a warning
    # at each look at such a name.  Certificate > tbs > [version], serial, algorithm, issuer, validity, subject.
    try:
        tbs = _der_fields(_der_fields(_der_fields(der)[0][1])[0][1])
        fields = tbs[1:] if tbs[0][0] == _TAG_VERSION else tbs
        serial, subject = int.from_bytes(fields[0][1], "big", signed=True), fields[4][1]
        for _, relative_name in _der_fields(subject):
            for _, attribute in _der_fields(relative_name):
                (_, oid), (_, value) = _der_fields(attribute)
                if oid == _OID_COMMON_NAME:
                    return serial, value.decode("utf-8", "replace")
        return serial, ""
    except (ValueError, IndexError):
        return 0, ""


_TAG_VERSION: Final = 0xA0
_OID_COMMON_NAME: Final = bytes.fromhex("550403")


def _der_fields(content: bytes) -> list[tuple[int, bytes]]:
    """Cut DER content into (tag, content of the field)."""
    fields, at = [], 0
    while at < len(content):
        tag, length, at = content[at], content[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(content[at : at + size], "big"), at + size
        if at + length > len(content):
            raise ValueError("cut short")
        fields.append((tag, content[at : at + length]))
        at += length
    return fields


def _dns_matches(pattern: str, wanted: str) -> bool:
    pattern = pattern.rstrip(".").lower()
    if not pattern.startswith("*."):
        return pattern == wanted
    # A wildcard stands for exactly one label, the leftmost.
    return "." in wanted and wanted.split(".", 1)[1] == pattern[2:]
