"""The DERP map: which relays exist, by region, and how to reach them (layer L0).

Values only, with the JSON that Go programs read and write.  Reading follows Go's decoder: names match whatever
their case, unknown names are ignored, `null` leaves the zero value, the last of two equal names wins.  Writing uses
Go's field names and leaves zero values out where Go does, so that a genuine client sees what it expects.
Next hop: client/region.py dials the nodes, netcheck/plan.py measures them.
"""

import ipaddress
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, NoReturn, Self

from derp.errors import MapFormatError
from derp.json_numbers import HugeNumber, parse_int
from derp.text import without_halves

DEFAULT_STUN_PORT: Final = 3478  # what stun_port 0 means
DEFAULT_DERP_PORT: Final = 443  # what derp_port 0 means
STUN_DISABLED: Final = -1  # the stun_port that means: this node answers no STUN

# Go decodes these numbers into int, which has 64 bits wherever a relay runs.
_INT_MIN: Final = -(1 << 63)
_INT_MAX: Final = (1 << 63) - 1


def is_address(host: str) -> bool:
    """Whether a host name is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_unspecified(host: str) -> bool:
    """Whether a host is the unspecified address of either family, or empty: as a listening address, every one."""
    if not host:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_unspecified


@dataclass(frozen=True, slots=True)
class DERPNode:
    """One relay of a region.  Zero values mean what they mean in Go: see the comments."""

    name: str = ""  # unique over all regions, e.g. "900a"; not a host name
    region_id: int = 0
    host_name: str = ""
    cert_name: str = (
        ""  # name to expect in the certificate if not host_name, or `sha256-raw:<hex of the leaf's SHA-256>`
    )
    ipv4: str = ""  # empty: ask DNS; anything that is no address ("none"): do not use IPv4
    ipv6: str = ""
    stun_port: int = 0  # 0: 3478; -1: no STUN here
    stun_only: bool = False
    derp_port: int = 0  # 0: 443
    insecure_for_tests: bool = False  # do not verify TLS
    force_http: bool = False  # plain HTTP; only Coder's fork reads it
    stun_test_ip: str = ""
    can_port_80: bool = False  # plain HTTP on port 80 answers captive-portal checks
    quic_port: int = 0  # UDP port of DERP over QUIC; 0: not served.  Ours: genuine clients pass over the name

    @classmethod
    def parse(cls, source: str | bytes | Mapping[str, object]) -> Self:
        """Read one node from JSON text or decoded JSON.  Raises MapFormatError."""
        return cls(**_decode_fields(_NODE_FIELDS, _load(source), ""))

    def to_json(self) -> dict[str, object]:
        """The node as decoded JSON with Go's field names."""
        return _encode_fields(_NODE_FIELDS, self)


@dataclass(frozen=True, slots=True)
class DERPRegion:
    """The relays of one place.  They mesh with each other; clients prefer the first node."""

    region_id: int = 0  # positive; 900 to 999 are kept free for relays of one's own
    region_code: str = ""
    region_name: str = ""
    avoid: bool = False  # deprecated by its inventors; no_measure_no_home says what it meant
    embedded_relay: bool = False  # the relay inside the control plane; only Coder's fork reads it
    nodes: tuple[DERPNode, ...] = ()
    no_measure_no_home: bool = False
    latitude: float = 0.0  # degrees
    longitude: float = 0.0

    @classmethod
    def parse(cls, source: str | bytes | Mapping[str, object]) -> Self:
        """Read one region from JSON text or decoded JSON.  Raises MapFormatError."""
        return cls(**_decode_fields(_REGION_FIELDS, _load(source), ""))

    def to_json(self) -> dict[str, object]:
        """The region as decoded JSON with Go's field names."""
        return _encode_fields(_REGION_FIELDS, self)


