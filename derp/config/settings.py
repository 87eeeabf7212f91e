"""What each setting is called, in one table (layer L2).

A setting's name is its key in the TOML file; `DERP_` + the name in capitals is its environment variable; with dashes
it is the long flag.  derper's flags are the short ones beside it.  cli.py makes its options from this table, load.py
reads files and environment by it, and the README's table of flags is tested against it.
"""

from dataclasses import dataclass
from typing import Any, Final

from derp.config import parse
from derp.config.parse import Parser

ENVIRONMENT_PREFIX: Final = "DERP_"
DAY_SECONDS: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: names, kind, and one sentence of help (with the default, where it is not simply off)."""

    name: str
    parse: Parser[Any]
    metavar: str
    meaning: str
    alias: str = ""  # a second flag: derper's name, where it is not the long one
    from_derper: bool = False

    @property
    def is_switch(self) -> bool:
        """Whether the flag alone means true."""
        return self.parse is parse.boolean

    @property
    def environment(self) -> str:
        """Its environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def flags(self) -> tuple[str, ...]:
        """Its flags without dashes, the long one first.  One dash and two mean the same, as in Go."""
        long = self.name.replace("_", "-")
        return (long, self.alias) if self.alias else (long,)

    @property
    def shown_flag(self) -> str:
        """How messages call it on the command line."""
        return "--" + "/-".join(self.flags)


def _setting(
    name: str, parser: Parser[Any], metavar: str, meaning: str, *, alias: str = "", derper: bool = False
) -> Setting:
    return Setting(name, parser, metavar, meaning, alias, derper)


_boolean, _path = parse.boolean, parse.path

