"""Where settings come from: defaults, TOML file, environment, flags, each stronger than the one before (layer L2).

`load_config` reads them all, reads the files they name (keys, mesh key, rate limits), and returns one RelayConfig or
raises one ConfigError of the form `place: key: reason`.  The private key's file is made when it is missing.
"""

import ipaddress
import json
import math
import os
import re
import resource
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, NoReturn

from derp.config.relay import (
    DEV_PORT,
    GOOGLE_DIRECTORY,
    LETSENCRYPT_DIRECTORY,
    RESERVED_FILES,
    AcmeConfig,
    RateConfig,
    RelayConfig,
    TlsConfig,
)
from derp.config.settings import BY_NAME, ENVIRONMENT_PREFIX, SETTINGS, Setting
from derp.errors import ConfigError, KeyFormatError
from derp.keys import MeshKey, NodePrivate
from derp.map import is_address
from derp.protocol.frames import MAX_SEND_BYTES
from derp.text import error_text

# Settings and keys are a few hundred bytes; a path that points to a device or a log must not fill our memory.
MAX_FILE_BYTES: Final = 1024 * 1024
DEV_MESH_KEY_ENVIRONMENT: Final = "TAILSCALE_DERPER_MESH_KEY"
ROOT_KEY_FILE: Final = Path("/var/lib/derper/derper.key")
CONFIG_ENVIRONMENT: Final = f"{ENVIRONMENT_PREFIX}CONFIG"
# A service called `derp` makes Kubernetes put these into every container of its namespace.
_KUBERNETES_LINK: Final = re.compile(rf"{ENVIRONMENT_PREFIX}(SERVICE|PORT)(_.*)?")
# RelayConfig's attributes that are called as their setting; the others are put together below.
_PLAIN: Final = (
    "hostname",
    "stun_port",
    "home",
    "bootstrap_dns_names",
    "unpublished_bootstrap_dns_names",
    "mesh_with",
    "accept_connection_limit",
    "accept_connection_burst",
    "queue_depth",
    "queue_bytes",
    "verify_clients",
    "verify_client_url",
    "verify_client_url_fail_open",
    "debug_allow",
    "trusted_proxies",
    "log_format",
    "log_level",
)
_SECONDS: Final = {
    "tcp_write_timeout": "tcp_write_timeout_seconds",
    "mesh_write_timeout": "mesh_write_timeout_seconds",
    "tcp_user_timeout": "tcp_user_timeout_seconds",
    "tcp_keepalive_time": "tcp_keepalive_seconds",
    "handshake_timeout": "handshake_timeout_seconds",
    "keepalive": "keepalive_seconds",
    "drain": "drain_seconds",
}
_DEFAULTS: Final = {field.name: field.default for field in fields(RelayConfig)}
# By --cert-mode: whom to ask.
_AUTHORITIES: Final = {"letsencrypt": LETSENCRYPT_DIRECTORY, "gcp": GOOGLE_DIRECTORY}
_ACME: Final = ("acme_email", "acme_ip_certs", "acme_dns_hook", "acme_directory_url", "acme_eab_kid", "acme_eab_key")
_RATE_FIELDS: Final = ("PerClientRateLimitBytesPerSec", "PerClientRateBurstBytes")
_RENAMED: Final = {"stun": "stun_enabled", "derp": "derp_enabled"}


@dataclass(frozen=True, slots=True)
class _Given:
    value: Any
    place: str


