"""The file of --limits: rates, quotas, tenants and their weights, as TOML (layer L2).

docs/limits.md describes it; relay/limits.py has the values.  Whatever is wrong with it is one ConfigError that names
the file, the key and what to write instead, also when it is read again on SIGHUP.
"""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, NoReturn

from derp.admission.terms import tenant_name
from derp.config import parse
from derp.config.parse import Parser
from derp.config.sources import read_file
from derp.errors import ConfigError
from derp.relay.limits import MAX_TENANTS, ClientLimits, Limits, Quota, Rate, TenantLimits
from derp.text import error_text, printable

# A limit without a burst has a tenth of a second's: a pause of that length is hardly noticed, and a smaller burst would
# pause a client several times for what the kernel hands over at once.
_BURST_SECONDS: Final = 0.1
# What is left to whoever has used up a quota, if the file does not say: enough for a shell, too little for a backup.
_FLOOR_BYTES: Final = 16 * 1024

_whole = parse.whole(1, 1 << 53)
_RATE: Final[Mapping[str, Parser[Any]]] = {
    "bytes_per_second": parse.size,
    "burst_bytes": parse.size,
    "packets_per_second": _whole,
    "burst_packets": _whole,
}
_QUOTA: Final[Mapping[str, Parser[Any]]] = {
    "bytes_per_day": parse.size,
    "bytes_per_month": parse.size,
    "used_up": parse.OneOf("throttle", "refuse"),
    "used_up_bytes_per_second": parse.size,
}


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"wants a table, got {value!r:.80}")
    return value


def weight(value: object) -> float:
    """A weight beside others, of tenants or of regions."""
    number = parse.rate(value)
    if not 0.001 <= number <= 1000:
        raise ValueError(f"wants a number from 0.001 to 1000, got {value!r:.80}")
    return number


_CLIENT: Final = {**_RATE, **_QUOTA}
_TENANT_KEYS: Final[Mapping[str, Parser[Any]]] = {
    **_CLIENT,
    "weight": weight,
    "keys": parse.node_keys,
    "client": _table,
}
_FILE: Final[Mapping[str, Parser[Any]]] = dict.fromkeys(("node", "client", "tenants", "keys"), _table)


def load_limits(path: Path) -> Limits:
    """Read the file.  Raises ConfigError."""
    try:
        document = tomllib.loads(read_file(path, "limits").decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML: {error_text(error)}") from None
    return _Reader(path).limits(document)


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path

    def limits(self, document: dict[str, Any]) -> Limits:
        top = self._values("", document, _FILE)
        tenants: dict[str, TenantLimits] = {}
        tenant_by_key: dict[bytes, str] = {}
        for name, table in top.get("tenants", {}).items():
            where = f"tenants.{name}"
            self._parse(where, name, tenant_name)
            given = self._values(where, self._parse(where, table, _table), _TENANT_KEYS)
            tenants[name] = self._tenant(where, given)
            for key in given.get("keys", ()):
                if tenant_by_key.setdefault(key, name) != name:
                    self._fail(f"{where}.keys", f"has a key that is of tenant {tenant_by_key[key]!r} too")
        if len(tenants) > MAX_TENANTS:
            self._fail("tenants", f"has {len(tenants):,} tenants, {MAX_TENANTS:,} is the most")
        self._refuse_twins("tenants", {name: name.lower() for name in tenants})
        keys = {name: self._parse(f"keys.{name}", name, parse.node_key) for name in top.get("keys", {})}
        self._refuse_twins("keys", keys)
        by_key = {key: self._client(f"keys.{name}", top["keys"][name]) for name, key in keys.items()}
        node = self._rate("node", self._values("node", top.get("node", {}), _RATE)) or Rate()
        return Limits(node, self._client("client", top.get("client", {})), tenants, tenant_by_key, by_key)

    def _refuse_twins(self, where: str, meant: Mapping[str, object]) -> None:
        """Of two tables for the same, one would have no effect; `meant`: what each name of a table stands for."""
        first: dict[object, str] = {}
        for name, what in meant.items():
            if first.setdefault(what, name) != name:
                self._fail(f"{where}.{name}", f"is {where}.{first[what]} in other letters: make them one table")

    def _tenant(self, where: str, given: dict[str, Any]) -> TenantLimits:
        return TenantLimits(
            self._rate(where, given) or Rate(),
            self._quota(where, given),
            given.get("weight", 1.0),
            self._client(f"{where}.client", given["client"]) if "client" in given else None,
        )

    def _client(self, where: str, table: object) -> ClientLimits:
        given = self._values(where, self._parse(where, table, _table), _CLIENT)
        return ClientLimits(self._rate(where, given), self._quota(where, given))

    def _rate(self, where: str, given: dict[str, Any]) -> Rate | None:
        """None: the table sets none."""
        for burst, limit in (("burst_bytes", "bytes_per_second"), ("burst_packets", "packets_per_second")):
            if burst in given and limit not in given:
                self._fail(f"{where}.{burst}", f"has no effect without {limit}")
        count, packets = given.get("bytes_per_second", 0), given.get("packets_per_second", 0)
        if not count and not packets:
            return None
        return Rate(
            count,
            given.get("burst_bytes", int(count * _BURST_SECONDS)),
            packets,
            given.get("burst_packets", int(packets * _BURST_SECONDS)),
        )

    def _quota(self, where: str, given: dict[str, Any]) -> Quota:
        day, month = given.get("bytes_per_day", 0), given.get("bytes_per_month", 0)
        refuses = given.get("used_up") == "refuse"
        for name in ("used_up", "used_up_bytes_per_second"):
            if name in given and not (day or month):
                self._fail(f"{where}.{name}", "has no effect without bytes_per_day or bytes_per_month")
        if refuses and "used_up_bytes_per_second" in given:
            self._fail(f"{where}.used_up_bytes_per_second", 'has no effect with used_up = "refuse"')
        if day and month and day > month:
            self._fail(f"{where}.bytes_per_day", "is more than bytes_per_month: leave it out")
        floor = given.get("used_up_bytes_per_second", _FLOOR_BYTES)
        return Quota(day, month, Rate(floor, int(floor * _BURST_SECONDS)), refuses) if day or month else Quota()

    def _values(self, where: str, table: dict[str, Any], parsers: Mapping[str, Parser[Any]]) -> dict[str, Any]:
        found = {}
        for name, value in table.items():
            place = f"{where}.{name}" if where else name
            if name not in parsers:
                near = get_close_matches(name[:100], parsers, 1)
                hint = f"did you mean {near[0]}?" if near else f"{', '.join(parsers)} are"
                self._fail(place, f"is no key here: {hint}")
            found[name] = self._parse(place, value, parsers[name])
        return found

    def _parse(self, place: str, value: object, parser: Parser[Any]) -> Any:
        try:
            return parser(value)
        except ValueError as error:
            self._fail(place, error_text(error))

    def _fail(self, place: str, reason: str) -> NoReturn:
        raise ConfigError(f"{self._path}: {printable(place, 120)}: {reason}")
