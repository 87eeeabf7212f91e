"""What is wrong with a DERP map, and where (layer L1).

Go reads a map leniently and clients skip what they cannot use, so a slip of the pen is a region that nobody reaches
and nobody mentions.  `lint` names each slip with its place, in the spelling of derp/map.py:
`Regions.900.Nodes[0].HostName`. An error is something that genuine clients refuse, or a relay or probe that is
silently dead; a warning works, but probably not as meant.  Used by the DERP-map service (tailnet/server/derpmaps.py),
which takes no map with errors.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from derp.errors import MapFormatError
from derp.map import STUN_DISABLED, DERPNode, DERPRegion

# Coordinators carry region ids in 32 bits (Node.preferred_derp).
MAX_REGION_ID: Final = (1 << 31) - 1
MAX_PORT: Final = 65_535
# More than any sense, and a bound that NaN, infinities and numbers of a thousand digits fail alike.
MAX_SCORE: Final = 1e12
# A map that is wrong a thousand times over is the wrong file.
MAX_FINDINGS: Final = 200

_MAP_KEYS: Final = ("HomeParams", "Regions", "omitDefaultRegions")
_HOME_KEYS: Final = ("RegionScore",)
_REGION_KEYS: Final = (
    "EmbeddedRelay",
    "RegionID",
    "RegionCode",
    "RegionName",
    "Latitude",
    "Longitude",
    "Avoid",
    "NoMeasureNoHome",
    "Nodes",
)
_NODE_KEYS: Final = (
    "Name",
    "RegionID",
    "HostName",
    "CertName",
    "IPv4",
    "IPv6",
    "STUNPort",
    "STUNOnly",
    "DERPPort",
    "InsecureForTests",
    "ForceHTTP",
    "STUNTestIP",
    "CanPort80",
)
_PIN: Final = "sha256-raw:"
_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")
# The reason behind the place in a MapFormatError.
_FORMAT_ERROR: Final = re.compile(r"DERP map: (?:([^ ]+): )?(.*)", re.DOTALL)


class Severity(Enum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, where, and what to change."""

    severity: Severity
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place + ': ' if self.place else ''}{self.reason}"


def errors(findings: Sequence[Finding]) -> list[Finding]:
    """Only those for which a map should be refused."""
    return [finding for finding in findings if finding.severity is Severity.ERROR]


def lint(source: str | bytes | Mapping[str, object], *, overlay: bool = False) -> list[Finding]:
    """Everything that is wrong with a map, errors first, each group in the order of the text.

    With `overlay` the map is to be laid over another one: then it may have no regions of its own, and drop regions by
    null, and scores may name regions that only the other one has.
    """
    linter = _Linter(overlay)
    document = linter.load(source)
    if isinstance(document, Mapping):
        linter.map(document)
    elif document is not _BROKEN:
        linter.error("", f"a DERP map is an object, got {type(document).__name__}")
    return sorted(linter.findings, key=lambda finding: finding.severity is Severity.WARNING)


_BROKEN: Final = object()