class _Settings:
    """What was given, parsed, by setting name, and where."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.notices: list[str] = []
        self._given: dict[str, _Given] = {}

    def give(self, setting: Setting, raw: object, place: str) -> None:
        try:
            self._given[setting.name] = _Given(setting.parse(raw), place)
        except ValueError as error:
            raise ConfigError(f"{place}: {error_text(error)}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def get(self, name: str, default: Any = None) -> Any:
        return self._given[name].value if name in self._given else default

    def place(self, name: str) -> str:
        """Where a setting was given, or how its flag is called if it was not."""
        return self._given[name].place if name in self._given else f"flags: {BY_NAME[name].shown_flag}"

    def fail(self, name: str, reason: str) -> NoReturn:
        raise ConfigError(f"{self.place(name)}: {reason}")


def load_config(
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    config_file: str | None = None,
    *,
    open_files: int | None = None,
) -> RelayConfig:
    """Read all sources.

    `flags`: text by setting name, as it stood on the command line.  `environ`: the environment, os.environ if None.
    `config_file`: the TOML file; if None, the one that DERP_CONFIG names.  `open_files`: how many descriptors this
    process may have; the hard limit if None, since `derp serve` raises itself to that.
    Raises ConfigError: one sentence with the place, the key and what to write instead.
    """
    environ = os.environ if environ is None else environ
    given = _Settings(environ)
    config_file = config_file or environ.get(CONFIG_ENVIRONMENT) or None
    if config_file is not None:
        _read_toml(Path(config_file), given)
    _read_environment(environ, given)
    for name, text in (flags or {}).items():
        given.give(BY_NAME[name], text, f"flags: {BY_NAME[name].shown_flag}")
    return _build(given, resource.getrlimit(resource.RLIMIT_NOFILE)[1] if open_files is None else open_files)


def load_private_key(path: Path) -> NodePrivate:
    """Read a key file in derper's form.  Raises ConfigError, whose text holds nothing of the key."""
    text = _go_field(_read_json_object(path, "private key"), "PrivateKey")
    if not isinstance(text, str):
        raise ConfigError(f'{path}: PrivateKey: is missing: the file should read {{"PrivateKey": "privkey:..."}}')
    try:
        return NodePrivate.parse(text)
    except KeyFormatError as error:
        raise ConfigError(f"{path}: PrivateKey: {error}") from None


def load_mesh_key(path: Path) -> MeshKey:
    """Read a mesh key file.  Raises ConfigError, whose text holds nothing of the key."""
    return _parse_mesh_key(_read_file(path, "mesh key").decode("ascii", "replace"), f"{path}: mesh key")


def load_rate_config(path: Path) -> RateConfig:
    """Read limits per client in derper's form.  Raises ConfigError, also when called again on SIGHUP.

    A burst of less than one packet would stop a client for good that sends a large one: it is raised, as by derper.
    """
    document = _read_json_object(path)
    numbers = []
    for name in _RATE_FIELDS:
        value = _go_field(document, name)
        if value is None:
            value = 0
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
            raise ConfigError(f"{path}: {name}: wants a whole number of bytes, got {value!r:.80}")
        numbers.append(value)
    return RateConfig(numbers[0], max(numbers[1], MAX_SEND_BYTES)) if numbers[0] else RateConfig()


# Sources.


