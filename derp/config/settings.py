"""The relay's settings: one row each (layer L2).

A setting's name is its key in the TOML file; `DERP_` + the name in capitals is its environment variable; with dashes
it is the long flag.  derper's flags are the short ones beside it.  cli.py makes its options from this table, load.py
reads files and environment by it, and the README's table of flags is tested against it.

The coordinator takes over every row whose attribute is one of ServerConfig, and embeds under `relay_` every row whose
attribute is one of RelayRules: a new row needs nothing else to be a setting of both.
"""

from dataclasses import dataclass
from typing import Final

from derp.config import parse
from derp.config.relay import RelayConfig
from derp.config.setting import Setting, Table

DAY_SECONDS: Final = 86_400.0
_boolean, _path = parse.boolean, parse.path

_LISTENING: Final = (
    Setting(
        "listen",
        parse.listen_addresses,
        "ADDRESS,...",
        "where to serve, {default} by default; TLS on port 443 and with a certificate, else plain HTTP",
        alias="a",
        from_derper=True,
        elsewhere=("addr", "address", "port"),
    ),
    Setting(
        "dev",
        _boolean,
        "",
        "try it out: plain HTTP on :3340 with a fresh key, STUN on a free port if its own is taken; anything given "
        "beside it wins",
        from_derper=True,
    ),
    Setting(
        "hostname",
        parse.optional(parse.own_host_name),
        "NAME",
        "our name or IP address, for certificates and maps",
        from_derper=True,
        elsewhere=("domain", "host", "host_name", "server_name"),
    ),
    Setting(
        "key_file",
        parse.optional_path,
        "FILE",
        'our private key as JSON {"PrivateKey": ...}, made if missing; /var/lib/derper/derper.key by default for root',
        part_of="private_key",
        alias="c",
        from_derper=True,
        elsewhere=("config_path", "key", "private_key"),
    ),
)
_CERTIFICATES: Final = (
    Setting(
        "cert_mode",
        parse.OneOf("manual", "letsencrypt", "gcp"),
        "MODE",
        "manual: <cert-dir>/<hostname>.crt and .key, read again when they change; letsencrypt: kept there and renewed, "
        "the default on port 443 with a --hostname; gcp: the same from Google",
        part_of="tls",
        alias="certmode",
        from_derper=True,
        elsewhere=("certmode",),
    ),
    Setting(
        "cert_dir",
        _path,
        "DIR",
        "where certificates lie; ~/.cache/tailscale/derper-certs by default",
        part_of="tls",
        alias="certdir",
        from_derper=True,
        elsewhere=("certdir", "certs", "cert_path"),
    ),
    Setting(
        "tls_cert",
        _path,
        "FILE",
        "certificate chain as PEM, leaf first, read again when it changes; with --tls-key this is TLS on any port",
        part_of="tls",
        elsewhere=("cert", "cert_file", "cert_fullchain"),
    ),
    Setting("tls_key", _path, "FILE", "its private key as PEM", part_of="tls", elsewhere=("cert_privkey",)),
    Setting(
        "tls_self_signed",
        _boolean,
        "",
        "TLS with a generated certificate for --hostname, kept in --cert-dir if given; a map snippet has its pin",
        part_of="tls",
        alias="dev-tls",
    ),
    Setting(
        "tls_records",
        parse.OneOf("openssl", "own"),
        "openssl|own",
        "who encrypts after the handshake of TLS 1.3, openssl by default; own takes a sixth of the memory and lets "
        "SIGUSR2 move clients with their connections, and nobody outside has reviewed it yet (docs/tls-records.md)",
        part_of="tls",
    ),
    Setting(
        "acme_email",
        parse.optional(parse.email),
        "ADDRESS",
        "contact of the account at the authority",
        part_of="tls",
        from_derper=True,
        elsewhere=("email", "letsencrypt_email"),
    ),
    Setting(
        "acme_challenge",
        parse.OneOf("auto", "tls-alpn-01", "http-01", "dns-01"),
        "auto|tls-alpn-01|http-01|dns-01",
        "how the authority sees that the name is ours: at port 443 of --hostname (tls-alpn-01), at its port 80 "
        "(http-01), or in DNS (dns-01); auto: dns-01 if there is a hook, else 443, then 80",
        part_of="tls",
    ),
    Setting(
        "acme_ip_certs",
        _boolean,
        "",
        "a certificate of some days for a --hostname that is an IP address, with letsencrypt",
        part_of="tls",
        from_derper=True,
    ),
    Setting(
        "acme_dns_hook",
        parse.command,
        "COMMAND",
        "for dns-01: run as COMMAND add|remove NAME VALUE, to publish a TXT record",
        part_of="tls",
    ),
    Setting(
        "acme_directory_url",
        parse.url("https"),
        "URL",
        "another authority that speaks ACME, in place of the one of --cert-mode",
        part_of="tls",
    ),
    Setting(
        "acme_eab_kid",
        parse.optional(parse.string),
        "ID",
        "external account binding: the key's name",
        part_of="tls",
        from_derper=True,
    ),
    Setting(
        "acme_eab_key",
        parse.base64_secret,
        "KEY",
        "external account binding: the key in base64",
        part_of="tls",
        from_derper=True,
    ),
)
_BESIDE_DERP: Final = (
    Setting(
        "http_port",
        parse.whole(-1, 65535),
        "PORT",
        "plain HTTP beside TLS, 80 by default; -1: none",
        part_of="http_port",
        from_derper=True,
    ),
    Setting(
        "stun",
        _boolean,
        "",
        "answer STUN on the addresses of --listen, {default} by default",
        "stun_enabled",
        from_derper=True,
        elsewhere=("stun_enable", "run_stun", "enable_stun"),
    ),
    Setting("stun_port", parse.port, "PORT", "UDP port of STUN, {default} by default", from_derper=True),
    Setting("quic", _boolean, "", "serve DERP over QUIC too, by UDP on the ports of --listen, {default} by default"),
    Setting(
        "derp",
        _boolean,
        "",
        "relay packets, {default} by default; false leaves STUN and bootstrap DNS",
        "derp_enabled",
        from_derper=True,
        elsewhere=("derp_enable", "run_derp", "enable_derp"),
    ),
    Setting(
        "home",
        parse.home_page,
        "blank|URL",
        "what / shows: our page by default, an empty page, or a redirect",
        from_derper=True,
        reloadable=True,
    ),
    Setting(
        "bootstrap_dns_names",
        parse.many(parse.host_name),
        "NAME,...",
        "names that /bootstrap-dns resolves",
        from_derper=True,
        elsewhere=("bootstrap_dns",),
    ),
    Setting(
        "unpublished_bootstrap_dns_names",
        parse.many(parse.dns_name_with_rollout),
        "NAME[/TXT],...",
        "the same, answered only when asked for by name; TXT holds the rollout percentage",
        from_derper=True,
        elsewhere=("unpublished_dns",),
    ),
)
_MESH: Final = (
    Setting(
        "mesh_psk_file",
        parse.optional_path,
        "FILE",
        "the key of the region's mesh, 64 hex digits",
        part_of="mesh_key",
        from_derper=True,
        elsewhere=("mesh_psk", "mesh_pskfile", "mesh_key"),
    ),
    Setting(
        "mesh_with",
        parse.many(parse.mesh_peer),
        "HOST[/DIALHOST],...",
        "relays of the same region; we ourselves may be among them",
        from_derper=True,
    ),
)
_DEADLINES: Final = (
    Setting(
        "tcp_write_timeout",
        parse.duration(0, DAY_SECONDS),
        "DURATION",
        "close a client that takes nothing for so long, {default} by default; 0: never",
        "tcp_write_timeout_seconds",
        from_derper=True,
        reloadable=True,
    ),
    Setting(
        "mesh_write_timeout",
        parse.duration(0, DAY_SECONDS),
        "DURATION",
        "the same for a mesh peer, {default} by default",
        "mesh_write_timeout_seconds",
        reloadable=True,
    ),
    Setting(
        "tcp_user_timeout",
        parse.duration(0, DAY_SECONDS),
        "DURATION",
        "close when sent bytes stay unacknowledged, {default} by default; 0: as the kernel does",
        "tcp_user_timeout_seconds",
        from_derper=True,
    ),
    # The kernel takes whole seconds from 1 to 32767.
    Setting(
        "tcp_keepalive_time",
        parse.duration(1, 32_767),
        "DURATION",
        "TCP keep-alive of silent connections, {default} by default",
        "tcp_keepalive_seconds",
        from_derper=True,
    ),
    Setting(
        "handshake_timeout",
        parse.duration(1, 600),
        "DURATION",
        "from accept to login, {default} by default",
        "handshake_timeout_seconds",
        reloadable=True,
    ),
    # Above 110 s, jitter included, stock clients hang up: they wait 120 s.
    Setting(
        "keepalive",
        parse.duration(1, 110),
        "DURATION",
        "DERP keep-alive, {default} by default, and some seconds more so that clients take turns",
        "keepalive_seconds",
    ),
    Setting(
        "drain",
        parse.duration(0, 3600),
        "DURATION",
        "after SIGTERM, how long clients are sent away in order, {default} by default",
        "drain_seconds",
        reloadable=True,
    ),
    Setting(
        "self_check",
        _boolean,
        "",
        "send a packet through our own port each second, and leave probes (STUN, latency check) unanswered while it "
        "does not come back or the relay is unwell otherwise; {default} by default",
    ),
)
_LOAD: Final = (
    Setting(
        "workers",
        parse.worker_count,
        "NUMBER|auto",
        "processes that share the ports, for a machine with many cores, {default} by default; auto: one per core",
    ),
    Setting(
        "accept_connection_limit",
        parse.rate,
        "NUMBER",
        "new connections per second, {default} by default; inf: no limit",
        from_derper=True,
        reloadable=True,
    ),
    Setting(
        "accept_connection_burst",
        parse.whole(1, (1 << 63) - 1),
        "NUMBER",
        "how many may come at once, {default} by default",
        from_derper=True,
        reloadable=True,
    ),
    Setting(
        "max_connections",
        parse.whole(1, 10_000_000),
        "NUMBER",
        "connections at a time, {default} by default, never above the limit of open files",
        part_of="max_connections",
        reloadable=True,
    ),
    Setting(
        "queue_depth",
        parse.whole(1, 65_536),
        "PACKETS",
        "packets kept for a slow reader, {default} by default",
    ),
    # Below 128 KiB a single packet of the largest size would hardly fit.
    Setting(
        "queue_bytes",
        parse.whole(128 * 1024, 1 << 30),
        "BYTES",
        "bytes kept for a slow reader, {default} by default",
    ),
    Setting(
        "queue_total",
        parse.whole(0, 1 << 50),
        "BYTES",
        "bytes kept for all slow readers together; 0 means a quarter of this machine's memory",
        "queue_total_bytes",
    ),
    # Below twice what a queue holds anyway (relay/queue.py: TARGET_SECONDS) packets that only wait for their turn would
    # be lost; above 10 s clients have sent everything again.
    Setting(
        "queue_delay",
        parse.duration(0.05, 10),
        "DURATION",
        "how long a packet waits at most for a slow reader for whom others send too, {default} by default",
        "queue_delay_seconds",
    ),
    Setting(
        "rate_config",
        parse.optional_path,
        "FILE",
        "limits per client as JSON, read again on SIGHUP",
        part_of="rate",
        reloadable=True,
        from_derper=True,
    ),
    Setting(
        "rate_keys",
        parse.key_rates,
        "NODEKEY=BYTES[/BURST],...",
        "other limits for some clients, in bytes per second; 0: none",
        "rate_by_key",
        reloadable=True,
    ),
    Setting(
        "limits",
        parse.optional_path,
        "FILE",
        "rates and quotas of clients, tenants and the whole relay, and weights of tenants, as TOML; docs/limits.md",
        part_of="limits",
        reloadable=True,
    ),
    Setting(
        "ledger",
        parse.optional_path,
        "FILE",
        "what each key and tenant carries on each day, an SQLite database; `derp ledger export` signs it",
    ),
    Setting(
        "ledger_days",
        parse.whole(1, 3660),
        "DAYS",
        "how many days of it are kept, {default} by default",
    ),
)
_WHO_MAY_WHAT: Final = (
    Setting(
        "verify_clients",
        _boolean,
        "",
        "only clients that the tailscaled of this machine knows may come in",
        from_derper=True,
    ),
    Setting(
        "socket",
        parse.optional(parse.socket_path),
        "PATH",
        "that tailscaled's socket, {default} by default",
        "tailscaled_socket",
        from_derper=True,
    ),
    Setting(
        "verify_client_url",
        parse.optional(parse.url("http", "https")),
        "URL",
        "asked by POST whether a client may come in",
        from_derper=True,
    ),
    Setting(
        "verify_client_url_fail_open",
        _boolean,
        "",
        "let clients in while that URL does not answer; {default} by default (derper: true)",
        from_derper=True,
        elsewhere=("verify_fail_open",),
    ),
    Setting(
        "allow_keys",
        parse.node_keys,
        "NODEKEY,...",
        "only these clients may come in; where several checks are set each has to allow, in this order: --deny-keys, "
        "--allow-keys, --verify-clients, --verify-client-url; the last two are not asked about keys in --key-set",
        reloadable=True,
    ),
    Setting(
        "deny_keys", parse.node_keys, "NODEKEY,...", "these clients may not, whatever else is set", reloadable=True
    ),
    Setting(
        "admission_keys",
        parse.optional_path,
        "FILE",
        "public keys of issuers, one a line: clients come in by tickets and key sets that these have signed",
        part_of="issuers",
    ),
    Setting(
        "key_set",
        parse.optional(parse.url_or_path),
        "URL|FILE",
        "who may come in, signed by one of --admission-keys: followed, and good until its own end; about keys that are "
        "not in it others are asked, if that is set, or they are refused",
    ),
    Setting("key_set_file", parse.optional_path, "FILE", "where the last good key set of a URL is kept"),
    Setting(
        "key_set_token_file",
        parse.optional_path,
        "FILE",
        "what the URL of the key set wants as a bearer token",
        part_of="key_set_token",
    ),
    Setting(
        "invitations",
        parse.optional_path,
        "FILE",
        "invitations that `derp invite` makes, an SQLite database: who shows one comes in, whatever his key",
    ),
    Setting(
        "admission_log",
        parse.optional_path,
        "FILE",
        "who was let in, who was not, and why, as lines that `derp admission check-log` can check later",
    ),
    Setting(
        "open",
        _boolean,
        "",
        "let strangers use this relay; without it a relay with a new key and without admission starts only on private "
        "addresses",
    ),
    Setting(
        "debug_allow",
        parse.many(parse.network),
        "NETWORK,...",
        "who may see /debug/, loopback by default",
        reloadable=True,
    ),
    Setting(
        "trusted_proxies",
        parse.many(parse.network),
        "NETWORK,...",
        "whose X-Forwarded-For is believed, nobody's by default",
        reloadable=True,
    ),
)
_LOG: Final = (
    Setting(
        "log_format",
        parse.OneOf("auto", "text", "json"),
        "auto|text|json",
        "auto is text on a terminal, else JSON lines",
    ),
    Setting(
        "log_level", parse.OneOf("debug", "info", "warning", "error"), "LEVEL", "{default} by default", reloadable=True
    ),
)

SETTINGS: Final = Table(
    "DERP_",
    RelayConfig,
    (*_LISTENING, *_CERTIFICATES, *_BESIDE_DERP, *_MESH, *_DEADLINES, *_LOAD, *_WHO_MAY_WHAT, *_LOG),
)


@dataclass(frozen=True, slots=True)
class Refused:
    """A flag of derper that we do not have.  The values in `harmless` ask for nothing and are accepted."""

    flag: str
    instead: str
    harmless: tuple[str, ...] = ("",)
    is_switch: bool = False


_NO_SETEC = "secrets come from files here: use --mesh-psk-file"
REFUSED: Final = (
    Refused("ace", "there is no ACE server here: leave it out", ("false",), is_switch=True),
    Refused("secrets-url", _NO_SETEC),
    Refused("secrets-path-prefix", _NO_SETEC),
    Refused("secrets-cache-dir", _NO_SETEC),
)