@dataclass(frozen=True, slots=True)
class DERPHomeParams:
    """How clients choose their home region."""

    # Region id -> factor on the measured latency: 2 makes a region look twice as far.  Clients ignore scores <= 0.
    region_score: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DERPMap:
    """All regions a client may use, by region id."""

    regions: Mapping[int, DERPRegion] = field(default_factory=dict)
    home_params: DERPHomeParams | None = None
    omit_default_regions: bool = False  # do not add the regions a client knows by itself

    @classmethod
    def parse(cls, source: str | bytes | Mapping[str, object]) -> Self:
        """Read a map from JSON text or decoded JSON.

        A region that is `null` is left out: that is how the field drops one.  A `null` node is an error, since
        genuine clients crash on it.  Raises MapFormatError, which names the place: `Regions.900.Nodes[0].DERPPort`.
        """
        return cls(**_decode_fields(_MAP_FIELDS, _load(source), ""))

    def to_json(self) -> dict[str, object]:
        """The map as decoded JSON with Go's field names, regions in the order of their ids."""
        return _encode_fields(_MAP_FIELDS, self)

    def region_ids(self) -> list[int]:
        """All region ids in ascending order."""
        return sorted(self.regions)


def _fail(place: str, reason: str) -> NoReturn:
    raise MapFormatError(f"DERP map: {place + ': ' if place else ''}{reason}")


