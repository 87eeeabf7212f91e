"""Sources and their order, rules between settings, and: what is wrong is one error with place, key and reason."""

import json
import math
import os
import re
import stat
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest

from derp.admission.signed import Issuer
from derp.config.files import make_key_file
from derp.config.load import load_config
from derp.config.relay import MeshPeer, Rate, RelayConfig, TlsConfig
from derp.errors import ConfigError
from derp.keys import MeshKey, NodePrivate

DEV = {"dev": "true"}
# The same where only this machine can come, so that nothing is said about admission.
LOCAL = DEV | {"listen": "127.0.0.1:3340"}
MESH_KEY = "ab" * 32
KEY = "nodekey:" + "07" * 32
MANY_FILES = 1 << 20


def load(
    flags: dict[str, str] | None = None, environ: dict[str, str] | None = None, toml: str | None = None
) -> RelayConfig:
    return load_config(flags or {}, environ or {}, toml, open_files=MANY_FILES)


@pytest.fixture
def toml(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "relay.toml"
        path.write_text(text)
        return str(path)

    return write


EVERYTHING = """
listen = ["127.0.0.1:8443", "[::1]:8443"]
hostname = "relay.example"
cert_mode = "manual"
cert_dir = "/certs"
http_port = 8080
stun_port = 0
derp = false
home = "https://example.org/"
bootstrap_dns_names = ["a.example"]
unpublished_bootstrap_dns_names = ["b.example/t.example"]
mesh_with = ["relay.example", "other.example/10.0.0.9"]
tcp_write_timeout = "3s"
mesh_write_timeout = "1m"
tcp_user_timeout = "20s"
tcp_keepalive_time = "5m"
handshake_timeout = "7s"
keepalive = "50s"
drain = "1m30s"
accept_connection_limit = 10.5
accept_connection_burst = 11
max_connections = 12
queue_depth = 13
queue_bytes = 200_000
queue_delay = "300ms"
verify_clients = true
socket = "/run/tailscaled.sock"
verify_client_url = "https://admit.example/"
verify_client_url_fail_open = true
allow_keys = ["{key}"]
deny_keys = []
debug_allow = ["10.0.0.0/8"]
trusted_proxies = ["10.1.0.0/16"]
log_format = "json"
log_level = "debug"
"""


def test_every_setting_arrives(tmp_path: Path, toml: Callable[[str], str]) -> None:
    mesh, rate, key = tmp_path / "mesh", tmp_path / "rate", tmp_path / "key"
    mesh.write_text(f"\n {MESH_KEY} \n")
    rate.write_text('{"PerClientRateLimitBytesPerSec": 100, "PerClientRateBurstBytes": 200}')
    private = NodePrivate.generate()
    key.write_text(json.dumps({"privatekey": private.text(), "More": 1}))
    files = f'mesh_psk_file = "{mesh}"\nrate_config = "{rate}"\nkey_file = "{key}"\n'
    config = load({}, {}, toml(files + EVERYTHING.format(key=KEY)))
    expected = RelayConfig(
        private_key=private,
        listen=(("127.0.0.1", 8443), ("::1", 8443)),
        hostname="relay.example",
        tls=TlsConfig(Path("/certs/relay.example.crt"), Path("/certs/relay.example.key"), "relay.example", True),
        http_port=8080,
        stun_port=0,
        derp_enabled=False,
        home="https://example.org/",
        bootstrap_dns_names=("a.example",),
        unpublished_bootstrap_dns_names=(("b.example", "t.example"),),
        mesh_key=MeshKey.parse(MESH_KEY),
        mesh_with=(MeshPeer("relay.example", 443, "relay.example"), MeshPeer("other.example", 443, "10.0.0.9")),
        tcp_write_timeout_seconds=3.0,
        mesh_write_timeout_seconds=60.0,
        tcp_user_timeout_seconds=20.0,
        tcp_keepalive_seconds=300.0,
        handshake_timeout_seconds=7.0,
        keepalive_seconds=50.0,
        drain_seconds=90.0,
        accept_connection_limit=10.5,
        accept_connection_burst=11,
        max_connections=12,
        queue_depth=13,
        queue_bytes=200_000,
        queue_delay_seconds=0.3,
        verify_clients=True,
        tailscaled_socket="/run/tailscaled.sock",
        verify_client_url="https://admit.example/",
        verify_client_url_fail_open=True,
        allow_keys=frozenset({b"\x07" * 32}),
        debug_allow=(ip_network("10.0.0.0/8"),),
        trusted_proxies=(ip_network("10.1.0.0/16"),),
        rate=Rate(100, 65_568),  # never less than the largest packet
        log_format="json",
        log_level="debug",
        notices=config.notices,
    )
    assert config == expected


# One error: place, key, reason.

LE = 'listen = ":443"\ncert_mode = "letsencrypt"\n'
LE_NAME = f'{LE}hostname = "relay.example"\n'
GCP = 'hostname = "relay.example"\ncert_mode = "gcp"\nacme_eab_kid = "k"\nacme_eab_key = "c2Vj"'
WRONG_TOML = [
    ("queue_depth =", "relay.toml: is not TOML: "),
    ("a = " + "[" * 5000, "relay.toml: is not TOML: "),
    ("queue_depht = 3", "relay.toml: 'queue_depht': there is no such setting: did you mean queue_depth?"),
    ('"\\n" = 3', "relay.toml: '\\n': there is no such setting"),
    ("[listen]\na = 1", "relay.toml: listen: wants a list"),
    ("listen = []", "relay.toml: listen: wants at least one address"),
    ("listen = [3340]", "relay.toml: listen: wants text in quotes, got 3340"),
    ('listen = "3340"', "relay.toml: listen: wants an address with a port"),
    ('queue_depth = "many"', "relay.toml: queue_depth: wants a whole number from 1 to 65,536, got 'many'"),
    ("queue_bytes = 1", "relay.toml: queue_bytes: wants a whole number from 131,072"),
    ('stun = "perhaps"', "relay.toml: stun: wants true or false"),
    ("keepalive = 60", "relay.toml: keepalive: wants a duration with its unit"),
    ('keepalive = "2m"', "relay.toml: keepalive: wants a duration from 1s to 110s"),
    ("accept_connection_limit = 0", "relay.toml: accept_connection_limit: wants a number above 0"),
    ('home = "white"', "relay.toml: home: wants a URL"),
    ('debug_allow = ["10.0.0.1/8"]', "relay.toml: debug_allow: 10.0.0.1/8 has bits set"),
    ('allow_keys = ["nodekey:1"]', "relay.toml: allow_keys: a node public key has 64 hex digits"),
    ('mesh_with = ["a"]', "relay.toml: mesh_with: needs the mesh's key: set --mesh-psk-file"),
    ('mesh_psk_file = "/nonexistent/k"', "/nonexistent/k: cannot read the mesh key: No such file"),
    ('rate_config = "/nonexistent/r"', "/nonexistent/r: cannot read the limits: No such file"),
    ('verify_client_url = "a.example"', "relay.toml: verify_client_url: wants a URL that starts with http:// or https"),
    (f'socket = "/{"x" * 107}"', "relay.toml: socket: wants a path of at most 107 bytes, got '/xxx"),
    ('mesh_psk_file = "/dev/zero"', "/dev/zero: is no mesh key: it has more than"),
    ('cert_mode = "gcp"', "flags: --hostname: --cert-mode gcp needs a host name to get a certificate for"),
    (GCP, "relay.toml: cert_mode: Google wants to know who asks: set --acme-eab-kid, --acme-eab-key and --acme-email"),
    (f'{LE}hostname = "192.0.2.1"', "relay.toml: hostname: --cert-mode letsencrypt needs a host name"),
    (f'{LE_NAME}acme_eab_kid = "k"', "relay.toml: acme_eab_kid: an external account binding is a pair: set both"),
    (f'{LE_NAME}acme_eab_key = "c2Vj"', "relay.toml: acme_eab_key: an external account binding is a pair: set both"),
    (f'{LE_NAME}acme_eab_key = "!secret!"', "relay.toml: acme_eab_key: wants a key in base64, as the authority shows"),
    (f'{LE_NAME}acme_challenge = "dns-01"', "relay.toml: acme_challenge: --acme-challenge dns-01 and --acme-dns-hook"),
    (
        f'{LE_NAME}acme_challenge = "http-01"\nacme_dns_hook = "/bin/x"',
        "relay.toml: acme_dns_hook: --acme-challenge dns-01 and --acme-dns-hook go",
    ),
    (
        f'{LE_NAME}acme_challenge = "http-01"\nhttp_port = -1',
        "relay.toml: http_port: the authority asks there whether the name is ours",
    ),
    (
        f"{LE_NAME}acme_ip_certs = true",
        "relay.toml: acme_ip_certs: gets a certificate from Let's Encrypt for --hostname",
    ),
    (f"{GCP}\nacme_email = 'a@b.c'\nacme_ip_certs = true", "relay.toml: acme_ip_certs: gets a certificate from Let's"),
    (f'{LE_NAME}tls_cert = "/c"\ntls_key = "/k"', "relay.toml: tls_cert: only one of --cert-mode, --tls-cert and"),
    ('cert_mode = "magic"', "relay.toml: cert_mode: wants one of manual, letsencrypt, gcp, got 'magic'"),
    ('cert_mode = "manual"\ncert_dir = "/c"', "flags: --hostname: --cert-mode manual needs --hostname"),
    ('tls_cert = "/c"', "relay.toml: tls_cert: a certificate needs its key"),
    ('tls_key = "/c"', "relay.toml: tls_key: a certificate needs its key"),
    ('tls_cert = "/c"\ntls_key = "/k"\ntls_self_signed = true', "relay.toml: tls_cert: only one of"),
    ('cert_mode = "manual"\ntls_self_signed = true', "relay.toml: tls_self_signed: only one of"),
    ('listen = ":443"', "relay.toml: listen: port 443 speaks TLS and needs a certificate"),
    (LE, "flags: --hostname: --cert-mode letsencrypt needs a host name to get a certificate for: set --hostname"),
    ("max_connections = 2_000_000", "relay.toml: max_connections: 2,000,000 are not possible, this process may open"),
]


@pytest.mark.parametrize(("text", "says"), WRONG_TOML, ids=[says for _, says in WRONG_TOML])
def test_a_wrong_file_is_one_error(tmp_path: Path, toml: Callable[[str], str], text: str, says: str) -> None:
    file = toml(text if text.startswith(("a =", "[")) else f"dev = true\n{text}")
    with pytest.raises(ConfigError) as caught:
        load({}, {"HOME": str(tmp_path)}, file)
    message = str(caught.value).replace(f"{tmp_path}/", "")
    assert message.startswith(says)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("flags", "environ", "says"),
    [
        ({"queue_depth": "x"}, {}, "flags: --queue-depth: wants a whole number"),
        ({"listen": "x"}, {}, "flags: --listen/-a: wants an address"),
        ({}, {"DERP_QUEUE_DEPTH": "x"}, "environment: DERP_QUEUE_DEPTH: wants a whole number"),
        ({}, {"DERP_QUEUE_DEPHT": "1"}, "environment: DERP_QUEUE_DEPHT: there is no such setting: did you mean DERP_Q"),
        ({}, {"DERP_CONFIG": "/nonexistent/c"}, "/nonexistent/c: cannot read the settings: No such file"),
        ({}, {"TAILSCALE_DERPER_MESH_KEY": "12"}, "environment: TAILSCALE_DERPER_MESH_KEY: a mesh key has 64 hex"),
    ],
)
def test_wrong_flags_and_variables_are_named(flags: dict[str, str], environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(DEV | flags, environ)
    assert str(caught.value).startswith(says)


def test_http_port_without_tls_is_said_to_be_useless() -> None:
    config = load(DEV | {"http_port": "81"})
    assert config.http_port is None
    assert any("--http-port: has no effect" in notice for notice in config.notices)


# Limits.


def test_connections_never_exceed_the_open_files() -> None:
    config = load_config(DEV, {}, open_files=4096)
    assert config.max_connections == 4096 - 256
    assert "may open 4,096 files: raise its limit" in config.connections_remedy
    assert not any("raise its limit" in notice for notice in config.notices), "said when it matters"
    for open_files in (-1, 1 << 20):  # RLIM_INFINITY
        config = load_config(DEV, {}, open_files=open_files)
        assert (config.max_connections, config.connections_remedy) == (100_000, "")


def test_few_open_files_serve_more_than_one_client_or_are_refused() -> None:
    assert load_config(DEV, {}, open_files=256).max_connections == 192
    assert load_config(DEV, {}, open_files=96).max_connections == 32
    with pytest.raises(ConfigError, match=r"may open 95 files: raise its limit .*; 96 are the least"):
        load_config(DEV, {}, open_files=95)
    with pytest.raises(ConfigError, match="300 are not possible, this process may open 256 files"):
        load_config(DEV | {"max_connections": "300"}, {}, open_files=256)


def test_a_file_that_limits_nobody_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rate.json"
    path.write_text('{"PerClientRateLimitBytesPerSecond": 5}')
    (notice,) = load(LOCAL | {"rate_config": str(path)}).notices
    assert notice == f"{path}: sets no limit, as it has no PerClientRateLimitBytesPerSec"
    path.write_text('{"PerClientRateLimitBytesPerSec": 5}')
    assert load(LOCAL | {"rate_config": str(path)}).notices == ()


# Keys.


def test_a_missing_key_file_is_made_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "derper.key"
    flags = {"listen": ":1", "key_file": str(path), "open": "true"}
    first = load(flags)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {"PrivateKey": first.private_key.text()}
    assert any(f"made a new private key in {path}" in notice for notice in first.notices)
    assert load(flags).private_key == first.private_key
    assert [entry.name for entry in path.parent.iterdir()] == ["derper.key"]


def test_only_root_has_a_default_key_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match=r"flags: --key-file/-c: is not set: name a file"):
        load({"listen": ":1"})


