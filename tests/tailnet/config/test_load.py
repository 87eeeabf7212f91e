"""Settings from every source, each mistake as one line that names place, key and remedy."""

import base64
import json
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from derp.config.relay import MeshPeer, Rate, TlsConfig
from derp.keys import MeshKey
from tailnet.config import SETTINGS, Banner, CoordinatorConfig, WebhookTarget, compare, load_config
from tailnet.config.coordinator import BusPlace
from tailnet.config.key_file import add_key
from tailnet.config.parse import MAX_BANNER_CHARS, MAX_BANNERS
from tailnet.errors import ConfigError

KEY = "nodekey:" + "07" * 32
# One good value of each setting as text, and what it becomes.
EXAMPLES: dict[str, tuple[str, Any]] = {
    "listen": ("127.0.0.1:1,[::1]:2", (("127.0.0.1", 1), ("::1", 2))),
    "stun_listen": ("127.0.0.1:3479", (("127.0.0.1", 3479),)),
    "store": ("sqlite:///x.db", "sqlite:///x.db"),
    "dev": ("true", True),
    "access_url": ("https://tailnet.example.com", "https://tailnet.example.com"),
    "derp": ("false", False),
    "quic": ("true", True),
    "self_check": ("false", False),
    "derp_region_id": ("7", 7),
    "derp_region_code": ("fra", "fra"),
    "derp_region_name": ("Frankfurt am Main", "Frankfurt am Main"),
    "stun_servers": ("stun.example.com:19302", (("stun.example.com", 19302),)),
    "derp_map": ("a.json,b.json", (Path("a.json"), Path("b.json"))),
    "derp_map_url": ("https://maps.example.com/map", ("https://maps.example.com/map",)),
    "derp_map_poll": ("1m", 60.0),
    "region_scores": ("1=1.5,999=0.5", ((1, 1.5), (999, 0.5))),
    "region_weights": ("1=2,999=0.5", ((1, 2.0), (999, 0.5))),
    "prefer_regions": ("1,2", (1, 2)),
    "avoid_regions": ("1,2", (1, 2)),
    "steer_by_load": ("1,2", (1, 2)),
    "browser_only": ("true", True),
    "disable_direct_connections": ("true", True),
    "derp_force_websockets": ("true", True),
    "hostname_suffix": ("example.com", "example.com"),
    "bus": ("static:10.0.0.5:3001", BusPlace("static", (("10.0.0.5", 3001),))),
    "cluster_name": ("office", "office"),
    "insecure_bus": ("true", True),
    "replica_name": ("fra-1", "fra-1"),
    "replica_listen": ("10.0.0.5:3001", (("10.0.0.5", 3001),)),
    "replica_address": ("replica.example.com:3001", ("replica.example.com", 3001)),
    "replica_notice": ("3s", 3.0),
    "replica_drain": ("2m", 120.0),
    "agent_ping": ("5s", 5.0),
    "agent_inactive": ("20s", 20.0),
    "auth_url": ("https://control.example/who", "https://control.example/who"),
    "auth_fail_open": ("true", True),
    "external_auth_call_out": ("true", True),
    "auth_jwks": ("/etc/tailnet/jwks.json", "/etc/tailnet/jwks.json"),
    "auth_issuer": ("https://control.example", "https://control.example"),
    "auth_audience": ("tailnet", "tailnet"),
    "auth_leeway": ("5s", 5.0),
    "admin_workspace_access": ("false", False),
    "max_api_connections": ("40", 40),
    "api_rate_limit": ("60", 60),
    "cors_origins": ("https://a.example.com,http://[::1]:8000", ("https://a.example.com", "http://[::1]:8000")),
    "admin_rate_limit": ("60", 60),
    "admin_listen": ("127.0.0.1:3001", None),
    "keep_audit": ("720h", 2_592_000.0),
    "max_node_bytes": ("8192", 8192),
    "upgrade_limit": ("50", 50),
    "max_sockets_per_caller": ("50", 50),
    "max_held_bytes_per_caller": ("1048576", 1048576),
    "max_held_bytes": ("100000000", 100_000_000),
    "max_report_bytes": ("65536", 65_536),
    "max_reports": ("60", 60),
    "stats_interval": ("1m", 60.0),
    "keep_stats": ("48h", 172_800.0),
    "keep_logs": ("24h", 86_400.0),
    "keep_sessions": ("72h", 259_200.0),
    "events": ("true", True),
    "keep_events": ("24h", 86_400.0),
    "max_stored_log_bytes": ("1048576", 1_048_576),
    "max_waiting_report_bytes": ("2097152", 2_097_152),
    "announcement_banners": ("Down on Sunday, 8 to 9.", (Banner("Down on Sunday, 8 to 9."),)),
    "identity_anchors": ("/etc/anchors", Path("/etc/anchors")),
    "hostname": ("relay.example.com", "relay.example.com"),
    "tcp_user_timeout": ("20s", 20.0),
    "tcp_keepalive_time": ("5m", 300.0),
    "handshake_timeout": ("7s", 7.0),
    "accept_connection_limit": ("10", 10.0),
    "accept_connection_burst": ("20", 20),
    "max_connections": ("30", 30),
    "drain": ("3s", 3.0),
    "debug_allow": ("10.0.0.0/8", None),
    "trusted_proxies": ("10.0.0.1", None),
    "log_format": ("json", "json"),
    "log_level": ("debug", "debug"),
    "relay_bootstrap_dns_names": ("a.example", ("a.example",)),
    "relay_unpublished_bootstrap_dns_names": ("b.example/t.example", (("b.example", "t.example"),)),
    "relay_mesh_with": ("relay.example", (MeshPeer("relay.example", 443, "relay.example"),)),
    "relay_tcp_write_timeout": ("3s", 3.0),
    "relay_mesh_write_timeout": ("1m", 60.0),
    "relay_keepalive": ("50s", 50.0),
    "relay_queue_depth": ("40", 40),
    "relay_queue_bytes": ("200000", 200_000),
    "relay_queue_total": ("9000000", 9_000_000),
    "relay_queue_delay": ("1s500ms", 1.5),
    "relay_rate_keys": (f"{KEY}=5/6", {b"\x07" * 32: Rate(5, 6)}),
    "relay_verify_clients": ("true", True),
    "relay_socket": ("/run/s.sock", "/run/s.sock"),
    "relay_verify_client_url": ("https://admit.example/", "https://admit.example/"),
    "relay_verify_client_url_fail_open": ("true", True),
    "relay_allow_keys": (KEY, frozenset({b"\x07" * 32})),
    "relay_deny_keys": (KEY, frozenset({b"\x07" * 32})),
    "relay_key_set": ("https://a.example/key-set", "https://a.example/key-set"),
    "relay_key_set_file": ("/var/lib/key-set", Path("/var/lib/key-set")),
    "relay_admission_log": ("/var/lib/decisions", Path("/var/lib/decisions")),
    "relay_ledger": ("/var/lib/ledger", Path("/var/lib/ledger")),
    "relay_ledger_days": ("7", 7),
    "relay_open": ("true", True),
    "key_set_life": ("12h", 43_200.0),
}
# What several of them build together, or a file holds: tested below.
BUILT = {row.name for row in SETTINGS if row.part_of} - {"max_connections"}
# What makes an example possible; where nothing stands, a file with a secret.
SIGNED = {"auth_jwks": "/etc/tailnet/jwks.json", "auth_issuer": "i", "auth_audience": "a"}
REPLICA = {"bus": "static:10.0.0.6:3001", "replica_listen": "10.0.0.6:3001", "bus_key_file": ""}
BESIDE = {
    "relay_mesh_with": {"relay_mesh_psk_file": ""},
    "admin_listen": {"admin_token_file": ""},
    "relay_key_set": {"relay_admission_keys": ""},
    "auth_url": {"auth_secret_file": ""},
    "auth_fail_open": {"auth_url": "https://control.example/", "auth_secret_file": ""},
    "external_auth_call_out": {"auth_url": "https://control.example/", "auth_secret_file": "", "secrets_key_file": ""},
    **{name: {other: text for other, text in SIGNED.items() if other != name} for name in SIGNED},
    "bus": {"replica_listen": "10.0.0.5:3001", "bus_key_file": ""},
    **dict.fromkeys(
        ("cluster_name", "replica_name", "replica_address", "replica_notice", "replica_drain", "insecure_bus"), REPLICA
    ),
    "replica_listen": {"bus": REPLICA["bus"], "bus_key_file": ""},
}


