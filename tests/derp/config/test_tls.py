"""Where the certificate comes from: derper's rules, its defaults, its names of files."""

import re
from pathlib import Path

import pytest

from derp.config.load import load_config
from derp.config.relay import AcmeConfig, RelayConfig, TlsConfig
from derp.errors import ConfigError

DEV = {"dev": "true"}


def load(flags: dict[str, str], environ: dict[str, str] | None = None) -> RelayConfig:
    return load_config({"open": "true", **flags}, environ or {}, open_files=1 << 20)


def test_tls_is_where_derper_has_it() -> None:
    assert load(DEV).tls is None
    assert load(DEV | {"cert_mode": "letsencrypt"}).tls is None
    manual = load(DEV | {"cert_mode": "manual", "hostname": "r.example"}, {"HOME": "/home/op"})
    folder = Path("/home/op/.cache/tailscale/derper-certs")
    assert manual.tls == TlsConfig(folder / "r.example.crt", folder / "r.example.key", "r.example", require_sni=True)
    assert manual.http_port == 80


def test_a_certificate_for_an_address_serves_any_name_and_may_be_made() -> None:
    config = load(DEV | {"cert_mode": "manual", "hostname": "::1", "cert_dir": "/c", "http_port": "-1"})
    assert config.tls == TlsConfig(Path("/c/1.crt"), Path("/c/1.key"), "::1", require_sni=False, self_signed=True)
    assert config.http_port is None


def test_self_signed_takes_the_name_from_the_listener() -> None:
    config = load(DEV | {"listen": "127.0.0.1:443", "tls_self_signed": "true"})
    assert config.tls == TlsConfig(hostname="127.0.0.1", self_signed=True)
    assert config.http_port == 80


def test_letsencrypt_is_derper_s_default_where_a_name_is_given(tmp_path: Path) -> None:
    key_file = str(tmp_path / "relay.key")
    named = {"key_file": key_file, "hostname": "r.example", "cert_dir": "/c"}
    expected = TlsConfig(
        Path("/c/r.example.crt"), Path("/c/r.example.key"), "r.example", require_sni=True, acme=AcmeConfig()
    )
    silent = load(named)
    assert silent.tls == expected
    assert silent.http_port == 80
    assert any("asking Let's Encrypt as derper does, which accepts its terms" in notice for notice in silent.notices)
    told = load(named | {"cert_mode": "letsencrypt", "listen": ":8443", "http_port": "8080"})
    assert told.tls == expected
    assert any("at port 443 whether r.example is ours: it has to be forwarded to port 8443" in n for n in told.notices)
    assert not any("as derper does" in notice for notice in told.notices)
    assert load(named | {"tls_self_signed": "true"}).tls == TlsConfig(
        Path("/c/r.example.crt"), Path("/c/r.example.key"), "r.example", self_signed=True
    )
    with pytest.raises(ConfigError, match="port 443 speaks TLS and needs a certificate"):
        load({"key_file": key_file, "hostname": ""})


def test_other_authorities_and_proofs() -> None:
    given = DEV | {"hostname": "r.example", "cert_dir": "/c", "cert_mode": "gcp", "acme_email": "ops@r.example"}
    given |= {"acme_eab_kid": "kid", "acme_eab_key": "c2VjcmV0-_8", "http_port": "-1"}
    config = load(given | {"acme_challenge": "dns-01", "acme_dns_hook": "/bin/hook --zone 'a b'"})
    assert config.tls is not None
    assert config.tls.acme == AcmeConfig(
        "https://dv.acme-v02.api.pki.goog/directory",
        "ops@r.example",
        ("dns-01",),
        ("/bin/hook", "--zone", "a b"),
        "kid",
        b"secret\xfb\xff",
    )
    assert "secret\\xfb" not in repr(config)
    elsewhere = load(given | {"http_port": "80", "acme_directory_url": "https://ca.example/dir"}).tls
    assert elsewhere is not None
    assert elsewhere.acme is not None
    assert elsewhere.acme.directory_url == "https://ca.example/dir"


LISTEN_443, LISTEN_8443, NO_HTTP = {"listen": ":443"}, {"listen": ":8443"}, {"http_port": "-1"}
HOOK = {"acme_dns_hook": "/bin/hook"}


