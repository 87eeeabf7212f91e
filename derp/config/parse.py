"""The kinds of settings: text or a TOML value in, a typed value out (layer L2).

Every parser takes what a source gave (a string from flags and environment, any TOML value from a file) and raises
ValueError with a reason that says what to write instead; sources.py puts the place in front of it.
"""

import base64
import binascii
import ipaddress
import math
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn, TypeVar
from urllib.parse import urlsplit

from derp.config.relay import MeshPeer, Network
from derp.errors import KeyFormatError
from derp.keys import NodePublic
from derp.map import is_unspecified
from derp.relay.limits import Rate
from derp.text import without_secrets

T = TypeVar("T")
Parser = Callable[[object], T]

_DURATION_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SIZE: Final = re.compile(r"(\d{1,15}) ?([KMGTP]?)(i?)B?", re.IGNORECASE)
_SERVICES: Final = {"http": 80, "https": 443}  # the names Go's listeners are usually given
_HOST_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_TRUE: Final = {"1", "t", "true", "yes", "on"}
_FALSE: Final = {"0", "f", "false", "no", "off"}


def _refuse(wants: str, value: object) -> NoReturn:
    # Masked before it is cut: half a URL does not look like one.
    raise ValueError(f"wants {wants}, got {without_secrets(repr(value)):.80}")


def string(value: object) -> str:
    """Any text."""
    if not isinstance(value, str):
        _refuse("text in quotes", value)
    return value


def boolean(value: object) -> bool:
    """true or false, as TOML has it or in the spellings Go's flags take."""
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else ""
    if word not in _TRUE | _FALSE:
        _refuse("true or false", value)
    return word in _TRUE


class OneOf:
    """One of a few words, which a shell can complete."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __call__(self, value: object) -> str:
        if value not in self.words:
            _refuse(f"one of {', '.join(word or repr(word) for word in self.words)}", value)
        return str(value)


def whole(minimum: int, maximum: int) -> Parser[int]:
    """A whole number within bounds."""

    def parse(value: object) -> int:
        wants = f"a whole number from {minimum:,} to {maximum:,}"
        if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,19}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            _refuse(wants, value)
        return value

    return parse


def size(value: object) -> int:
    """A number of bytes: 1000, "10GB", "500MiB"."""
    found = _SIZE.fullmatch(str(value).strip()) if isinstance(value, str | int) else None
    if isinstance(value, bool) or found is None or not int(found[1]):
        _refuse('a number of bytes such as "10GB" or "500MiB"', value)
    base, power = 1024 if found[3] else 1000, "KMGTP".find(found[2].upper()) + 1 if found[2] else 0
    return int(found[1]) * int(base**power)


def worker_count(value: object) -> int:
    """From 1 to 64; `auto`: one for each core that this process may use."""
    if value == "auto":
        return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 64)
    return whole(1, 64)(value)


def rate(value: object) -> float:
    """A positive number, or inf for no limit."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        _refuse("a number above 0, or inf", value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        _refuse("a number above 0, or inf", value)
    if math.isnan(number) or number <= 0:
        _refuse("a number above 0, or inf", value)
    return number


def duration(minimum: float, maximum: float) -> Parser[float]:
    """A Go duration such as 2s, 1m30s or 1.5h; returns seconds within bounds."""

    def parse(value: object) -> float:
        # A bare number is refused in files too: nobody remembers whether a 5 meant seconds or milliseconds.
        if not isinstance(value, str) or not (value == "0" or re.fullmatch(f"({_DURATION_PART.pattern})+", value)):
            _refuse('a duration with its unit, such as "2s" or "1m30s"', value)
        parts = _DURATION_PART.finditer(value)
        seconds = sum((float(part[1]) * _UNIT_SECONDS[part[2]] for part in parts), 0.0)
        if not minimum <= seconds <= maximum:
            _refuse(f"a duration from {minimum:g}s to {maximum:g}s", value)
        return seconds

    return parse


def path(value: object) -> Path:
    """A file name; `~` is the home directory."""
    text = string(value)
    if not text or "\0" in text:
        _refuse("a file name", value)
    return Path(text).expanduser()


def optional_path(value: object) -> Path | None:
    """A file name, or empty text for none, as derper's flags take it: units that fill in a variable rely on it."""
    return None if value == "" else path(value)


def socket_path(value: object) -> str:
    """The path of a Unix socket; the kernel takes no more than 107 bytes."""
    text = str(path(value))
    if len(os.fsencode(text)) > 107:
        _refuse("a path of at most 107 bytes", value)
    return text


def many(parse_one: Parser[T]) -> Parser[tuple[T, ...]]:
    """A TOML list, or text with commas; blanks around the parts and empty text are fine, empty parts are not."""

    def parse(value: object) -> tuple[T, ...]:
        if isinstance(value, str):
            parts: Sequence[object] = [part.strip() for part in value.split(",")] if value.strip() else []
        elif isinstance(value, list):
            parts = value
        else:
            _refuse("a list", value)
        if "" in parts:
            raise ValueError("has an empty part: remove a comma")
        return tuple(parse_one(part) for part in parts)

    return parse


def port(value: object) -> int:
    """A port; 0 takes any free one."""
    return whole(0, 65535)(value)


def address(value: object) -> tuple[str, int]:
    """`host:port`, `[IPv6]:port`, or `:port` for every address."""
    text = string(value)
    host, colon, port_text = text.rpartition(":")
    if not colon:
        _refuse('an address with a port, such as ":3340" or "[::1]:3340"', value)
    if host.startswith("[") and host.endswith("]"):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    elif ":" in host:
        _refuse('IPv6 addresses in brackets, such as "[::1]:3340"', value)
    elif host:
        host = host_name(host)
    return host, _SERVICES.get(port_text) or port(port_text)