def load(
    flags: dict[str, str] | None = None, environ: dict[str, str] | None = None, file: Path | None = None
) -> CoordinatorConfig:
    return load_config(flags, environ or {}, None if file is None else str(file), open_files=1 << 20)


def refused(
    flags: dict[str, str] | None = None, environ: dict[str, str] | None = None, file: Path | None = None
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(flags, environ, file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_setting_has_an_example() -> None:
    assert set(EXAMPLES) == set(SETTINGS.by_name) - BUILT


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_flag_environment_and_file_mean_the_same(name: str, tmp_path: Path) -> None:
    text, value = EXAMPLES[name]
    setting = SETTINGS.by_name[name]
    secret = tmp_path / "secret"
    texts = {
        "admin_listen": "plane:" + "ab" * 32,
        "relay_key_set": "issuerkey:" + "ab" * 32,
        "external_auth_call_out": "ab" * 21 + "Q=",
    }
    secret.write_text(texts.get(name, "ab" * 32))
    secret.chmod(0o600)
    beside = {other: text_of_other or str(secret) for other, text_of_other in BESIDE.get(name, {}).items()}
    read = attrgetter(setting.path)
    from_flag = read(load({name: text} | beside))
    assert read(load(beside, {setting.environment: text})) == from_flag
    path = tmp_path / "tailnet.toml"
    bare = text if text in ("true", "false") or name in ("derp_region_id", "relay_queue_depth") else f'"{text}"'
    path.write_text(f"{name} = {bare}\n")
    assert read(load(beside, file=path)) == from_flag
    assert from_flag != read(load())
    if value is not None:
        assert from_flag == value


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"auth_url": "https://control.example/"}, "--auth-secret-file: is missing: --auth-url and --auth-secret-file"),
        ({"auth_secret_file": "SECRET"}, "--auth-url: is missing: --auth-url and --auth-secret-file belong together"),
        ({"auth_url": "ftp://x/", "auth_secret_file": "SECRET"}, "--auth-url: wants a URL that starts with http:// or"),
        ({"auth_url": "https://x/", "auth_secret_file": "/nowhere"}, "/nowhere: cannot read the secret of the control"),
        ({"auth_url": "https://x/", "auth_secret_file": "SHORT"}, "a secret shorter than 32 bytes can be guessed"),
        ({"auth_fail_open": "true"}, "--auth-fail-open: is about --auth-url, which is not set"),
        ({"external_auth_call_out": "true"}, "--external-auth-call-out: wants --auth-url"),
        ({"auth_jwks": "/x"}, "--auth-issuer: is missing: without it tokens for others would be good here"),
        ({"auth_jwks": "/x", "auth_issuer": "i"}, "--auth-audience: is missing: without it tokens for others"),
        ({"auth_audience": "a"}, "--auth-audience: is about signed tokens: set --auth-jwks too"),
        ({"auth_jwks": "https://"}, "--auth-jwks: wants a URL that starts with http:// or https://"),
        ({"auth_leeway": "1h"}, "--auth-leeway: "),
    ],
)
def test_who_is_calling_is_said_in_full(flags: dict[str, str], says: str, tmp_path: Path) -> None:
    texts = {"SECRET": "s3cretHunter2" * 3, "SHORT": "s3cretHunter2"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    said = refused({name: str(tmp_path / text) if text in texts else text for name, text in flags.items()})
    assert says in said
    assert "Hunter2" not in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"bus": "static:10.0.0.5:3001"}, "--bus: others have to reach this one: set --replica-listen"),
        (
            {"bus": "static:10.0.0.5:3001", "replica_listen": ":3001"},
            "--bus: replicas know each other by a secret: set",
        ),
        ({"bus": "static:"}, "--bus: "),
        ({"bus": "static:unix:run/a.sock"}, "--bus: wants unix: with a path from / on of at most 107 bytes"),
        ({"bus": f"static:unix:/{'x' * 107}"}, "--bus: wants unix: with a path from / on of at most 107 bytes"),
        ({"bus": "dns:unix:/run/a.sock"}, "--bus: "),
        ({"bus": "static::3001"}, "--bus: wants store, redis://HOST:PORT, static:HOST:PORT,... or dns:NAME:PORT"),
        *(
            (
                {"bus": "static:h:1", "bus_key_file": "LONG", "replica_listen": ":1", "replica_address": address},
                "--replica-address: others cannot dial every address: name the one",
            )
            for address in (":3001", "0.0.0.0:3001", "[::]:3001")
        ),
        ({"bus": f"valkey://default:Hunter2{'x' * 80}@h:1"}, "--bus: wants store, redis://HOST:PORT"),
        ({"bus": "nats://x"}, "--bus: wants store, redis://HOST:PORT, static:HOST:PORT,... or dns:NAME:PORT"),
        ({"bus": "store", "replica_listen": "10.0.0.5:1"}, "--bus: replicas share a PostgreSQL: set --store to one"),
        ({"bus": "redis://redis.example:6379"}, "--bus: frames would travel in the clear: use rediss instead of"),
        (
            {"bus": "redis+sentinel://127.0.0.1,10.0.0.6:26379/main"},
            "--bus: frames would travel in the clear: use rediss instead of redis, or set --insecure-bus",
        ),
        ({"bus": "redis://:Hunter2@h/x"}, "--bus: a DB is a number, such as 0, got 'x'"),
        ({"bus": "rediss://redis.example:6379"}, "--bus: replicas know each other by a secret: set --bus-key-file"),
        (
            {"bus": "redis://127.0.0.1:6379", "replica_listen": ":3001"},
            "--replica-listen: others cannot dial every address: set --replica-address too",
        ),
        ({"replica_listen": ":3001"}, "--replica-listen: is about several coordinators as one: set --bus too"),
        ({"cluster_name": "x"}, "--cluster-name: is about several coordinators as one: set --bus too"),
        ({"bus": "dns:r.example:1", "replica_listen": ":1", "bus_key_file": "SHORT"}, "can be guessed"),
    ],
)
def test_replicas_are_said_in_full(flags: dict[str, str], says: str, tmp_path: Path) -> None:
    (tmp_path / "SHORT").write_text("s3cretHunter2")
    (tmp_path / "LONG").write_text("s3cretHunter2" * 3)
    files = ("SHORT", "LONG")
    said = refused({name: str(tmp_path / text) if text in files else text for name, text in flags.items()})
    assert says in said
    assert "Hunter2" not in said


