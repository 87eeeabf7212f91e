"""What a relay is told: one frozen value, read everywhere, changed nowhere (layer L2).

Every default stands here once, with its reason.  Names end in their unit.  ServerConfig is what whoever listens is
told, RelayRules what a relay is told wherever it listens; the coordinator has both, and nothing of them twice.
settings.py says how each is called in files, in the environment and on the command line; load.py builds the value.
"""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Final

from derp.admission.signed import Issuer
from derp.keys import MeshKey, NodePrivate
from derp.relay.limits import NO_LIMITS, UNLIMITED, Limits, Rate

Network = IPv4Network | IPv6Network

KIB: Final = 1024
MIB: Final = 1024 * KIB

DEV_PORT: Final = 3340  # where derper's -dev listens
TAILSCALED_SOCKET: Final = "/var/run/tailscale/tailscaled.sock"  # where it listens on Linux
LOOPBACK: Final = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
# Descriptors that are not client connections: listeners, epoll sets, log, metrics scrapes, mesh, name look-ups.
# Of few descriptors a quarter is kept for them, and never fewer than a server with a store uses.
RESERVED_FILES: Final = 256
LEAST_RESERVED_FILES: Final = 64
LEAST_CONNECTIONS: Final = 32

# Set in the processes that the supervisor of several workers starts: the descriptor of their line to it.  Not
# DERP_...: that is how settings are called.
WORKER_VARIABLE: Final = "RELAY_WORKER"

LETSENCRYPT_DIRECTORY: Final = "https://acme-v02.api.letsencrypt.org/directory"
GOOGLE_DIRECTORY: Final = "https://dv.acme-v02.api.pki.goog/directory"


@dataclass(frozen=True, slots=True)
class AcmeConfig:
    """Whom to ask for the certificate, and how to prove that the name is ours.  See transport/acme.py."""

    directory_url: str = LETSENCRYPT_DIRECTORY
    email: str = ""  # the account's contact, for authorities that want one
    # How to prove it, tried in this order: the first is looked at on the port that clients use, and so always open.
    challenges: tuple[str, ...] = ("tls-alpn-01", "http-01")
    dns_hook: tuple[str, ...] = ()  # the command that publishes TXT records; no shell
    eab_kid: str = ""  # external account binding: who we are to an authority that knows its customers
    eab_key: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Where the certificate comes from.  transport/tls.py turns it into a context.

    With `cert_file` and `key_file`: PEM, leaf first; they are read again when they change.  With `self_signed` a
    missing pair is generated for `hostname`: into those files, or only into memory when there are none.  With `acme`
    server/certificates.py writes the two files; until there is a certificate a temporary one is served.
    """

    cert_file: Path | None = None
    key_file: Path | None = None
    hostname: str = ""  # name or IP address the certificate must be valid for; empty: not checked
    require_sni: bool = False  # refuse handshakes whose SNI is not `hostname`, as derper does for names
    self_signed: bool = False
    acme: AcmeConfig | None = None
    # Of a worker, whose supervisor (server/supervisor.py) makes what all show, and asks the authority.
    generated: tuple[bytes, bytes] | None = field(default=None, repr=False)  # chain and key, PEM
    is_kept_elsewhere: bool = False
    own_records: bool = False  # after a handshake of TLS 1.3: transport/tls_records.py


@dataclass(frozen=True, slots=True)
class MeshPeer:
    """One --mesh-with entry: `host[:port]` or `host[:port]/dial_host`."""

    host: str  # the name in the URL, and so in SNI and in the certificate
    port: int
    dial_host: str  # the name that is looked up and dialled


# The three below have no slots: a class may not have two bases with slots, and there is one such value per process.
@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What whoever listens is told: the relay, and the coordinator around its embedded relay."""

    # (host, port); host "" is every address of both families, port 0 any free port.  443 is what maps assume.
    listen: tuple[tuple[str, int], ...] = (("", 443),)
    hostname: str = ""  # our name in certificates, maps and logs
    tls: TlsConfig | None = None  # None: every listener speaks plain HTTP
    http_port: int | None = None  # plain HTTP beside TLS: captive-portal probe, redirect, challenges; None: none
    dev: bool = False  # somebody tries it out on a machine of his own
    stun_may_move: bool = False  # take a free port if STUN's is taken: for --dev, whose port no map names
    quic: bool = False  # DERP over QUIC too: one door more for strangers, and no stock client comes by it
    derp_enabled: bool = True  # False: /derp is 404, only STUN and /bootstrap-dns remain

    # Unacknowledged bytes for 15 s mean a dead path; the kernel's own 15 minutes would keep a ghost reachable.
    tcp_user_timeout_seconds: float = 15.0  # 0: the kernel's
    # Long, to spare the batteries of phones: the protocols' own keep-alives are far more frequent.
    tcp_keepalive_seconds: float = 600.0
    # From accept to login, TLS and HTTP included.  derper gives 30 s + 10 s; nobody on a working path needs 10.
    handshake_timeout_seconds: float = 10.0
    # Kubernetes kills 30 s after SIGTERM; 25 s of paced closes leave 5 s to leave in order.
    drain_seconds: float = 25.0

    # Load.  derper has no bound here by default, and a mass reconnect has taken it down.
    # One core completes 1,500 to 4,700 logins a second, so more than 5,000 accepts only starve those inside.
    accept_connection_limit: float = 5_000.0  # per second; math.inf: none
    # A full fleet comes back at once after a restart: two seconds' worth may pass before pacing starts.
    accept_connection_burst: int = 10_000
    # 100,000 idle TLS clients take about 2 GB: more than that is a decision, not a default.
    max_connections: int = 100_000
    connections_remedy: str = ""  # what to do for more of them, where open files allow fewer; told when they run out

    # A relay whose UDP answers while its TCP is dead keeps every client: they choose regions by STUN.  A packet to
    # itself each second costs 0.1 ms of CPU.
    self_check: bool = True

    # Nobody but this machine sees who is connected.
    debug_allow: tuple[Network, ...] = LOOPBACK
    # Nobody may tell us another address than the one we see.
    trusted_proxies: tuple[Network, ...] = ()
    log_format: str = "auto"  # "text", "json", or "auto": text on a terminal
    log_level: str = "info"
    # Each is one sentence the operator should see at start: open relay, readable keys, limits that were lowered.
    notices: tuple[str, ...] = ()
    # Setting by setting what sources gave, parsed: what reload.py compares.  Nothing else reads it.
    given: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def has_accept_limit(self) -> bool:
        """Whether accepts are paced at all."""
        return math.isfinite(self.accept_connection_limit)


