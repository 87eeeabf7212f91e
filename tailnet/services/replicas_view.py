"""How a replica sees the others: for /debug/replicas, `tailnet replicas`, metrics and health (layer L3)."""

import json
import socket
from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any, Final, Protocol

from derp.server.pages import Page
from tailnet import __version__
from tailnet.bus.contract import Address, Bus, Record, place_of_socket, place_text
from tailnet.bus.links import Link
from tailnet.health.flaps import Lasting
from tailnet.health.judge import Finding, judge
from tailnet.health.readings import EmptyPlace, OtherReplica, ReplicasReading
from tailnet.metrics import ReplicaReading
from tailnet.replica.cluster import DELAY_LIMITS_SECONDS, Cluster
from tailnet.replica.codec import KINDS
from tailnet.replica.messages import NodeIs, ReplicaID
from tailnet.replica.pair import SILENCE_SECONDS, End, Pair

# Names of messages as docs/replicas.md has them.
_KINDS: Final = {kind: "node" if kind is NodeIs else kind.__name__.lower() for kind in KINDS}
_STATES: Final = ("session", "greeting", "silent", "refused")


class Replicas(Protocol):
    """What is looked at: services/replicas.py."""

    id: ReplicaID
    own_name: str
    cluster: Cluster[Any]
    bus: Bus
    records: dict[ReplicaID, Record]
    linked: dict[ReplicaID, Link]
    leaving: set[ReplicaID]
    found: dict[Address, ReplicaID]
    dial_troubles: dict[Address, str]
    listening: list[socket.socket]
    session_count: int
    silence_count: int
    failed_links: int
    ends: Counter[End]
    apart: Lasting[ReplicaID | Address]
    map_differs: Lasting[ReplicaID]
    map_difference: Callable[[ReplicaID], str]

    @property
    def now(self) -> float: ...

    @property
    def refused_links(self) -> int: ...

    def name_of(self, other: ReplicaID) -> str: ...


def state_of(replicas: Replicas, other: ReplicaID) -> str:
    """`session`: all is well; `greeting`: there is a way, and no session yet; `silent`: there is none, or nothing came.

    `refused`: it greets, and cannot be talked to.
    """
    if open_pair(replicas, other) is not None:
        return "session"
    if other in replicas.cluster.refused:
        return "refused"
    pair = replicas.cluster.pairs.get(other)
    return "greeting" if pair is not None and pair.has_link else "silent"


def open_pair(replicas: Replicas, other: ReplicaID) -> Pair | None:
    """The session with a replica; None while there is none."""
    pair = replicas.cluster.pairs.get(other)
    return pair if pair is not None and pair.is_open else None


def others_of(replicas: Replicas) -> list[ReplicaID]:
    """All that are or should be here beside this one, by their names."""
    others = {*replicas.cluster.pairs, *replicas.records} - {replicas.id}
    return sorted(others, key=lambda other: (replicas.name_of(other), other))


def missing(replicas: Replicas) -> list[str]:
    """Replicas that should be here and are not, each as a sentence."""
    found = [
        f"replica {replicas.name_of(other)}: {replicas.cluster.refused.get(other) or outward(replicas, other)}"
        for other in others_of(replicas)
        if other not in replicas.leaving and state_of(replicas, other) != "session"
    ]
    return found + [f"{place_text(place)}: {problem}" for place, problem in _empty_places(replicas).items()]


def lasting(replicas: Replicas, now: float) -> tuple[dict[ReplicaID | Address, float], dict[ReplicaID, float]]:
    """For how many seconds each replica or place has been without a session, and each replica with another map.

    Called now and then also where nobody asks, so that it is known since when.
    """
    others = others_of(replicas)
    away = [other for other in others if state_of(replicas, other) != "session"]
    apart = replicas.apart.look([*away, *_empty_places(replicas)], now)
    return apart, replicas.map_differs.look([each for each in others if _has_another_map(replicas, each)], now)


