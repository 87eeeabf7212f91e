"""Where a DERP map comes from: a file, standard input, an address, or one relay's URL.  Layer L3.

For the commands that take one argument and mean any of these.  Text: netcheck/maptext.py; values: derp/map.py.
"""

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import trio

from derp.client.dial import DEFAULT_PATH, DialOptions, RelayAddress
from derp.errors import ConfigError, MapFormatError
from derp.map import DERPMap, DERPNode, DERPRegion
from derp.netcheck.maptext import read_map_text, what_instead
from derp.text import error_text, fit_to_show
from derp.transport.fetch import HttpCaller

# The largest public map has 30 KB.
MAX_MAP_BYTES: Final = 4 * 1024 * 1024
_STDIN: Final = 0  # the descriptor
FETCH_SECONDS: Final = 15.0
# What a map made of a URL calls its region: the first of those kept free for relays of one's own.
OWN_REGION: Final = 900


def is_relay_url(source: str) -> bool:
    """Whether `source` names a relay: a URL without a path or with /derp.  Any other URL is a map's address."""
    parts = urlsplit(source)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.path.rstrip("/") in ("", DEFAULT_PATH)


def source_name(source: str) -> str:
    """The source for messages: in an address of a map may stand a password or a token."""
    return fit_to_show(source)


async def read_map_source(source: str) -> bytes:
    """What stands at `source`, a path, `-`, or a URL, unread.  Raises ConfigError; TransportError for a URL."""
    if source == "-":
        content = await _read(_STDIN)
    elif urlsplit(source).scheme in ("http", "https"):
        content = await _fetch(source)
    elif "://" in source.removeprefix("file://"):
        raise ConfigError(f"{source_name(source)}: a map is a file, or behind http:// or https://")
    else:
        content = await _read(Path(source.removeprefix("file://")))
    if len(content) > MAX_MAP_BYTES:
        raise ConfigError(f"{source_name(source)}: larger than {MAX_MAP_BYTES} bytes: that is no DERP map")
    return content


async def load_map(source: str, *, pin: str = "", stun_port: int = 0) -> DERPMap:
    """The map that `source` names or, for a relay's URL, a map of that relay alone.

    `pin`, `stun_port`: for a URL, as CertName and STUNPort of a map.  Raises ConfigError; TransportError for a URL.
    """
    if is_relay_url(source):
        return map_of_relay(source, pin=pin, stun_port=stun_port)
    content = await read_map_source(source)
    try:
        document = read_map_text(content)
    except MapFormatError as error:
        raise ConfigError(f"{source_name(source)}: {error}") from None
    try:
        derp_map = DERPMap.parse(document)
    except MapFormatError as error:
        raise ConfigError(f"{source_name(source)}: {error}; `derp map lint` names every mistake") from None
    if not derp_map.regions:
        # Go ignores keys that it does not know, so a part of a map reads as an empty one.
        instead = what_instead(json.loads(document) if isinstance(document, str) else document)
        if instead:
            raise ConfigError(f"{source_name(source)}: {instead}")
    return derp_map


def map_of_relay(
    url: str, *, pin: str = "", stun_port: int = 0, region_id: int = OWN_REGION, code: str = "", name: str = ""
) -> DERPMap:
    """A map with one relay.  Raises ConfigError."""
    address = RelayAddress.from_url(url, DialOptions(environment=None))
    if address.path != DEFAULT_PATH:
        raise ConfigError(f"relay URL {fit_to_show(url)!r}: clients with a map always use the path {DEFAULT_PATH}")
    literal = _version_of(address.host)
    node = DERPNode(
        name=f"{region_id}a",
        region_id=region_id,
        host_name=address.host,
        cert_name=pin,
        # Given as an address, a host name must not be looked up, and has one family only.
        ipv4=address.host if literal == 4 else "none" if literal == 6 else "",
        ipv6=address.host if literal == 6 else "none" if literal == 4 else "",
        stun_port=0 if stun_port == 3478 else stun_port,
        derp_port=0 if address.is_tls and address.port == 443 else address.port,
        force_http=not address.is_tls,
    )
    region = DERPRegion(region_id, code or "custom", name or address.host, nodes=(node,))
    return DERPMap({region_id: region})


async def _fetch(url: str) -> bytes:
    async with HttpCaller(timeout_seconds=FETCH_SECONDS) as caller:
        fetched = await caller.get(url, MAX_MAP_BYTES + 1)
    if fetched.redirect:
        raise ConfigError(f"{source_name(url)}: answers with {fetched.redirect}: give that address, if it is meant")
    if fetched.status != 200:
        raise ConfigError(f"{source_name(url)}: answers with status {fetched.status}, not with a map")
    return fetched.body


async def _read(path: Path | int) -> bytes:
    def read() -> bytes:
        with open(path, "rb", closefd=path != _STDIN) as file:
            return file.read(MAX_MAP_BYTES + 1)

    try:
        # A terminal or a pipe may say nothing for ever; Ctrl-C does not wait for that.  Not sys.stdin: who is left
        # waiting in it holds a lock that the interpreter wants when it ends.
        return await trio.to_thread.run_sync(read, abandon_on_cancel=True)
    except OSError as error:
        name = "standard input" if path == _STDIN else path
        raise ConfigError(f"{name}: cannot be read: {error_text(error)}") from None


def _version_of(host: str) -> int:
    try:
        return ip_address(host).version
    except ValueError:
        return 0
