"""What of derper's cache is taken over, and what is left alone with a reason."""

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from derp.config.relay import AcmeConfig, TlsConfig
from derp.keys import NodePrivate
from derp.server.autocert import adopt_autocert
from derp.transport.acme import ACCOUNT_FILE
from derp.transport.tls import TlsServer
from tests.support.certificates import Issued, issue

NAME = "relay.example"
ROOT = issue("root", is_authority=True)
LEAF = issue(NAME, issuer=ROOT)
ACCOUNT = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
)


@pytest.fixture
def config(tmp_path: Path) -> TlsConfig:
    return TlsConfig(tmp_path / f"{NAME}.crt", tmp_path / f"{NAME}.key", NAME, acme=AcmeConfig())


def cached(leaf: Issued) -> bytes:
    """As Go writes it: the key in its traditional form, the leaf, its issuers."""
    key = leaf.key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    return key + leaf.pem + ROOT.pem


@pytest.mark.parametrize("suffix", ["", "+rsa"])
def test_a_good_one_is_served_from_now_on(config: TlsConfig, tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"{NAME}{suffix}").write_bytes(cached(LEAF))
    (tmp_path / "acme_account+key").write_bytes(ACCOUNT)
    (notice,) = adopt_autocert(config)
    assert notice == (
        f"{tmp_path}/{NAME}{suffix}: the certificate that derper kept here is used, as {NAME}.crt and {NAME}.key"
    )
    server = TlsServer(config, NodePrivate.generate().public(), now=LEAF.certificate.not_valid_before_utc.timestamp())
    assert server.leaf == LEAF.certificate
    for name in (f"{NAME}.crt", f"{NAME}.key", ACCOUNT_FILE):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert (tmp_path / f"{NAME}.crt").read_bytes().count(b"BEGIN CERTIFICATE") == 2
    # derper can go on with what is its own
    assert (tmp_path / f"{NAME}{suffix}").read_bytes() == cached(LEAF)
    assert adopt_autocert(config) == []


WEEK = timedelta(days=7)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "it is not a key and a chain"),
        (LEAF.pem + LEAF.key_pem, "it is not a key and a chain"),
        (LEAF.key_pem, "it is not a key and a chain"),
        (issue(NAME).key_pem + LEAF.pem, "its key and its certificate do not belong together"),
        (LEAF.key_pem[:60] + LEAF.key_pem[70:] + LEAF.pem, "it is damaged"),
        (cached(issue("other.example", issuer=ROOT)), f"it is not for {NAME}"),
        (cached(issue(NAME, issuer=ROOT, valid=(-2 * WEEK, -WEEK))), "it expired on "),
    ],
)
def test_one_of_no_use_is_left_alone_and_told(config: TlsConfig, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / NAME).write_bytes(content)
    (notice,) = adopt_autocert(config)
    assert f"{NAME}: what derper kept here is not used: {says}" in notice
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_ours_is_never_touched(config: TlsConfig, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(cached(LEAF))
    (tmp_path / "acme_account+key").write_bytes(ACCOUNT)
    (tmp_path / ACCOUNT_FILE).write_bytes(b"ours")
    adopt_autocert(config)
    assert (tmp_path / ACCOUNT_FILE).read_bytes() == b"ours"
    (tmp_path / f"{NAME}.crt").unlink()
    (tmp_path / f"{NAME}.key").write_bytes(b"ours")
    assert adopt_autocert(config) == []
    assert (tmp_path / f"{NAME}.key").read_bytes() == b"ours"


@pytest.mark.parametrize(
    "key",
    [
        b"",
        rsa.generate_private_key(65_537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        ec.generate_private_key(ec.SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    ],
)
def test_an_account_of_another_kind_is_not_ours(config: TlsConfig, tmp_path: Path, key: bytes) -> None:
    (tmp_path / NAME).write_bytes(cached(LEAF))
    (tmp_path / "acme_account+key").write_bytes(key)
    adopt_autocert(config)
    assert not (tmp_path / ACCOUNT_FILE).exists()


def test_nothing_there_is_nothing_to_tell(config: TlsConfig, tmp_path: Path) -> None:
    assert adopt_autocert(config) == []
    assert list(tmp_path.iterdir()) == []
