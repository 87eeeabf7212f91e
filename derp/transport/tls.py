"""TLS as the relay serves it: one SSLContext, its certificate, the meta certificate, reload.  Layer L2.

The context is used with memory BIOs (`context.wrap_bio(incoming, outgoing, server_side=True)`, see links.py).
TlsServer owns it: build once, read `.context` for every accepted connection, call `reload_if_changed(now)` now and
then.  The meta certificate is how genuine clients learn the relay's key during the TLS 1.3 handshake and skip the HTTP
answer.  Client side: tls_client.py.  Next hop: server/listener.py.
"""

import contextlib
import ipaddress
import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from derp.config.files import FileMark, file_mark
from derp.config.relay import TlsConfig
from derp.errors import ConfigError
from derp.keys import NodePublic
from derp.map import DERPMap, DERPNode, DERPRegion, is_address
from derp.protocol.frames import PROTOCOL_VERSION
from derp.text import error_text
from derp.transport.platform import named_file
from derp.transport.tls_records import RecordKeeper
from derp.transport.tls_refusals import AskedTls

META_NAME_PREFIX: Final = "derpkey"
_META_LIFE: Final = timedelta(days=30)
# Clients of today ignore the dates; one that looked would lose its shortcut after 30 days, so make a new one halfway.
_META_RENEWAL_SECONDS: Final = 15 * 86_400.0
# derper gives its own one year, after which pinned clients are locked out until someone wakes up.  The pin is the
# trust here, not the date, so the date only has to stay out of the way.
_SELF_SIGNED_LIFE: Final = timedelta(days=3650)
# Clocks of clients may be a little behind ours.
_CLOCK_SLACK: Final = timedelta(hours=1)
_EXPIRY_WARNING: Final = timedelta(days=14)
# The region that the genuine derper puts into its snippet: the first of those kept free for relays of one's own.
CUSTOM_REGION: Final = 900
# Forward secret and authenticated only.  Genuine clients speak TLS 1.3, whose suites this does not touch.
_TLS12_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class Reload:
    """What one `reload_if_changed` did; `text` is a sentence for the log."""

    ok: bool
    text: str