def listen_addresses(value: object) -> tuple[tuple[str, int], ...]:
    """Where to listen: addresses, each once.

    An unspecified one, 0.0.0.0 or [::], is every address of both families, as for derper, and is written "" from here.
    """
    parsed = many(address)(value)
    return tuple(dict.fromkeys(("" if is_unspecified(host) else host, number) for host, number in parsed))


def host_name(value: object) -> str:
    """A host name or IP address, without port."""
    text = string(value)
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    if len(text) > 253 or not _HOST_NAME.fullmatch(text):
        _refuse("a host name or IP address", value)
    # 300.1.1.1 and 1.2.3 are typing mistakes, not names: no top-level domain is a number.
    if text.rstrip(".").rpartition(".")[2].isdigit():
        _refuse("a host name or IP address", value)
    return text.rstrip(".")


def own_host_name(value: object) -> str:
    """A host name or IP address as it is spelled: derper calls the certificate's files after the spelling."""
    host_name(value)
    text = string(value)
    return text.rstrip(".")


def dns_name_with_rollout(value: object) -> tuple[str, str]:
    """`name` or `name/txt-name`: the second is the TXT record that holds the rollout percentage."""
    name, slash, txt_name = string(value).partition("/")
    return host_name(name), host_name(txt_name) if slash else ""


def mesh_peer(value: object) -> MeshPeer:
    """`host`, `host:port` or either with `/dialhost`: the host to dial in place of the first, on the same port."""
    name, slash, dial_host = string(value).partition("/")
    has_port = ":" in name.rpartition("]")[2]
    host, mesh_port = address(name if has_port else f"{name}:443")
    if not host or not mesh_port:
        _refuse("host, host:port or host/dialhost", value)
    return MeshPeer(host=host, port=mesh_port, dial_host=host_name(dial_host) if slash else host)


def network(value: object) -> Network:
    """An address or a CIDR block."""
    text = string(value)
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        pass
    try:
        wide = ipaddress.ip_network(text, strict=False)
    except ValueError:
        _refuse("an address or a network such as 10.0.0.0/8", value)
    raise ValueError(f"{text} has bits set after its prefix: write {wide}")


def url(*schemes: str) -> Parser[str]:
    """A URL with one of the schemes and a host."""

    def parse(value: object) -> str:
        text = string(value)
        wants = f"a URL that starts with {' or '.join(f'{scheme}://' for scheme in schemes)}"
        try:
            parts = urlsplit(text)
            valid = parts.scheme in schemes and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            valid = False
        # A blank or control character would end up inside a header or a request line.
        if not valid or not text.isascii() or not text.isprintable() or " " in text:
            _refuse(wants, value)
        return text

    return parse


def url_or_path(value: object) -> str:
    """A URL of http or https, or a file name."""
    text = string(value)
    return url("http", "https")(value) if "://" in text else str(path(value))


def optional(parse_one: Parser[str]) -> Parser[str]:
    """Empty text, or what the inner parser takes."""
    return lambda value: "" if value == "" else parse_one(value)


def home_page(value: object) -> str:
    """Empty, `blank`, or a URL to redirect to."""
    if value in ("", "blank"):
        return str(value)
    return url("http", "https")(value)


def email(value: object) -> str:
    """A mail address, roughly: what would break a `mailto:` URL is refused, the rest is for its receiver to judge."""
    text = string(value)
    name, at, domain = text.rpartition("@")
    if not name or not at or not domain or not text.isascii() or not text.isprintable() or set(text) & set(' ,?<>"'):
        _refuse("a mail address, such as ops@example.org", value)
    return text


def command(value: object) -> tuple[str, ...]:
    """A program and its arguments: a list, or text that is split as a shell would, without running one."""
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        words = tuple(value)
    else:
        text = string(value)
        try:
            words = tuple(shlex.split(text))
        except ValueError:
            _refuse("a command with its quotes closed", value)
    if not words or not words[0] or any("\0" in word for word in words):
        _refuse("a command", value)
    return words


def base64_secret(value: object) -> bytes:
    """Bytes as base64 or base64url, with padding or without.  The error does not repeat them."""
    text = string(value).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        secret = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        secret = b""
    if not secret:
        raise ValueError("wants a key in base64, as the authority shows it")
    return secret


def node_key(value: object) -> bytes:
    """`nodekey:<64 hex>` as 32 raw bytes."""
    try:
        return NodePublic.parse(string(value)).raw
    except KeyFormatError as error:
        raise ValueError(str(error)) from None


def node_keys(value: object) -> frozenset[bytes]:
    """A list of node keys, raw."""
    return frozenset(many(node_key)(value))


def key_rates(value: object) -> dict[bytes, Rate]:
    """Limits by raw public key: a list of `nodekey:<hex>=BYTES[/BURST]`, bytes a second (0: no limit) and of burst."""
    return dict(many(_key_rate)(value))


def _key_rate(value: object) -> tuple[bytes, Rate]:
    key, equals, limits = string(value).rpartition("=")
    number, slash, burst = limits.partition("/")
    if not equals or not number.isdecimal() or (slash and not burst.isdecimal()):
        raise ValueError(f"wants nodekey:<64 hex>=BYTES or nodekey:<64 hex>=BYTES/BURST, got {value!r:.120}")
    return node_key(key), Rate(int(number), int(burst or 0))
