"""Settings of the coordinator (layer L2): what there is, how it is called, where it comes from.

A setting's name is its key in the TOML file, `TAILNET_` + the name in capitals its environment variable, with dashes
its flag; a flag is stronger than the environment, that than the file, that than the default.  Whatever is wrong is
one ConfigError with place, key and what to write instead.  The kinds of values are those of derp/config/parse.py.
"""

import json
import os
import re
import resource
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

from derp.config import RelayConfig, TlsConfig, parse
from derp.config.relay import LOOPBACK, RESERVED_FILES, Network
from derp.keys import NodePrivate
from derp.text import error_text
from tailnet.errors import ConfigError

ENVIRONMENT_PREFIX: Final = "TAILNET_"
CONFIG_ENVIRONMENT: Final = "TAILNET_CONFIG"
DEFAULT_STUN_PORT: Final = 3478
MAX_REGION_ID: Final = (1 << 31) - 1
# Settings are a few hundred bytes; a path to a device or a log must not fill our memory.
MAX_FILE_BYTES: Final = 1024 * 1024
DAY_SECONDS: Final = 86_400.0
# A terminal's screen has 80 x 24 characters; more than one of them before each prompt is read by nobody.
MAX_BANNER_CHARS: Final = 2_000
MAX_BANNERS: Final = 10
# A service called `tailnet` makes Kubernetes put these into every container of its namespace.
_KUBERNETES_LINK: Final = re.compile(rf"{ENVIRONMENT_PREFIX}(SERVICE|PORT)(_.*)?")


