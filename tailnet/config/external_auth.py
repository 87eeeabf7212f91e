"""Providers at whom users link their accounts, as `[[external_auth]]` tables give them (layer L2).

A provider speaks OAuth 2 with the authorization code grant (RFC 6749).  Of a few known ones the addresses need not be
given.  Secrets come from files, or stand in the settings' own; errors and representations hold none of them.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

from derp.config import parse
from derp.config.load import is_local
from derp.config.sources import read_file
from derp.errors import ConfigError
from derp.text import error_text, printable
from tailnet.config.matching import bounded_regex

# Each is a link on a page, and a regular expression that is tried for each question.
MAX_PROVIDERS: Final = 64
MAX_SCOPES: Final = 64
_ID: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_URL: Final = parse.url("https", "http")
_MAX_CHARS: Final = 4096


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider.  `regex`: which git addresses are its; the last one that matches counts."""

    id: str
    type: str
    client_id: str
    auth_url: str
    token_url: str
    client_secret: str = field(default="", repr=False)
    client_secret_file: Path | None = None
    validate_url: str = ""  # asked with a token, whether it is good; "": what has not expired is
    regex: re.Pattern[str] | None = None
    scopes: tuple[str, ...] = ()
    display_name: str = ""
    display_icon: str = ""
    basic_auth: bool = False  # whether it wants our secret in a header, and not in the form
    extra_token_keys: tuple[str, ...] = ()  # what of its answers agents get beside the token

    @property
    def name(self) -> str:
        """What people call it."""
        return self.display_name or self.id

    @property
    def urls(self) -> tuple[str, ...]:
        """Where tokens go."""
        return tuple(filter(None, (self.auth_url, self.token_url, self.validate_url)))


# Public addresses of those whom everybody uses; a table may say others, for installations of one's own.
KNOWN: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "github": {
            "auth_url": "https://github.com/login/oauth/authorize",
            "token_url": "https://github.com/login/oauth/access_token",
            "validate_url": "https://api.github.com/user",
            "regex": r"^(https?://)?github\.com(/.*)?$",
            "scopes": ["repo", "workflow"],
            "display_name": "GitHub",
        },
        "gitlab": {
            "auth_url": "https://gitlab.com/oauth/authorize",
            "token_url": "https://gitlab.com/oauth/token",
            "validate_url": "https://gitlab.com/oauth/token/info",
            "regex": r"^(https?://)?gitlab\.com(/.*)?$",
            "scopes": ["write_repository", "read_api"],
            "display_name": "GitLab",
        },
        "bitbucket-cloud": {
            "auth_url": "https://bitbucket.org/site/oauth2/authorize",
            "token_url": "https://bitbucket.org/site/oauth2/access_token",
            "validate_url": "https://api.bitbucket.org/2.0/user",
            "regex": r"^(https?://)?bitbucket\.org(/.*)?$",
            "scopes": ["account", "repository:write"],
            "display_name": "Bitbucket",
            "basic_auth": True,
        },
    }
)
# What stands for one host: an installation of one's own has others, so all of them have to be said then.
_OF_HOST: Final = ("auth_url", "token_url", "validate_url", "regex")


def providers(value: object) -> tuple[Provider, ...]:
    """A list of tables; as text the same as JSON."""
    items: object = value
    if isinstance(value, str):
        try:
            items = json.loads(value) if value else []
        except (ValueError, RecursionError):
            raise ValueError("wants tables [[external_auth]], or a list of them as JSON") from None
    if not isinstance(items, list) or len(items) > MAX_PROVIDERS:
        raise ValueError(f"wants at most {MAX_PROVIDERS} tables [[external_auth]], or a list of them as JSON")
    found = tuple(_provider(each, f"[{number}]") for number, each in enumerate(items))
    for number, each in enumerate(found):
        if each.id in (other.id for other in found[:number]):
            raise ValueError(f"[{number}].id: {each.id!r} stands there twice: each provider needs its own")
    return found