def test_replicas_that_share_a_store_find_their_secret_there() -> None:
    flags = {"bus": "dns:replicas.example:3001", "replica_listen": ":3001", "store": "postgresql://db/tailnet"}
    config = load(flags)
    assert (config.bus, config.bus_secret) == (BusPlace("dns", (("replicas.example", 3001),)), b"")


def test_the_secret_of_the_control_plane(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("s3cretHunter2" * 3 + "\n")
    path.chmod(0o644)
    config = load({"auth_url": "http://control.example/", "auth_secret_file": str(path)})
    assert config.auth_secret == b"s3cretHunter2" * 3
    assert "Hunter2" not in repr(config)
    assert any("others on this machine can read this secret" in notice for notice in config.notices)
    assert any("--auth-url is http" in notice for notice in config.notices)
    path.chmod(0o600)
    config = load({"auth_url": "http://127.0.0.1:80/", "auth_secret_file": str(path)})
    assert not config.notices


def test_the_relay_s_own_file_can_be_pasted_under_its_table(tmp_path: Path) -> None:
    path = tmp_path / "tailnet.toml"
    path.write_text('derp = true\n[relay]\nkeepalive = "50s"\nqueue_depth = 7\n')
    rules = load(file=path).relay
    assert (rules.keepalive_seconds, rules.queue_depth) == (50.0, 7)
    path.write_text("[relay]\nlisten = 1\n")
    assert "'relay.listen': there is no such setting" in refused(file=path)


def test_what_the_relay_s_settings_were_called_before() -> None:
    assert load({"relay_queue_depth": "7"}).relay == load(environ={"TAILNET_QUEUE_DEPTH": "7"}).relay
    assert SETTINGS.by_name["relay_queue_bytes"].flags == ("relay-queue-bytes", "queue-bytes")


def test_lists_and_numbers_of_toml(tmp_path: Path) -> None:
    path = tmp_path / "tailnet.toml"
    path.write_text('listen = ["127.0.0.1:1", ":2"]\navoid_regions = [1, 2]\nmax_connections = 5\n')
    config = load(file=path)
    assert config.listen == (("127.0.0.1", 1), ("", 2))
    assert (config.avoid_regions, config.max_connections) == ((1, 2), 5)


def test_the_stronger_source_wins(tmp_path: Path) -> None:
    path = tmp_path / "tailnet.toml"
    path.write_text("relay_queue_depth = 1\nqueue_bytes = 200000\nderp_region_id = 3\n")
    config = load({"relay_queue_depth": "3"}, {"TAILNET_QUEUE_DEPTH": "2", "TAILNET_QUEUE_BYTES": "300000"}, path)
    assert (config.relay.queue_depth, config.relay.queue_bytes, config.derp_region_id) == (3, 300_000, 3)


def test_a_region_s_score_is_said_once_in_whichever_way() -> None:
    config = load({"region_scores": "1=1.5", "region_weights": "2=4", "prefer_regions": "3"})
    assert config.scores == {1: 1.5, 2: 0.25, 3: 0.5}
    for names in (("region_scores", "region_weights"), ("region_weights", "prefer_regions")):
        given = {name: "5" if name == "prefer_regions" else "5=2" for name in names}
        assert "region 5 has its score by" in refused(given)
    assert "it is called TAILNET_AVOID_REGIONS here" in refused(environ={"TAILNET_DRAIN_REGIONS": "1"})


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "tailnet.toml"
    path.write_text("derp_region_id = 7\n")
    assert load(environ={"TAILNET_CONFIG": str(path)}).derp_region_id == 7


def test_what_others_put_into_the_environment() -> None:
    environ = {
        "TAILNET_PORT": "tcp://10.0.0.1:80",
        "TAILNET_SERVICE_HOST": "10.0.0.1",
        "TAILNET_HTTP_PORT": "tcp://10.0.0.2:80",
        "TAILNET_RELAY_SERVICE_PORT_DERP": "443",
        "TAILNET_RELAY_PORT_443_TCP_ADDR": "10.0.0.3",
        "TAILNET_LISTEN": "",
        "PATH": "x",
    }
    assert load(environ=environ) == CoordinatorConfig()
    assert refused(environ={"TAILNET_PORT": "80"}) == (
        "environment: TAILNET_PORT: there is no such setting: it is called TAILNET_LISTEN here"
    )
    assert "it is called TAILNET_HOSTNAME here" in refused(environ={"TAILNET_DOMAIN": "x.example"})


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"listen": "3000"}, "flags: --listen: wants an address with a port"),
        ({"listen": ""}, "flags: --listen: wants at least one address"),
        ({"stun_listen": "on"}, "flags: --stun-listen: wants an address"),
        ({"region_scores": "1:2"}, "flags: --region-scores: wants REGION=FACTOR"),
        ({"region_scores": "1=0"}, "flags: --region-scores: wants REGION=FACTOR with a factor above 0"),
        ({"region_scores": "1=x"}, "flags: --region-scores: wants REGION=FACTOR"),
        ({"region_scores": "0=1.5"}, "flags: --region-scores: wants a whole number from 1"),
        ({"derp_region_id": "2147483648"}, "flags: --derp-region-id: wants a whole number"),
        ({"derp_region_code": ""}, "flags: --derp-region-code: wants 1 to 64"),
        ({"hostname_suffix": "a b"}, "flags: --hostname-suffix: wants a host name"),
        ({"agent_ping": "5"}, "flags: --agent-ping: wants a duration with its unit"),
        ({"agent_ping": "40s", "agent_inactive": "40s"}, "flags: --agent-inactive: must be longer than --agent-ping"),
        ({"tls_cert": "a.crt"}, "flags: --tls-cert: a certificate needs its key"),
        ({"tls_key": "a.key"}, "flags: --tls-key: a certificate needs its key"),
        ({"announcement_banners": "[1, "}, "flags: --announcement-banners: begins as a JSON list and is none"),
        ({"announcement_banners": "[1]"}, "flags: --announcement-banners: wants banners as tables of message, back"),
        ({"announcement_banners": '[{"mesage": "x"}]'}, "flags: --announcement-banners: wants banners as tables"),
        ({"announcement_banners": '[{"message": "x", "colour": "red"}]'}, "flags: --announcement-banners: wants ban"),
        ({"announcement_banners": '[{"message": ""}]'}, "flags: --announcement-banners: wants a message of 1 to"),
        ({"announcement_banners": '[{"message": 1}]'}, "flags: --announcement-banners: wants a message of 1 to"),
        ({"announcement_banners": "x" * (MAX_BANNER_CHARS + 1)}, "flags: --announcement-banners: wants a message of"),
        ({"announcement_banners": "\x1b[2J"}, "flags: --announcement-banners: wants a message that can be printed"),
        ({"announcement_banners": " \n"}, "flags: --announcement-banners: wants a message that can be printed"),
        (
            {"announcement_banners": '[{"message": "x", "background_color": "red"}]'},
            'flags: --announcement-banners: wants a background_color such as "#004852"',
        ),
        (
            {"announcement_banners": '[{"message": "x", "background_color": "#0048529"}]'},
            'flags: --announcement-banners: wants a background_color such as "#004852"',
        ),
        (
            {"announcement_banners": '[{"message": "x", "enabled": "perhaps"}]'},
            "flags: --announcement-banners: wants true or false",
        ),
        (
            {"announcement_banners": json.dumps([{"message": "x"}] * (MAX_BANNERS + 1))},
            "flags: --announcement-banners: wants a message, or a list of at most 10",
        ),
        ({"access_url": "tailnet.example.com"}, "flags: --access-url: wants a URL"),
        ({"max_connections": "2000000"}, "flags: --max-connections: 2,000,000 are not possible"),
    ],
)
def test_one_mistake_one_line(flags: dict[str, str], line: str) -> None:
    assert refused(flags).startswith(line)