class TlsServer:
    """The TLS side of one relay.

    `context` is replaced as a whole when certificates change: read it anew for each connection; those that are open
    keep theirs.  `chain_and_key`, both PEM, is what it shows.  `pin` is `sha256-raw:<hex>` of the leaf, which is what
    the CertName of a map takes.
    Raises ConfigError from the constructor only.  `now` is the time of day in POSIX seconds.
    """

    def __init__(self, config: TlsConfig, server_key: NodePublic, *, now: float) -> None:
        self.config = config
        self.notices: list[str] = []  # sentences for the operator, from the last (re)load
        self.proof: ssl.SSLContext | None = None  # shown to authorities while there is one: transport/tls_alpn.py
        self.records = RecordKeeper() if config.own_records else None
        self._server_key = server_key
        # Chain and key, PEM; None: they are in files.
        self.generated = config.generated
        self._is_temporary = False  # it stands in for one that server/certificates.py will write
        if config.self_signed and self.generated is None:
            self._make_missing_certificate(now)
        elif config.acme is not None and config.cert_file is not None and not config.cert_file.exists():
            self._make_temporary(now)
        self._signature = self._file_signature()
        try:
            self.context, self.leaf = self._build(now)
        except ConfigError as error:
            if config.acme is None:
                raise
            self._make_temporary(now)
            self.context, self.leaf = self._build(now)
            self.notices.insert(0, f"{error}; another one is asked for")
        self._meta_made = now

    @property
    def pin(self) -> str:
        """The leaf certificate as a map pins it; only of use for one that no authority vouches for."""
        return certificate_pin(self.leaf)

    @property
    def is_self_signed(self) -> bool:
        """Whether clients need the pin.  A temporary certificate is nothing to pin."""
        return self.leaf.subject == self.leaf.issuer and not self._is_temporary

    def reload_if_changed(self, now: float) -> Reload | None:
        """Look whether the files changed, and swap the context if so; None if there was nothing to do.

        Broken new files leave the old certificate in service; they are reported once, and tried again when they
        change again.  Certificate and key are rarely replaced in the same instant: a pair that does not match yet is
        such a report, and the next change mends it.
        """
        signature = self._file_signature()
        if signature == self._signature:
            if now - self._meta_made >= _META_RENEWAL_SECONDS:
                return self._swap(now, "meta certificate renewed")
            return None
        self._signature = signature
        if self._is_temporary and self.config.cert_file is not None and not self.config.cert_file.exists():
            return None  # its key came first
        return self._swap(now, f"certificate read again from {self.config.cert_file}")

    def map_snippet(self, port: int, stun_port: int, quic_port: int = 0) -> DERPMap:
        """A map with this relay as its only node, ready to be merged into an operator's own.

        The ports as clients see them; stun_port -1 is none, and so is quic_port 0.
        """
        hostname = self.config.hostname
        node = DERPNode(
            name=f"{CUSTOM_REGION}a",
            region_id=CUSTOM_REGION,
            host_name=hostname,
            cert_name=self.pin if self.is_self_signed else "",
            # Given as an address, a host name must not be looked up.
            ipv4=hostname if is_address(hostname) and "." in hostname else "",
            ipv6=hostname if is_address(hostname) and ":" in hostname else "",
            derp_port=0 if port == 443 else port,
            stun_port=0 if stun_port == 3478 else stun_port,
            quic_port=quic_port,
        )
        region = DERPRegion(CUSTOM_REGION, "custom", "custom", nodes=(node,))
        return DERPMap({CUSTOM_REGION: region})

    def _make_temporary(self, now: float) -> None:
        # A fresh key: the one in the file belongs to the certificate to come.
        self.generated, self._is_temporary = make_self_signed(self.config.hostname, _moment(now)), True

    def _swap(self, now: float, text: str) -> Reload:
        before = self.generated, self._is_temporary
        if self._is_temporary and self.config.cert_file is not None and self.config.cert_file.exists():
            self.generated, self._is_temporary = None, False
        try:
            context, leaf = self._build(now)
        except ConfigError as error:
            self.generated, self._is_temporary = before
            return Reload(False, f"{error}; the certificate of before stays in service")
        self.context, self.leaf = context, leaf
        self._meta_made = now
        return Reload(True, f"{text}, valid until {leaf.not_valid_after_utc:%Y-%m-%d}")

    def _make_missing_certificate(self, now: float) -> None:
        cert_file, key_file = self.config.cert_file, self.config.key_file
        if cert_file is None or key_file is None:
            self.generated = make_self_signed(self.config.hostname, _moment(now))
        elif not cert_file.exists() and not key_file.exists():
            # Never with one of the two there: a certificate whose key was lost must not be replaced in silence.
            _write_pair(cert_file, key_file, *make_self_signed(self.config.hostname, _moment(now)))

    def _file_signature(self) -> tuple[FileMark | None, ...]:
        return tuple(file_mark(path) for path in (self.config.cert_file, self.config.key_file) if path)

    def _build(self, now: float) -> tuple[ssl.SSLContext, x509.Certificate]:
        config = self.config
        self.notices = []
        if self._is_temporary:
            self.notices.append(
                f"{config.cert_file}: there is none yet: until it is issued a temporary self-signed certificate is "
                "served, which clients refuse"
            )
        if self.generated is not None:
            chain, key = self.generated
            place = "generated certificate"
        else:
            if config.cert_file is None or config.key_file is None:
                raise ConfigError("TLS: there is no certificate: give both its files, or self_signed")
            chain, key = _read(config.cert_file), _read(config.key_file)
            place = str(config.cert_file)
            self._check_key_mode(config.key_file)
        leaf = _parse_leaf(chain, place)
        self._check_leaf(leaf, place, _moment(now))
        meta = ssl.DER_cert_to_PEM_cert(make_meta_certificate(self._server_key, _moment(now))).encode()
        context = _new_context()
        shown = chain.rstrip() + b"\n" + meta
        load_chain(context, shown, key, place, str(config.key_file or place))
        if config.require_sni:
            context.sni_callback = _SniRule(config.hostname)
        if self.records is not None:
            self.records.watch(context)
        self.chain_and_key = shown, key
        return context, leaf

    def _check_leaf(self, leaf: x509.Certificate, place: str, now: datetime) -> None:
        hostname = self.config.hostname
        if hostname and not certificate_covers(leaf, hostname):
            raise ConfigError(f"{place}: is not valid for {hostname}: correct --hostname, or get another certificate")
        if leaf.not_valid_before_utc > now:
            self.notices.append(f"{place}: is not valid before {leaf.not_valid_before_utc}: is the clock right?")
        # An expired one is served all the same: it may be the only one there is, and clients say what is wrong.
        if leaf.not_valid_after_utc <= now:
            self.notices.append(f"{place}: expired on {leaf.not_valid_after_utc}: clients will refuse it")
        elif leaf.not_valid_after_utc - now < _EXPIRY_WARNING:
            self.notices.append(f"{place}: expires on {leaf.not_valid_after_utc}")

    def _check_key_mode(self, key_file: Path) -> None:
        with contextlib.suppress(OSError):
            # Group access is how ssl-cert groups and certificate tools hand keys to services; others have no business.
            if key_file.stat().st_mode & 0o007:
                self.notices.append(f"{key_file}: anyone on this machine can read this key: chmod o= {key_file}")