def fetched_providers(value: object) -> tuple[Provider, ...]:
    """The same from the control plane, whose word reads no files here and sends no secret in the clear."""
    if not isinstance(value, list):
        raise ValueError("wants a list of providers")
    found = providers(value)
    for number, each in enumerate(found):
        if each.client_secret_file is not None:
            raise ValueError(f"[{number}].client_secret_file: is for tables of this server: give client_secret")
        if any(is_in_the_clear(url) for url in each.urls):
            raise ValueError(f"[{number}]: wants https addresses: tokens would travel in the clear")
    return found


def is_in_the_clear(url: str) -> bool:
    """Whether others read along, and may answer: without TLS, and not on this machine."""
    parts = urlsplit(url)
    return parts.scheme == "http" and not is_local(parts.hostname or "")


def with_secrets(found: tuple[Provider, ...]) -> tuple[Provider, ...]:
    """The same with what stands in their files.  Raises ConfigError."""
    return tuple(_with_secret(each) for each in found)


def _with_secret(provider: Provider) -> Provider:
    if provider.client_secret_file is None:
        return provider
    secret = read_file(provider.client_secret_file, "client secret").decode("utf-8", "replace").strip()
    if not secret.isprintable() or not secret:
        raise ConfigError(f"{provider.client_secret_file}: wants the client secret as one line of text")
    return replace(provider, client_secret=secret)


def _provider(value: object, place: str) -> Provider:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: wants a table with id, type, client_id, client_secret_file")
    kind = value.get("type", "")
    known = KNOWN.get(kind, {}) if isinstance(kind, str) else {}
    is_elsewhere = any(name in value for name in _OF_HOST[:2])
    given = {name: each for name, each in known.items() if not (is_elsewhere and name in _OF_HOST)} | value
    given.setdefault("id", kind)
    unknown = sorted(str(name) for name in given.keys() - _KINDS.keys())
    if unknown:
        raise ValueError(f"{place}: {printable(unknown[0], 40)!r}: unknown key: known are {', '.join(_KINDS)}")
    found = {name: _read(name, each, place) for name, each in given.items()}
    for name in ("id", "type", "client_id", "auth_url", "token_url"):
        if not found.get(name):
            raise ValueError(f"{place}.{name}: is missing")
    if bool(found.get("client_secret")) == ("client_secret_file" in found):
        raise ValueError(f"{place}: wants either client_secret_file or client_secret")
    return Provider(**found)


def _read(name: str, value: object, place: str) -> Any:
    try:
        return _KINDS[name](value)
    except ValueError as error:
        raise ValueError(f"{place}.{name}: {error_text(error)}") from None


def _text(value: object) -> str:
    # Not repeated in the error: it may be the secret.
    if not isinstance(value, str) or len(value) > _MAX_CHARS or not value.isprintable():
        raise ValueError("wants a line of text")
    return value


def _identifier(value: object) -> str:
    if not _ID.fullmatch(_text(value)):
        raise ValueError("wants lower-case letters, digits and dashes: it stands in addresses")
    return str(value)


def _words(value: object) -> tuple[str, ...]:
    words = [_text(each) for each in value] if isinstance(value, list) else []
    if not isinstance(value, list) or len(words) > MAX_SCOPES or any(not each or " " in each for each in words):
        raise ValueError(f"wants a list of at most {MAX_SCOPES} words")
    return tuple(words)


# Key of a table -> how it is read.
_KINDS: Final[Mapping[str, Callable[[object], Any]]] = {
    "id": _identifier,
    "type": _identifier,
    "client_id": _text,
    "client_secret": _text,
    "client_secret_file": lambda value: Path(_text(value)),
    "auth_url": _URL,
    "token_url": _URL,
    "validate_url": lambda value: _URL(value) if value else "",
    "regex": lambda value: bounded_regex(_text(value)),
    "scopes": _words,
    "display_name": _text,
    "display_icon": _text,
    "basic_auth": parse.boolean,
    "extra_token_keys": _words,
}