def test_banners_as_tables_and_as_json(tmp_path: Path) -> None:
    path = tmp_path / "tailnet.toml"
    path.write_text(
        '[[announcement_banners]]\nmessage = """one\ntwo"""\nbackground_color = "#0048aF"\n'
        '[[announcement_banners]]\nmessage = "draft"\nenabled = false\n'
    )
    wanted = (Banner("one\ntwo", "#0048aF"), Banner("draft", enabled=False))
    assert load(file=path).announcement_banners == wanted
    items = [{"message": "one\ntwo", "background_color": "#0048aF"}, {"message": "draft", "enabled": False}]
    assert load({"announcement_banners": f" {json.dumps(items)}"}).announcement_banners == wanted
    # The stronger source takes all of them away.
    assert load({"announcement_banners": ""}, file=path).announcement_banners == ()


def test_what_changed_between_two_readings() -> None:
    before = load({"relay_queue_depth": "1", "tls_cert": "a", "tls_key": "b"})
    now = {"relay_rate_keys": f"{KEY}=1", "announcement_banners": "now"}
    wait = {"relay_queue_depth": "2", "tls_cert": "a", "tls_key": "c", "derp": "false", "listen": "127.0.0.1:3000"}
    changes = compare(SETTINGS, before, load(now | wait))
    assert changes.applied == ("--announcement-banners", "--relay-rate-keys")
    assert changes.waiting == ("--derp", "--tls-key", "--relay-queue-depth")
    assert changes.config.announcement_banners == (Banner("now"),)
    assert changes.config.relay == replace(before.relay, rate_by_key={b"\x07" * 32: Rate(1, 0)})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("queue_dept = 1", "'queue_dept': there is no such setting: did you mean queue_depth?"),
        ("queue_depth = 'x'", "queue_depth: wants a whole number"),
        ("queue_depth = ", "is not TOML"),
        ("[relay]\nx = 1", "'relay.x': there is no such setting"),
        ("[nothing]\nx = 1", "'nothing': there is no such setting"),
        ("\0" * (1 << 20) + "\0", "is no settings: it has more than"),
    ],
)
def test_mistakes_in_the_file(text: str, line: str, tmp_path: Path) -> None:
    path = tmp_path / "tailnet.toml"
    path.write_text(text)
    message = refused(file=path)
    assert message.startswith(f"{path}: ")
    assert line in message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot read the settings: No such file" in refused(file=tmp_path / "no.toml")


