"""The kinds of settings that derp/config/parse.py does not have (layer L2): regions, banners, names in maps."""

import json
import re
from collections.abc import Callable
from typing import Final

from derp.config import parse
from derp.map import is_unspecified
from derp.text import error_text, without_secrets
from tailnet.config.coordinator import Banner, BusPlace
from tailnet.config.redis_url import redis_place

MAX_REGION_ID: Final = (1 << 31) - 1
# A terminal's screen has 80 x 24 characters; more than one of them before each prompt is read by nobody.
MAX_BANNER_CHARS: Final = 2_000
MAX_BANNERS: Final = 10
_BANNER_KEYS: Final = dict.fromkeys(("message", "background_color", "enabled")).keys()
_ORIGIN: Final = re.compile(r"(?P<scheme>https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:(?P<port>[1-9][0-9]{0,4}))?")
_PORTS: Final = {"http": 80, "https": 443}
MAX_PORT: Final = 65_535
# What the kernel takes, less the zero behind it.
MAX_SOCKET_PATH: Final = 107
_COLOR: Final = re.compile(r"#[0-9A-Fa-f]{6}")


def off_or_addresses(value: object) -> tuple[tuple[str, int], ...]:
    """Where to listen, or `off` for nowhere."""
    return () if value == "off" else parse.listen_addresses(value)


def region_id(value: object) -> int:
    """The number of a region."""
    return parse.whole(1, MAX_REGION_ID)(value)


def score(value: object) -> tuple[int, float]:
    """`REGION=FACTOR`."""
    region, equals, factor = parse.string(value).partition("=")
    try:
        number = float(factor) if equals else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise ValueError(f"wants REGION=FACTOR with a factor above 0, such as 1=1.5, got {value!r:.80}")
    return region_id(region), number


def text(limit: int) -> Callable[[object], str]:
    """Printable text."""

    def parse_text(value: object) -> str:
        given = parse.string(value)
        if not given or len(given) > limit or not given.isprintable():
            raise ValueError(f"wants 1 to {limit} printable characters, got {value!r:.80}")
        return given

    return parse_text


def origin(value: object) -> str:
    """An origin as browsers spell it: scheme, host, and the port where it is not the scheme's own."""
    text = parse.string(value)
    found = _ORIGIN.fullmatch(text.lower())
    port = int(found["port"] or 0) if found is not None else 0
    if found is None or port > MAX_PORT or port == _PORTS[found["scheme"]]:
        raise ValueError(
            f"wants origins such as https://dash.example.com, without a path, a port that needs no saying or a "
            f"wildcard, which would give every website its visitors' rights; got {text!r:.80}"
        )
    return text.lower()


def banners(value: object) -> tuple[Banner, ...]:
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


def file_or_url(value: object) -> str:
    """A file's name, or a URL of HTTP."""
    given = parse.string(value)
    if given.startswith(("http://", "https://")):
        return parse.url("http", "https")(given)
    return str(parse.path(given))


def bus(value: object) -> BusPlace:
    """`store`, a URL of Redis, `static:` and addresses or Unix sockets, or `dns:` and a name with a port."""
    given = parse.string(value)
    if given == "store":
        return BusPlace("store")
    kind, colon, rest = given.partition(":")
    if kind.startswith("redis"):
        return BusPlace("redis", redis=redis_place(given))
    if kind in ("static", "dns") and colon:
        addresses = parse.many(replica_place if kind == "static" else parse.address)(rest)
        if all(host and (port or host[0] == "/") for host, port in addresses):
            return BusPlace(kind, addresses)
    # Masked before it is cut: half a URL does not look like one.
    shown = f"{without_secrets(repr(given)):.80}"
    kinds = "store, redis://HOST:PORT, static:HOST:PORT,... or dns:NAME:PORT, and with static: unix:PATH too"
    raise ValueError(f"wants {kinds}, got {shown}")


def replica_place(value: object) -> tuple[str, int]:
    """An address, or `unix:PATH`, which is the path and port 0."""
    kind, colon, path = parse.string(value).partition(":")
    if kind != "unix" or not colon:
        return parse.address(value)
    if not path.startswith("/") or len(path.encode()) > MAX_SOCKET_PATH:
        raise ValueError(f"wants unix: with a path from / on of at most {MAX_SOCKET_PATH} bytes, got {value!r:.200}")
    return path, 0


def replica_listen(value: object) -> tuple[tuple[str, int], ...]:
    """Where to take links: addresses as for --listen, and Unix sockets."""
    places = [("" if is_unspecified(host) else host, port) for host, port in parse.many(replica_place)(value)]
    return tuple(dict.fromkeys(places))


def suffix(value: object) -> str:
    """A domain, or nothing."""
    return "" if value == "" else parse.host_name(value)
