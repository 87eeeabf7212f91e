"""How a replica sees the others: for /debug/replicas, `tailnet replicas`, metrics and health (layer L3)."""

import json
import socket
from collections import Counter
from typing import Any, Protocol

from derp.server.pages import Page
from derp.text import host_port
from tailnet.bus.contract import Address, Bus, Record
from tailnet.bus.links import Link
from tailnet.metrics import ReplicaReading
from tailnet.replica.cluster import Cluster
from tailnet.replica.messages import ReplicaID
from tailnet.replica.pair import End


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
    ends: Counter[End]

    @property
    def refused_links(self) -> int: ...

    def name_of(self, other: ReplicaID) -> str: ...


def state_of(replicas: Replicas, other: ReplicaID) -> str:
    """`session`: all is well; `greeting`: there is a way, and no session yet; `silent`: there is none, or nothing came.

    `refused`: it greets, and cannot be talked to.
    """
    pair = replicas.cluster.pairs.get(other)
    if pair is not None and pair.is_open:
        return "session"
    if other in replicas.cluster.refused:
        return "refused"
    return "greeting" if pair is not None and pair.has_link else "silent"


def others_of(replicas: Replicas) -> set[ReplicaID]:
    """All that are or should be here beside this one."""
    return {*replicas.cluster.pairs, *replicas.records} - {replicas.id}


def missing(replicas: Replicas) -> list[str]:
    """Replicas that should be here and are not, each as a sentence."""
    cluster = replicas.cluster
    found = [
        f"replica {replicas.name_of(other)}: {cluster.refused.get(other) or 'no session with it'}"
        for other in sorted(others_of(replicas) - replicas.leaving)
        if state_of(replicas, other) != "session"
    ]
    known = {record.address for other, record in replicas.records.items() if other in cluster.pairs}
    return found + [
        f"{host_port(*place)}: {why}" for place, why in replicas.dial_troubles.items() if place not in known
    ]


def describe(replicas: Replicas) -> dict[str, Any]:
    """Everything, as JSON has it."""
    cluster = replicas.cluster
    numbers = cluster.coordinator.statistics()
    others = sorted(others_of(replicas), key=replicas.name_of)
    return {
        "replica": str(replicas.id),
        "name": replicas.own_name,
        "bus": {"kind": replicas.bus.kind, "trouble": replicas.bus.trouble},
        "listens": [host_port(*sock.getsockname()[:2]) for sock in replicas.listening],
        "peers": numbers.connected_peers,
        "remote_peers": remote_peers(replicas),
        "absent_peers": numbers.absent_peers,
        "replicas": [_describe_one(replicas, other) for other in others],
        "places": {host_port(*place): replicas.name_of(other) for place, other in replicas.found.items()},
        "missing": missing(replicas),
    }


def _describe_one(replicas: Replicas, other: ReplicaID) -> dict[str, Any]:
    pair, link = replicas.cluster.pairs.get(other), replicas.linked.get(other)
    record = replicas.records.get(other)
    status = pair.status if pair is not None else None
    return {
        "replica": str(other),
        "name": replicas.name_of(other),
        "version": record.version if record is not None else "",
        "state": state_of(replicas, other),
        "way": link.address if link is not None else "bus" if pair is not None and pair.has_link else "",
        "sessions": pair.session_count if pair is not None else 0,
        "queued_bytes": pair.queued_bytes if pair is not None else 0,
        "peers": status.peer_count if status is not None else None,
        "leaving": other in replicas.leaving,
        "refused": replicas.cluster.refused.get(other, ""),
    }


def remote_peers(replicas: Replicas) -> int:
    """Peers elsewhere that share tunnels with ours."""
    core = replicas.cluster.coordinator
    numbers = core.statistics()
    return len(core.peers) - numbers.connected_peers - numbers.absent_peers


def read(replicas: Replicas) -> ReplicaReading:
    """What is counted, for metrics."""
    cluster = replicas.cluster
    states = dict.fromkeys(("session", "greeting", "silent", "refused"), 0)
    for other in others_of(replicas):
        states[state_of(replicas, other)] += 1
    return ReplicaReading(
        states=states,
        missing=len(missing(replicas)),
        sessions=replicas.session_count,
        ends={end.value: count for end, count in replicas.ends.items()},
        heard={kind.__name__.lower(): count for kind, count in cluster.heard.items()},
        queued_bytes=sum(pair.queued_bytes for pair in cluster.pairs.values()),
        remote_peers=remote_peers(replicas),
        clock_jumps=cluster.time.jump_count,
        sleeps=cluster.sleep_count,
        refused_links=replicas.refused_links,
        bus_trouble=bool(replicas.bus.trouble),
    )


def replicas_page(replicas: Replicas) -> Page:
    """/debug/replicas."""
    title = "the replicas of this cluster, JSON"
    return Page(title, "application/json", lambda: json.dumps(describe(replicas)).encode())