def test_mistakes_in_the_environment() -> None:
    assert refused(environ={"TAILNET_LISTEM": "x"}) == (
        "environment: TAILNET_LISTEM: there is no such setting: did you mean TAILNET_LISTEN?"
    )
    assert refused(environ={"TAILNET_DEV": "perhaps"}).startswith("environment: TAILNET_DEV: wants true or false")


def test_stun_is_beside_the_listeners_unless_told() -> None:
    assert load({"listen": "127.0.0.1:1,127.0.0.1:2,[::1]:1"}).stun_addresses == (("127.0.0.1", 3478), ("::1", 3478))
    assert load({"stun_listen": "off"}).stun_addresses == ()
    assert load({"stun_listen": "127.0.0.1:0"}).stun_addresses == (("127.0.0.1", 0),)


def test_stun_takes_another_port_only_for_a_try() -> None:
    assert load({"dev": "true"}).stun_may_move
    assert not load().stun_may_move
    assert not load({"dev": "true", "stun_listen": "127.0.0.1:3478"}).stun_may_move


def test_a_store_for_this_run_only() -> None:
    assert load({"dev": "true"}).store == ""
    assert load().store == "sqlite:///tailnet.db"


def test_demo_logins_are_never_put_into_a_store_that_is_kept() -> None:
    """They are printed, and would be good for ever."""
    assert refused({"dev": "true", "store": "sqlite:///tailnet.db"}) == (
        "flags: --store: --dev has a store of its own for each run: leave one of them out, or make users for this one "
        "with `tailnet admin import`"
    )
    assert refused({"dev": "true"}, {"TAILNET_STORE": "sqlite:///x"}).startswith("environment: TAILNET_STORE: --dev")


