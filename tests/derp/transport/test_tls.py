"""The relay's TLS: what is on the wire (seen by openssl), the SNI rule, reload, and what an operator is told."""

import os
import shutil
import ssl
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from derp.config import AcmeConfig, TlsConfig
from derp.errors import ConfigError
from derp.keys import NodePrivate
from derp.transport.tls import (
    TlsServer,
    certificate_covers,
    make_meta_certificate,
    make_self_signed,
)

KEY = NodePrivate(bytes(range(32))).public()
# Real time: openssl and ssl look at the dates too.
NOW = datetime.now(UTC).timestamp()
MOMENT = datetime.fromtimestamp(NOW, UTC)
DAY = 86_400.0


def connect(
    server: TlsServer,
    name: str | None,
    *,
    client: ssl.SSLContext | None = None,
    change: Callable[[bytes], bytes] = lambda data: data,
) -> ssl.SSLObject:
    """Both ends of a handshake over memory BIOs, as the relay does it; `change` edits what the client sends."""
    context = client or ssl._create_unverified_context()
    to_server, to_client, from_client, from_server = (ssl.MemoryBIO() for _ in range(4))
    caller = context.wrap_bio(to_client, from_client, server_hostname=name)
    answering = server.context.wrap_bio(to_server, from_server, server_side=True)
    for _ in range(4):
        for end in (caller, answering):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
            to_server.write(change(from_client.read()))
            to_client.write(from_server.read())
    answering.write(b"hello")
    to_client.write(from_server.read())
    assert caller.read(5) == b"hello"
    return caller


