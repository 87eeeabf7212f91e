"""From what was given to what a coordinator is told (layer L2)."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

from derp.config import RelayRules, TlsConfig
from derp.config.files import load_token
from derp.config.load import (
    check_mesh,
    connection_limit,
    http_port,
    is_local,
    listen_addresses,
    relay_attributes,
    tell_about_rules,
    tell_if_readable,
)
from derp.config.sources import Given, read_file, read_sources
from derp.config.tls import read_tls
from derp.map import is_unspecified
from derp.text import error_text
from tailnet.config.admin_tokens import load_admin_tokens
from tailnet.config.coordinator import CoordinatorConfig, WebhookTarget
from tailnet.config.external_auth import Provider, is_in_the_clear, with_secrets
from tailnet.config.key_file import read_key_file
from tailnet.config.redis_url import RedisPlace
from tailnet.config.settings import RELAY_PREFIX, SETTINGS
from tailnet.errors import ConfigError
from tailnet.signatures import parse_secrets

_NO_HTTP: Final = -1
_OF_THE_BUS: Final = (
    "bus_key_file",
    "cluster_name",
    "replica_name",
    "replica_listen",
    "replica_address",
    "replica_notice",
    "replica_drain",
    "insecure_bus",
)
# 128 bits in hex digits.
MIN_SECRET_BYTES: Final = 32


def load_config(
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    config_file: str | None = None,
    *,
    open_files: int | None = None,
) -> CoordinatorConfig:
    """Read all sources.

    `flags`: text by setting name, as it stood on the command line.  `environ`: the environment, os.environ if None.
    `config_file`: the TOML file; if None, the one that TAILNET_CONFIG names.  `open_files`: how many descriptors this
    process may have; the hard limit if None.  Raises ConfigError.
    """
    given = read_sources(SETTINGS, flags or {}, os.environ if environ is None else environ, config_file)
    attributes = given.attributes()
    attributes["listen"] = listen_addresses(given, CoordinatorConfig.listen)
    attributes["tls"] = _tls(given, attributes["listen"])
    attributes["http_port"] = http_port(given, _NO_HTTP, has_tls=attributes["tls"] is not None)
    attributes |= connection_limit(given, open_files)
    attributes["relay"] = _relay(given)
    attributes["secrets_keys"] = _secrets_keys(given)
    attributes["webhook"] = _webhook(given)
    attributes["external_auth"] = _external_auth(given)
    attributes |= _administration(given)
    attributes["auth_secret"] = _auth_secret(given)
    attributes["bus_secret"] = _bus_secret(given)
    if given.get("relays_token_file") is not None:
        tell_if_readable(given.get("relays_token_file"), given)
        attributes["relays_token"] = load_token(given.get("relays_token_file"))
    _check_steering(given)
    _check_signed(given)
    if given.get("dev"):
        _check_dev(given)
        attributes |= {"store": "", "stun_may_move": "stun_listen" not in given}
    config = CoordinatorConfig(**attributes)
    if config.inactive_seconds <= config.agent_ping_seconds:
        given.fail("agent_inactive", f"must be longer than --agent-ping ({config.agent_ping_seconds:g}s)")
    given.notices += _notices(config)
    return replace(config, notices=tuple(given.notices), given=given.values())


def _check_steering(given: Given) -> None:
    named: dict[int, str] = {}
    for name in ("region_scores", "region_weights", "prefer_regions"):
        for each in given.get(name, ()):
            region_id = each[0] if isinstance(each, tuple) else each
            before = named.setdefault(region_id, name)
            if before != name:
                given.fail(name, f"region {region_id} has its score by {given.flag(before)} already")


def _tls(given: Given, listen: tuple[tuple[str, int], ...]) -> TlsConfig | None:
    hostname = given.get("hostname", "")
    if not hostname and "tls_cert" not in given:
        # Whoever asks for a certificate and says no name means the one by which clients call us.
        hostname = urlsplit(given.get("access_url", "")).hostname or ""
    tls = read_tls(given, listen, hostname=hostname, default_http_port=_NO_HTTP, as_derper=False)
    # Health checks of the API come by address, and say no name.
    return replace(tls, require_sni=False) if tls is not None else None


def _webhook(given: Given) -> WebhookTarget | None:
    url, path = given.get("webhook_url"), given.get("webhook_secret_file")
    if not url and not path:
        return None
    if not url:
        given.fail("webhook_secret_file", "signs for nobody: set --webhook-url too")
    if not path:
        given.fail("webhook_url", "a receiver knows us by a signature: set --webhook-secret-file too")
    tell_if_readable(path, given)
    try:
        secrets = parse_secrets(read_file(path, "webhook's secrets").decode("utf-8", "replace"))
    except ValueError as error:
        raise ConfigError(f"{path}: {error_text(error)}") from None
    if is_in_the_clear(url):
        given.notices.append("what the webhook tells travels in the clear: use https in --webhook-url")
    return WebhookTarget(url, secrets)


def _relay(given: Given) -> RelayRules:
    ours = given.under(RELAY_PREFIX)
    rules = RelayRules(**(given.attributes("relay") | relay_attributes(ours)))
    check_mesh(ours, rules.mesh_key)
    tell_about_rules(ours, rules)
    return rules


def _secrets_keys(given: Given) -> tuple[bytes, ...]:
    if "secrets_key_file" not in given:
        return ()
    path = given.get("secrets_key_file")
    tell_if_readable(path, given)
    return read_key_file(path)


def _external_auth(given: Given) -> tuple[Provider, ...]:
    found = with_secrets(given.get("external_auth", ()))
    if found and "secrets_key_file" not in given:
        given.fail(
            "external_auth",
            "users' tokens are kept encrypted only: set --secrets-key-file, `tailnet admin secrets new-key` makes one",
        )
    if given.get("external_auth_call_out"):
        for missing in ("auth_url", "secrets_key_file"):
            if missing not in given:
                given.fail("external_auth_call_out", f"wants {given.flag(missing)}")
    for each in found:
        if each.client_secret_file is not None:
            tell_if_readable(each.client_secret_file, given)
        if any(is_in_the_clear(url) for url in each.urls):
            given.notices.append(f"external auth provider {each.id}: tokens travel in the clear: use https addresses")
    return found


def _administration(given: Given) -> dict[str, Any]:
    path = given.get("admin_token_file")
    if path is None:
        if "admin_listen" in given:
            given.fail(
                "admin_listen", f"serves administrators, and nobody is one: set {given.flag('admin_token_file')}"
            )
        return {}
    tell_if_readable(path, given)
    return {"admin_tokens": load_admin_tokens(path)}


def _auth_secret(given: Given) -> bytes:
    """What questions to --auth-url are signed with."""
    path = given.get("auth_secret_file")
    if (path is None) != ("auth_url" not in given):
        missing = "auth_secret_file" if path is None else "auth_url"
        given.fail(missing, "is missing: --auth-url and --auth-secret-file belong together")
    if path is None:
        if given.get("auth_fail_open"):
            given.fail("auth_fail_open", "is about --auth-url, which is not set")
        return b""
    secret = _read_secret(given, "auth_secret_file", "secret of the control plane")
    if is_in_the_clear(given.get("auth_url", "")):
        given.notices.append("--auth-url is http: tokens travel in the clear, and anybody between may answer yes")
    return secret


def _bus_secret(given: Given) -> bytes:
    """What replicas prove to each other to have; empty where a store that they share has it."""
    if "bus" not in given:
        for name in _OF_THE_BUS:
            if name in given:
                given.fail(name, f"is about several coordinators as one: set {given.flag('bus')} too")
        return b""
    place, listens = given.get("bus"), given.get("replica_listen", ())
    has_postgresql = given.get("store", "").startswith("postgres")
    if place.kind == "store" and not has_postgresql:
        given.fail("bus", f"replicas share a PostgreSQL: set {given.flag('store')} to one; SQLite is for one alone")
    if place.kind != "redis" and not listens:
        given.fail("bus", f"others have to reach this one: set {given.flag('replica_listen')}, as in 10.0.0.5:3001")
    if place.kind in ("store", "redis") and listens and not listens[0][0] and "replica_address" not in given:
        given.fail("replica_listen", f"others cannot dial every address: set {given.flag('replica_address')} too")
    if "replica_address" in given and is_unspecified(given.get("replica_address")[0]):
        given.fail("replica_address", "others cannot dial every address: name the one that reaches this machine")
    if place.redis is not None:
        _check_redis(given, place.redis)
    if "bus_key_file" not in given and not has_postgresql:
        given.fail(
            "bus",
            f"replicas know each other by a secret: set {given.flag('bus_key_file')}, or share a PostgreSQL as store",
        )
    return _read_secret(given, "bus_key_file", "secret of the replicas") if "bus_key_file" in given else b""


def _check_redis(given: Given, redis: RedisPlace) -> None:
    is_clear = not redis.is_tls and not all(is_local(host) for host, _ in redis.addresses)
    if is_clear and not given.get("insecure_bus"):
        given.fail(
            "bus", f"frames would travel in the clear: use rediss instead of redis, or set {given.flag('insecure_bus')}"
        )
    if redis.key_file is not None:
        tell_if_readable(redis.key_file, given)


def _read_secret(given: Given, name: str, what: str) -> bytes:
    path = given.get(name)
    secret = read_file(path, what).strip()
    if len(secret) < MIN_SECRET_BYTES:
        given.fail(
            name,
            f"{path}: a secret shorter than {MIN_SECRET_BYTES} bytes can be guessed: `openssl rand -hex 32` makes one",
        )
    tell_if_readable(path, given)
    return secret


def _check_signed(given: Given) -> None:
    if "auth_jwks" in given:
        for name in ("auth_issuer", "auth_audience"):
            if not given.get(name):
                given.fail(name, "is missing: without it tokens for others would be good here; --auth-jwks needs it")
    else:
        for name in ("auth_issuer", "auth_audience"):
            if name in given:
                given.fail(name, "is about signed tokens: set --auth-jwks too")
    source = given.get("auth_jwks", "")
    if source.startswith("http://") and is_in_the_clear(source):  # it may be a file
        given.notices.append("--auth-jwks is http: anybody between may add keys of his own")


def _check_dev(given: Given) -> None:
    # Its demo logins are printed, and whoever has read them would have them in that store for ever.
    if "store" in given:
        given.fail(
            "store",
            "--dev has a store of its own for each run: leave one of them out, or make users for this "
            "one with `tailnet admin import`",
        )


def _notices(config: CoordinatorConfig) -> list[str]:
    notices = []
    public = [host for host, _ in config.listen if not is_local(host)]
    if public and not config.access_url:
        notices.append("peers of other relays' regions need to know where ours is: set --access-url")
    if public and config.dev:
        notices.append(
            "--dev is for this machine, but it listens to others: its demo tokens are printed on this terminal"
        )
    if public and config.tls is None and not config.access_url.startswith("https"):
        notices.append("tokens travel in the clear: set --tls-cert and --tls-key, or serve behind a proxy with TLS")
    return notices
