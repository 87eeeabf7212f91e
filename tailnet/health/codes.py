"""Every code of a health report: which check finds it, how bad it is, when it is there, what to do (layer L1).

A code never changes its meaning, since alerts and programs go by it; one that is no longer found leaves the table.
docs/health.md lists the table, which its test compares.  Found by judge.py, told by services/health.py.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

SeverityName = Literal["ok", "warning", "error"]


class Severity(enum.IntEnum):
    """Also the value of the metric, and what `tailnet health` leaves with."""

    OK = 0
    WARNING = 1  # it works, and probably not for long or not for all
    ERROR = 2  # somebody cannot work now

    @property
    def word(self) -> SeverityName:
        return "error" if self is Severity.ERROR else "warning" if self else "ok"


class Check(enum.Enum):
    """What is looked at."""

    ADDRESS = "address"
    RELAY = "relay"
    WEBSOCKET = "websocket"
    STUN = "stun"
    STORE = "store"
    OUTBOX = "outbox"
    CLOCK = "clock"
    MAP = "map"
    CERTIFICATE = "certificate"
    AGENTS = "agents"
    OWN_NODE = "own-node"
    RESUME_KEYS = "resume-keys"
    RELAY_KEYS = "relay-keys"
    DISK = "disk"
    LOG = "log"
    PEERS = "peers"
    REPLICAS = "replicas"


class Code(enum.Enum):
    """What is found."""

    ADDRESS_UNSET = "address-unset"
    ADDRESS_UNREACHABLE = "address-unreachable"
    RELAY_UNREACHABLE = "relay-unreachable"
    RELAY_ANOTHER = "relay-another"
    RELAY_WITHOUT_UPGRADE = "relay-without-upgrade"
    RELAY_SLOW = "relay-slow"
    WEBSOCKET_UNREACHABLE = "websocket-unreachable"
    STUN_SILENT = "stun-silent"
    STORE_AWAY = "store-away"
    STORE_SLOW = "store-slow"
    STORE_ISLANDS = "store-islands"
    OUTBOX_LAG = "outbox-lag"
    OUTBOX_LOST = "outbox-lost"
    CLOCK_OFF = "clock-off"
    CLOCK_WENT_BACK = "clock-went-back"
    MAP_EMPTY = "map-empty"
    MAP_SOURCE_FAILED = "map-source-failed"
    MAP_LINT = "map-lint"
    CERTIFICATE_EXPIRES = "certificate-expires"
    CERTIFICATE_RENEWAL = "certificate-renewal"
    AGENTS_FLAP = "agents-flap"
    OWN_NODE_LOST = "own-node-lost"
    RESUME_KEYS_OLD = "resume-keys-old"
    RESUME_KEYS_UNREAD = "resume-keys-unread"
    RELAY_KEYS_CONTESTED = "relay-keys-contested"
    DISK_FULL = "disk-full"
    LOG_LOST = "log-lost"
    # Of several coordinators as one: numbers, by which docs/replicas.md goes.
    REPLICA_UNREACHABLE = "ER01"
    REPLICA_ONE_WAY = "ER02"
    REPLICA_CLOCK = "ER03"
    REPLICA_MAP = "ER04"
    DISCOVERY_AWAY = "ER05"
    REPLICA_DEAF = "ER06"
    PEER_FOUGHT_FOR = "ER07"
    REPLICA_VERSION = "ER08"
    CHECK_FAILED = "check-failed"


@dataclass(frozen=True, slots=True)
class Rule:
    """One code.  check: None where any may find it.  severities: those that it may have.  when: what was measured, as
    part of a sentence.  advice: one sentence that says what to do."""

    check: Check | None
    severities: tuple[Severity, ...]
    when: str
    advice: str


_WARNING: Final = (Severity.WARNING,)
_ERROR: Final = (Severity.ERROR,)
_BOTH: Final = (Severity.WARNING, Severity.ERROR)

RULES: Final[Mapping[Code, Rule]] = {
    Code.ADDRESS_UNSET: Rule(
        Check.ADDRESS,
        _WARNING,
        "the settings name no access URL, so peers are told the first address that is listened on",
        "Set --access-url to the URL by which agents and clients reach this server.",
    ),
    Code.ADDRESS_UNREACHABLE: Rule(
        Check.ADDRESS,
        _ERROR,
        "`/healthz` below the access URL is not answered, or by somebody else than a coordinator",
        "See that the name of --access-url leads here, that its port is open and that a proxy in front passes all "
        "paths on; where this machine alone cannot reach its own public name, have its DNS answer with an address that "
        "it can.",
    ),
    Code.RELAY_UNREACHABLE: Rule(
        Check.RELAY,
        _ERROR,
        "a client cannot connect to the embedded relay by its address in the DERP map, or gets no answer to a ping",
        "Have the proxy or firewall in front pass /derp of --access-url on to this server, with its Upgrade.",
    ),
    Code.RELAY_ANOTHER: Rule(
        Check.RELAY,
        _ERROR,
        "at the relay's address answers a relay with another key",
        "Correct --access-url, or have servers behind one name share one store: the relay's key lies in it.",
    ),
    Code.RELAY_WITHOUT_UPGRADE: Rule(
        Check.RELAY,
        _WARNING,
        "the relay is reached by websocket only, as `Upgrade: DERP` does not pass",
        "Have the proxy in front pass the headers Upgrade and Connection on unchanged, whatever they name; until then "
        "every peer tries in vain first.",
    ),
    Code.RELAY_SLOW: Rule(
        Check.RELAY,
        _WARNING,
        "a ping through the relay's own public path takes longer than 500 ms",
        "Look at the load of this machine and at the way from it to --access-url.",
    ),
    Code.WEBSOCKET_UNREACHABLE: Rule(
        Check.WEBSOCKET,
        _ERROR,
        "a websocket to the relay's address does not open, or carries nothing",
        "Have the proxy in front pass websockets on (HTTP/1.1 with Upgrade and Connection): agents and clients "
        "coordinate by nothing else.",
    ),
    Code.STUN_SILENT: Rule(
        Check.STUN,
        _WARNING,
        "a STUN server of the embedded region does not answer three requests",
        "Open its UDP port (3478 unless --stun-listen says otherwise) to the world: without it peers find fewer direct "
        "paths, and no client measures this region.",
    ),
    Code.STORE_AWAY: Rule(
        Check.STORE,
        _ERROR,
        "the store cannot be read or not be written",
        "Do what the sentence says; meanwhile sessions that stand go on, reports of agents wait, and callers that are "
        "not known are turned away.",
    ),
    Code.STORE_SLOW: Rule(
        Check.STORE,
        _BOTH,
        "a read takes longer than 250 ms or a write longer than 2 s (warning), or longer than 2 s and 10 s (error)",
        "Look for what else uses the database or its disk; callers that are not known yet wait for each read.",
    ),
    Code.STORE_ISLANDS: Rule(
        Check.STORE,
        _ERROR,
        "another server uses the same SQLite file",
        "Stop one of them, or move to PostgreSQL: who is connected to one never meets who is connected to another.",
    ),
    Code.OUTBOX_LAG: Rule(
        Check.OUTBOX,
        _BOTH,
        "the oldest report of an agent waits longer than 10 s (warning) or 60 s (error) for the store",
        "See the codes of the store; what waits is lost if this process ends without the store.",
    ),
    Code.OUTBOX_LOST: Rule(
        Check.OUTBOX,
        _WARNING,
        "reports of agents were given up within the last hour",
        "Mend the store if it was away or slow, else look for an agent that reports more than its share; "
        "--max-waiting-report-bytes says how much may wait.",
    ),
    Code.CLOCK_OFF: Rule(
        Check.CLOCK,
        _BOTH,
        "this machine's clock differs from the database's by more than 5 s (warning) or 60 s (error)",
        "Run a time service (chrony, systemd-timesyncd) on both machines: who is connected is judged by these clocks.",
    ),
    Code.CLOCK_WENT_BACK: Rule(
        Check.CLOCK,
        _WARNING,
        "the store has a sign of life of an agent that lies more than 60 s in the future",
        "This machine's clock, or that of another server on this store, is or was wrong: run a time service on all of "
        "them; the time is put right when that agent is seen next.",
    ),
    Code.MAP_EMPTY: Rule(
        Check.MAP,
        _ERROR,
        "the DERP map has no relay",
        "Switch the embedded relay on (--derp) or name a map (--derp-map, --derp-map-url).",
    ),
    Code.MAP_SOURCE_FAILED: Rule(
        Check.MAP,
        _BOTH,
        "a file or URL of a DERP map cannot be used; its last good map stays (warning) or there is none (error)",
        "Mend the file or the URL; `derp map lint` names every mistake in a map.",
    ),
    Code.MAP_LINT: Rule(
        Check.MAP,
        _WARNING,
        "the map that is in use has something in it that probably is not meant",
        "Correct the map where the sentence says; `derp map lint` checks a file before it is used.",
    ),
    Code.CERTIFICATE_EXPIRES: Rule(
        Check.CERTIFICATE,
        _BOTH,
        "a certificate, ours or the one at the access URL, ends within seven days or a quarter of its life (warning), "
        "or within a day or an eighth of its life, whichever is shorter (error)",
        "Renew it, and see why that did not happen by itself; files are read again when they change.",
    ),
    Code.CERTIFICATE_RENEWAL: Rule(
        Check.CERTIFICATE,
        _WARNING,
        "asking the authority for a certificate failed at least three times in a row",
        "The log says why; mend it, and `systemctl reload` tries again at once.",
    ),
    Code.AGENTS_FLAP: Rule(
        Check.AGENTS,
        _WARNING,
        "an agent has connected at least five times within the last five to ten minutes",
        "Ask /debug/agent?id=ID and the log why its connections end: two processes with one token take turns, and a "
        "proxy's idle time-out below --agent-ping cuts each.",
    ),
    Code.OWN_NODE_LOST: Rule(
        Check.OWN_NODE,
        _ERROR,
        "the server's own node, by which terminals, ports and containers of agents are reached, could not begin, or "
        "was lost, when it was wanted last",
        "The DERP map needs a relay that this server can reach: the embedded one, or one of --derp-map whose address "
        "its network lets it connect to.",
    ),
    Code.RESUME_KEYS_OLD: Rule(
        Check.RESUME_KEYS,
        _WARNING,
        "the newest key of resume tokens should have been replaced more than a day ago",
        "See the codes of the store: keys are replaced each month by writing to it.",
    ),
    Code.RESUME_KEYS_UNREAD: Rule(
        Check.RESUME_KEYS,
        _WARNING,
        "the keys of resume tokens were not read for half an hour",
        "See the codes of the store: tokens that another server gave meanwhile may not be taken here, and such clients "
        "get a new id.",
    ),
    Code.RELAY_KEYS_CONTESTED: Rule(
        Check.RELAY_KEYS,
        _WARNING,
        "within the last hour a peer announced a node key that a connected peer of another tenant has",
        "The log names key and tenants once a minute: somebody copied a node's key, or wants his traffic counted as "
        "another's; the key stays with whoever announced it first, until that peer leaves.",
    ),
    Code.DISK_FULL: Rule(
        Check.DISK,
        _BOTH,
        "the disk of the SQLite file has less than 1 GiB and a tenth free (warning), or less than 100 MiB (error)",
        "Make room, or keep less (--keep-logs, --keep-stats) and then `tailnet admin store vacuum`.",
    ),
    Code.LOG_LOST: Rule(
        Check.LOG,
        _WARNING,
        "log lines were dropped within the last hour, as nobody read them",
        "See what reads this program's standard error (journald, a container's log driver): it stands still at times.",
    ),
    Code.REPLICA_UNREACHABLE: Rule(
        Check.REPLICAS,
        _BOTH,
        "for six seconds there was no session with another replica that discovery knows (error), or nobody is found "
        "where the settings name one (warning)",
        "Peers of the two do not meet: see that it runs, that the port of --replica-listen can be reached in one "
        "direction at least, and that both have the same --cluster-name and --bus-key-file.",
    ),
    Code.REPLICA_ONE_WAY: Rule(
        Check.REPLICAS,
        _ERROR,
        "for six seconds another replica was heard, and none of what it said was an answer to this one; or its record "
        "says that it hears this one, of which nothing else came",
        "Find what lets one direction alone pass: a firewall between the two machines, or a user of Redis who may not "
        "publish or not subscribe; peers of the two do not meet meanwhile.",
    ),
    Code.REPLICA_CLOCK: Rule(
        Check.REPLICAS,
        _WARNING,
        "the wall clock of another replica differs from this one's by more than a second",
        "Run a time service (chrony, systemd-timesyncd) on both machines: tokens end, and agents count as gone, by "
        "these clocks; who owns a peer does not hang on them.",
    ),
    Code.REPLICA_MAP: Rule(
        Check.REPLICAS,
        _WARNING,
        "for a minute another replica has told its peers another DERP map",
        "Peers of the two may not find each other's relay: give all replicas the same map (--derp-map, "
        "--derp-map-url), and see the codes of the map at both.",
    ),
    Code.DISCOVERY_AWAY: Rule(
        Check.REPLICAS,
        _BOTH,
        "that by which replicas find each other cannot be used; an error where this one has no session with any other",
        "Do what the sentence says; replicas that are linked stay so and no session of a peer ends, but one that "
        "starts now stays alone.",
    ),
    Code.REPLICA_DEAF: Rule(
        Check.REPLICAS,
        _ERROR,
        "the bus does not bring back this replica's own beat, and nothing else carries what it and others say",
        "Updates between them wait, and nobody is called lost for it: see the load of Redis and the network to it, or "
        "give one of the two a --replica-listen, as direct links need no Redis.",
    ),
    Code.PEER_FOUGHT_FOR: Rule(
        Check.PEERS,
        _WARNING,
        "two processes take one id from each other, at one replica or at several: its connection was ended by another "
        "one again within a minute",
        "Stop one of the two, or give it an agent and a token of its own; until then each throws the other out, and "
        "waits for up to 30 s before that.",
    ),
    Code.REPLICA_VERSION: Rule(
        Check.REPLICAS,
        _ERROR,
        "another replica greets in a version of the replicas' protocol that this one does not speak",
        "Peers of the two do not meet: bring both to one release; a release speaks with the one before it, so updates "
        "go one release at a time.",
    ),
    Code.CHECK_FAILED: Rule(
        None,
        _WARNING,
        "a check gave no result within 10 s, or met an error that is no finding",
        "Look into the log; if this comes again without a reason that you can mend, please report it.",
    ),
}