def load_without_complaint(der: bytes) -> tuple[x509.Certificate, str]:
    """A meta certificate and its common name, which is longer than X.509 allows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        certificate = x509.load_der_x509_certificate(der)
        return certificate, str(certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "relay.example.crt", tmp_path / "relay.example.key"


def write(files: tuple[Path, Path], certificate: bytes, key: bytes) -> None:
    for path, content in zip(files, (certificate, key), strict=True):
        path.write_bytes(content)
    os.chmod(files[1], 0o600)


@pytest.fixture
def manual(files: tuple[Path, Path]) -> TlsConfig:
    write(files, *make_self_signed("relay.example", MOMENT))
    return TlsConfig(*files, "relay.example", require_sni=True)


# On the wire.


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_openssl_sees_leaf_and_meta_certificate_and_no_ticket(version: str) -> None:
    openssl = shutil.which("openssl")
    assert openssl, "install openssl: this test looks at the wire with it"
    server = TlsServer(TlsConfig(hostname="127.0.0.1", self_signed=True), KEY, now=NOW)

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            tls = trio.SSLStream(stream, server.context, server_side=True, https_compatible=True)
            await tls.do_handshake()
            await tls.send_all(b"bye")
            await tls.aclose()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, serve, 0)
            port = listeners[0].socket.getsockname()[1]
            command = [openssl, "s_client", "-showcerts", f"-tls{version.replace('.', '_')}", "-alpn", "h2,http/1.1"]
            done = await trio.run_process(
                [*command, "-connect", f"127.0.0.1:{port}"], capture_stdout=True, capture_stderr=True, check=False
            )
            nursery.cancel_scope.cancel()
    shown = done.stdout.decode()
    chain = [ssl.PEM_cert_to_DER_cert(f"-----BEGIN{part.split('-----END')[0]}-----END CERTIFICATE-----")
             for part in shown.split("-----BEGIN")[1:3]]  # fmt: skip
    assert shown.count("BEGIN CERTIFICATE") in (2, 3)  # s_client may show the leaf once more
    assert chain[0] == server.leaf.public_bytes(Encoding.DER)
    meta, name = load_without_complaint(chain[1])
    assert name == f"derpkey{KEY.raw.hex()}"
    assert meta.serial_number == 2
    assert "ALPN protocol: http/1.1" in shown
    if version == "1.3":
        assert "New Session Ticket arrived" not in shown


def test_the_meta_certificate_is_what_clients_look_for() -> None:
    meta, name = load_without_complaint(make_meta_certificate(KEY, MOMENT))
    assert name == "derpkey" + KEY.raw.hex()
    assert meta.serial_number == 2
    assert meta.version is x509.Version.v3
    assert meta.not_valid_before_utc == (MOMENT - timedelta(days=30)).replace(microsecond=0)
    assert meta.not_valid_after_utc == (MOMENT + timedelta(days=30)).replace(microsecond=0)
    assert meta.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    meta.verify_directly_issued_by(meta)


def test_old_tls_is_refused_and_tls_12_is_forward_secret() -> None:
    server = TlsServer(TlsConfig(hostname="relay.example", self_signed=True), KEY, now=NOW)
    old = ssl._create_unverified_context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL"):
        connect(server, "relay.example", client=old)
    client = ssl._create_unverified_context()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    link = connect(server, "relay.example", client=client)
    cipher = link.cipher()
    assert link.version() == "TLSv1.2"
    assert cipher is not None
    assert cipher[0].startswith("ECDHE-ECDSA-")
    client.set_ciphers("AES128-GCM-SHA256:AES256-SHA")
    with pytest.raises(ssl.SSLError):
        connect(server, "relay.example", client=client)


def test_the_client_chooses_the_cipher() -> None:
    server = TlsServer(TlsConfig(hostname="relay.example", self_signed=True), KEY, now=NOW)
    for first in ("ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-GCM-SHA256"):
        client = ssl._create_unverified_context()
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers(f"{first}:ECDHE-ECDSA-AES256-GCM-SHA384")
        cipher = connect(server, "relay.example", client=client).cipher()
        assert cipher is not None
        assert cipher[0] == first


# SNI.


def test_manual_mode_with_a_name_serves_that_name_only(manual: TlsConfig) -> None:
    server = TlsServer(manual, KEY, now=NOW)
    connect(server, "relay.example")
    connect(server, "RELAY.example")
    for name in ("other.example", None, "127.0.0.1"):
        with pytest.raises(ssl.SSLError):
            connect(server, name)


def test_a_name_that_is_no_text_is_refused_too(manual: TlsConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: complaints.append(args.exc_type))
    server = TlsServer(manual, KEY, now=NOW)
    with pytest.raises(ssl.SSLError):
        connect(server, "aaaaa.example", change=lambda data: data.replace(b"aaaaa", b"\xff\xfe\xff\xfe\xff"))
    # The ssl module complains past us; log.py keeps that from filling the log.
    assert complaints == [UnicodeDecodeError]


def test_by_address_any_name_is_served() -> None:
    server = TlsServer(TlsConfig(hostname="::1", self_signed=True), KEY, now=NOW)
    for name in ("::1", None, "whatever.example"):
        connect(server, name)


# Certificates of our own.


@pytest.mark.parametrize("hostname", ["127.0.0.1", "::1", "relay.example"])
def test_a_generated_certificate_is_accepted_by_who_trusts_it(hostname: str) -> None:
    server = TlsServer(TlsConfig(hostname=hostname, self_signed=True), KEY, now=NOW)
    client = ssl.create_default_context(cadata=server.leaf.public_bytes(Encoding.PEM).decode())
    assert client.check_hostname
    connect(server, hostname, client=client)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(server, "elsewhere.example", client=client)


@pytest.mark.parametrize(
    ("asked", "is_served"),
    [
        ("relay.example", True),
        ("RELAY.example.", True),
        ("relay.example..", False),
        ("other.example.", False),
        (None, False),
    ],
)
def test_which_names_are_served(asked: str | None, is_served: bool, manual: TlsConfig) -> None:
    context = TlsServer(manual, KEY, now=NOW).context
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="x")
    answer = cast("Any", context.sni_callback)(tls, asked, context)
    assert (answer is None) == is_served


def test_the_snippet_is_a_map_of_this_relay() -> None:
    server = TlsServer(TlsConfig(hostname="192.0.2.7", self_signed=True), KEY, now=NOW)
    pin = "sha256-raw:" + sha256(server.leaf.public_bytes(Encoding.DER)).hexdigest()
    assert server.is_self_signed
    assert server.map_snippet(8443, 3478).to_json() == {
        "Regions": {
            "900": {
                "EmbeddedRelay": False,
                "RegionID": 900,
                "RegionCode": "custom",
                "RegionName": "custom",
                "Nodes": [
                    {
                        "Name": "900a",
                        "RegionID": 900,
                        "HostName": "192.0.2.7",
                        "CertName": pin,
                        "IPv4": "192.0.2.7",
                        "DERPPort": 8443,
                    }
                ],
            }
        }
    }
    assert server.map_snippet(443, -1).regions[900].nodes[0].stun_port == -1
    assert server.map_snippet(443, -1, 443).regions[900].nodes[0].quic_port == 443


def test_a_missing_pair_is_made_once_and_kept(files: tuple[Path, Path]) -> None:
    config = TlsConfig(*files, "192.0.2.7", self_signed=True)
    first = TlsServer(config, KEY, now=NOW)
    assert files[1].stat().st_mode & 0o777 == 0o600
    assert TlsServer(config, KEY, now=NOW).pin == first.pin
    assert first.notices == []
    # A certificate whose key is lost is the operator's to sort out: a new one would lock out all pinned clients.
    files[1].unlink()
    with pytest.raises(ConfigError, match=r"relay\.example\.key: cannot read it: No such file"):
        TlsServer(config, KEY, now=NOW)


@pytest.mark.parametrize(
    ("hostname", "covered"),
    [
        ("a.example", True),
        ("A.EXAMPLE.", True),
        ("b.wild.example", True),
        ("wild.example", False),
        ("b.c.wild.example", False),
        ("example", False),
        ("127.0.0.1", False),
    ],
)
def test_names_of_a_certificate(hostname: str, covered: bool) -> None:
    names = x509.SubjectAlternativeName([x509.DNSName("a.example"), x509.DNSName("*.wild.example")])
    pem, key = make_self_signed("a.example", MOMENT)
    old = x509.load_pem_x509_certificate(pem)
    builder = x509.CertificateBuilder(old.issuer, old.subject, old.public_key(), 1, MOMENT, MOMENT + timedelta(1))
    private = load_pem_private_key(key, None)
    leaf = builder.add_extension(names, False).sign(private, old.signature_hash_algorithm)  # type: ignore[arg-type]
    assert certificate_covers(leaf, hostname) is covered


# What can be wrong.


def test_wrong_files_are_named(files: tuple[Path, Path], manual: TlsConfig) -> None:
    certificate, key = (path.read_bytes() for path in files)
    _, other_key = make_self_signed("relay.example", MOMENT)
    locked = load_pem_private_key(key, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    for content, says in [
        ((b"", key), r"\.crt: is no PEM certificate chain"),
        ((key, key), r"\.crt: is no PEM certificate chain"),
        ((certificate, b""), r"\.key: is no PEM key that fits the certificate in .*\.crt"),
        ((certificate, other_key), r"\.key: is not the key of the certificate in .*\.crt"),
        ((certificate, locked), r"\.key: is protected by a passphrase"),
    ]:
        write(files, *content)
        with pytest.raises(ConfigError, match=says):
            TlsServer(manual, KEY, now=NOW)
    write(files, certificate, key)
    with pytest.raises(ConfigError, match=r"\.crt: is not valid for other\.example: correct --hostname"):
        TlsServer(replace(manual, hostname="other.example"), KEY, now=NOW)
    files[0].unlink()
    with pytest.raises(ConfigError, match=r"\.crt: cannot read it: No such file"):
        TlsServer(manual, KEY, now=NOW)


@pytest.mark.parametrize(
    ("days", "says"),
    [(-2, "is not valid before"), (0, None), (3640, "expires on"), (3651, "expired on")],
)
def test_dates_are_told_but_the_certificate_is_served(manual: TlsConfig, days: int, says: str | None) -> None:
    server = TlsServer(manual, KEY, now=NOW + days * DAY)
    assert len(server.notices) == (1 if says else 0)
    assert all(says in notice for notice in server.notices if says)
    connect(server, "relay.example")


def test_a_key_that_anyone_can_read_is_told(files: tuple[Path, Path], manual: TlsConfig) -> None:
    os.chmod(files[1], 0o644)
    assert TlsServer(manual, KEY, now=NOW).notices == [
        f"{files[1]}: anyone on this machine can read this key: chmod o= {files[1]}"
    ]
    os.chmod(files[1], 0o640)
    assert TlsServer(manual, KEY, now=NOW).notices == []


# Reload.


def test_new_files_are_taken_without_a_restart(files: tuple[Path, Path], manual: TlsConfig) -> None:
    server = TlsServer(manual, KEY, now=NOW)
    before, old_leaf = server.context, server.leaf
    assert server.reload_if_changed(NOW + 5) is None
    write(files, *make_self_signed("relay.example", MOMENT))
    result = server.reload_if_changed(NOW + 10)
    assert result is not None
    assert result.ok
    assert str(files[0]) in result.text
    assert server.context is not before
    assert server.leaf != old_leaf
    served = connect(server, "relay.example").getpeercert(binary_form=True)
    assert served == server.leaf.public_bytes(Encoding.DER)


@pytest.mark.parametrize("there", ["broken", "another name", "another key"])
def test_one_of_no_use_is_replaced_by_a_temporary_one_while_an_authority_is_asked(
    files: tuple[Path, Path], there: str
) -> None:
    config = TlsConfig(*files, "relay.example", require_sni=True, acme=AcmeConfig())
    certificate, key = make_self_signed("other.example" if there == "another name" else "relay.example", MOMENT)
    write(files, b"broken" if there == "broken" else certificate, key)
    if there == "another key":
        files[1].write_bytes(make_self_signed("relay.example", MOMENT)[1])
    server = TlsServer(config, KEY, now=NOW)
    assert "another one is asked for" in server.notices[0]
    assert "which clients refuse" in server.notices[1]
    connect(server, "relay.example")
    assert server.reload_if_changed(NOW + 5) is None
    files[0].write_bytes(b"broken too")
    broken = server.reload_if_changed(NOW + 10)
    assert broken is not None
    assert not broken.ok
    write(files, *make_self_signed("relay.example", MOMENT))
    result = server.reload_if_changed(NOW + 20)
    assert result is not None
    assert result.ok
    served = connect(server, "relay.example").getpeercert(binary_form=True)
    assert served == server.leaf.public_bytes(Encoding.DER)


def test_a_temporary_certificate_is_served_until_there_is_one(files: tuple[Path, Path]) -> None:
    server = TlsServer(TlsConfig(*files, "relay.example", require_sni=True, acme=AcmeConfig()), KEY, now=NOW)
    assert ["there is none yet" in notice and "which clients refuse" in notice for notice in server.notices] == [True]
    assert not server.is_self_signed, "its pin would be wrong within minutes"
    assert not files[0].exists()
    temporary = connect(server, "relay.example").getpeercert(binary_form=True)
    files[1].write_bytes(make_self_signed("relay.example", MOMENT)[1])
    assert server.reload_if_changed(NOW + 3) is None, "the key of the certificate to come is no news"
    write(files, *make_self_signed("relay.example", MOMENT))
    result = server.reload_if_changed(NOW + 5)
    assert result is not None
    assert result.ok
    assert server.notices == []
    served = connect(server, "relay.example").getpeercert(binary_form=True)
    assert served == server.leaf.public_bytes(Encoding.DER) != temporary
    # from now on it is a certificate like any other
    files[0].write_bytes(b"broken")
    broken = server.reload_if_changed(NOW + 10)
    assert broken is not None
    assert not broken.ok
    assert connect(server, "relay.example").getpeercert(binary_form=True) == served


def test_broken_new_files_leave_the_old_in_service_and_are_told_once(
    files: tuple[Path, Path], manual: TlsConfig
) -> None:
    server = TlsServer(manual, KEY, now=NOW)
    before = server.context
    certificate, key = make_self_signed("relay.example", MOMENT)
    files[0].write_bytes(certificate)  # the key comes later, as with most tools
    result = server.reload_if_changed(NOW + 10)
    assert result is not None
    assert not result.ok
    assert "is not the key of the certificate" in result.text
    assert "stays in service" in result.text
    assert server.context is before
    assert server.reload_if_changed(NOW + 20) is None
    files[1].write_bytes(key)
    result = server.reload_if_changed(NOW + 30)
    assert result is not None
    assert result.ok
    files[0].unlink()
    result = server.reload_if_changed(NOW + 40)
    assert result is not None
    assert "cannot read it" in result.text
    connect(server, "relay.example")


def test_the_meta_certificate_is_renewed_long_before_it_expires() -> None:
    server = TlsServer(TlsConfig(hostname="relay.example", self_signed=True), KEY, now=NOW)
    before, pin = server.context, server.pin
    assert server.reload_if_changed(NOW + 14 * DAY) is None
    result = server.reload_if_changed(NOW + 16 * DAY)
    assert result is not None
    assert result.ok
    assert server.context is not before
    assert server.pin == pin
    assert server.reload_if_changed(NOW + 17 * DAY) is None


def test_no_key_is_left_in_the_file_system_or_in_descriptors(manual: TlsConfig) -> None:
    before = set(os.listdir("/proc/self/fd"))
    TlsServer(manual, KEY, now=NOW)
    assert len(os.listdir("/proc/self/fd")) == len(before)