def make_meta_certificate(server_key: NodePublic, now: datetime) -> bytes:
    """The certificate that carries the relay's key, as DER: name `derpkey` + hex, serial = protocol version."""
    # Built by hand, since libraries rightly refuse a common name of 71 letters: X.509 allows 64.
    # Nobody verifies the signature (self-signed Ed25519), so the private half is forgotten at once.
    key = ed25519.Ed25519PrivateKey.generate()
    algorithm = _der(0x30, _der(0x06, bytes.fromhex("2b6570")))
    common_name = _der(0x0C, f"{META_NAME_PREFIX}{server_key.raw.hex()}".encode())
    name = _der(0x30, _der(0x31, _der(0x30, _der(0x06, bytes.fromhex("550403")), common_name)))
    dates = (f"{moment:%y%m%d%H%M%SZ}".encode() for moment in (now - _META_LIFE, now + _META_LIFE))
    public_key = key.public_key().public_bytes_raw()
    # macOS wants basic constraints of every certificate whose subject is its issuer.
    no_authority = _der(0x30, _der(0x06, bytes.fromhex("551d13")), _der(0x01, b"\xff"), _der(0x04, _der(0x30)))
    to_be_signed = _der(
        0x30,
        _der(0xA0, _der(0x02, b"\x02")),  # X.509 version 3
        _der(0x02, bytes([PROTOCOL_VERSION])),
        algorithm,
        name,
        _der(0x30, *(_der(0x17, date) for date in dates)),
        name,
        _der(0x30, algorithm, _der(0x03, b"\0", public_key)),
        _der(0xA3, _der(0x30, no_authority)),
    )
    return _der(0x30, to_be_signed, algorithm, _der(0x03, b"\0", key.sign(to_be_signed)))


def _der(tag: int, *parts: bytes) -> bytes:
    """One value of ASN.1's distinguished encoding, of less than 64 KiB."""
    content = b"".join(parts)
    size = len(content)
    head = bytes([size]) if size < 0x80 else bytes([0x81, size]) if size < 0x100 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + head + content


def make_self_signed(hostname: str, now: datetime) -> tuple[bytes, bytes]:
    """A P-256 certificate for a name or an address, and its key, both as PEM.

    Go looks at the alternative names only, so the host stands there.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    # Clients with an invitation ask for a name below ours, which a genuine one wants in a pinned certificate too.
    begun = self_issued(
        key, hostname[:64], hostname, now - _CLOCK_SLACK, now + _SELF_SIGNED_LIFE, with_names_below=True
    )
    certificate = (
        begun.add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    return certificate.public_bytes(Encoding.PEM), key_pem(key)


def self_issued(
    key: ec.EllipticCurvePrivateKey,
    common_name: str,
    hostname: str,
    since: datetime,
    until: datetime,
    *,
    with_names_below: bool = False,
) -> x509.CertificateBuilder:
    """The beginning of a certificate that `key` signs for itself, with `hostname` (a name or an address) as its one
    alternative name, and with those below it if that is said.  A common name has 64 letters at most."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    host = x509.IPAddress(ipaddress.ip_address(hostname)) if is_address(hostname) else x509.DNSName(hostname)
    names = [host, x509.DNSName(f"*.{hostname}")] if with_names_below and not is_address(hostname) else [host]
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )


