"""The coordinator's settings: its own rows, then the relay's (layer L2).

A setting's name is its key in the TOML file, `TAILNET_` + the name in capitals its environment variable, with dashes
its flag.  Every row of the relay's table, derp/config/settings.py, is here: as it is where it speaks of whoever listens
(ServerConfig), with `relay_` before its name where it speaks of the embedded relay (RelayRules), and in ABSENT, with
the reason, where it speaks of neither.
"""

import re
from dataclasses import fields
from typing import Final

from derp.config import RelayRules, ServerConfig, parse
from derp.config.setting import Setting, Table
from derp.config.settings import DAY_SECONDS
from derp.config.settings import SETTINGS as RELAY_SETTINGS
from tailnet.config import parse as kinds
from tailnet.config.coordinator import CoordinatorConfig
from tailnet.config.external_auth import providers

RELAY_PREFIX: Final = "relay_"
# Rows of the relay that are none here: why.
ABSENT: Final = {
    "key_file": "the embedded relay's key lies in the store",
    "stun": "stun_listen says whether and where",
    "stun_port": "stun_listen says it",
    "home": "/ is the coordinator's own page",
    "workers": "the embedded relay runs in the coordinator's own process",
    "invitations": "whoever is invited to a coordinator gets a token of its own",
}
# What the embedded relay's settings were called before it had them all.
_FORMER: Final = {"queue_depth": ("queue_depth",), "queue_bytes": ("queue_bytes",)}
_ACCESS_URL: Final = parse.url("http", "https")
_RHYTHM: Final = parse.duration(1, 3_600)