def _read_file(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the {what}: {error_text(error)}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: is no {what}: it has more than {MAX_FILE_BYTES:,} bytes")
    return content


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f": did you mean {near[0]}?" if near else ""


def _read_toml(path: Path, given: _Settings) -> None:
    try:
        document = tomllib.loads(_read_file(path, "settings").decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML: {error_text(error)}") from None
    for key, value in document.items():
        setting = BY_NAME.get(key)
        if setting is None:
            raise ConfigError(f"{path}: {key!r:.80}: there is no such setting{_nearest(key, list(BY_NAME))}")
        given.give(setting, value, f"{path}: {key}")


def _read_environment(environ: Mapping[str, str], given: _Settings) -> None:
    by_variable = {setting.environment: setting for setting in SETTINGS}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == CONFIG_ENVIRONMENT:
            continue
        setting = by_variable.get(variable)
        if setting is None:
            if _KUBERNETES_LINK.fullmatch(variable):
                continue
            raise ConfigError(
                f"environment: {variable}: there is no such setting{_nearest(variable, list(by_variable))}"
            )
        # Compose files pass ${NAME:-} on as an empty variable when the operator set nothing.
        if text:
            given.give(setting, text, f"environment: {variable}")


# Putting it together.


def _build(given: _Settings, open_files: int) -> RelayConfig:
    dev = given.get("dev", False)
    listen = given.get("listen", (("", DEV_PORT),) if dev else _DEFAULTS["listen"])
    if not listen:
        given.fail("listen", 'wants at least one address, such as ":3340"')
    tls = _tls(given, listen)
    attributes: dict[str, Any] = {name: given.get(name) for name in _PLAIN if name in given}
    attributes |= {attribute: given.get(name) for name, attribute in (_SECONDS | _RENAMED).items() if name in given}
    if given.get("rate_config"):
        attributes |= {"rate": load_rate_config(given.get("rate_config")), "rate_config_file": given.get("rate_config")}
    if "rate_keys" in given:
        attributes["rate_by_key"] = {key: RateConfig(rate, burst) for key, rate, burst in given.get("rate_keys")}
    if "allow_keys" in given:
        attributes["allow_keys"] = frozenset(given.get("allow_keys"))
    if given.get("socket"):  # empty: the default, as in derper
        attributes["tailscaled_socket"] = given.get("socket")
    mesh_key = _mesh_key(given, dev)
    if "mesh_with" in given and mesh_key is None and given.get("mesh_with"):
        given.fail("mesh_with", "needs the mesh's key: set --mesh-psk-file")
    config = RelayConfig(
        listen=listen,
        tls=tls,
        http_port=_http_port(given, tls),
        max_connections=_max_connections(given, open_files),
        mesh_key=mesh_key,
        deny_keys=frozenset(given.get("deny_keys", ())),
        # Last: it may write a file, which should not happen when anything else is wrong.
        private_key=_private_key(given, dev),
        **attributes,
    )
    return _with_notices(config, given)


def _tls(given: _Settings, listen: tuple[tuple[str, int], ...]) -> TlsConfig | None:
    mode = given.get("cert_mode")
    manual, pair, generated = mode == "manual", "tls_cert" in given, given.get("tls_self_signed", False)
    is_tls_port, dev = any(port == 443 for _, port in listen), given.get("dev", False)
    # derper's own default, but only for one who said a name: nobody else can mean it.
    if mode is None and is_tls_port and given.get("hostname") and not (pair or generated or dev):
        mode = "letsencrypt"
        given.notices.append(
            "no source of the certificate was given: asking Let's Encrypt as derper does, which accepts its terms; "
            "--cert-mode says it, or something else"
        )
    # Under --dev derper's default mode means plain HTTP, and so it does here.
    acme = mode in _AUTHORITIES and not (mode == "letsencrypt" and dev and not is_tls_port)
    if pair != ("tls_key" in given):
        given.fail("tls_cert" if pair else "tls_key", "a certificate needs its key: set both --tls-cert and --tls-key")
    if manual + acme + pair + generated > 1:
        given.fail(
            "tls_cert" if pair else "tls_self_signed",
            "only one of --cert-mode, --tls-cert and --tls-self-signed can be the source of the certificate",
        )
    spelled = given.get("hostname", "")
    hostname = str(ipaddress.ip_address(spelled)) if is_address(spelled) else spelled
    if manual:
        if not hostname:
            given.fail("hostname", "--cert-mode manual needs --hostname: the certificate's file is called after it")
        return _manual_tls(given, hostname, spelled)
    if acme:
        return _acme_tls(given, mode, hostname, listen)
    for name in _ACME:
        if given.get(name) and not dev:
            given.fail(name, "has no effect without --cert-mode letsencrypt or gcp, and a --hostname: add them")
    if pair:
        return TlsConfig(given.get("tls_cert"), given.get("tls_key"), hostname)
    if generated:
        hostname = hostname or next((host for host, _ in listen if host), "localhost")
        if "cert_dir" not in given:
            return TlsConfig(hostname=hostname, self_signed=True)
        return TlsConfig(*_certificate_files(given.get("cert_dir"), hostname), hostname, self_signed=True)
    if is_tls_port:
        given.fail(
            "listen",
            "port 443 speaks TLS and needs a certificate: set --hostname, and --cert-mode letsencrypt or manual, or "
            "--tls-cert and --tls-key, or --tls-self-signed; for plain HTTP listen on another port, or use --dev",
        )
    return None


def _certificate_files(folder: Path, hostname: str) -> tuple[Path, Path]:
    # derper's names: what is no letter, digit, dot or dash is left out, so ::1 becomes 1.
    stem = re.sub(r"[^a-zA-Z0-9\-.]", "", hostname)
    return folder / f"{stem}.crt", folder / f"{stem}.key"


def _certificate_folder(given: _Settings) -> Path:
    if "cert_dir" in given:
        folder: Path = given.get("cert_dir")
        return folder
    cache = given.environ.get("XDG_CACHE_HOME") or os.path.join(given.environ.get("HOME", ""), ".cache")
    if not os.path.isabs(cache):
        given.fail("cert_dir", "has no default without a home directory: say where the certificates lie")
    return Path(cache) / "tailscale" / "derper-certs"


def _manual_tls(given: _Settings, hostname: str, spelled: str) -> TlsConfig:
    # The files are called as the operator spells the name, 2001:0DB8::1 too: another name would mean another
    # certificate than the one that clients pin.
    # By address no client sends SNI, so any is served, and a missing certificate can only be a self-signed one.
    by_address = is_address(hostname)
    files = _certificate_files(_certificate_folder(given), spelled)
    return TlsConfig(*files, hostname, require_sni=not by_address, self_signed=by_address)


def _acme_tls(given: _Settings, mode: str, hostname: str, listen: tuple[tuple[str, int], ...]) -> TlsConfig:
    by_address = is_address(hostname)
    if not hostname or (by_address and not given.get("acme_ip_certs", False)):
        given.fail(
            "hostname",
            f"--cert-mode {mode} needs a host name to get a certificate for: set --hostname; for an address add "
            "--acme-ip-certs, or use --cert-mode manual, which makes a certificate for the map to pin",
        )
    if given.get("acme_ip_certs", False) and (mode != "letsencrypt" or not by_address):
        given.fail(
            "acme_ip_certs",
            "gets a certificate from Let's Encrypt for --hostname when that is an IP address: set it to the address "
            "that clients dial, or leave --acme-ip-certs out",
        )
    acme = AcmeConfig(
        directory_url=given.get("acme_directory_url", _AUTHORITIES[mode]),
        email=given.get("acme_email", ""),
        challenges=_acme_challenges(given, listen),
        dns_hook=given.get("acme_dns_hook", ()),
        eab_kid=given.get("acme_eab_kid", ""),
        eab_key=given.get("acme_eab_key", b""),
    )
    if bool(acme.eab_kid) != bool(acme.eab_key):
        given.fail(
            "acme_eab_kid" if acme.eab_kid else "acme_eab_key",
            "an external account binding is a pair: set both --acme-eab-kid and --acme-eab-key",
        )
    if mode == "gcp" and not (acme.eab_kid and acme.email):
        given.fail("cert_mode", "Google wants to know who asks: set --acme-eab-kid, --acme-eab-key and --acme-email")
    _check_acme_port(given, acme.challenges[0], hostname, listen)
    # Every name but ours is refused, as derper does; by address clients say none.
    files = _certificate_files(_certificate_folder(given), hostname)
    return TlsConfig(*files, hostname, require_sni=not by_address, acme=acme)


def _acme_challenges(given: _Settings, listen: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    wanted, hook = given.get("acme_challenge", "auto"), given.get("acme_dns_hook")
    http_port = given.get("http_port", 80)
    if wanted == "auto" and hook:
        wanted = "dns-01"
    if (wanted == "dns-01") != bool(hook):
        given.fail(
            "acme_dns_hook" if hook else "acme_challenge",
            "--acme-challenge dns-01 and --acme-dns-hook go together: the hook publishes the record",
        )
    if wanted == "http-01" and http_port < 0:
        given.fail(
            "http_port",
            "the authority asks there whether the name is ours: leave it at 80, or use --acme-challenge tls-alpn-01 "
            "or dns-01",
        )
    if wanted != "auto":
        return (wanted,)
    if http_port < 0:
        return ("tls-alpn-01",)
    # First the one that most likely works: behind a forwarded port we cannot know.
    is_tls_port = any(port == 443 for _, port in listen)
    return ("tls-alpn-01", "http-01") if is_tls_port or http_port != 80 else ("http-01", "tls-alpn-01")


def _check_acme_port(given: _Settings, challenge: str, hostname: str, listen: tuple[tuple[str, int], ...]) -> None:
    asked, ours = {
        "http-01": (80, [given.get("http_port", 80)]),
        "tls-alpn-01": (443, [port for _, port in listen]),
    }.get(challenge, (0, [0]))
    if asked not in ours:
        given.notices.append(
            f"the authority asks at port {asked} whether {hostname} is ours: "
            f"it has to be forwarded to port {ours[0]} here"
        )


def _http_port(given: _Settings, tls: TlsConfig | None) -> int | None:
    port: int = given.get("http_port", 80)
    if tls is None:
        if "http_port" in given and port >= 0:
            given.notices.append(f"{given.place('http_port')}: has no effect, since --listen is plain HTTP already")
        return None
    return port if port >= 0 else None


def _max_connections(given: _Settings, open_files: int) -> int:
    wanted: int = given.get("max_connections", _DEFAULTS["max_connections"])
    if open_files == resource.RLIM_INFINITY:
        return wanted
    possible = max(1, open_files - RESERVED_FILES)
    if wanted <= possible:
        return wanted
    remedy = f"this process may open {open_files:,} files: raise its limit (LimitNOFILE= in systemd, ulimit -n)"
    if "max_connections" in given:
        given.fail("max_connections", f"{wanted:,} are not possible, {remedy}")
    given.notices.append(f"at most {possible:,} connections instead of {wanted:,}: {remedy}")
    return possible


def _mesh_key(given: _Settings, dev: bool) -> MeshKey | None:
    if "mesh_psk_file" in given:
        path: Path | None = given.get("mesh_psk_file")
    elif dev:
        # Only --dev reads a secret from the environment: everyone who may see the process could read it there.
        text = given.environ.get(DEV_MESH_KEY_ENVIRONMENT, "")
        return _parse_mesh_key(text, f"environment: {DEV_MESH_KEY_ENVIRONMENT}") if text else None
    else:
        # derper looks here unasked, so a drop-in must too; the notice tells.
        home = given.environ.get("HOME", "")
        candidates = [Path("/home/derp/keys/derp-mesh.key"), *([Path(home, "keys/derp-mesh.key")] if home else [])]
        found = next((candidate for candidate in candidates if os.access(candidate, os.F_OK)), None)
        if found is None:
            return None
        given.notices.append(f"mesh key taken from {found}, where derper looks for one")
        path = found
    if path is None:  # said to be none: then it is not looked for either
        return None
    _warn_if_readable(path, given)
    return load_mesh_key(path)


def _parse_mesh_key(text: str, place: str) -> MeshKey:
    try:
        return MeshKey.parse(text)
    except KeyFormatError as error:
        raise ConfigError(f"{place}: {error}") from None


def _private_key(given: _Settings, dev: bool) -> NodePrivate:
    path: Path | None = given.get("key_file")
    if path is None:
        if dev:
            return NodePrivate.generate()
        if os.geteuid() != 0:
            given.fail("key_file", "is not set: name a file, which is made if it is missing, or use --dev")
        path = ROOT_KEY_FILE
    try:
        return _read_private_key(path, given)
    except FileNotFoundError:
        pass
    _create_key_file(path, NodePrivate.generate())
    given.notices.append(f"made a new private key in {path}")
    try:
        return _read_private_key(path, given)
    except FileNotFoundError:
        raise ConfigError(f"{path}: was removed while it was being made") from None


def _read_private_key(path: Path, given: _Settings) -> NodePrivate:
    if not path.exists():
        raise FileNotFoundError
    _warn_if_readable(path, given)
    return load_private_key(path)


def _create_key_file(path: Path, key: NodePrivate) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Whole or not at all, never over an existing key, never readable to others, not even for a moment.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(json.dumps({"PrivateKey": key.text()}, indent="\t"))
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        except FileExistsError:
            pass  # another process made one meanwhile: that one counts
        finally:
            os.unlink(temporary)
    except OSError as error:
        raise ConfigError(f"{path}: cannot make the private key's file: {error_text(error)}") from None


def _warn_if_readable(path: Path, given: _Settings) -> None:
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # reading it will say why
    if mode & 0o077:
        given.notices.append(f"{path}: others on this machine can read this secret: chmod 600 {path}")


def _read_json_object(path: Path, what: str = "limits") -> dict[str, object]:
    # The text of an error never repeats the file: it may hold the key.
    try:
        document = json.loads(_read_file(path, what))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: is not a JSON object with the {what}")
    return document


def _go_field(document: dict[str, object], name: str) -> object:
    """A field as Go's decoder finds it: whatever its case, the last one wins."""
    found: object = None
    for key, value in document.items():
        if key.casefold() == name.casefold():
            found = value
    return found


def _with_notices(config: RelayConfig, given: _Settings) -> RelayConfig:
    local = all(_is_local(host) for host, _ in config.listen)
    if config.admission_is_open and config.derp_enabled and not local:
        given.notices.append(
            "this relay is open: anyone who finds it may use it; set --verify-clients, --verify-client-url or "
            "--allow-keys"
        )
    if config.allow_keys is not None and not config.allow_keys:
        given.notices.append(f"{given.place('allow_keys')}: is empty: nobody may use this relay")
    if config.rate_config_file is not None and not config.rate.client_bytes_per_second:
        given.notices.append(f"{config.rate_config_file}: sets no limit, as it has no {_RATE_FIELDS[0]}")
    if given.get("socket") and not config.verify_clients:
        given.notices.append(f"{given.place('socket')}: has no effect without --verify-clients")
    if config.verify_client_url_fail_open and config.verify_client_url:
        anyone = "anyone" if not config.verify_clients and config.allow_keys is None else "whom the other checks allow"
        given.notices.append(f"while the admission URL does not answer, {anyone} may use this relay")
    if math.isinf(config.accept_connection_limit):
        given.notices.append("accepts are not limited: a mass reconnect can starve the clients inside")
    return replace(config, notices=tuple(given.notices))


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