@dataclass(frozen=True, kw_only=True)
class RelayRules:
    """How a relay treats its clients, wherever it listens.  A coordinator embeds this value and nothing else of us."""

    bootstrap_dns_names: tuple[str, ...] = ()
    unpublished_bootstrap_dns_names: tuple[tuple[str, str], ...] = ()  # (name, TXT record with the rollout percentage)

    # Mesh.  The key is what makes a client a mesh client; without one nobody is.
    mesh_key: MeshKey | None = None
    mesh_with: tuple[MeshPeer, ...] = ()

    # Deadlines.  2 s: a client that takes nothing for so long is stuck, and its relay is meant to be near it.
    tcp_write_timeout_seconds: float = 2.0  # 0: none
    # A mesh peer carries everybody's packets; breaking that link costs far more than waiting for it.
    mesh_write_timeout_seconds: float = 30.0
    # Clients give up after 120 s without a frame: one keep-alive may be lost.  And reverse proxies (nginx, HAProxy) cut
    # a connection that is silent for 60 s, so derper's 60 to 65 s are too rare behind one.
    keepalive_seconds: float = 45.0
    # Fixed per connection, so that 10,000 clients that came at once do not wake us at once for ever.
    keepalive_jitter_seconds: float = 5.0

    # Behind a slow reader.  At derper's 32 a tunnelled TCP stream loses a tenth of its segments.
    queue_depth: int = 512  # packets
    # 512 packets of 1,300 bytes are 0.7 MiB; 2 MiB leave room for larger ones.
    queue_bytes: int = 2 * MIB
    # Of all slow readers together: 300 of them filled 584 MiB when there was no total.  A quarter of the machine leaves
    # the rest to 100,000 idle clients and the kernel's buffers.
    queue_total_bytes: int = 0  # 0: a quarter of this machine's memory
    # CoDel takes seconds to tame a sender that does not listen to losses.  A call is unusable before, and TCP sends
    # again.
    queue_delay_seconds: float = 0.25

    # Who may what.
    verify_clients: bool = False  # ask the tailscaled of this machine
    tailscaled_socket: str = TAILSCALED_SOCKET
    verify_client_url: str = ""
    # derper's default is True: its admission service down makes it an open relay.  Ours stays closed.
    verify_client_url_fail_open: bool = False
    allow_keys: frozenset[bytes] | None = None  # raw public keys; None: no allow list
    deny_keys: frozenset[bytes] = frozenset()  # wins over every other rule but the mesh key
    issuers: tuple[Issuer, ...] = ()  # whose tickets and key sets are believed
    key_set: str = ""  # a URL or a file: who may come in, signed by one of them
    key_set_file: Path | None = None  # where the last good one of a URL is kept
    key_set_token: str = field(default="", repr=False)
    admission_log: Path | None = None  # who was let in and who was not, as a chain of hashes
    ledger: Path | None = None  # what each key and tenant carried on each day
    # Three months: bills are written by month, and questions about them come later.
    ledger_days: int = 93
    # A relay that strangers find the day it is made has carried their traffic before its operator looks at it.
    open: bool = False
    rate: Rate = UNLIMITED
    rate_by_key: Mapping[bytes, Rate] = field(default_factory=dict)  # other limits for some raw public keys
    limits: Limits = NO_LIMITS  # of clients, tenants and the whole relay, from one file

    @property
    def admission_is_open(self) -> bool:
        """Whether any stranger may use this relay."""
        return not (self.asks_others or self.issuers) and self.allow_keys is None

    @property
    def asks_others(self) -> bool:
        """Whether somebody else is asked for each client: server/verify.py."""
        return self.verify_clients or bool(self.verify_client_url)


@dataclass(frozen=True)
class RelayConfig(RelayRules, ServerConfig):
    """All settings of one relay.  load.py guarantees the bounds; whoever builds one by hand must keep them."""

    private_key: NodePrivate

    _: KW_ONLY
    # One core relays a gigabit and more; each further process costs 34 MB and makes half of the packets take two hops.
    workers: int = 1
    stun_enabled: bool = True
    stun_port: int = 3478  # the port maps assume
    invitations: Path | None = None  # those that `derp invite` makes
    home: str = ""  # what / answers: "" our page, "blank" an empty page, else a URL to redirect to

    @property
    def admission_is_open(self) -> bool:
        return super().admission_is_open and self.invitations is None

    @property
    def stun_hosts(self) -> tuple[str, ...]:
        """The addresses STUN binds to: those of the listeners, each once."""
        return tuple(dict.fromkeys(host for host, _ in self.listen)) if self.stun_enabled else ()