_OWN: Final = (
    Setting(
        "listen",
        parse.listen_addresses,
        "ADDRESS,...",
        "where to serve API, RPC and relay, {default} by default",
        elsewhere=("addr", "address", "port", "http_address"),
    ),
    Setting(
        "stun_listen",
        kinds.off_or_addresses,
        "ADDRESS,...|off",
        "where to answer STUN, port 3478 beside --listen by default",
        elsewhere=("stun", "stun_port"),
    ),
    Setting(
        "store",
        parse.string,
        "URL",
        "the store, {default} by default, made if missing; or postgresql+psycopg://USER@HOST/DATABASE",
        elsewhere=("database", "database_url", "db"),
    ),
    Setting("dev", parse.boolean, "", "try it out: a store for this run only, with a demo user, workspace and agent"),
    Setting(
        "access_url",
        _ACCESS_URL,
        "URL",
        "how clients reach this server; the first --listen by default",
        elsewhere=("url",),
    ),
    Setting("derp", parse.boolean, "", "serve a DERP relay at /derp, {default} by default", "derp_enabled"),
    Setting("derp_region_id", kinds.region_id, "NUMBER", "the region of that relay in the map, {default} by default"),
    Setting("derp_region_code", kinds.text(64), "CODE", "its code, `{default}` by default"),
    Setting("derp_region_name", kinds.text(256), "NAME", "its name, `{default}` by default"),
    Setting("stun_servers", parse.many(parse.address), "HOST:PORT,...", "further STUN servers for that region"),
    Setting(
        "derp_map",
        parse.many(parse.path),
        "FILE,...",
        "DERP maps laid over the embedded relay; watched; null drops a region",
    ),
    Setting("derp_map_url", parse.many(_ACCESS_URL), "URL,...", "the same by URL, below the files; polled"),
    Setting(
        "derp_map_poll",
        parse.duration(1, DAY_SECONDS),
        "DURATION",
        "how often, {default} by default",
        "derp_map_poll_seconds",
    ),
    Setting(
        "region_scores",
        parse.many(kinds.score),
        "REGION=FACTOR,...",
        "2 makes a region look twice as far; read again on SIGHUP",
        reloadable=True,
    ),
    Setting(
        "region_weights",
        parse.many(kinds.score),
        "REGION=N,...",
        "the other way round: N times as near; read again on SIGHUP",
        reloadable=True,
    ),
    Setting(
        "prefer_regions",
        parse.many(kinds.region_id),
        "REGION,...",
        "regions that look twice as near; read again on SIGHUP",
        reloadable=True,
    ),
    Setting(
        "avoid_regions",
        parse.many(kinds.region_id),
        "REGION,...",
        "regions that nobody should choose as home, or keep; read again on SIGHUP",
        reloadable=True,
        elsewhere=("drain_regions",),
    ),
    Setting(
        "steer_by_load",
        parse.many(kinds.region_id),
        "REGION,...",
        "regions that look farther while their relays are full, which /debug/load of each says; read again on SIGHUP",
        reloadable=True,
    ),
    Setting(
        "relays_token_file",
        parse.optional_path,
        "FILE",
        "the bearer token with which relays elsewhere get /api/v2/relays/key-set, the signed set of keys to let in",
        part_of="relays_token",
        reloadable=True,
    ),
    Setting(
        "key_set_life",
        parse.duration(600, 30 * DAY_SECONDS),
        "DURATION",
        "how long relays elsewhere go by a key set without us, {default} by default",
        "key_set_life_seconds",
        reloadable=True,
    ),
    Setting(
        "auth_url",
        _ACCESS_URL,
        "URL",
        "the control plane's answer to who is calling, for tokens that the store does not know: docs/auth.md",
    ),
    Setting(
        "auth_secret_file",
        parse.path,
        "FILE",
        "the secret that its questions are signed with, 32 characters at least",
        part_of="auth_secret",
    ),
    Setting(
        "auth_fail_open",
        parse.boolean,
        "",
        "while it does not answer, let in those whom it knew within ten minutes; nobody by default",
    ),
    Setting(
        "auth_jwks",
        kinds.file_or_url,
        "FILE|URL",
        "the keys of signed tokens (JWK Set), which are then checked here without asking anybody",
    ),
    Setting("auth_issuer", parse.string, "TEXT", "who has to have issued them (iss)"),
    Setting("auth_audience", parse.string, "TEXT", "for whom they have to be (aud)"),
    Setting(
        "auth_leeway",
        parse.duration(0, 600),
        "DURATION",
        "how far their issuer's clock may be off, {default} by default",
        "auth_leeway_seconds",
    ),
    Setting(
        "admin_workspace_access",
        parse.boolean,
        "",
        "administrators may enter every workspace, {default} by default; off: only read and update it",
    ),
    Setting("browser_only", parse.boolean, "", "turn away every client that is no browser"),
    Setting("disable_direct_connections", parse.boolean, "", "tell peers to use relays only"),
    Setting("derp_force_websockets", parse.boolean, "", "tell peers to reach relays by websocket only"),
    Setting("hostname_suffix", kinds.suffix, "NAME", "suffix of workspaces' names on clients, `{default}` by default"),
    Setting(
        "agent_ping",
        _RHYTHM,
        "DURATION",
        "how often agents are asked for a sign of life, {default} by default",
        "agent_ping_seconds",
    ),
    Setting(
        "agent_inactive",
        parse.duration(2, DAY_SECONDS),
        "DURATION",
        "silence after which one is gone, twice that by default",
        "agent_inactive_seconds",
    ),
    Setting(
        "stats_interval",
        parse.duration(1, DAY_SECONDS),
        "DURATION",
        "how often agents report statistics, {default} by default",
        "stats_interval_seconds",
    ),
    Setting(
        "max_node_bytes",
        parse.whole(4 * 1024, 3 * 1024 * 1024),
        "BYTES",
        "the longest node a peer may announce, {default} by default; for a longer one the last one stays",
    ),
    Setting(
        "upgrade_limit",
        parse.whole(1, 1_000_000),
        "NUMBER",
        "peers let in a second, {default} by default; more wait, the oldest first, and get a 503 after 5 s",
    ),
    Setting(
        "max_sockets_per_caller",
        parse.whole(1, 1_000_000),
        "NUMBER",
        "RPC sockets of one agent or user at a time, {default} by default; more get a 429",
    ),
    Setting(
        "max_held_bytes_per_caller",
        parse.whole(1024 * 1024, 1 << 40),
        "BYTES",
        "what the sockets of one may hold in memory, {default} by default; then the fattest is closed",
    ),
    Setting(
        "max_held_bytes",
        parse.whole(0, 1 << 40),
        "BYTES",
        "what all may hold together, by default a quarter of the machine's memory",
    ),
    Setting(
        "max_report_bytes",
        parse.whole(64 * 1024, 1 << 40),
        "BYTES",
        "what one agent may report a minute, {default} by default; above it is answered later",
    ),
    Setting(
        "max_reports",
        parse.whole(60, 1_000_000),
        "NUMBER",
        "reports of one agent a minute, {default} by default; above it is answered later",
    ),
    Setting(
        "max_api_connections",
        parse.whole(1, 1_000_000),
        "NUMBER",
        "HTTP connections of the API at a time, {default} by default; more get a 503",
    ),
    Setting(
        "cors_origins",
        parse.many(kinds.origin),
        "ORIGIN,...",
        "websites whose scripts may use the API, none by default, as https://dash.example.com; read again on SIGHUP",
        reloadable=True,
        elsewhere=("cors", "cors_allowed_origins", "allowed_origins"),
    ),
    Setting(
        "api_rate_limit",
        parse.whole(0, 1_000_000),
        "NUMBER",
        "requests a minute of each user, {default} by default, 0: any number; more get a 429; read again on SIGHUP",
        reloadable=True,
    ),
    Setting(
        "admin_token_file",
        parse.optional_path,
        "FILE",
        "tokens of administrators, NAME:TOKEN a line: opens /api/v2/admin to them; read again on SIGHUP",
        part_of="admin_tokens",
        reloadable=True,
        elsewhere=("admin_token", "admin_tokens"),
    ),
    Setting(
        "admin_listen",
        parse.listen_addresses,
        "ADDRESS,...",
        "where administrators are served, and nowhere else; on --listen by default",
    ),
    Setting(
        "admin_rate_limit",
        parse.whole(0, 10_000_000),
        "NUMBER",
        "requests a minute of each of their tokens, {default} by default, 0: any number; read again on SIGHUP",
        reloadable=True,
    ),
    Setting(
        "keep_audit",
        parse.duration(30 * DAY_SECONDS, 36_600 * DAY_SECONDS),
        "DURATION",
        "how long it is kept what administrators changed, {default} by default; read again on SIGHUP",
        "keep_audit_seconds",
        reloadable=True,
    ),
    Setting(
        "keep_stats",
        parse.duration(3_600, 366 * DAY_SECONDS),
        "DURATION",
        "how long agents' statistics are kept, {default} by default; read again on SIGHUP",
        "keep_stats_seconds",
        reloadable=True,
    ),
    Setting(
        "keep_logs",
        parse.duration(3_600, 3_660 * DAY_SECONDS),
        "DURATION",
        "how long agents' logs are kept, {default} by default; read again on SIGHUP",
        "keep_logs_seconds",
        reloadable=True,
    ),
    Setting(
        "keep_sessions",
        parse.duration(3_600, 3_660 * DAY_SECONDS),
        "DURATION",
        "how long it is kept who was on an agent, {default} by default; read again on SIGHUP",
        "keep_sessions_seconds",
        reloadable=True,
    ),
    Setting(
        "events",
        parse.boolean,
        "",
        "keep what happens to agents, for GET /api/v2/admin/events; on with a webhook; read again on SIGHUP",
        reloadable=True,
    ),
    Setting(
        "keep_events",
        parse.duration(3_600, 366 * DAY_SECONDS),
        "DURATION",
        "how long it is kept what happened to agents, {default} by default; read again on SIGHUP",
        "keep_events_seconds",
        reloadable=True,
    ),
    Setting(
        "webhook_url",
        _ACCESS_URL,
        "URL",
        "who is told what happens to agents; read again on SIGHUP",
        part_of="webhook",
        reloadable=True,
        elsewhere=("webhook", "webhook_endpoint"),
    ),
    Setting(
        "webhook_secret_file",
        parse.path,
        "FILE",
        "what it is signed with: whsec_ and base64, one secret a line, the new one first; read again on SIGHUP",
        part_of="webhook",
        reloadable=True,
        elsewhere=("webhook_secret",),
    ),
    Setting(
        "max_stored_log_bytes",
        parse.whole(1024 * 1024, 1 << 50),
        "BYTES",
        "logs of all agents together, {default} by default, the oldest go first; read again on SIGHUP",
        reloadable=True,
    ),
    Setting(
        "max_waiting_report_bytes",
        parse.whole(1024 * 1024, 1 << 40),
        "BYTES",
        "reports that wait in memory while the store is away, {default} by default",
    ),
    Setting(
        "announcement_banners",
        kinds.banners,
        "MESSAGE|JSON",
        "what agents show at log-in, nothing by default; read again on SIGHUP",
        reloadable=True,
    ),
    Setting(
        "identity_anchors",
        parse.path,
        "DIR",
        "the clouds' certificates and keys, by which agents prove their instance; nobody by default; files are read "
        "again on SIGHUP",
    ),
    Setting(
        "external_auth",
        providers,
        "JSON",
        "where users link their accounts, as tables [[external_auth]], nowhere by default; wants --secrets-key-file; "
        "read again on SIGHUP",
        part_of="external_auth",
        reloadable=True,
    ),
    Setting(
        "external_auth_call_out",
        parse.boolean,
        "",
        "ask --auth-url too where users link their accounts; wants --secrets-key-file",
    ),
    Setting(
        "secrets_key_file",
        parse.path,
        "FILE",
        "keys that encrypt users' tokens and private keys in the store, the first one; without it none is kept; read "
        "again on SIGHUP",
        part_of="secrets_keys",
        reloadable=True,
    ),
    Setting(
        "bus",
        kinds.bus,
        "store|redis://HOST:PORT|redis+sentinel://...|redis+cluster://...|static:HOST:PORT,...|dns:NAME:PORT",
        "how several coordinators find each other and serve as one, alone by default: docs/replicas.md",
    ),
    Setting(
        "bus_key_file",
        parse.path,
        "FILE",
        "the secret that all of them prove to have, 32 characters at least; by default one in the store they share",
        part_of="bus_secret",
    ),
    Setting("cluster_name", kinds.text(64), "NAME", "what they are called together, `{default}` by default"),
    Setting("replica_name", kinds.text(64), "NAME", "what this one is called, the machine's name by default"),
    Setting(
        "replica_listen",
        kinds.replica_listen,
        "ADDRESS|unix:PATH,...",
        "where others link with this one, over TLS with that secret; nowhere by default",
    ),
    Setting(
        "replica_address",
        parse.address,
        "HOST:PORT",
        "how others reach it, the first --replica-listen by default",
    ),
    Setting(
        "replica_notice",
        parse.duration(0, 3600),
        "DURATION",
        "after SIGTERM, how long it only says that it is not ready, so that balancers notice, {default} by default",
        "replica_notice_seconds",
        reloadable=True,
    ),
    Setting(
        "replica_drain",
        parse.duration(0, 3600),
        "DURATION",
        "then, how long peers are sent to the others: a sixtieth a second, more if this is short; {default} by default",
        "replica_drain_seconds",
        reloadable=True,
    ),
    Setting(
        "insecure_bus",
        parse.boolean,
        "",
        "let frames of replicas travel in the clear to a Redis elsewhere, for which rediss is",
    ),
    Setting(
        "http_port",
        parse.whole(-1, 65535),
        "PORT",
        "plain HTTP beside TLS, for redirects and challenges; -1, none, by default",
        part_of="http_port",
    ),
)
# Where a shared row means a little else here.
_MEANINGS: Final = {
    "hostname": "our name in certificates, that of --access-url by default",
    "cert_mode": "manual: <cert-dir>/<hostname>.crt and .key, read again when they change; letsencrypt: kept there and "
    "renewed; gcp: the same from Google",
    "tls_self_signed": "TLS with a generated certificate for --hostname, kept in --cert-dir if given; the DERP map has "
    "its pin, API clients need it as an authority",
    "drain": "after SIGTERM, how long peers are sent away in order, {default} by default",
    "debug_allow": "who may see /metrics and /debug/, loopback by default",
}


def _shared() -> list[Setting]:
    """The rows of whoever listens that have not a meaning of their own here."""
    attributes, own = {each.name for each in fields(ServerConfig)}, {row.name for row in _OWN}
    return [
        row.shared(meaning=_MEANINGS.get(row.name, row.meaning))
        for row in RELAY_SETTINGS
        if row.path in attributes and row.name not in own
    ]


def _embedded() -> list[Setting]:
    """The rows of the embedded relay; flags that their help names are called as they are here."""
    attributes = {each.name for each in fields(RelayRules)}
    rows = [row for row in RELAY_SETTINGS if row.path in attributes]
    flags = re.compile("|".join(rf"{row.flag}(?![a-z-])" for row in rows))
    prefix = f"--{RELAY_PREFIX[:-1]}-"
    return [
        row.embedded(
            RELAY_PREFIX,
            "relay",
            meaning=flags.sub(lambda flag: prefix + flag[0][2:], row.meaning),
            former=_FORMER.get(row.name, ()),
        )
        for row in rows
    ]


SETTINGS: Final = Table("TAILNET_", CoordinatorConfig, (*_OWN, *_shared(), *_embedded()))