@pytest.mark.parametrize(
    ("given", "challenges", "forwarded"),
    [
        (LISTEN_443, ("tls-alpn-01", "http-01"), ""),
        (LISTEN_443 | NO_HTTP, ("tls-alpn-01",), ""),
        (LISTEN_443 | HOOK | NO_HTTP, ("dns-01",), ""),
        (LISTEN_443 | {"acme_challenge": "http-01"}, ("http-01",), ""),
        (LISTEN_443 | {"acme_challenge": "http-01", "http_port": "81"}, ("http-01",), "port 80 to port 81"),
        (LISTEN_8443, ("http-01", "tls-alpn-01"), ""),
        (LISTEN_8443 | NO_HTTP, ("tls-alpn-01",), "port 443 to port 8443"),
        (LISTEN_8443 | {"acme_challenge": "tls-alpn-01"}, ("tls-alpn-01",), "port 443 to port 8443"),
        (LISTEN_8443 | {"acme_challenge": "auto"} | HOOK, ("dns-01",), ""),
    ],
)
def test_the_proof_that_most_likely_works_is_tried_first(
    tmp_path: Path, given: dict[str, str], challenges: tuple[str, ...], forwarded: str
) -> None:
    named = {"key_file": str(tmp_path / "relay.key"), "hostname": "r.example", "cert_dir": "/c"}
    config = load(named | {"cert_mode": "letsencrypt"} | given)
    assert config.tls is not None
    assert config.tls.acme is not None
    assert config.tls.acme.challenges == challenges
    found = [re.fullmatch(r"the authority asks at (.*) whether .* forwarded (.*) here", n) for n in config.notices]
    assert [f"{match[1]} {match[2]}" for match in found if match] == ([forwarded] if forwarded else [])


def test_a_certificate_for_an_address(tmp_path: Path) -> None:
    given = {"key_file": str(tmp_path / "k"), "hostname": "192.0.2.1", "cert_dir": "/c", "cert_mode": "letsencrypt"}
    tls = load(given | {"acme_ip_certs": "true"}).tls
    assert tls is not None
    assert tls.acme is not None
    assert not tls.require_sni  # by address clients say no name


@pytest.mark.parametrize(
    ("hostname", "stem", "covered"),
    [
        ("2001:0DB8::1", "20010DB81", "2001:db8::1"),
        ("::1", "1", "::1"),
        ("192.0.2.1", "192.0.2.1", "192.0.2.1"),
        ("Relay_1.Example", "Relay1.Example", "Relay_1.Example"),
    ],
)
def test_manual_files_are_called_as_derper_calls_them(tmp_path: Path, hostname: str, stem: str, covered: str) -> None:
    tls = load(DEV | {"cert_mode": "manual", "hostname": hostname, "cert_dir": str(tmp_path)}).tls
    assert tls is not None
    assert (tls.cert_file, tls.key_file) == (tmp_path / f"{stem}.crt", tmp_path / f"{stem}.key")
    assert tls.hostname == covered


def test_a_pin_that_changes_at_every_start_is_told() -> None:
    """Clients pin what is generated, so who keeps it nowhere loses them all with each restart."""
    (notice,) = load(DEV | {"listen": "127.0.0.1:1", "tls_self_signed": "true"}).notices
    assert notice.startswith("flags: --tls-self-signed/-dev-tls: makes another certificate at every start")
    assert notice.endswith("set --cert-dir to keep it")
    assert load(DEV | {"listen": "127.0.0.1:1", "tls_self_signed": "true", "cert_dir": "/c"}).notices == ()


def test_own_records_are_asked_for_and_want_tls() -> None:
    generated = DEV | {"listen": "127.0.0.1:443", "tls_self_signed": "true"}
    for given, expected in (({}, False), ({"tls_records": "openssl"}, False), ({"tls_records": "own"}, True)):
        tls = load(generated | given).tls
        assert tls is not None
        assert tls.own_records is expected
    assert load(DEV | {"tls_records": "own"}).tls is None, "tried out without TLS"
    plain = {"listen": ":3340", "key_file": "", "tls_records": "own"}
    with pytest.raises(ConfigError, match="--tls-records: has no effect without a certificate: set --cert-mode"):
        load(plain)