def test_silence_of_agents() -> None:
    assert load().inactive_seconds == 30
    assert load({"agent_ping": "1s"}).inactive_seconds == 2
    assert load({"agent_inactive": "1m"}).inactive_seconds == 60


def test_rates_and_mesh_of_the_embedded_relay_come_from_their_files(tmp_path: Path) -> None:
    rate, mesh = tmp_path / "rate.json", tmp_path / "mesh.key"
    rate.write_text('{"PerClientRateLimitBytesPerSec": 100000}')
    mesh.write_text("ab" * 32)
    config = load({"relay_rate_config": str(rate), "relay_mesh_psk_file": str(mesh)})
    assert config.relay.rate.bytes_per_second == 100_000
    assert config.relay.mesh_key == MeshKey(b"\xab" * 32)
    assert any("others on this machine can read this secret" in notice for notice in config.notices)


def test_no_mesh_key_is_looked_for(tmp_path: Path) -> None:
    """derper looks into the home directory, and so does the relay that replaces it; a coordinator replaces nobody."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "derp-mesh.key").write_text("ab" * 32)
    assert load(environ={"HOME": str(tmp_path)}).relay.mesh_key is None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"relay_mesh_with": "a"}, "flags: --relay-mesh-with: needs the mesh's key: set --relay-mesh-psk-file"),
        ({"relay_keepalive": "2m"}, "flags: --relay-keepalive: wants a duration from 1s to 110s"),
        ({"relay_rate_config": "/nonexistent"}, "/nonexistent: cannot read the limits"),
    ],
)
def test_what_is_wrong_with_the_embedded_relay_is_called_as_here(flags: dict[str, str], says: str) -> None:
    assert refused(flags).startswith(says)


def test_what_to_know_of_the_embedded_relay_is_called_as_here() -> None:
    assert load({"relay_socket": "/run/s", "relay_allow_keys": ""}).notices == (
        "flags: --relay-allow-keys: is empty: nobody may use this relay",
        "flags: --relay-socket: has no effect without --relay-verify-clients",
    )


# TLS.


@pytest.mark.parametrize("mode", ["letsencrypt", "gcp", "manual"])
def test_the_name_by_which_clients_call_us_gets_the_certificate(mode: str) -> None:
    flags = {"cert_mode": mode, "cert_dir": "/c", "access_url": "https://tailnet.example:8443", "listen": ":443"}
    flags |= {"acme_email": "a@b.c", "acme_eab_kid": "k", "acme_eab_key": "c2Vj"} if mode == "gcp" else {}
    tls = load(flags).tls
    assert tls is not None
    assert (tls.hostname, tls.cert_file) == ("tailnet.example", Path("/c/tailnet.example.crt"))
    assert not tls.require_sni  # health checks come by address
    assert (tls.acme is not None) is (mode != "manual")
    named = load(flags | {"hostname": "other.example"}).tls
    assert named is not None
    assert named.hostname == "other.example"


def test_challenges_come_where_we_listen() -> None:
    flags = {"cert_mode": "letsencrypt", "cert_dir": "/c", "hostname": "tailnet.example", "listen": ":443"}
    config = load(flags)
    assert config.tls is not None
    assert config.tls.acme is not None
    assert (config.tls.acme.challenges, config.http_port) == (("tls-alpn-01",), None)
    both = load(flags | {"http_port": "80"})
    assert both.tls is not None
    assert both.tls.acme is not None
    assert (both.tls.acme.challenges, both.http_port) == (("tls-alpn-01", "http-01"), 80)
    assert "set it to 80" in refused(flags | {"acme_challenge": "http-01"})


def test_files_need_no_name_and_port_443_no_certificate() -> None:
    """A proxy may do TLS under another name."""
    pair = load({"tls_cert": "a.crt", "tls_key": "a.key", "access_url": "https://tailnet.example"})
    assert pair.tls == TlsConfig(Path("a.crt"), Path("a.key"))
    assert load({"listen": ":443"}).tls is None


@pytest.mark.parametrize(
    ("flags", "notice"),
    [
        ({"listen": ":3000"}, "set --access-url"),
        ({"listen": ":3000", "dev": "true"}, "--dev is for this machine"),
        ({"listen": ":3000", "access_url": "http://x.example.com"}, "tokens travel in the clear"),
    ],
)
def test_what_the_operator_should_see(flags: dict[str, str], notice: str) -> None:
    assert any(notice in each for each in load(flags).notices)


def test_nothing_to_say() -> None:
    assert load().notices == ()
    assert load({"listen": ":3000", "access_url": "https://tailnet.example.com"}).notices == ()


def test_connections_are_bounded_by_open_files() -> None:
    config = load_config({}, {}, open_files=1024)
    assert config.max_connections == 768
    assert "raise its limit" in config.connections_remedy


def test_keys_of_secrets_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secrets.keys"
    add_key(path)
    config = load({"secrets_key_file": str(path)})
    assert len(config.secrets_keys) == 1
    assert load().secrets_keys == ()
    assert config.secrets_keys[0].hex() not in repr(config)
    assert repr(config.secrets_keys[0]) not in repr(config)
    add_key(path)
    later = load({"secrets_key_file": str(path)})
    assert later.secrets_keys[1:] == config.secrets_keys
    changes = compare(SETTINGS, config, later)
    assert changes.applied == ("--secrets-key-file",)
    assert changes.config.secrets_keys == later.secrets_keys
    path.chmod(0o644)
    assert any("chmod 600" in notice for notice in load({"secrets_key_file": str(path)}).notices)
    assert "cannot read the secrets keys" in refused({"secrets_key_file": str(tmp_path / "absent")})


def test_a_webhook_is_a_url_and_secrets(tmp_path: Path) -> None:
    path = tmp_path / "webhook.secrets"
    secret, older = ("whsec_" + base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
    path.write_text(f"{secret}\n")
    path.chmod(0o600)
    given = {"webhook_url": "https://hooks.example.com/in", "webhook_secret_file": str(path)}
    config = load(given)
    assert config.webhook == WebhookTarget("https://hooks.example.com/in", (bytes([1]) * 32,))
    assert config.keeps_events
    assert not load().keeps_events
    assert repr(bytes([1]) * 32) not in repr(config)
    path.write_text(f"{secret}\n{older}\n")
    changes = compare(SETTINGS, config, load(given))
    assert (set(changes.applied), changes.waiting) == (
        {"--webhook-url"},
        (),
    ) or "--webhook-secret-file" in changes.applied
    assert changes.config.webhook is not None
    assert len(changes.config.webhook.secrets) == 2
    path.chmod(0o644)
    assert any("chmod 600" in notice for notice in load(given).notices)
    assert any(
        "in the clear" in notice for notice in load({**given, "webhook_url": "http://hooks.example.com"}).notices
    )
    assert not any("in the clear" in notice for notice in load({**given, "webhook_url": "http://127.0.0.1:1"}).notices)
    path.write_text("whsec_x\n")
    text = refused(given)
    assert str(path) in text
    assert "whsec_x" not in text
    assert "--webhook-secret-file too" in refused({"webhook_url": "https://hooks.example.com"})
    assert "--webhook-url too" in refused({"webhook_secret_file": str(path)})
