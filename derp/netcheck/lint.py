"""What is wrong with a DERP map, and where (layer L1).

Go reads a map leniently and clients skip what they cannot use, so a slip of the pen is a region that nobody reaches
and nobody mentions.  `lint` names each slip with its place, in the spelling of derp/map.py:
`Regions.900.Nodes[0].HostName`. An error is something that genuine clients refuse, or a relay or probe that is
silently dead; a warning works, but probably not as meant.  Used by `derp map` and the tailnet, which take no map with
errors.
"""

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from derp.errors import MapFormatError
from derp.json_numbers import parse_int
from derp.map import DEFAULT_STUN_PORT, STUN_DISABLED, DERPNode, DERPRegion
from derp.netcheck.maptext import read_map_text, what_instead
from derp.text import error_text

# Coordinators carry region ids in 32 bits (Node.preferred_derp).
MAX_REGION_ID: Final = (1 << 31) - 1
MAX_PORT: Final = 65_535
# More than any sense, and a bound that NaN, infinities and numbers of a thousand digits fail alike.
MAX_SCORE: Final = 1e12
# A map that is wrong a thousand times over is the wrong file.  Of each severity: warnings must not hide errors.
MAX_FINDINGS: Final = 200
# Clients send STUN requests to no more nodes of a region.
STUN_NODES: Final = 3

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
    "QUICPort",
)
_ONLY_FROM: Final = "{} leads to a relay from {} only: others need an address that they can reach"
_NAMELESS: Final = (
    "is missing: clients dial the address alone, take any certificate that they trust unless CertName names one, send "
    "no name in TLS, which many relays refuse, and cannot measure it where UDP is blocked: set it"
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


def warnings(findings: Sequence[Finding]) -> list[Finding]:
    """Only those that work, though probably not as meant."""
    return [finding for finding in findings if finding.severity is Severity.WARNING]


def lint(source: str | bytes | Mapping[str, object], *, overlay: bool = False) -> list[Finding]:
    """Everything that is wrong with a map, errors first, each group in the order of the text.

    With `overlay` the map is to be laid over another one: then it may have no regions of its own, and drop regions by
    null, and scores may name regions that only the other one has.
    """
    linter = _Linter(overlay)
    if isinstance(source, bytes) and source.startswith(codecs.BOM_UTF8):
        source = source.removeprefix(codecs.BOM_UTF8)
        linter.findings.append(_BOM)
    document = linter.load(source)
    if isinstance(document, Mapping):
        linter.map(document)
    elif document is not _BROKEN:
        linter.error("", f"a DERP map is an object, got {type(document).__name__}")
    return sorted(linter.findings, key=lambda finding: finding.severity is Severity.WARNING)


def lint_text(content: bytes, *, overlay: bool = False) -> list[Finding]:
    """The same for a map as people write it: netcheck/maptext.py says what that may be."""
    try:
        findings = lint(read_map_text(content), overlay=overlay)
    except MapFormatError as error:
        findings = [finding_of(error)]
    return [*errors(findings), *([_BOM] if content.startswith(codecs.BOM_UTF8) else []), *warnings(findings)]


def finding_of(error: MapFormatError) -> Finding:
    """What a reader of maps complained about."""
    match = _FORMAT_ERROR.fullmatch(str(error))
    place, reason = (match[1] or "", match[2]) if match else ("", str(error))
    return Finding(Severity.ERROR, place, reason)


_BROKEN: Final = object()
_BOM: Final = Finding(
    Severity.WARNING,
    "",
    "the file begins with a byte-order mark: it is read all the same, but Go programs refuse it: save it without",
)


class _Linter:
    def __init__(self, overlay: bool) -> None:
        self.findings: list[Finding] = []
        self._overlay = overlay
        self._is_embedded = False  # the region at hand is the coordinator's own: its address is what it was told
        self._incomplete: set[int] = (
            set()
        )  # regions with a node that cannot be read, so that one cannot tell what it has
        self._names: dict[str, str] = {}  # node name -> place where it was first seen
        self._codes: dict[str, str] = {}
        self._doors: dict[tuple[str, int, str, str], str] = {}  # where a relay is dialled -> node that said so first

    def error(self, place: str, reason: str) -> None:
        self._add(Finding(Severity.ERROR, place, reason))

    def warning(self, place: str, reason: str) -> None:
        self._add(Finding(Severity.WARNING, place, reason))

    def _add(self, finding: Finding) -> None:
        count = sum(one.severity is finding.severity for one in self.findings)
        if count == MAX_FINDINGS - 1:
            finding = replace(finding, place="", reason=f"there are more {finding.severity.value}s than these {count}")
        if count < MAX_FINDINGS:
            self.findings.append(finding)

    def load(self, source: str | bytes | Mapping[str, object]) -> object:
        if isinstance(source, Mapping):
            return source
        try:
            text = source.decode() if isinstance(source, bytes) else source
            document = json.loads(text, object_pairs_hook=_Pairs, parse_int=parse_int, parse_constant=_no_number)
        except UnicodeDecodeError as error:
            self.error("", f"byte {error.start} is not UTF-8 text")
        except json.JSONDecodeError as error:
            self.error("", f"line {error.lineno}, column {error.colno}: {error.msg}")
        except (RecursionError, ValueError) as error:
            self.error("", f"is not JSON that a map could be: {error_text(error)}")
        else:
            self._keys_given_twice(document)
            return document
        return _BROKEN

    def _keys_given_twice(self, document: object) -> None:
        # No recursion: json takes deeper nesting than Python calls.
        waiting = [(document, "")]
        while waiting:
            value, place = waiting.pop()
            if isinstance(value, _Pairs):
                for key in value.twice:
                    self.error(
                        _within(place, key), "stands here twice (or in another case): clients read only the last one"
                    )
                waiting += [(item, _within(place, key)) for key, item in reversed(value.items())]
            elif isinstance(value, list):
                waiting += [(item, f"{place}[{index}]") for index, item in reversed(list(enumerate(value)))]

    def map(self, document: Mapping[str, Any]) -> None:
        instead = what_instead(document)
        if instead:
            self.error(next((str(key) for key in document if str(key).casefold() == "derpmap"), ""), instead)
            return
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
        self._is_embedded = region.embedded_relay
        good = [self._node(item, f"{place}.Nodes[{index}]", region_id) for index, item in enumerate(nodes)]
        region = replace(region, nodes=tuple(node for node in good if node is not None))
        if None in good:
            self._incomplete.add(region_id)
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
        if complete and all(node.stun_only for node in region.nodes):
            self.error(
                f"{place}.Nodes", "every node is STUNOnly: clients would choose this region and find no relay in it"
            )
        if (
            complete
            and any(node.stun_port != STUN_DISABLED for node in region.nodes)
            and all(node.stun_port == STUN_DISABLED for node in region.nodes[:STUN_NODES])
        ):
            self.warning(
                f"{place}.Nodes",
                f"the first {STUN_NODES} nodes have no STUN, and clients ask no others: move one that has up",
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
        if node.insecure_for_tests and node.cert_name not in ("", node.host_name):
            self.warning(f"{place}.InsecureForTests", "does nothing: clients verify what CertName says all the same")
        elif node.insecure_for_tests:
            self.warning(f"{place}.InsecureForTests", "anyone in between can pose as this relay: pin CertName instead")
        if node.host_name and not node.stun_only:
            door = (node.host_name.lower(), node.derp_port or 443, node.ipv4, node.ipv6)
            if self._doors.setdefault(door, place) != place:
                self.warning(place, f"is the same relay as {self._doors[door]}: one of the two is superfluous")
        return node

    def _host(self, node: DERPNode, place: str) -> None:
        here, name = f"{place}.HostName", node.host_name
        if not name:
            if _address(node.ipv4) is None and _address(node.ipv6) is None:
                self.error(here, "is missing, and there is no address either: clients have nothing to dial")
            elif not node.stun_only:
                self.warning(here, _NAMELESS)
            return
        address = _address(name)
        if "://" in name:
            self.error(here, f"{name!r:.80} is a URL: give the name alone, and DERPPort if it is not 443")
        elif address is None and _address(name.strip("[]")) is not None:
            self.error(here, f"{name!r:.80}: give the address without brackets")
        elif address is None and ":" in name:
            self.error(here, f"{name!r:.80} has a port: give the name alone and put the port into DERPPort")
        elif address is None and not _is_host_name(name):
            self.error(here, f"{name!r:.80} is no host name")
        elif name.lower().rstrip(".").endswith(".invalid") and not node.ipv4 and not node.ipv6:
            self.error(here, f"{name!r:.80} never resolves: .invalid is reserved for that")
        elif isinstance(address, IPv6Address) and not node.stun_only:
            # Clients put the name into a URL; only beside a port other than 443 they think of brackets.
            if node.derp_port in (0, 443):
                self.error(
                    here, f"clients refuse https://{name}/: give the relay a name, or a DERPPort that is not 443"
                )
            else:
                self.warning(here, "clients cannot measure an IPv6 address over HTTPS, so never where UDP is blocked")
        elif address is None and name != name.lower():
            self.warning(here, f"write {name.lower()!r:.80}: derper with --certmode manual refuses names with capitals")
        if name.lower() == "localhost" and not node.ipv4 and not self._is_embedded:
            self.warning(here, _ONLY_FROM.format(name, "this machine"))
        self._special_address(here, name)
        self._certificate_name(node, place, is_address=address is not None)

    def _certificate_name(self, node: DERPNode, place: str, *, is_address: bool) -> None:
        here = f"{place}.CertName"
        if node.cert_name.startswith(_PIN):
            digits = node.cert_name[len(_PIN) :]
            if not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
                self.error(here, f"a pin is {_PIN} and the 64 hex digits of the certificate's SHA-256")
            elif digits != digits.lower():
                self.error(here, "clients compare the pin letter by letter: write its digits in lower case")
        elif node.cert_name and not _is_host_name(node.cert_name) and _address(node.cert_name) is None:
            self.error(here, f"{node.cert_name!r:.80} is neither a host name nor a pin ({_PIN}...)")
        elif is_address and not (node.cert_name or node.insecure_for_tests or node.force_http or node.stun_only):
            self.warning(
                f"{place}.HostName",
                "is an address: clients accept only a certificate made for it; else pin it by CertName",
            )

    def _special_address(self, place: str, text: str) -> None:
        address = _address(text)
        if address is None:
            return
        if address.is_unspecified or address.is_multicast or (address.version == 4 and address.is_reserved):
            self.error(place, f"{text} is the address of no machine")
        elif (address.is_loopback or address.is_link_local) and not self._is_embedded:
            self.warning(place, _ONLY_FROM.format(text, "this machine" if address.is_loopback else "the same link"))

    def _addresses(self, node: DERPNode, place: str) -> None:
        literal = _address(node.host_name)
        reachable, families = False, ((node.ipv4, IPv4Address, "IPv4"), (node.ipv6, IPv6Address, "IPv6"))
        for text, kind, field in families:
            if not text:
                reachable = reachable or literal is None or isinstance(literal, kind)
            elif text != "none" and not isinstance(_address(text), kind):
                reachable = True  # one complaint is enough
                self.error(
                    f"{place}.{field}",
                    f'{text!r:.80} is no {field} address, so clients use none: write "none" to mean that',
                )
            elif text != "none":
                reachable = True
                if text != node.host_name:
                    self._special_address(f"{place}.{field}", text)
        if not reachable and literal is not None and (node.ipv4 == "" or node.ipv6 == ""):
            self.error(place, f"the family of HostName {node.host_name} is none here: no client can reach it")
        elif not reachable:
            self.error(place, "IPv4 and IPv6 are both none: no client can reach it")
        if node.can_port_80 and not isinstance(_address(node.ipv4), IPv4Address):
            self.warning(f"{place}.CanPort80", "does nothing without an address in IPv4: portals are looked for there")
        if node.stun_test_ip and _address(node.stun_test_ip) is None:
            self.error(f"{place}.STUNTestIP", f"{node.stun_test_ip!r:.80} is no IP address")
        elif node.stun_test_ip:
            self.warning(f"{place}.STUNTestIP", "is for tests: STUN goes there and not to the relay")

    def _ports(self, node: DERPNode, place: str) -> None:
        if not STUN_DISABLED <= node.stun_port <= MAX_PORT:
            self.error(f"{place}.STUNPort", f"{node.stun_port} is no port: 0 means 3478, -1 means no STUN here")
        elif node.stun_only and node.stun_port == STUN_DISABLED:
            self.error(f"{place}.STUNPort", "is -1 (no STUN) on a node that is STUNOnly: it does nothing at all")
        elif node.stun_port in (80, 443):
            self.warning(f"{place}.STUNPort", f"UDP {node.stun_port}: is it the relay's own port? STUN's is 3478, or 0")
        if not 0 <= node.derp_port <= MAX_PORT:
            self.error(f"{place}.DERPPort", f"{node.derp_port} is no port: 0 means 443")
        elif node.stun_only and (node.derp_port or node.cert_name):
            field = "DERPPort" if node.derp_port else "CertName"
            self.warning(f"{place}.STUNOnly", f"no client uses this relay, though it has {field}: is STUNOnly meant?")
        elif node.derp_port == 3478:
            self.warning(f"{place}.DERPPort", "3478 is STUN's port: are DERPPort and STUNPort mixed up?")
        elif node.derp_port == 80 and not node.force_http:
            self.warning(f"{place}.DERPPort", "clients speak TLS, also on port 80: is the port for plain HTTP meant?")
        elif node.force_http and node.derp_port in (0, 443) and not node.stun_only:
            self.warning(f"{place}.ForceHTTP", "plain HTTP on port 443: is it meant? Set DERPPort")
        self._quic_port(node, f"{place}.QUICPort")

    def _quic_port(self, node: DERPNode, here: str) -> None:
        if not 0 <= node.quic_port <= MAX_PORT:
            self.error(here, f"{node.quic_port} is no port: 0 means that DERP over QUIC is not served")
        elif node.quic_port and (node.force_http or node.stun_only):
            why = "QUIC has TLS always, and this relay is plain HTTP" if node.force_http else "this is no relay"
            self.warning(here, f"no client uses it: {why}")
        elif node.quic_port and node.quic_port == (node.stun_port or DEFAULT_STUN_PORT):
            self.error(here, f"UDP {node.quic_port} is the node's STUN port, and one port cannot be both")

    def _choice_of_home(self, regions: Mapping[int, DERPRegion]) -> None:
        measured = {
            region_id: any(node.stun_port != STUN_DISABLED for node in region.nodes)
            for region_id, region in regions.items()
            if region.nodes and not region.no_measure_no_home and region_id not in self._incomplete
        }
        # Clients skip a region with Avoid when they measure over HTTPS, but not when they do by STUN.
        avoided = {region_id for region_id in measured if regions[region_id].avoid and not measured[region_id]}
        # What a node with a typing mistake in it will be once that is mended is not known.
        if regions and measured.keys() <= avoided and not (self._overlay or self._incomplete):
            self.warning(
                "Regions", "none may become a home (NoMeasureNoHome, Avoid): clients find none and take any region"
            )
        # Clients fall back to HTTPS only if no STUN answers anywhere.
        for region_id, has_stun in measured.items():
            if not has_stun and any(measured.values()) and region_id not in avoided:
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
                self.warning(_within(place, name), f"no client knows this key{hint}")
            else:
                fields[key] = item
        return fields

    def _format_error(self, error: MapFormatError, place: str) -> None:
        finding = finding_of(error)
        self._add(replace(finding, place=f"{place}.{finding.place}" if finding.place else place))


class _Pairs(dict[str, Any]):
    """A JSON object that remembers which of its keys were given twice.  Go matches names whatever their case."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.twice: list[str] = []
        seen: set[str] = set()
        for key, _ in pairs:
            if key.casefold() in seen:
                self.twice.append(key)
            seen.add(key.casefold())


def _within(place: str, key: object) -> str:
    return f"{place}.{key}"[:200] if place else str(key)[:200]


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