def key_pem(key: PrivateKeyTypes) -> bytes:
    """A private key as our files hold it: PKCS #8, PEM, no passphrase."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate_pin(leaf: x509.Certificate) -> str:
    """What a map's CertName says of a self-signed leaf: `sha256-raw:` + hex of the SHA-256 of its whole DER form."""
    return f"sha256-raw:{leaf.fingerprint(SHA256()).hex()}"


def certificate_covers(leaf: x509.Certificate, hostname: str) -> bool:
    """Whether a client that dials `hostname` accepts the leaf's names: exact, or `*` for the first label."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    if is_address(hostname):
        return ipaddress.ip_address(hostname) in names.get_values_for_type(x509.IPAddress)
    wanted = hostname.lower().rstrip(".")
    _, _, parent = wanted.partition(".")
    covered = {name.lower().rstrip(".") for name in names.get_values_for_type(x509.DNSName)}
    return wanted in covered or (bool(parent) and f"*.{parent}" in covered)


class _SniRule:
    """Refuses handshakes for another name, as derper does: who scans addresses sees no certificate.

    Names below ours are taken: clients that show a ticket have it there (admission/ticket.py).
    """

    def __init__(self, hostname: str) -> None:
        self._wanted = hostname.lower().removesuffix(".")

    def __call__(self, tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        # Python clients, among others, send the final dot of a name that was written with one.
        if name is not None and f".{name.lower().removesuffix('.')}".endswith(f".{self._wanted}"):
            return None
        if isinstance(tls, AskedTls):
            tls.refuse_name(name, self._wanted)
        return int(ssl.AlertDescription.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = AskedTls
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS12_CIPHERS)
    # HTTP/2 has no Upgrade, so a client that could choose it would never get to DERP.
    context.set_alpn_protocols(["http/1.1"])
    # Genuine clients never resume: each ticket would cost them nothing and us a signature's worth of CPU, two records
    # per connection and a session object.  TLS 1.2 keeps its stateless tickets: switched off, OpenSSL would fall back
    # to a cache of 20,480 sessions in our memory.
    context.num_tickets = 0
    # A client that renegotiates makes us do its handshake again for the price of one record.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Let the client choose among our suites: all are sound, and Go and phones put first what their hardware does
    # best (AES-128 with AES instructions, else ChaCha20); OpenSSL's own order prefers the dearer AES-256.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    return context


def load_chain(context: ssl.SSLContext, chain: bytes, key: bytes, place: str, key_place: str) -> None:
    """Have `context` serve a PEM chain with its PEM key.  ConfigError names `place` or `key_place`."""

    def encrypted() -> str:
        raise ConfigError(f"{key_place}: is protected by a passphrase: store the key without one")

    # OpenSSL reads from names only.
    with named_file(chain) as chain_path, named_file(key) as key_path:
        try:
            context.load_cert_chain(chain_path, key_path, encrypted)
        except ssl.SSLError as error:
            if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":  # those that Python makes itself have none
                raise ConfigError(f"{key_place}: is not the key of the certificate in {place}") from None
            raise ConfigError(
                f"{key_place}: is no PEM key that fits the certificate in {place}: {error_text(error)}"
            ) from None


def _parse_leaf(chain: bytes, place: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise ConfigError(f"{place}: is no PEM certificate chain: {error_text(error)}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error_text(error)}") from None


def _write_pair(cert_file: Path, key_file: Path, certificate: bytes, key: bytes) -> None:
    try:
        cert_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The key first: a certificate alone would block the next start.  O_EXCL: nothing is ever overwritten.
        for path, content, mode in ((key_file, key, 0o600), (cert_file, certificate, 0o644)):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
    except OSError as error:
        raise ConfigError(f"{error.filename or cert_file}: cannot write the certificate: {error_text(error)}") from None


def _moment(now: float) -> datetime:
    return datetime.fromtimestamp(now, UTC)