@dataclass(frozen=True, slots=True)
class Banner:
    """What agents show to whoever logs in.  The colour is for pages that show it too; empty leaves it to them."""

    message: str
    background_color: str = ""
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """All settings of one coordinator.  `load_config` guarantees the bounds; whoever builds one by hand keeps them."""

    # (host, port); host "" is every address of both families, port 0 any free port.  Only this machine by default:
    # serving the network is a decision.
    listen: tuple[tuple[str, int], ...] = (("127.0.0.1", 3000),)
    # Where STUN is answered; empty: nowhere.  None: on the hosts of `listen`, at the port that maps assume.
    stun_listen: tuple[tuple[str, int], ...] | None = None
    store: str = "sqlite:///tailnet.db"  # empty only for --dev without one: cli/serve.py makes it for that run
    dev: bool = False
    # How clients reach us: in the DERP map, and as an Origin of browsers.  Empty: the first address we listen on.
    access_url: str = ""
    tls: TlsConfig | None = None

    # DERP maps, from the bottom up: the embedded relay, URLs, files.
    derp_enabled: bool = True
    derp_region_id: int = 999
    derp_region_code: str = "embedded"
    derp_region_name: str = "Embedded relay"
    stun_servers: tuple[tuple[str, int], ...] = ()  # others' STUN servers, named in the embedded region
    derp_map: tuple[Path, ...] = ()
    derp_map_url: tuple[str, ...] = ()
    # The rhythm in which the reference looks at its map.  A map that did not change costs its server one 304.
    derp_map_poll_seconds: float = 5.0
    region_scores: tuple[tuple[int, float], ...] = ()
    avoid_regions: tuple[int, ...] = ()

    # What clients are told to do.
    browser_only: bool = False  # turn away every client that is no browser
    disable_direct_connections: bool = False
    derp_force_websockets: bool = False
    hostname_suffix: str = "coder"  # the suffix that stock clients expect

    # Agents.  15 s is the reference's rhythm; stock agents give up after 30 s without a sign of life.
    agent_ping_seconds: float = 15.0
    agent_inactive_seconds: float = 0.0  # 0: twice the ping
    stats_interval_seconds: float = 300.0
    announcement_banners: tuple[Banner, ...] = ()  # read again on SIGHUP

    # Load, as derp/config/relay.py argues.
    accept_connection_limit: float = 5_000.0
    accept_connection_burst: int = 10_000
    max_connections: int = 100_000
    queue_depth: int = 512
    queue_bytes: int = 2 * 1024 * 1024
    drain_seconds: float = 25.0

    # Who may see /metrics and /debug/; administrators always may.
    debug_allow: tuple[Network, ...] = LOOPBACK
    trusted_proxies: tuple[Network, ...] = ()
    log_format: str = "auto"
    log_level: str = "info"
    # Each is one sentence the operator should see at start.
    notices: tuple[str, ...] = field(default=())

    @property
    def inactive_seconds(self) -> float:
        """How long an agent may be silent before it counts as gone: twice the ping, and two seconds at the least."""
        return self.agent_inactive_seconds or max(2.0, 2 * self.agent_ping_seconds)

    @property
    def stun_addresses(self) -> tuple[tuple[str, int], ...]:
        """Where STUN is answered."""
        if self.stun_listen is not None:
            return self.stun_listen
        return tuple(dict.fromkeys((host, DEFAULT_STUN_PORT) for host, _ in self.listen))

    def relay_config(self, private_key: NodePrivate) -> RelayConfig:
        """The settings of the embedded relay, which listens on our port and never on its own."""
        return RelayConfig(
            private_key=private_key,
            listen=self.listen,
            tls=self.tls,
            http_port=None,
            stun_enabled=False,
            derp_enabled=self.derp_enabled,
            accept_connection_limit=self.accept_connection_limit,
            accept_connection_burst=self.accept_connection_burst,
            max_connections=self.max_connections,
            queue_depth=self.queue_depth,
            queue_bytes=self.queue_bytes,
            drain_seconds=self.drain_seconds,
            debug_allow=self.debug_allow,
            trusted_proxies=self.trusted_proxies,
            log_format=self.log_format,
            log_level=self.log_level,
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its name, its kind, and one sentence of help (with the default, where it is not simply off)."""

    name: str
    parse: Callable[[object], Any]
    metavar: str
    meaning: str
    attribute: str = ""  # of CoordinatorConfig, where it is not the name

    @property
    def is_switch(self) -> bool:
        """Whether the flag alone means true."""
        return self.parse is parse.boolean

    @property
    def environment(self) -> str:
        """Its environment variable."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """Its flag with the two dashes."""
        return "--" + self.name.replace("_", "-")


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
    environ = os.environ if environ is None else environ
    given = _Given()
    config_file = config_file or environ.get(CONFIG_ENVIRONMENT) or None
    if config_file is not None:
        _read_toml(Path(config_file), given)
    _read_environment(environ, given)
    for name, text in (flags or {}).items():
        given.give(BY_NAME[name], text, f"flags: {BY_NAME[name].flag}")
    return _build(given, resource.getrlimit(resource.RLIMIT_NOFILE)[1] if open_files is None else open_files)


def changed_flags(before: CoordinatorConfig, after: CoordinatorConfig) -> list[str]:
    """The flags of the settings in which two configurations differ; TLS is named by its certificate."""
    attributes = {setting.attribute or setting.name: setting.flag for setting in SETTINGS}
    attributes["tls"] = BY_NAME["tls_cert"].flag
    return [
        flag
        for name, flag in attributes.items()
        if name in _ATTRIBUTES and getattr(before, name) != getattr(after, name)
    ]


# The kinds that derp/config/parse.py does not have.


def _off_or_addresses(value: object) -> tuple[tuple[str, int], ...]:
    return () if value == "off" else parse.many(parse.address)(value)


def _region_id(value: object) -> int:
    return parse.whole(1, MAX_REGION_ID)(value)


def _score(value: object) -> tuple[int, float]:
    region, equals, factor = parse.string(value).partition("=")
    try:
        score = float(factor) if equals else 0.0
    except ValueError:
        score = 0.0
    if not 0 < score < 1e6:
        raise ValueError(f"wants REGION=FACTOR with a factor above 0, such as 1=1.5, got {value!r:.80}")
    return _region_id(region), score


def _text(limit: int) -> Callable[[object], str]:
    def parse_text(value: object) -> str:
        text = parse.string(value)
        if not text or len(text) > limit or not text.isprintable():
            raise ValueError(f"wants 1 to {limit} printable characters, got {value!r:.80}")
        return text

    return parse_text


def _banners(value: object) -> tuple[Banner, ...]:
    """A list of tables; as text the same as JSON, or the message of the one that there is."""
    items: object = value
    if isinstance(value, str):
        items = [{"message": value}] if value else []
        if value.lstrip().startswith("["):
            try:
                items = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"begins as a JSON list and is none: {error_text(error)[:80]}") from None
    if not isinstance(items, list) or len(items) > MAX_BANNERS:
        raise ValueError(f"wants a message, or a list of at most {MAX_BANNERS} banners, got {value!r:.80}")
    return tuple(_banner(each) for each in items)


def _banner(value: object) -> Banner:
    if not isinstance(value, dict) or not value.keys() <= _BANNER_KEYS or "message" not in value:
        raise ValueError(f"wants banners as tables of {', '.join(_BANNER_KEYS)}, got {value!r:.80}")
    message, color = value["message"], value.get("background_color", "")
    # It goes to terminals as it is: beside line breaks nothing that moves a cursor or rings a bell.
    if not isinstance(message, str) or not 0 < len(message) <= MAX_BANNER_CHARS:
        raise ValueError(f"wants a message of 1 to {MAX_BANNER_CHARS} characters, got {message!r:.80}")
    if not message.replace("\n", "").isprintable() or not message.strip():
        raise ValueError(f"wants a message that can be printed, got {message!r:.80}")
    if not isinstance(color, str) or not (color == "" or _COLOR.fullmatch(color)):
        raise ValueError(f'wants a background_color such as "#004852", got {color!r:.80}')
    return Banner(message, color, parse.boolean(value.get("enabled", True)))


def _suffix(value: object) -> str:
    return "" if value == "" else parse.host_name(value)


_BANNER_KEYS: Final = dict.fromkeys(("message", "background_color", "enabled")).keys()
_COLOR: Final = re.compile(r"#[0-9A-Fa-f]{6}")
_ACCESS_URL: Final = parse.url("http", "https")
_SECONDS: Final = parse.duration(1, 3_600)

SETTINGS: Final = (
    Setting(
        "listen",
        parse.many(parse.address),
        "ADDRESS,...",
        "where to serve API, RPC and relay, 127.0.0.1:3000 by default",
    ),
    Setting(
        "stun_listen",
        _off_or_addresses,
        "ADDRESS,...|off",
        "where to answer STUN, port 3478 beside --listen by default",
    ),
    Setting("store", parse.string, "URL", "the store, sqlite:///tailnet.db by default; made if missing"),
    Setting("dev", parse.boolean, "", "try it out: a store for this run only, with a demo user, workspace and agent"),
    Setting("access_url", _ACCESS_URL, "URL", "how clients reach this server; the first --listen by default"),
    Setting("tls_cert", parse.path, "FILE", "certificate chain as PEM, leaf first; read again when it changes"),
    Setting("tls_key", parse.path, "FILE", "its private key as PEM"),
    Setting("derp", parse.boolean, "", "serve a DERP relay at /derp, true by default", "derp_enabled"),
    Setting("derp_region_id", _region_id, "NUMBER", "the region of that relay in the map, 999 by default"),
    Setting("derp_region_code", _text(64), "CODE", "its code, `embedded` by default"),
    Setting("derp_region_name", _text(256), "NAME", "its name, `Embedded relay` by default"),
    Setting("stun_servers", parse.many(parse.address), "HOST:PORT,...", "further STUN servers for that region"),
    Setting(
        "derp_map",
        parse.many(parse.path),
        "FILE,...",
        "DERP maps laid over the embedded relay; watched; null drops a region",
    ),
    Setting("derp_map_url", parse.many(_ACCESS_URL), "URL,...", "the same by URL, below the files; polled"),
    Setting(
        "derp_map_poll", parse.duration(1, DAY_SECONDS), "DURATION", "how often, 5s by default", "derp_map_poll_seconds"
    ),
    Setting("region_scores", parse.many(_score), "REGION=FACTOR,...", "2 makes a region look twice as far"),
    Setting("avoid_regions", parse.many(_region_id), "REGION,...", "regions that nobody should choose as home"),
    Setting("browser_only", parse.boolean, "", "turn away every client that is no browser"),
    Setting("disable_direct_connections", parse.boolean, "", "tell peers to use relays only"),
    Setting("derp_force_websockets", parse.boolean, "", "tell peers to reach relays by websocket only"),
    Setting("hostname_suffix", _suffix, "NAME", "suffix of workspaces' names on clients, `coder` by default"),
    Setting(
        "agent_ping",
        _SECONDS,
        "DURATION",
        "how often agents are asked for a sign of life, 15s by default",
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
        "how often agents report statistics, 5m by default",
        "stats_interval_seconds",
    ),
    Setting(
        "announcement_banners",
        _banners,
        "MESSAGE|JSON",
        "what agents show at log-in, nothing by default; read again on SIGHUP",
    ),
    Setting(
        "accept_connection_limit", parse.rate, "NUMBER", "new connections per second, 5000 by default; inf: no limit"
    ),
    Setting(
        "accept_connection_burst",
        parse.whole(1, (1 << 63) - 1),
        "NUMBER",
        "how many may come at once, 10000 by default",
    ),
    Setting(
        "max_connections",
        parse.whole(1, 10_000_000),
        "NUMBER",
        "connections at a time, 100000 by default, never above the limit of open files",
    ),
    Setting(
        "queue_depth", parse.whole(1, 65_536), "PACKETS", "packets the relay keeps for a slow reader, 512 by default"
    ),
    Setting("queue_bytes", parse.whole(128 * 1024, 1 << 30), "BYTES", "bytes it keeps for one, 2 MiB by default"),
    Setting(
        "drain",
        parse.duration(0, 3_600),
        "DURATION",
        "after SIGTERM, how long peers are sent away in order, 25s by default",
        "drain_seconds",
    ),
    Setting(
        "debug_allow", parse.many(parse.network), "NETWORK,...", "who may see /metrics and /debug/, loopback by default"
    ),
    Setting(
        "trusted_proxies",
        parse.many(parse.network),
        "NETWORK,...",
        "whose X-Forwarded-For is believed, nobody's by default",
    ),
    Setting(
        "log_format", parse.one_of("auto", "text", "json"), "auto|text|json", "auto is text on a terminal, else JSON"
    ),
    Setting("log_level", parse.one_of("debug", "info", "warning", "error"), "LEVEL", "info by default"),
)
BY_NAME: Final = {setting.name: setting for setting in SETTINGS}
_ATTRIBUTES: Final = frozenset(each.name for each in fields(CoordinatorConfig))


class _Given:
    """What was given, parsed, by setting name, and where."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[Any, str]] = {}

    def give(self, setting: Setting, raw: object, place: str) -> None:
        try:
            self._values[setting.name] = setting.parse(raw), place
        except ValueError as error:
            raise ConfigError(f"{place}: {error_text(error)}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str, default: Any = None) -> Any:
        return self._values[name][0] if name in self._values else default

    def error(self, name: str, reason: str) -> ConfigError:
        place = self._values[name][1] if name in self._values else f"flags: {BY_NAME[name].flag}"
        return ConfigError(f"{place}: {reason}")


def _read_toml(path: Path, given: _Given) -> None:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the settings: {error_text(error)}") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: holds no settings: it has more than {MAX_FILE_BYTES:,} bytes")
    try:
        document = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML: {error_text(error)}") from None
    for key, value in document.items():
        if key not in BY_NAME:
            raise ConfigError(f"{path}: {key!r:.80}: there is no such setting{_nearest(key, BY_NAME)}")
        given.give(BY_NAME[key], value, f"{path}: {key}")


def _read_environment(environ: Mapping[str, str], given: _Given) -> None:
    by_variable = {setting.environment: setting for setting in SETTINGS}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == CONFIG_ENVIRONMENT:
            continue
        if variable not in by_variable:
            if _KUBERNETES_LINK.fullmatch(variable):
                continue
            raise ConfigError(f"environment: {variable}: there is no such setting{_nearest(variable, by_variable)}")
        # Compose files pass ${NAME:-} on as an empty variable when the operator set nothing.
        if text:
            given.give(by_variable[variable], text, f"environment: {variable}")


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = get_close_matches(name, known, 1)
    return f": did you mean {near[0]}?" if near else ""


def _build(given: _Given, open_files: int) -> CoordinatorConfig:
    if "listen" in given and not given.get("listen"):
        raise given.error("listen", 'wants at least one address, such as "127.0.0.1:3000"')
    if ("tls_cert" in given) != ("tls_key" in given):
        there = "tls_cert" if "tls_cert" in given else "tls_key"
        raise given.error(there, "a certificate needs its key: set both --tls-cert and --tls-key")
    attributes = {
        setting.attribute or setting.name: given.get(setting.name)
        for setting in SETTINGS
        if setting.name in given and (setting.attribute or setting.name) in _ATTRIBUTES
    }
    if "tls_cert" in given:
        attributes["tls"] = TlsConfig(given.get("tls_cert"), given.get("tls_key"))
    if given.get("dev") and "store" not in given:
        attributes["store"] = ""
    config = CoordinatorConfig(**attributes)
    if config.inactive_seconds <= config.agent_ping_seconds:
        raise given.error("agent_inactive", f"must be longer than --agent-ping ({config.agent_ping_seconds:g}s)")
    notices = _notices(config)
    if open_files != resource.RLIM_INFINITY:
        possible = max(1, open_files - RESERVED_FILES)
        if config.max_connections > possible:
            remedy = f"this process may open {open_files:,} files: raise its limit (LimitNOFILE= in systemd, ulimit -n)"
            if "max_connections" in given:
                raise given.error("max_connections", f"{config.max_connections:,} are not possible, {remedy}")
            notices.append(f"at most {possible:,} connections instead of {config.max_connections:,}: {remedy}")
            config = replace(config, max_connections=possible)
    return replace(config, notices=tuple(notices))


def _notices(config: CoordinatorConfig) -> list[str]:
    notices = []
    public = [host for host, _ in config.listen if not _is_local(host)]
    if public and not config.access_url:
        notices.append("peers of other relays' regions need to know where ours is: set --access-url")
    if public and config.dev:
        notices.append(
            "--dev is for this machine, but it listens to others: its demo tokens are printed on this terminal"
        )
    if public and config.tls is None and not config.access_url.startswith("https"):
        notices.append("tokens travel in the clear: set --tls-cert and --tls-key, or serve behind a proxy with TLS")
    return notices


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