def test_stun_takes_another_port_only_for_a_try() -> None:
    assert load(DEV).stun_may_move
    assert not load(DEV | {"stun_port": "3478"}).stun_may_move


def test_dev_makes_a_fresh_key_each_time() -> None:
    assert load(DEV).private_key != load(DEV).private_key


def test_a_wrong_setting_leaves_no_key_file_behind(tmp_path: Path) -> None:
    path = tmp_path / "derper.key"
    with pytest.raises(ConfigError):
        load({"listen": ":1", "key_file": str(path), "mesh_with": "a"}, {"HOME": str(tmp_path)})
    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a JSON object with the private key"),
        ("privkey:" + "11" * 32, "is not a JSON object with the private key"),
        ("{}", 'PrivateKey: is missing: the file should read {"PrivateKey": "privkey:..."}'),
        ('{"PrivateKey": null}', "PrivateKey: is missing"),
        ('{"PrivateKey": "privkey:' + "11" * 31 + '"}', "PrivateKey: a node private key has 64 hex digits"),
        ('{"PrivateKey": "nodekey:' + "11" * 32 + '"}', "PrivateKey: a node private key starts with 'privkey:'"),
    ],
)
def test_a_broken_key_file_is_named_but_never_shown(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "derper.key"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load({"listen": ":1", "key_file": str(path)})
    assert str(caught.value).startswith(f"{path}: {says}")
    assert "1111" not in str(caught.value)
    assert path.read_text() == text


def test_secrets_that_others_can_read_are_told(tmp_path: Path) -> None:
    key, mesh = tmp_path / "key", tmp_path / "mesh"
    key.write_text(json.dumps({"PrivateKey": NodePrivate.generate().text()}))
    mesh.write_text(MESH_KEY)
    os.chmod(key, 0o640)
    os.chmod(mesh, 0o600)
    flags = {"listen": "127.0.0.1:1", "key_file": str(key), "mesh_psk_file": str(mesh)}
    assert load(flags).notices == (f"{key}: others on this machine can read this secret: chmod 600 {key}",)


def test_the_mesh_key_is_found_where_derper_looks(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    path = tmp_path / "keys" / "derp-mesh.key"
    path.write_text(MESH_KEY)
    os.chmod(path, 0o600)
    key = {"key_file": str(tmp_path / "k"), "listen": ":1", "open": "true"}
    assert load(key, {"HOME": str(tmp_path)}).mesh_key == MeshKey.parse(MESH_KEY)
    assert load(DEV, {"HOME": str(tmp_path)}).mesh_key is None
    assert load(DEV, {"TAILSCALE_DERPER_MESH_KEY": MESH_KEY}).mesh_key == MeshKey.parse(MESH_KEY)


@pytest.mark.parametrize("flag", ["mesh_psk_file", "rate_config"])
def test_an_empty_file_name_is_none(tmp_path: Path, flag: str) -> None:
    """derper takes it so; a mesh key is not even looked for then."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "derp-mesh.key").write_text("no key")
    plain = {"key_file": str(tmp_path / "k"), "listen": "127.0.0.1:1", "mesh_psk_file": ""}
    config = load(plain | {flag: ""}, {"HOME": str(tmp_path)})
    assert (config.mesh_key, config.rate) == (None, Rate())


def test_an_empty_key_file_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match=r"key_file|key-file.*is not set"):
        load({"key_file": "", "listen": "127.0.0.1:1"})


def test_the_limit_that_derper_has_by_default_is_taken() -> None:
    assert load(DEV | {"accept_connection_burst": str((1 << 63) - 1)}).accept_connection_burst == (1 << 63) - 1


# What the operator is told.


def test_an_empty_allow_list_is_told() -> None:
    config = load(DEV | {"allow_keys": ""})
    assert config.allow_keys == frozenset()
    assert config.notices == ("flags: --allow-keys: is empty: nobody may use this relay",)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"listen": ":1"}, True),
        ({"listen": "127.0.0.1:1,10.0.0.1:1"}, True),
        ({"listen": "127.0.0.1:1,[::1]:1,localhost:2"}, False),
        ({"listen": ":1", "allow_keys": KEY}, False),
        ({"listen": ":1", "verify_client_url": "http://127.0.0.1/"}, False),
        ({"listen": ":1", "verify_clients": "true"}, False),
        ({"listen": ":1", "socket": "/run/s"}, True),
        ({"listen": ":1", "derp": "false"}, False),
        ({"dev": "true"}, True),
        ({"listen": "127.0.0.1:1", "dev": "true"}, False),
    ],
)
def test_an_open_relay_on_a_public_address_says_so(tmp_path: Path, flags: dict[str, str], told: bool) -> None:
    make_key_file(tmp_path / "k")
    config = load(flags | {"key_file": str(tmp_path / "k")})
    assert any("this relay is open" in notice for notice in config.notices) is told


@pytest.mark.parametrize("given", ["", "/run/other.sock"])
def test_an_empty_socket_is_the_default(given: str) -> None:
    config = load(LOCAL | {"verify_clients": "true", "socket": given})
    assert config.tailscaled_socket == (given or "/var/run/tailscale/tailscaled.sock")
    assert config.notices == ()


def test_a_socket_that_nobody_is_asked_at_is_told() -> None:
    (notice,) = load(LOCAL | {"socket": "/run/s"}).notices
    assert notice == "flags: --socket: has no effect without --verify-clients"


@pytest.mark.parametrize(
    ("beside", "who"),
    [({}, "anyone"), ({"verify_clients": "true"}, "whom the other checks allow"), ({"allow_keys": KEY}, "whom the")],
)
def test_fail_open_says_for_whom(beside: dict[str, str], who: str) -> None:
    (notice,) = load(DEV | beside | {"verify_client_url": "http://a/", "verify_client_url_fail_open": "1"}).notices
    assert notice.startswith(f"while the admission URL does not answer, {who}")


def test_fail_open_and_unlimited_accepts_are_told() -> None:
    flags = {"verify_client_url": "http://a/", "verify_client_url_fail_open": "1", "accept_connection_limit": "inf"}
    config = load(DEV | flags)
    assert config.accept_connection_limit == math.inf
    assert [notice.partition(":")[0] for notice in config.notices] == [
        "while the admission URL does not answer, anyone may use this relay",
        "accepts are not limited",
    ]


def test_limits_of_single_keys() -> None:
    one, two = NodePrivate.generate().public(), NodePrivate.generate().public()
    config = load({"dev": "true", "rate_keys": f"{one}=500000,{two}=0/9"}, {}, None)
    assert config.rate_by_key == {one.raw: Rate(500_000, 0), two.raw: Rate(0, 9)}


@pytest.mark.parametrize("value", ["nodekey:abc=1", "500000", "{key}=", "{key}=x", "{key}=1/", "{key}=1/x", "{key}=-1"])
def test_malformed_limits_of_single_keys(value: str) -> None:
    key = str(NodePrivate.generate().public())
    with pytest.raises(ConfigError, match=r"rate.keys"):
        load({"dev": "true", "rate_keys": value.format(key=key)}, {}, None)


# Strangers.

STRANGERS = "--open if that is meant"


@pytest.mark.parametrize(
    ("listen", "beside", "starts"),
    [
        (":1", {}, False),
        ("[::]:1", {}, False),
        ("8.8.8.8:1", {}, False),
        ("10.0.0.1:1,8.8.8.8:1", {}, False),
        ("[2a00::1]:1", {}, False),
        ("relay.example.org:1", {}, False),
        ("127.0.0.1:1", {}, True),
        ("localhost:1", {}, True),
        ("192.168.1.2:1,[fd00::1]:1,100.64.0.1:1", {}, True),
        (":1", {"open": "true"}, True),
        (":1", {"verify_clients": "true"}, True),
        (":1", {"verify_client_url": "https://a.example/"}, True),
        (":1", {"allow_keys": KEY}, True),
        (":1", {"deny_keys": KEY}, False),
        (":1", {"derp": "false"}, True),
    ],
)
def test_a_new_relay_does_not_start_where_strangers_find_it(
    tmp_path: Path, listen: str, beside: dict[str, str], starts: bool
) -> None:
    path = tmp_path / "derper.key"
    flags = {"listen": listen, "key_file": str(path), **beside}
    if starts:
        load(flags)
        return
    with pytest.raises(ConfigError, match=STRANGERS):
        load(flags)
    assert not path.exists(), "nothing is left that would let it start the next time"
    make_key_file(path)
    assert any("this relay is open" in notice for notice in load(flags).notices), "derper would start, and so do we"


def test_open_is_no_news_to_whoever_said_it(tmp_path: Path) -> None:
    flags = {"listen": ":1", "open": "true", "key_file": str(tmp_path / "key")}
    assert not any("this relay is open" in each for each in load(flags).notices)
    assert any("this relay is open" in each for each in load({"dev": "true"}).notices)


# Issuers.


def issuers_file(tmp_path: Path, text: str) -> dict[str, str]:
    path = tmp_path / "issuers"
    path.write_text(text)
    return LOCAL | {"admission_keys": str(path)}


def test_issuers_are_read_with_comments_and_once(tmp_path: Path) -> None:
    line = "issuerkey:" + "ab" * 32
    config = load(issuers_file(tmp_path, f"# of the coordinator\n\n{line}  # old\n{line}\n"))
    assert config.issuers == (Issuer(b"\xab" * 32),)
    assert not config.admission_is_open


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no issuer's key"),
        ("# nobody\n", "has no issuer's key"),
        ("issuerkey:" + "ab" * 32 + "\nnodekey:" + "ab" * 32, "line 2: an issuer's public key is 'issuerkey:'"),
        ("issuerkey:" + "zz" * 32, "line 1: an issuer's public key has only hex digits"),
        ("issuerprivkey:" + "ab" * 32, "line 1: is an issuer's private key, which no relay should have"),
    ],
)
def test_what_is_no_issuer_is_refused_with_its_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)) as caught:
        load(issuers_file(tmp_path, text))
    assert "ab" * 32 not in str(caught.value)


def test_a_key_set_wants_an_issuer_and_a_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is believed only if it is signed: set --admission-keys"):
        load(LOCAL | {"key_set": "https://a.example/keys"})
    flags = issuers_file(tmp_path, "issuerkey:" + "ab" * 32)
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    url = flags | {"key_set": "http://a.example/keys", "key_set_token_file": str(token)}
    config = load(url)
    assert (config.key_set, config.key_set_token) == ("http://a.example/keys", "s3cret")
    assert "s3cret" not in repr(config)
    told = " ".join(config.notices)
    assert "knows no keys: set --key-set-file" in told
    assert "travels in the clear" in told
    file = flags | {"key_set": str(tmp_path / "keys"), "key_set_file": str(tmp_path / "kept")}
    assert any("has no effect without a URL" in notice for notice in load(file).notices)
    token.write_text("two words")
    with pytest.raises(ConfigError, match="wants one token"):
        load(url)


def test_auto_is_one_worker_for_each_core_that_this_process_may_use() -> None:
    assert load({"dev": "true", "workers": "auto"}).workers == len(os.sched_getaffinity(0))


def test_several_processes_keep_no_account_together(tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text('[node]\nbytes_per_second = "1GB"\n')
    with pytest.raises(ConfigError, match="keep no account together"):
        load({"dev": "true", "workers": "2", "limits": str(tmp_path / "limits.toml")})
