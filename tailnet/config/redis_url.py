"""The address of a Redis or Valkey, as `--bus` takes it (layer L2).  docs/replicas.md has the forms.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],.../SERVICE[/DB]    sentinels, who know the primary of that name
    redis+cluster://[USER:PASSWORD@]HOST[:PORT],...                  some nodes of a cluster, who know the others
`rediss` in front is TLS.  No error holds a name or a password.  Next hop: bus/redis.py.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

from derp.config import parse
from derp.text import host_port

_PORTS: Final = {"": 6379, "sentinel": 26379, "cluster": 6379}
# A server has 16 databases if nobody asks for more; no number of five digits is one.
_MAX_DB: Final = 9_999
# Any of them knows the others.
_MAX_ADDRESSES: Final = 16
_OPTIONS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "sentinel_username", "sentinel_password")


@dataclass(frozen=True, slots=True)
class Login:
    """Who we are for a server.  An empty name is the server's default user, an empty password none."""

    user: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class RedisPlace:
    """Where a Redis is.  `kind`: "" is one server, else `sentinel` or `cluster`, whose addresses know where."""

    kind: str
    addresses: tuple[tuple[str, int], ...]
    is_tls: bool
    login: Login = Login()
    db: int = 0
    service: str = ""  # what sentinels call the primary
    sentinel_login: Login = Login()
    ca_file: Path | None = None  # who vouches for its certificate; None: the system's authorities
    certificate_file: Path | None = None  # ours, where it wants to see one
    key_file: Path | None = None

    def __str__(self) -> str:
        """For people: without names and passwords."""
        scheme = ("rediss" if self.is_tls else "redis") + (f"+{self.kind}" if self.kind else "")
        addresses = ",".join(host_port(*each) for each in self.addresses)
        return f"{scheme}://{addresses}{f'/{self.service}' if self.service else ''}{f'/{self.db}' if self.db else ''}"


def redis_place(text: str) -> RedisPlace:
    """Parse such an address.  Raises ValueError with what to change."""
    scheme, _, rest = text.partition("://")
    family, plus, kind = scheme.partition("+")
    if family not in ("redis", "rediss") or kind not in _PORTS or (plus and not kind) or not rest:
        raise ValueError(
            "wants redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,.../SERVICE or redis+cluster://HOST:PORT,..."
        )
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("holds a blank or a character that has to be written as %XX in a URL")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    if "@" in path or "#" in rest or "@" in query:
        raise ValueError("in a name or password write / as %2F, ? as %3F, # as %23 and @ as %40")
    login, at, hosts = authority.rpartition("@")
    service, db = _service_and_db(kind, path.rstrip("/"))
    return RedisPlace(
        kind,
        _addresses(kind, hosts),
        family == "rediss",
        _login(login) if at else Login(),
        db,
        service,
        **_options(kind, family == "rediss", query),
    )


def _login(text: str) -> Login:
    user, colon, password = text.partition(":")
    if not colon or not password:
        raise ValueError("has a name without a password: write USER:PASSWORD@ or :PASSWORD@ before the host")
    return Login(unquote(user), unquote(password))


def _addresses(kind: str, text: str) -> tuple[tuple[str, int], ...]:
    parts = text.split(",")
    if len(parts) > 1 and not kind:
        raise ValueError(
            "one server has one address: of several, redis+sentinel:// names sentinels, redis+cluster:// nodes"
        )
    if len(parts) > _MAX_ADDRESSES:
        raise ValueError(f"{_MAX_ADDRESSES} addresses are enough: each knows the others")
    found: dict[tuple[str, int], None] = {}
    for each in parts:
        _, has_port, port = each.rpartition("]")[2].rpartition(":")
        if port and has_port and not port.isdecimal():  # perhaps a password with no host behind it
            raise ValueError("wants a number as the port: HOST:PORT, and a password before it, as USER:PASSWORD@HOST")
        address = parse.address(each if has_port else f"{each}:{_PORTS[kind]}")
        if not address[0] or not address[1]:
            raise ValueError(f"wants a host and a port from 1 to 65535, got {each!r:.80}")
        found[address] = None
    return tuple(found)


def _service_and_db(kind: str, path: str) -> tuple[str, int]:
    service = ""
    if kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise ValueError("sentinels know a primary by a name: add it, as in redis+sentinel://HOST:26379/mymaster")
    if path and not (path.isdecimal() and int(path) <= _MAX_DB):
        raise ValueError(f"a DB is a number, such as 0, got {path!r:.80}")
    db = int(path or 0)
    if kind == "cluster" and db:
        raise ValueError(f"a cluster has no other DB than 0: leave /{db} away")
    return unquote(service), db


def _options(kind: str, is_tls: bool, query: str) -> dict[str, Any]:
    pairs = parse_qsl(query, keep_blank_values=True)
    given = dict(pairs)
    for name in given:
        if name not in _OPTIONS:
            hint = "; the DB stands behind the host: /1" if name == "db" else ""
            raise ValueError(f"there is no option {name!r:.40}, only {', '.join(_OPTIONS)}{hint}")
        if not given[name]:
            raise ValueError(f"{name} is empty: give it a value, or leave it away")
        if name.startswith("ssl_") and not is_tls:
            raise ValueError(f"{name} is about TLS: begin with rediss")
        if name.startswith("sentinel_") and kind != "sentinel":
            raise ValueError(f"{name} is about sentinels: begin with redis+sentinel or rediss+sentinel")
    if len(given) < len(pairs):
        raise ValueError("has one option twice")
    if ("ssl_certfile" in given) != ("ssl_keyfile" in given):
        raise ValueError("ssl_certfile and ssl_keyfile belong together: a certificate of ours, and its key")
    if "sentinel_username" in given and "sentinel_password" not in given:
        raise ValueError("sentinel_username needs a sentinel_password")
    files = {name: Path(given[name]) if name in given else None for name in _OPTIONS[:3]}
    return {
        "ca_file": files["ssl_ca_certs"],
        "certificate_file": files["ssl_certfile"],
        "key_file": files["ssl_keyfile"],
        "sentinel_login": Login(given.get("sentinel_username", ""), given.get("sentinel_password", "")),
    }