SETTINGS: Final = (
    _setting(
        "listen",
        parse.many(parse.address),
        "ADDRESS,...",
        "where to serve, :443 by default; TLS on port 443 and with a certificate, else plain HTTP",
        alias="a",
        derper=True,
    ),
    _setting(
        "dev",
        _boolean,
        "",
        "try it out: plain HTTP on :3340 with a fresh key; anything given beside it wins",
        derper=True,
    ),
    _setting(
        "hostname",
        parse.optional(parse.own_host_name),
        "NAME",
        "our name or IP address, for certificates and maps",
        derper=True,
    ),
    _setting(
        "key_file",
        parse.optional_path,
        "FILE",
        'our private key as JSON {"PrivateKey": ...}, made if missing; /var/lib/derper/derper.key by default for root',
        alias="c",
        derper=True,
    ),
    # Certificates.
    _setting(
        "cert_mode",
        parse.one_of("manual", "letsencrypt", "gcp"),
        "MODE",
        "manual: <cert-dir>/<hostname>.crt and .key, read again when they change; letsencrypt: kept there and renewed, "
        "the default on port 443 with a --hostname; gcp: the same from Google",
        alias="certmode",
        derper=True,
    ),
    _setting(
        "cert_dir",
        _path,
        "DIR",
        "where certificates lie; ~/.cache/tailscale/derper-certs by default",
        alias="certdir",
        derper=True,
    ),
    _setting("tls_cert", _path, "FILE", "certificate chain as PEM, leaf first; with --tls-key this is TLS on any port"),
    _setting("tls_key", _path, "FILE", "its private key as PEM"),
    _setting(
        "tls_self_signed",
        _boolean,
        "",
        "TLS with a generated certificate for --hostname, kept in --cert-dir if given; a map snippet has its pin",
        alias="dev-tls",
    ),
    _setting(
        "acme_email", parse.optional(parse.email), "ADDRESS", "contact of the account at the authority", derper=True
    ),
    _setting(
        "acme_challenge",
        parse.one_of("auto", "tls-alpn-01", "http-01", "dns-01"),
        "auto|tls-alpn-01|http-01|dns-01",
        "how the authority sees that the name is ours: at port 443 of --hostname (tls-alpn-01), at its port 80 "
        "(http-01), or in DNS (dns-01); auto: dns-01 if there is a hook, else 443, then 80",
    ),
    _setting(
        "acme_ip_certs",
        _boolean,
        "",
        "a certificate of some days for a --hostname that is an IP address, with letsencrypt",
        derper=True,
    ),
    _setting(
        "acme_dns_hook",
        parse.command,
        "COMMAND",
        "for dns-01: run as COMMAND add|remove NAME VALUE, to publish a TXT record",
    ),
    _setting(
        "acme_directory_url",
        parse.url("https"),
        "URL",
        "another authority that speaks ACME, in place of the one of --cert-mode",
    ),
    _setting(
        "acme_eab_kid", parse.optional(parse.string), "ID", "external account binding: the key's name", derper=True
    ),
    _setting("acme_eab_key", parse.base64_secret, "KEY", "external account binding: the key in base64", derper=True),
    # Beside DERP.
    _setting(
        "http_port", parse.whole(-1, 65535), "PORT", "plain HTTP beside TLS, 80 by default; -1: none", derper=True
    ),
    _setting("stun", _boolean, "", "answer STUN on the addresses of --listen, true by default", derper=True),
    _setting("stun_port", parse.port, "PORT", "UDP port of STUN, 3478 by default", derper=True),
    _setting("derp", _boolean, "", "relay packets, true by default; false leaves STUN and bootstrap DNS", derper=True),
    _setting(
        "home",
        parse.home_page,
        "blank|URL",
        "what / shows: our page by default, an empty page, or a redirect",
        derper=True,
    ),
    _setting(
        "bootstrap_dns_names",
        parse.many(parse.host_name),
        "NAME,...",
        "names that /bootstrap-dns resolves",
        derper=True,
    ),
    _setting(
        "unpublished_bootstrap_dns_names",
        parse.many(parse.dns_name_with_rollout),
        "NAME[/TXT],...",
        "the same, answered only when asked for by name; TXT holds the rollout percentage",
        derper=True,
    ),
    # Mesh.
    _setting("mesh_psk_file", parse.optional_path, "FILE", "the key of the region's mesh, 64 hex digits", derper=True),
    _setting(
        "mesh_with",
        parse.many(parse.mesh_peer),
        "HOST[/DIALHOST],...",
        "relays of the same region; we ourselves may be among them",
        derper=True,
    ),
    # Deadlines.
    _setting(
        "tcp_write_timeout",
        parse.duration(0, DAY_SECONDS),
        "DURATION",
        "close a client that takes nothing for so long, 2s by default; 0: never",
        derper=True,
    ),
    _setting(
        "mesh_write_timeout", parse.duration(0, DAY_SECONDS), "DURATION", "the same for a mesh peer, 30s by default"
    ),
    _setting(
        "tcp_user_timeout",
        parse.duration(0, DAY_SECONDS),
        "DURATION",
        "close when sent bytes stay unacknowledged, 15s by default; 0: as the kernel does",
        derper=True,
    ),
    # The kernel takes whole seconds from 1 to 32767.
    _setting(
        "tcp_keepalive_time",
        parse.duration(1, 32_767),
        "DURATION",
        "TCP keep-alive of silent connections, 10m by default",
        derper=True,
    ),
    _setting("handshake_timeout", parse.duration(1, 600), "DURATION", "from accept to login, 10s by default"),
    # Above 110 s, jitter included, stock clients hang up: they wait 120 s.
    _setting(
        "keepalive", parse.duration(1, 110), "DURATION", "DERP keep-alive, 60s by default plus up to 5s per client"
    ),
    _setting(
        "drain",
        parse.duration(0, 3600),
        "DURATION",
        "after SIGTERM, how long clients are sent away in order, 25s by default",
    ),
    # Load.
    _setting(
        "accept_connection_limit",
        parse.rate,
        "NUMBER",
        "new connections per second, 5000 by default; inf: no limit",
        derper=True,
    ),
    _setting(
        "accept_connection_burst",
        parse.whole(1, (1 << 63) - 1),
        "NUMBER",
        "how many may come at once, 10000 by default",
        derper=True,
    ),
    _setting(
        "max_connections",
        parse.whole(1, 10_000_000),
        "NUMBER",
        "clients at a time, 100000 by default, never above the limit of open files",
    ),
    _setting("queue_depth", parse.whole(1, 65_536), "PACKETS", "packets kept for a slow reader, 512 by default"),
    # Below 128 KiB a single packet of the largest size would hardly fit.
    _setting(
        "queue_bytes", parse.whole(128 * 1024, 1 << 30), "BYTES", "bytes kept for a slow reader, 2 MiB by default"
    ),
    _setting(
        "rate_config", parse.optional_path, "FILE", "limits per client as JSON, read again on SIGHUP", derper=True
    ),
    _setting(
        "rate_keys",
        parse.many(parse.key_rate),
        "NODEKEY=BYTES[/BURST],...",
        "other limits for some clients, in bytes per second; 0: none",
    ),
    # Who may what.
    _setting(
        "verify_clients",
        _boolean,
        "",
        "only clients that the tailscaled of this machine knows may come in",
        derper=True,
    ),
    _setting(
        "socket",
        parse.optional(parse.socket_path),
        "PATH",
        "that tailscaled's socket, /var/run/tailscale/tailscaled.sock by default",
        derper=True,
    ),
    _setting(
        "verify_client_url",
        parse.optional(parse.url("http", "https")),
        "URL",
        "asked by POST whether a client may come in",
        derper=True,
    ),
    _setting(
        "verify_client_url_fail_open",
        _boolean,
        "",
        "let clients in while that URL does not answer; false by default (derper: true)",
        derper=True,
    ),
    _setting(
        "allow_keys",
        parse.many(parse.node_key),
        "NODEKEY,...",
        "only these clients may come in; where several checks are set each has to allow, in this order: --deny-keys, "
        "--allow-keys, --verify-clients, --verify-client-url",
    ),
    _setting("deny_keys", parse.many(parse.node_key), "NODEKEY,...", "these clients may not, whatever else is set"),
    _setting("debug_allow", parse.many(parse.network), "NETWORK,...", "who may see /debug/, loopback by default"),
    _setting(
        "trusted_proxies",
        parse.many(parse.network),
        "NETWORK,...",
        "whose X-Forwarded-For is believed, nobody's by default",
    ),
    # Log.
    _setting(
        "log_format",
        parse.one_of("auto", "text", "json"),
        "auto|text|json",
        "auto is text on a terminal, else JSON lines",
    ),
    _setting("log_level", parse.one_of("debug", "info", "warning", "error"), "LEVEL", "info by default"),
)
BY_NAME: Final = {setting.name: setting for setting in SETTINGS}


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
