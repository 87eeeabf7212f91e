"""What was measured, a value for each check (layer L1).  Made by services/health_probes.py, judged by judge.py.

Seconds are durations.  `problem` is a sentence without secrets, empty where all is well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from tailnet.health.codes import Check


@dataclass(frozen=True, slots=True)
class AddressReading:
    """One look at /healthz below the access URL."""

    check: ClassVar[Check] = Check.ADDRESS
    url: str
    is_set: bool  # by the settings, or meant to be left open
    problem: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RelayReading:
    """A client's connection to the embedded relay by its address in the map.  seconds: of a ping."""

    check: ClassVar[Check] = Check.RELAY
    address: str
    problem: str = ""
    is_ours: bool = True
    websocket_reason: str = ""  # why it was reached by websocket only
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class WebSocketReading:
    """The same by websocket."""

    check: ClassVar[Check] = Check.WEBSOCKET
    address: str
    problem: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class StunAnswer:
    """Of one server and address family.  seconds: None without an answer."""

    host: str
    port: int
    family: int
    problem: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class StunReading:
    """STUN servers of the embedded region that can be asked from here."""

    check: ClassVar[Check] = Check.STUN
    answers: Sequence[StunAnswer]


@dataclass(frozen=True, slots=True)
class StoreReading:
    """read_seconds: the median of three; write_seconds: the last sign of life of this server; None: none yet."""

    check: ClassVar[Check] = Check.STORE
    problem: str = ""
    read_seconds: float | None = None
    write_seconds: float | None = None
    servers: int = 1
    has_island: bool = False  # another server on a store that cannot be shared


@dataclass(frozen=True, slots=True)
class OutboxReading:
    """What waits to be written.  lost: within the last hour, by kind of report."""

    check: ClassVar[Check] = Check.OUTBOX
    waiting: int
    waiting_bytes: int
    max_bytes: int
    oldest_seconds: float
    oldest_kind: str
    lost: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClockReading:
    """ahead_seconds: our clock before the database's, negative behind it; None where it has none of its own.
    future_seconds: how far the newest sign of life in the store lies ahead of our clock; negative: it lies behind."""

    check: ClassVar[Check] = Check.CLOCK
    ahead_seconds: float | None
    future_seconds: float | None


@dataclass(frozen=True, slots=True)
class SourceReading:
    """A file or URL of a DERP map."""

    name: str
    problem: str = ""
    has_map: bool = True  # a good one from before is in use


@dataclass(frozen=True, slots=True)
class MapReading:
    """The map that is in use."""

    check: ClassVar[Check] = Check.MAP
    version: int
    regions: int
    has_relay: bool
    sources: Sequence[SourceReading] = ()
    lint: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Certificate:
    """left_seconds: until it ends; life_seconds: from its beginning to its end."""

    place: str
    left_seconds: float
    life_seconds: float


@dataclass(frozen=True, slots=True)
class CertificateReading:
    """Our own, and the one that clients see."""

    check: ClassVar[Check] = Check.CERTIFICATE
    certificates: Sequence[Certificate]
    renewal_failures: int = 0  # in a row


@dataclass(frozen=True, slots=True)
class AgentsReading:
    """flapping: ids of agents that come again and again, with how often, the worst first."""

    check: ClassVar[Check] = Check.AGENTS
    connected: int
    flapping: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True, slots=True)
class OwnNodeReading:
    """The node by which the server reaches into agents.  problem: why it is not there although it was wanted."""

    check: ClassVar[Check] = Check.OWN_NODE
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ResumeKeysReading:
    """Of the keys in use here.  overdue_seconds: since the newest should have been replaced; negative before."""

    check: ClassVar[Check] = Check.RESUME_KEYS
    overdue_seconds: float
    unread_seconds: float


@dataclass(frozen=True, slots=True)
class RelayKeysReading:
    """contested: how often within the last hour a peer announced a key that another tenant's peer had."""

    check: ClassVar[Check] = Check.RELAY_KEYS
    contested: int


@dataclass(frozen=True, slots=True)
class DiskReading:
    """The disk of the store's file."""

    check: ClassVar[Check] = Check.DISK
    path: str
    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class LogReading:
    """lost: lines within the last hour."""

    check: ClassVar[Check] = Check.LOG
    lost: int


@dataclass(frozen=True, slots=True)
class FoughtFor:
    """A peer that two processes want to be.  count: how often its connection was ended by another one."""

    peer_id: str
    count: int
    addresses: Sequence[str]


@dataclass(frozen=True, slots=True)
class PeersReading:
    """Peers that more than one process is, now."""

    check: ClassVar[Check] = Check.PEERS
    fought_for: Sequence[FoughtFor] = ()


@dataclass(frozen=True, slots=True)
class OtherReplica:
    """Another replica as this one sees it.  `outward`, `inward`: how the two try to reach each other, as parts of a
    sentence."""

    name: str
    version: str = ""  # of its program, as discovery has it
    is_known: bool = True  # to discovery
    is_leaving: bool = False  # it said goodbye
    refused: str = ""  # why it cannot be talked to
    apart_seconds: float | None = None  # since its last session; None while there is one
    heard_seconds: float | None = None  # since it said anything; None: never
    hears_us: bool = False  # and has no session with us, as it says where discovery has its record
    outward: str = ""
    inward: str = ""
    clock_ahead_seconds: float | None = None  # its wall clock before ours; None: it did not say
    map_differs_seconds: float = 0.0  # for how long it serves another DERP map
    map_difference: str = ""


@dataclass(frozen=True, slots=True)
class EmptyPlace:
    """An address at which the settings expect a replica, and why none is found there."""

    place: str
    problem: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ReplicasReading:
    """The other replicas of the cluster.  `unheard`: names of those whom a deaf bus alone carries to."""

    check: ClassVar[Check] = Check.REPLICAS
    version: str  # of our program
    others: Sequence[OtherReplica] = ()
    empty: Sequence[EmptyPlace] = ()
    bus: str = ""
    bus_trouble: str = ""
    unheard: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """Cannot be measured here, which is no fault."""

    check: Check
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The check itself gave no result."""

    check: Check
    reason: str


Measured = (
    AddressReading
    | RelayReading
    | WebSocketReading
    | StunReading
    | StoreReading
    | OutboxReading
    | ClockReading
    | MapReading
    | CertificateReading
    | AgentsReading
    | OwnNodeReading
    | ResumeKeysReading
    | RelayKeysReading
    | DiskReading
    | LogReading
    | PeersReading
    | ReplicasReading
)
Reading = Measured | Skipped | Failed
