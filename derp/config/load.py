"""From what was given to what a relay is told (layer L2).

`load_config` reads all sources, then the files they name (keys, mesh key, rate limits), and returns one RelayConfig or
raises one ConfigError.  What the coordinator reads in the same way stands first.
"""

import ipaddress
import math
import os
import resource
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from derp.config.files import (
    RATE_FIELDS,
    load_issuers,
    load_mesh_key,
    load_private_key,
    load_rate_config,
    load_token,
    make_key_file,
    parse_mesh_key,
    readable_by_others,
)
from derp.config.limits import load_limits
from derp.config.relay import (
    DEV_PORT,
    LEAST_CONNECTIONS,
    LEAST_RESERVED_FILES,
    RESERVED_FILES,
    RelayConfig,
    RelayRules,
)
from derp.config.settings import SETTINGS
from derp.config.sources import Given, read_sources
from derp.config.tls import Addresses, read_tls
from derp.errors import ConfigError
from derp.keys import MeshKey, NodePrivate
from derp.relay.limits import NO_LIMITS
from derp.text import fit_to_show

DEV_MESH_KEY_ENVIRONMENT: Final = "TAILSCALE_DERPER_MESH_KEY"
ROOT_KEY_FILE: Final = Path("/var/lib/derper/derper.key")
_HTTP_PORT: Final = 80
_MONTH_DAYS: Final = 31
_NO_KEY: Final = NodePrivate(bytes(32))  # until the file is read or made


def load_config(
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    config_file: str | None = None,
    *,
    open_files: int | None = None,
    is_running: bool = False,
) -> RelayConfig:
    """Read all sources.

    `flags`: text by setting name, as it stood on the command line.  `environ`: the environment, os.environ if None.
    `config_file`: the TOML file; if None, the one that DERP_CONFIG names.  `open_files`: how many descriptors this
    process may have; the hard limit if None, since `derp serve` raises itself to that.  `is_running`: the settings of a
    relay that serves are read again, so no key is made.
    Raises ConfigError: one sentence with the place, the key and what to write instead.
    """
    given = read_sources(SETTINGS, flags or {}, os.environ if environ is None else environ, config_file)
    dev = given.get("dev", False)
    listen = listen_addresses(given, (("", DEV_PORT),) if dev else RelayConfig.listen)
    tls = read_tls(given, listen, hostname=given.get("hostname", ""), default_http_port=_HTTP_PORT, as_derper=True)
    attributes = given.attributes() | relay_attributes(given)
    attributes |= connection_limit(given, open_files)
    attributes |= {"listen": listen, "tls": tls, "http_port": http_port(given, _HTTP_PORT, has_tls=tls is not None)}
    attributes["stun_may_move"] = dev and "stun_port" not in given
    if "mesh_psk_file" not in given:
        attributes["mesh_key"] = _default_mesh_key(given, dev)
    check_mesh(given, attributes.get("mesh_key"))
    config = RelayConfig(_NO_KEY, **attributes)
    _check_workers(given, config)
    # Last: it may write a file, which should not happen when anything else is wrong.
    config = replace(config, private_key=_private_key(given, config, may_make=not is_running))
    tell_about_rules(given, config)
    given.notices += _notices(config)
    return replace(config, notices=tuple(given.notices), given=given.values())


# What the coordinator reads too.


def listen_addresses(given: Given, default: Addresses) -> Addresses:
    """Where to listen.  Raises ConfigError when that is nowhere."""
    listen: Addresses = given.get("listen", default)
    if not listen:
        given.fail("listen", 'wants at least one address, such as ":3340"')
    return listen


def http_port(given: Given, default: int, *, has_tls: bool) -> int | None:
    """The port of plain HTTP beside TLS."""
    port: int = given.get("http_port", default)
    if not has_tls:
        if "http_port" in given and port >= 0:
            given.notices.append(f"{given.place('http_port')}: has no effect, since --listen is plain HTTP already")
        return None
    return port if port >= 0 else None