def look(replicas: Replicas, now: float) -> ReplicasReading:
    """What health is judged by."""
    others, empty = others_of(replicas), _empty_places(replicas)
    apart, differs = lasting(replicas, now)
    pairs = replicas.cluster.pairs
    by_bus = [other for other, pair in pairs.items() if pair.has_link and other not in replicas.linked]

    def describe_other(other: ReplicaID) -> OtherReplica:
        pair, opened, record = pairs.get(other), open_pair(replicas, other), replicas.records.get(other)
        return OtherReplica(
            name=replicas.name_of(other),
            version=record.version if record is not None else pair.hello.program if pair and pair.hello else "",
            is_known=record is not None,
            is_leaving=other in replicas.leaving,
            refused=replicas.cluster.refused.get(other, "") if other in apart else "",
            apart_seconds=apart.get(other),
            heard_seconds=now - pair.heard_at if pair is not None and pair.heard_at != -inf else None,
            hears_us=record is not None and replicas.id in record.hears,
            outward=outward(replicas, other),
            inward=_inward(replicas, other, now),
            clock_ahead_seconds=opened.wall_ahead_seconds if opened is not None else None,
            map_differs_seconds=differs.get(other, 0.0),
            map_difference=replicas.map_difference(other) if other in differs else "",
        )

    return ReplicasReading(
        version=__version__,
        others=[describe_other(other) for other in others],
        empty=[EmptyPlace(place_text(place), problem, apart[place]) for place, problem in empty.items()],
        bus=replicas.bus.kind,
        bus_trouble=replicas.bus.trouble,
        unheard=[replicas.name_of(other) for other in by_bus] if replicas.cluster.is_deaf else (),
    )


def unanswering(replicas: Replicas, now: float) -> list[ReplicaID]:
    """Who is heard, and has no session with us."""
    pairs = replicas.cluster.pairs
    return [other for other, pair in pairs.items() if not pair.is_open and now - pair.heard_at < SILENCE_SECONDS]


def _empty_places(replicas: Replicas) -> dict[Address, str]:
    """Addresses where a replica was, or should be, and none is known now; and why."""
    others = others_of(replicas)
    here = {*others, replicas.id}
    # One may have several addresses, of IPv4 and of IPv6.
    known = {place for place, there in replicas.found.items() if there in here}
    known |= {place for other in others if (place := place_of(replicas, other)) is not None}
    left = dict.fromkeys(replicas.found, "who was there is silent")
    return {place: problem for place, problem in {**left, **replicas.dial_troubles}.items() if place not in known}


def place_of(replicas: Replicas, other: ReplicaID) -> Address | None:
    """Where it takes links, as far as it is known."""
    record = replicas.records.get(other)
    if record is not None:
        return record.address
    return next((place for place, there in replicas.found.items() if there == other), None)


def outward(replicas: Replicas, other: ReplicaID) -> str:
    """How we try to reach it, as a part of a sentence."""
    link, place = replicas.linked.get(other), place_of(replicas, other)
    if link is not None:
        return f"a link with {link.address} stands"
    if place is None:
        is_by_bus = replicas.bus.can_carry
        return f"it takes no links, {'so only the bus carries' if is_by_bus else 'and its bus carries nothing'}"
    return replicas.dial_troubles.get(place) or f"{place_text(place)} is about to be dialled"


def _inward(replicas: Replicas, other: ReplicaID, now: float) -> str:
    """What comes from it, as a part of a sentence."""
    pair = replicas.cluster.pairs.get(other)
    if pair is not None and pair.heard_at != -inf:
        heard = f"it was heard {now - pair.heard_at:.0f} s ago"
    else:
        heard = "nothing has come yet"
    if other in replicas.linked:
        return heard
    if not replicas.listening:
        return f"{heard}, and this one takes no links"
    places = ", ".join(place_text(place_of_socket(sock)) for sock in replicas.listening)
    return f"{heard}; it has not dialled {places}"


def _has_another_map(replicas: Replicas, other: ReplicaID) -> bool:
    pair, ours = open_pair(replicas, other), replicas.cluster.map_digest
    theirs = pair.status.map_digest if pair is not None and pair.status is not None else b""
    return bool(ours and theirs) and ours != theirs