def _load(source: str | bytes | Mapping[str, object]) -> object:
    if isinstance(source, Mapping):
        return source
    try:
        # Go puts U+FFFD in place of broken UTF-8 instead of refusing the text.
        text = source.decode("utf-8", "replace") if isinstance(source, bytes) else source
        if text.startswith("\ufeff"):
            _fail("", "begins with a byte-order mark, which Go refuses too: save it without")
        return json.loads(
            text, parse_int=parse_int, parse_constant=lambda name: _fail("", f"{name} is not a JSON number")
        )
    except json.JSONDecodeError as error:
        raise MapFormatError(f"DERP map: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise MapFormatError("DERP map: nested too deeply") from None


# Decoders take (decoded JSON that is not null, place) and return the value of an attribute.


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"number {value!r}"[:40]
    if isinstance(value, HugeNumber):
        return str(value)
    if isinstance(value, str):
        return f"string {value!r}"[:40]
    return (
        "a list" if isinstance(value, list | tuple) else "an object" if isinstance(value, Mapping) else repr(value)[:40]
    )


def _string(value: object, place: str) -> str:
    if not isinstance(value, str):
        _fail(place, f"wants a string, got {_kind(value)}")
    return without_halves(value)


def _bool(value: object, place: str) -> bool:
    if not isinstance(value, bool):
        _fail(place, f"wants true or false, got {_kind(value)}")
    return value


def _int(value: object, place: str) -> int:
    # Go refuses 443.0 for an int, and so do we: what we accept, every client must accept.
    if isinstance(value, bool) or not isinstance(value, int):
        _fail(place, f"wants a whole number, got {_kind(value)}")
    if not _INT_MIN <= value <= _INT_MAX:
        _fail(place, "the number does not fit into 64 bits")
    return value


def _float(value: object, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        _fail(place, f"wants a number, got {_kind(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if number in (float("inf"), float("-inf")) or number != number:
        _fail(place, "the number is out of range")
    return number


def _region_key(text: object, place: str) -> int:
    # strconv.ParseInt takes a sign and leading zeros, but neither blanks nor underscores, which int() would take.
    digits = text[1:] if isinstance(text, str) and text[:1] in ("+", "-") else text
    if isinstance(text, int) and not isinstance(text, bool):
        return _int(text, place)
    if not isinstance(text, str) or not isinstance(digits, str) or not (digits.isascii() and digits.isdecimal()):
        _fail(place, f"region ids are whole numbers, got {_kind(text)}")
    if len(digits) > 20:
        _fail(place, "the region id does not fit into 64 bits")
    return _int(int(text), place)


def _object(value: object, place: str) -> Mapping[Any, object]:
    if not isinstance(value, Mapping):
        _fail(place, f"wants an object, got {_kind(value)}")
    return value


def _nodes(value: object, place: str) -> tuple[DERPNode, ...]:
    if not isinstance(value, list | tuple):
        _fail(place, f"wants a list of nodes, got {_kind(value)}")
    nodes = []
    for index, item in enumerate(value):
        here = f"{place}[{index}]"
        if item is None:
            _fail(here, "is null, which crashes genuine clients: remove it")
        nodes.append(DERPNode(**_decode_fields(_NODE_FIELDS, item, here)))
    return tuple(nodes)


def _regions(value: object, place: str) -> dict[int, DERPRegion]:
    regions: dict[int, DERPRegion] = {}
    for key, item in _object(value, place).items():
        here = f"{place}.{key}"
        region_id = _region_key(key, here)
        if item is None:
            regions.pop(region_id, None)
        else:
            regions[region_id] = DERPRegion(**_decode_fields(_REGION_FIELDS, item, here))
    return regions


def _home_params(value: object, place: str) -> DERPHomeParams:
    return DERPHomeParams(**_decode_fields(_HOME_FIELDS, value, place))


def _scores(value: object, place: str) -> dict[int, float]:
    scores = {}
    for key, item in _object(value, place).items():
        here = f"{place}.{key}"
        scores[_region_key(key, here)] = 0.0 if item is None else _float(item, here)
    return scores


class _Field(NamedTuple):
    """One JSON name: where it goes, how it is read, whether Go writes it even when it is zero."""

    json_name: str
    attribute: str
    decode: Callable[[object, str], object]
    always: bool = False
    encode: Callable[[Any], object] = lambda value: value


def _by_folded_name(*fields: _Field) -> dict[str, _Field]:
    return {entry.json_name.casefold(): entry for entry in fields}


# In the order in which Go declares, and therefore writes, them.
_NODE_FIELDS: Final = _by_folded_name(
    _Field("Name", "name", _string, always=True),
    _Field("RegionID", "region_id", _int, always=True),
    _Field("HostName", "host_name", _string, always=True),
    _Field("CertName", "cert_name", _string),
    _Field("IPv4", "ipv4", _string),
    _Field("IPv6", "ipv6", _string),
    _Field("STUNPort", "stun_port", _int),
    _Field("STUNOnly", "stun_only", _bool),
    _Field("DERPPort", "derp_port", _int),
    _Field("InsecureForTests", "insecure_for_tests", _bool),
    _Field("ForceHTTP", "force_http", _bool),
    _Field("STUNTestIP", "stun_test_ip", _string),
    _Field("CanPort80", "can_port_80", _bool),
    _Field("QUICPort", "quic_port", _int),
)
_REGION_FIELDS: Final = _by_folded_name(
    _Field("EmbeddedRelay", "embedded_relay", _bool, always=True),
    _Field("RegionID", "region_id", _int, always=True),
    _Field("RegionCode", "region_code", _string, always=True),
    _Field("RegionName", "region_name", _string, always=True),
    _Field("Latitude", "latitude", _float),
    _Field("Longitude", "longitude", _float),
    _Field("Avoid", "avoid", _bool),
    _Field("NoMeasureNoHome", "no_measure_no_home", _bool),
    _Field("Nodes", "nodes", _nodes, always=True, encode=lambda nodes: [node.to_json() for node in nodes]),
)
_HOME_FIELDS: Final = _by_folded_name(
    _Field(
        "RegionScore",
        "region_score",
        _scores,
        encode=lambda scores: {str(region_id): scores[region_id] for region_id in sorted(scores)},
    ),
)
_MAP_FIELDS: Final = _by_folded_name(
    _Field(
        "HomeParams",
        "home_params",
        _home_params,
        encode=lambda params: _encode_fields(_HOME_FIELDS, params),
    ),
    _Field(
        "Regions",
        "regions",
        _regions,
        always=True,
        encode=lambda regions: {str(region_id): regions[region_id].to_json() for region_id in sorted(regions)},
    ),
    _Field("omitDefaultRegions", "omit_default_regions", _bool),
)


def _decode_fields(fields: dict[str, _Field], value: object, place: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for name, item in _object(value, place).items():
        entry = fields.get(name.casefold()) if isinstance(name, str) else None
        if entry is None or item is None:
            continue
        attributes[entry.attribute] = entry.decode(item, f"{place}.{name}" if place else name)
    return attributes


def _encode_fields(fields: dict[str, _Field], value: object) -> dict[str, object]:
    written = {}
    for entry in fields.values():
        attribute = getattr(value, entry.attribute)
        # Go writes a pointer that is not nil even if what it points to is empty; so do we: an object is always true.
        if entry.always or attribute:
            written[entry.json_name] = entry.encode(attribute)
    return written