def connection_limit(given: Given, open_files: int | None) -> dict[str, Any]:
    """How many connections there may be, with `open_files` descriptors (None: the hard limit), and what to do if that
    is less than the default.  Raises ConfigError where it is less than what was asked for, or next to nothing."""
    if open_files is None:
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted: int = given.get("max_connections", RelayConfig.max_connections)
    if open_files == resource.RLIM_INFINITY:
        return {"max_connections": wanted}
    possible = open_files - min(RESERVED_FILES, max(LEAST_RESERVED_FILES, open_files // 4))
    if wanted <= possible:
        return {"max_connections": wanted}
    remedy = f"this process may open {open_files:,} files: raise its limit (LimitNOFILE= in systemd, ulimit -n)"
    if "max_connections" in given:
        given.fail("max_connections", f"{wanted:,} are not possible, {remedy}")
    if possible < LEAST_CONNECTIONS:
        raise ConfigError(f"{remedy}; {LEAST_RESERVED_FILES + LEAST_CONNECTIONS} are the least that is of use")
    return {"max_connections": possible, "connections_remedy": remedy}


def relay_attributes(given: Given) -> dict[str, Any]:
    """Attributes of RelayRules that are in files, or that need a second look.  Raises ConfigError."""
    attributes: dict[str, Any] = {}
    path: Path | None = given.get("rate_config")
    if path is not None:
        attributes["rate"] = load_rate_config(path)
    path = given.get("limits")
    if path is not None:
        attributes["limits"] = limits = load_limits(path)
        if limits.client.rate is not None and attributes.get("rate"):
            given.fail("rate_config", f"limits each client, and so does {path}: leave one of the two out")
        if limits.has_quotas and given.get("ledger") is None:
            given.fail(
                "limits", f"{path} has quotas, and what was used is read off a ledger: set {given.flag('ledger')}"
            )
        if limits.has_quotas_of_months and given.get("ledger_days", _MONTH_DAYS) < _MONTH_DAYS:
            given.fail("ledger_days", f"forgets what was used in a month, of which {path} has quotas: keep 31 days")
    if given.get("mesh_psk_file") is not None:  # an empty name is none, and then none is looked for
        attributes["mesh_key"] = _read_mesh_key(given.get("mesh_psk_file"), given)
    path = given.get("admission_keys")
    if path is not None:
        attributes["issuers"] = load_issuers(path)
    elif given.get("key_set"):
        given.fail("key_set", f"is believed only if it is signed: set {given.flag('admission_keys')}")
    path = given.get("key_set_token_file")
    if path is not None:
        tell_if_readable(path, given)
        attributes["key_set_token"] = load_token(path)
    if given.get("socket") == "":  # the default, as in derper
        attributes["tailscaled_socket"] = RelayRules.tailscaled_socket
    return attributes


def check_mesh(given: Given, mesh_key: MeshKey | None) -> None:
    """Other relays are asked with a key, or not at all."""
    if given.get("mesh_with") and mesh_key is None:
        given.fail("mesh_with", f"needs the mesh's key: set {given.flag('mesh_psk_file')}")


def tell_about_rules(given: Given, rules: RelayRules) -> None:
    """What the operator should know of who may come in."""
    if rules.allow_keys is not None and not rules.allow_keys:
        given.notices.append(f"{given.place('allow_keys')}: is empty: nobody may use this relay")
    if given.get("rate_config") and not rules.rate.bytes_per_second:
        given.notices.append(f"{given.get('rate_config')}: sets no limit, as it has no {RATE_FIELDS[0]}")
    if given.get("socket") and not rules.verify_clients:
        given.notices.append(f"{given.place('socket')}: has no effect without {given.flag('verify_clients')}")
    _tell_about_key_set(given, rules)
    if rules.verify_client_url_fail_open and rules.verify_client_url:
        anyone = "anyone" if not rules.verify_clients and rules.allow_keys is None else "whom the other checks allow"
        given.notices.append(f"while the admission URL does not answer, {anyone} may use this relay")


def _tell_about_key_set(given: Given, rules: RelayRules) -> None:
    is_url = "://" in rules.key_set
    if rules.key_set_file is not None and not is_url:
        given.notices.append(f"{given.place('key_set_file')}: has no effect without a URL as {given.flag('key_set')}")
    if is_url and rules.key_set_file is None:
        given.notices.append(
            f"a relay that starts while {fit_to_show(rules.key_set)} does not answer knows no keys: set "
            f"{given.flag('key_set_file')}"
        )
    if rules.key_set_token and rules.key_set.startswith("http://"):
        given.notices.append(f"the token for {fit_to_show(rules.key_set)} travels in the clear: use https")


def is_local(host: str) -> bool:
    """Whether a host is this machine itself, by its address or by name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# The relay's own.


def _notices(config: RelayConfig) -> list[str]:
    notices = []
    is_public = not all(is_local(host) for host, _ in config.listen)
    if config.admission_is_open and config.derp_enabled and is_public and not config.open:
        notices.append(
            "this relay is open: anyone who finds it may use it; set --verify-clients, --verify-client-url, "
            "--allow-keys or --key-set, or --open if that is meant"
        )
    if math.isinf(config.accept_connection_limit):
        notices.append("accepts are not limited: a mass reconnect can starve the clients inside")
    return notices


def _check_workers(given: Given, config: RelayConfig) -> None:
    """What several processes cannot share yet."""
    if config.workers == 1:
        return
    if not sys.platform.startswith("linux"):
        given.fail("workers", "wants Linux, whose kernel distributes connections: use 1")
    if config.limits.node != NO_LIMITS.node or config.limits.tenants:
        given.fail("workers", "keep no account together: --limits may have limits of clients alone, or use 1")


def _read_mesh_key(path: Path, given: Given) -> MeshKey:
    tell_if_readable(path, given)
    return load_mesh_key(path)


def _default_mesh_key(given: Given, dev: bool) -> MeshKey | None:
    if dev:
        # Only --dev reads a secret from the environment: everyone who may see the process could read it there.
        text = given.environ.get(DEV_MESH_KEY_ENVIRONMENT, "")
        return parse_mesh_key(text, f"environment: {DEV_MESH_KEY_ENVIRONMENT}") if text else None
    # derper looks here unasked, so a drop-in must too; the notice tells.
    home = given.environ.get("HOME", "")
    candidates = [Path("/home/derp/keys/derp-mesh.key"), *([Path(home, "keys/derp-mesh.key")] if home else [])]
    found = next((candidate for candidate in candidates if os.access(candidate, os.F_OK)), None)
    if found is None:
        return None
    given.notices.append(f"mesh key taken from {found}, where derper looks for one")
    return _read_mesh_key(found, given)


def _refuse_strangers(given: Given, config: RelayConfig) -> None:
    """A relay with a key of its own age has no clients yet, so nothing is lost when it does not start."""
    places = [host or "every address" for host, _ in config.listen if not host or _is_for_strangers(host)]
    if config.admission_is_open and config.derp_enabled and not config.open and places:
        given.fail(
            "listen",
            f"{places[0]} is where strangers find a relay, and this new one would carry their traffic: set "
            "--verify-clients, --verify-client-url, --allow-keys, --key-set with --admission-keys or --invitations; "
            "or a private address; or --open if that is meant",
        )


def _is_for_strangers(host: str) -> bool:
    """Whether a host may be reached from anywhere.  A name may be anything but this machine's own."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return not is_local(host)


def _private_key(given: Given, config: RelayConfig, *, may_make: bool) -> NodePrivate:
    path: Path | None = given.get("key_file")
    if path is None:
        if config.dev:
            # Somebody tries it out, with a key that is gone when he is done; the notice tells him who may come in.
            return NodePrivate.generate()
        if os.geteuid() != 0:
            given.fail("key_file", "is not set: name a file, which is made if it is missing, or use --dev")
        path = ROOT_KEY_FILE
    if not path.exists() and may_make:
        _refuse_strangers(given, config)
        make_key_file(path)
        given.notices.append(f"made a new private key in {path}")
    tell_if_readable(path, given)
    return load_private_key(path)


def tell_if_readable(path: Path, given: Given) -> None:
    """A notice if others of this machine can read a secret."""
    if (sentence := readable_by_others(path)) is not None:
        given.notices.append(sentence)