def describe(replicas: Replicas, now: float) -> dict[str, Any]:
    """Everything, as JSON has it."""
    cluster = replicas.cluster
    numbers = cluster.coordinator.statistics()
    reading = look(replicas, now)
    return {
        "replica": str(replicas.id),
        "name": replicas.own_name,
        "version": reading.version,
        "bus": {"kind": replicas.bus.kind, "trouble": replicas.bus.trouble},
        "listens": [place_text(place_of_socket(sock)) for sock in replicas.listening],
        "peers": numbers.connected_peers,
        "remote_peers": remote_peers(replicas),
        "absent_peers": numbers.absent_peers,
        "replicas": [
            _describe_one(replicas, other, seen, now)
            for other, seen in zip(others_of(replicas), reading.others, strict=True)
        ],
        "places": {place_text(place): replicas.name_of(other) for place, other in replicas.found.items()},
        "missing": missing(replicas),
        "findings": [_row(finding) for finding in judge(reading)],
    }


def _row(finding: Finding) -> dict[str, str]:
    return {
        "code": finding.code.value,
        "severity": finding.severity.word,
        "what": finding.what,
        "advice": finding.advice,
    }


def _describe_one(replicas: Replicas, other: ReplicaID, seen: OtherReplica, now: float) -> dict[str, Any]:
    """`state_seconds`: for how long it has had a session, or none; `lag_seconds`: what its last beat took."""
    pair, opened = replicas.cluster.pairs.get(other), open_pair(replicas, other)
    link = replicas.linked.get(other)
    status = pair.status if pair is not None else None
    opened_at = pair.opened_at if pair is not None else now
    return {
        "replica": str(other),
        "name": seen.name,
        "version": seen.version,
        "state": state_of(replicas, other),
        "state_seconds": round(now - opened_at if seen.apart_seconds is None else seen.apart_seconds, 1),
        "heard_seconds": _rounded(seen.heard_seconds, 1),
        "hears_us": seen.hears_us,
        "way": _way(link) if link is not None else "bus" if pair is not None and pair.has_link else "",
        "lag_seconds": _rounded(opened.delay_seconds if opened is not None else None, 4),
        "clock_ahead_seconds": _rounded(seen.clock_ahead_seconds, 3),
        "sessions": pair.session_count if pair is not None else 0,
        "queued_bytes": pair.queued_bytes if pair is not None else 0,
        "peers": status.peer_count if status is not None else None,
        "leaving": seen.is_leaving,
        "refused": seen.refused,
        "outward": seen.outward,
        "inward": seen.inward,
    }


def _way(link: Link) -> str:
    """A link that it dialled comes from a port that means nothing."""
    return f"to {link.address}" if link.is_dialled else f"from {link.address.rpartition(':')[0]}"


def _rounded(seconds: float | None, digits: int) -> float | None:
    return None if seconds is None else round(seconds, digits)


def remote_peers(replicas: Replicas) -> int:
    """Peers elsewhere that share tunnels with ours."""
    core = replicas.cluster.coordinator
    numbers = core.statistics()
    return len(core.peers) - numbers.connected_peers - numbers.absent_peers


def read(replicas: Replicas) -> ReplicaReading:
    """What is counted, for metrics."""
    cluster, core = replicas.cluster, replicas.cluster.coordinator
    states = dict.fromkeys(_STATES, 0)
    for other in others_of(replicas):
        states[state_of(replicas, other)] += 1
    return ReplicaReading(
        links=states,
        missing=len(missing(replicas)),
        sessions=replicas.session_count,
        ends={end.value: replicas.ends[end] for end in End},
        messages={
            (name, direction): counts[kind]
            for direction, counts in (("received", cluster.heard), ("sent", cluster.sent))
            for kind, name in _KINDS.items()
        },
        queued_bytes=sum(pair.queued_bytes for pair in cluster.pairs.values()),
        sync_count=cluster.sync_count,
        sync_seconds=cluster.sync_seconds,
        mended=dict(core.mended),
        remote_peers=remote_peers(replicas),
        wanted_absent_peers=core.statistics().absent_peers,
        claims=dict(core.claims),
        clock_jumps=cluster.time.jump_count,
        silences=replicas.silence_count,
        sleeps=cluster.sleep_count,
        delays=tuple(zip(DELAY_LIMITS_SECONDS, cluster.delays, strict=True)),
        delay_seconds=cluster.delay_seconds,
        refused_links=replicas.refused_links,
        failed_links=replicas.failed_links,
        bus_trouble=bool(replicas.bus.trouble),
    )


def replicas_page(replicas: Replicas) -> Page:
    """/debug/replicas."""
    title = "the replicas of this cluster, JSON"
    return Page(title, "application/json", lambda: json.dumps(describe(replicas, replicas.now)).encode())