class _Linter:
    def __init__(self, overlay: bool) -> None:
        self.findings: list[Finding] = []
        self._overlay = overlay
        self._names: dict[str, str] = {}  # node name -> place where it was first seen
        self._codes: dict[str, str] = {}
        self._doors: dict[tuple[str, int], str] = {}  # (host, DERP port) -> region where it was first seen

    def error(self, place: str, reason: str) -> None:
        self._add(Finding(Severity.ERROR, place, reason))

    def warning(self, place: str, reason: str) -> None:
        self._add(Finding(Severity.WARNING, place, reason))

    def _add(self, finding: Finding) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(finding)

    def load(self, source: str | bytes | Mapping[str, object]) -> object:
        if isinstance(source, Mapping):
            return source
        try:
            text = source.decode() if isinstance(source, bytes) else source
            return json.loads(text, object_pairs_hook=self._pairs, parse_constant=_no_number)
        except UnicodeDecodeError as error:
            self.error("", f"byte {error.start} is not UTF-8 text")
        except json.JSONDecodeError as error:
            self.error("", f"line {error.lineno}, column {error.colno}: {error.msg}")
        except (RecursionError, ValueError) as error:
            self.error("", f"is not JSON that a map could be: {error}")
        return _BROKEN

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value: dict[str, Any] = {}
        folded: dict[str, str] = {}
        for key, item in pairs:
            # Go matches names whatever their case, and of two that match the later one wins.
            other = folded.setdefault(key.casefold(), key)
            if key in value or other != key:
                self.error(
                    "", f"an object has the key {key!r:.60} twice (or in another case): only the last one counts"
                )
            value[key] = item
        return value

    def map(self, document: Mapping[str, Any]) -> None:
        fields = self._fields(document, "", _MAP_KEYS)
        regions = fields.get("Regions")
        scores = self._scores(fields.get("HomeParams"))
        if not isinstance(fields.get("omitDefaultRegions", False), bool | None):
            self.error("omitDefaultRegions", "wants true or false")
        if regions is None:
            regions = {}
        if not isinstance(regions, Mapping):
            self.error("Regions", "wants an object of regions by their id")
            return
        good: dict[int, DERPRegion] = {}
        for key, value in regions.items():
            self._region_entry(str(key), value, good)
        for region_id in scores:
            if region_id not in good and not self._overlay and str(region_id) not in regions:
                self.warning(
                    f"HomeParams.RegionScore.{region_id}", "there is no such region, so the score does nothing"
                )
        if not regions and not self._overlay:
            self.error("Regions", "there are none: clients could reach each other only directly")
        self._choice_of_home(good)

    def _region_entry(self, key: str, value: Any, good: dict[int, DERPRegion]) -> None:
        place = f"Regions.{key}"
        region_id = int(key) if re.fullmatch(r"[0-9]{1,10}", key) and str(int(key)) == key else 0
        if not 0 < region_id <= MAX_REGION_ID:
            self.error(
                place, f"region ids are plain numbers from 1 to {MAX_REGION_ID}; 900 to 999 are free for your own"
            )
            return
        if value is None:
            if not self._overlay:
                self.warning(place, "is null: that drops a region of a map below this one, and there is none below")
            return
        if not isinstance(value, Mapping):
            self.error(place, "wants an object with RegionID, RegionCode, RegionName and Nodes")
            return
        region = self._region(value, place, region_id)
        if region is not None:
            good[region_id] = region

    def _region(self, value: Mapping[str, Any], place: str, region_id: int) -> DERPRegion | None:
        fields = self._fields(value, place, _REGION_KEYS)
        try:
            region = DERPRegion.parse({name: item for name, item in fields.items() if name != "Nodes"})
        except MapFormatError as error:
            self._format_error(error, place)
            return None
        if region.region_id != region_id:
            said = f"is {region.region_id}" if region.region_id else "is missing"
            self.error(
                f"{place}.RegionID", f"{said}, but the region stands under {region_id}: clients look for it under both"
            )
        self._region_names(region, place)
        for name, limit in (("Latitude", 90), ("Longitude", 180)):
            if abs(getattr(region, name.lower())) > limit:
                self.warning(f"{place}.{name}", f"is no angle between -{limit} and {limit} degrees")
        if region.avoid:
            self.warning(f"{place}.Avoid", "newer clients read NoMeasureNoHome instead: set both")
        nodes = fields.get("Nodes")
        if not isinstance(nodes, list | tuple) or not nodes:
            self.error(f"{place}.Nodes", "wants a list with at least one relay: without it nobody reaches this region")
            return None
        good = [self._node(item, f"{place}.Nodes[{index}]", region_id) for index, item in enumerate(nodes)]
        region = replace(region, nodes=tuple(node for node in good if node is not None))
        self._region_as_a_whole(region, place, complete=None not in good)
        return region

    def _region_names(self, region: DERPRegion, place: str) -> None:
        if not region.region_code:
            self.warning(f"{place}.RegionCode", 'is missing: tools show regions by their code, such as "fra"')
        elif self._codes.setdefault(region.region_code, place) != place:
            self.warning(f"{place}.RegionCode", f"is that of {self._codes[region.region_code]} too: tools mix them up")
        if not region.region_name:
            self.warning(f"{place}.RegionName", "is missing: people are shown this name")

    def _region_as_a_whole(self, region: DERPRegion, place: str, *, complete: bool) -> None:
        relays = [node for node in region.nodes if not node.stun_only]
        if complete and not relays:
            self.error(
                f"{place}.Nodes", "every node is STUNOnly: clients would choose this region and find no relay in it"
            )
        for node in relays:
            if node.host_name:
                door = (node.host_name.lower(), node.derp_port or 443)
                if self._doors.setdefault(door, place) != place:
                    self.warning(
                        place,
                        f"{door[0]}:{door[1]} is the relay of {self._doors[door]} too: one of the two is superfluous",
                    )

    def _node(self, value: Any, place: str, region_id: int) -> DERPNode | None:
        if not isinstance(value, Mapping):
            crash = ", which crashes genuine clients" if value is None else ""
            self.error(place, f"wants an object with Name, RegionID and HostName{crash}")
            return None
        fields = self._fields(value, place, _NODE_KEYS)
        try:
            node = DERPNode.parse(fields)
        except MapFormatError as error:
            self._format_error(error, place)
            return None
        if node.region_id != region_id:
            said = f"is {node.region_id}" if node.region_id else "is missing"
            self.error(
                f"{place}.RegionID", f"{said}, but the node stands in region {region_id}: clients would not find it"
            )
        if not node.name:
            self.error(f"{place}.Name", f'is missing: probes find a node by its name, such as "{region_id}a"')
        elif self._names.setdefault(node.name, place) != place:
            self.error(
                f"{place}.Name", f"is that of {self._names[node.name]} too: probes would always ask only one of them"
            )
        self._host(node, place)
        self._addresses(node, place)
        self._ports(node, place)
        if node.insecure_for_tests:
            self.warning(f"{place}.InsecureForTests", "anyone in between can pose as this relay: pin CertName instead")
        return node

    def _host(self, node: DERPNode, place: str) -> None:
        here, name = f"{place}.HostName", node.host_name
        if not name:
            self.error(here, "is missing: clients dial and verify it, also when IPv4 and IPv6 are set")
            return
        address = _address(name)
        if "://" in name:
            self.error(here, f"{name!r:.80} is a URL: give the name alone, and DERPPort if it is not 443")
        elif address is None and ":" in name:
            self.error(here, f"{name!r:.80} has a port: give the name alone and put the port into DERPPort")
        elif address is None and not _is_host_name(name):
            self.error(here, f"{name!r:.80} is no host name")
        elif name.lower().rstrip(".").endswith(".invalid") and not node.ipv4 and not node.ipv6:
            self.error(here, f"{name!r:.80} never resolves: .invalid is reserved for that")
        if node.cert_name.startswith(_PIN):
            if not re.fullmatch(r"[0-9a-fA-F]{64}", node.cert_name[len(_PIN) :]):
                self.error(f"{place}.CertName", f"a pin is {_PIN} and the 64 hex digits of the certificate's SHA-256")
        elif node.cert_name and not _is_host_name(node.cert_name) and _address(node.cert_name) is None:
            self.error(f"{place}.CertName", f"{node.cert_name!r:.80} is neither a host name nor a pin ({_PIN}...)")
        elif address is not None and not (node.cert_name or node.insecure_for_tests or node.force_http):
            self.warning(here, "is an address: clients accept only a certificate made for it; else pin it by CertName")

    def _addresses(self, node: DERPNode, place: str) -> None:
        dead = 0
        for field, text, kind in (("IPv4", node.ipv4, IPv4Address), ("IPv6", node.ipv6, IPv6Address)):
            if text == "none":
                dead += 1
            elif text and not isinstance(_address(text), kind):
                self.error(
                    f"{place}.{field}",
                    f'{text!r:.80} is no {field} address, so clients use none: write "none" to mean that',
                )
        if dead == 2:
            self.error(place, "IPv4 and IPv6 are both none: no client can reach it")
        if node.stun_test_ip and _address(node.stun_test_ip) is None:
            self.error(f"{place}.STUNTestIP", f"{node.stun_test_ip!r:.80} is no IP address")
        elif node.stun_test_ip:
            self.warning(f"{place}.STUNTestIP", "is for tests: STUN goes there and not to the relay")

    def _ports(self, node: DERPNode, place: str) -> None:
        if not STUN_DISABLED <= node.stun_port <= MAX_PORT:
            self.error(f"{place}.STUNPort", f"{node.stun_port} is no port: 0 means 3478, -1 means no STUN here")
        elif node.stun_only and node.stun_port == STUN_DISABLED:
            self.error(f"{place}.STUNPort", "is -1 (no STUN) on a node that is STUNOnly: it does nothing at all")
        if not 0 <= node.derp_port <= MAX_PORT:
            self.error(f"{place}.DERPPort", f"{node.derp_port} is no port: 0 means 443")
        elif node.force_http and node.derp_port in (0, 443) and not node.stun_only:
            self.warning(f"{place}.ForceHTTP", "plain HTTP on port 443: is it meant? Set DERPPort")

    def _choice_of_home(self, regions: Mapping[int, DERPRegion]) -> None:
        measured = {
            region_id: any(node.stun_port != STUN_DISABLED for node in region.nodes)
            for region_id, region in regions.items()
            if region.nodes and not region.avoid and not region.no_measure_no_home
        }
        if regions and not measured and not self._overlay:
            self.warning("Regions", "every region has Avoid or NoMeasureNoHome: clients find no home")
        # Clients fall back to HTTPS only if no STUN answers anywhere.
        for region_id, has_stun in measured.items():
            if not has_stun and any(measured.values()):
                self.warning(
                    f"Regions.{region_id}",
                    "no node answers STUN, but other regions do: where UDP works it never becomes a home",
                )

    def _scores(self, home: Any) -> set[int]:
        if home is None:
            return set()
        if not isinstance(home, Mapping):
            self.error("HomeParams", "wants an object with RegionScore")
            return set()
        scores = self._fields(home, "HomeParams", _HOME_KEYS).get("RegionScore")
        if scores is None:
            return set()
        if not isinstance(scores, Mapping):
            self.error("HomeParams.RegionScore", "wants an object of factors by region id")
            return set()
        known = set()
        for key, score in scores.items():
            place = f"HomeParams.RegionScore.{key}"
            if not re.fullmatch(r"[0-9]{1,10}", str(key)):
                self.error(place, "region ids are plain numbers")
            elif score is None and self._overlay:
                continue  # drops a score of a map below
            elif isinstance(score, bool) or not isinstance(score, int | float) or not -MAX_SCORE < score < MAX_SCORE:
                self.error(place, "wants a factor such as 1.5")
            elif not score > 0:
                self.warning(place, f"{score} does nothing: clients ignore factors that are not above 0")
            else:
                known.add(int(key))
        return known

    def _fields(self, value: Mapping[str, Any], place: str, keys: tuple[str, ...]) -> dict[str, Any]:
        """The fields by Go's names, whatever case they came in."""
        by_folded = {key.casefold(): key for key in keys}
        fields = {}
        for name, item in value.items():
            key = by_folded.get(str(name).casefold())
            if key is None:
                near = get_close_matches(str(name).casefold(), by_folded, 1)
                hint = f": did you mean {by_folded[near[0]]}?" if near else ""
                self.warning(f"{place}.{name}"[:200] if place else str(name)[:200], f"no client knows this key{hint}")
            else:
                fields[key] = item
        return fields

    def _format_error(self, error: MapFormatError, place: str) -> None:
        match = _FORMAT_ERROR.fullmatch(str(error))
        inner, reason = (match[1], match[2]) if match else (None, str(error))
        self.error(f"{place}.{inner}" if inner else place, reason)


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def _is_host_name(text: str) -> bool:
    labels = text.rstrip(".").split(".")
    # No top-level domain is a number, so 300.1.1.1 is a typing mistake and no name.
    return len(text) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdecimal()
