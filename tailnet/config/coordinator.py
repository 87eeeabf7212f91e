"""What a coordinator is told: one frozen value, read everywhere, changed nowhere (layer L2).

Every default stands here once, or in derp/config/relay.py where it is whoever listens or the relay that is told.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

from derp.config import RelayConfig, RelayRules, ServerConfig
from derp.keys import NodePrivate
from derp.map import DEFAULT_STUN_PORT
from derp.netcheck.steering import PREFER_WEIGHT, score_of
from tailnet.config.admin_tokens import AdminToken
from tailnet.config.external_auth import Provider
from tailnet.config.redis_url import RedisPlace


@dataclass(frozen=True, slots=True)
class Banner:
    """What agents show to whoever logs in.  The colour is for pages that show it too; empty leaves it to them."""

    message: str
    background_color: str = ""
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """Who is told what happens to agents, and what such a message is signed with: several while they are exchanged."""

    url: str
    secrets: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class BusPlace:
    """How replicas find each other: the word in front, then addresses, or where a Redis is."""

    kind: str
    addresses: tuple[tuple[str, int], ...] = ()
    redis: RedisPlace | None = None


@dataclass(frozen=True, kw_only=True)
class CoordinatorConfig(ServerConfig):
    """All settings of one coordinator.  `load_config` guarantees the bounds; whoever builds one by hand keeps them."""

    # Only this machine by default: serving the network is a decision.
    listen: tuple[tuple[str, int], ...] = (("127.0.0.1", 3000),)
    # Where STUN is answered; empty: nowhere.  None: on the hosts of `listen`, at the port that maps assume.
    stun_listen: tuple[tuple[str, int], ...] | None = None
    store: str = "sqlite:///tailnet.db"  # empty only for --dev: cli/serve.py makes it for that run
    # How clients reach us: in the DERP map, and as an Origin of browsers.  Empty: the first address we listen on.
    access_url: str = ""

    # DERP maps, from the bottom up: the embedded relay, URLs, files.
    relay: RelayRules = field(default_factory=RelayRules)
    derp_region_id: int = 999
    derp_region_code: str = "embedded"
    derp_region_name: str = "Embedded relay"
    stun_servers: tuple[tuple[str, int], ...] = ()  # others' STUN servers, named in the embedded region
    derp_map: tuple[Path, ...] = ()
    derp_map_url: tuple[str, ...] = ()
    # The rhythm in which the reference looks at its map.  A map that did not change costs its server one 304.
    derp_map_poll_seconds: float = 5.0
    region_scores: tuple[tuple[int, float], ...] = ()
    region_weights: tuple[tuple[int, float], ...] = ()
    prefer_regions: tuple[int, ...] = ()
    steer_by_load: tuple[int, ...] = ()
    avoid_regions: tuple[int, ...] = ()

    # Relays elsewhere, which follow our key set.  A day outlives most outages, and ends a weekend's.
    relays_token: str = field(default="", repr=False)  # "": nobody may have the key set
    key_set_life_seconds: float = 86_400.0

    # Who says who is calling, beside the store.
    auth_url: str = ""
    auth_secret: bytes = field(default=b"", repr=False)
    # A control plane that is down must not be a way in; who was here a minute ago is the one exception one may want.
    auth_fail_open: bool = False
    auth_jwks: str = ""  # a file, or a URL
    auth_issuer: str = ""
    auth_audience: str = ""
    # Clocks that are kept by NTP agree within a second; virtual machines that slept need half a minute to be put right.
    auth_leeway_seconds: float = 30.0

    # Who may enter workspaces.  The reference's default: whoever administers the server could grant himself the right.
    admin_workspace_access: bool = True

    # What clients are told to do.
    browser_only: bool = False  # turn away every client that is no browser
    disable_direct_connections: bool = False
    derp_force_websockets: bool = False
    hostname_suffix: str = "coder"  # the suffix that stock clients expect

    # Agents.  15 s is the reference's rhythm; stock agents give up after 30 s without a sign of life.
    agent_ping_seconds: float = 15.0
    agent_inactive_seconds: float = 0.0  # 0: twice the ping
    stats_interval_seconds: float = 300.0
    announcement_banners: tuple[Banner, ...] = ()  # read again on SIGHUP
    external_auth: tuple[Provider, ...] = ()  # where users link their accounts; read again on SIGHUP
    # An older control plane does not know the question, and would be complained about.
    external_auth_call_out: bool = False
    # What encrypts tokens and private keys of users in the store, 32 bytes each: the first one; all of them decrypt.
    secrets_keys: tuple[bytes, ...] = field(default=(), repr=False)
    identity_anchors: Path | None = None  # whom proofs of cloud instances are believed; None: nobody

    # What is kept of what agents report.  Statistics serve the pages that show the last hours: 10,000 agents at one in
    # five minutes are 2.9 million rows a day.  Logs are those of start-ups, which somebody asks for within days.
    keep_stats_seconds: float = 86_400.0
    keep_logs_seconds: float = 14 * 86_400.0
    keep_sessions_seconds: float = 90 * 86_400.0
    max_stored_log_bytes: int = 4 * 1024**3  # of all agents; each has a megabyte

    # What happens to agents: kept only if somebody asks for it, here or by the webhook.  A receiver may be away for a
    # weekend; 500,000 events at the most, of 10,000 agents that report statistics alone those of four hours.
    events: bool = False
    keep_events_seconds: float = 3 * 86_400.0
    webhook: WebhookTarget | None = None

    # What waits while the store is away: minutes of 5,000 agents' reports.
    max_waiting_report_bytes: int = 64 * 1024 * 1024

    # A genuine node is below 1 KiB, and has 25 bytes more for each address of a host with many bridges.  What one peer
    # says, others hold: 4 MiB, before one counts as not reading.
    max_node_bytes: int = 512 * 1024

    # What one caller, an agent or a user, may have.  A proxy or a build server holds some hundred sockets; each takes
    # 4 KiB when it is idle.  Of unfinished messages and of what is not read one socket may hold 24 MiB.
    max_sockets_per_caller: int = 1_000
    max_held_bytes_per_caller: int = 64 * 1024 * 1024
    max_held_bytes: int = 0  # of all callers; 0: a quarter of this machine's memory
    # An agent that starts sends up to 1 MiB of logs, later some KiB a minute.  Above it is answered later.
    max_report_bytes: int = 4 * 1024 * 1024  # a minute
    max_reports: int = 1_200  # a minute

    # Peers let in a second; more wait for their answer, the oldest first, for 5 s at the most.  One takes a core 1 ms.
    upgrade_limit: int = 1_000

    # Some 16 KiB each without TLS and 40 KiB with it, so 400 MiB at the most.  Pages, scripts and probes are few; who
    # stays (agents, clients, the relay's) takes 2 KiB and counts among `max_connections` alone.
    max_api_connections: int = 10_000

    # Websites whose scripts may use the API with their visitors' rights; read again on SIGHUP.
    cors_origins: tuple[str, ...] = ()

    # The reference's.  A dashboard asks some 60 times a minute; a loop that forgot to wait has to wait then.
    api_rate_limit: int = 512  # requests a minute of each user; 0: any number

    # Several coordinators as one: docs/replicas.md.  None: alone, and nothing of it is even imported.
    bus: BusPlace | None = None
    bus_secret: bytes = field(default=b"", repr=False)  # b"": the store has one for all who share it
    cluster_name: str = "tailnet"
    replica_name: str = ""  # "": this machine's
    replica_listen: tuple[tuple[str, int], ...] = ()
    replica_address: tuple[str, int] | None = None  # how others reach that; None: the first of them
    insecure_bus: bool = False
    # When one leaves: balancers look every 5 to 10 s, most of them.  A sixtieth of the peers goes in a second, so a
    # minute, a tenth of it again for the last wave, and some seconds.
    replica_notice_seconds: float = 10.0
    replica_drain_seconds: float = 70.0

    # Administration over HTTP.  Without a token it is not there; with `admin_listen` it is there and nowhere else.
    admin_tokens: tuple[AdminToken, ...] = ()
    admin_listen: tuple[tuple[str, int], ...] = ()
    # A control plane that changes one thing after the other makes some 100 requests a second; many go by bulk.
    admin_rate_limit: int = 6_000  # requests a minute of each token; 0: any number
    # Some 300 bytes a change: 100,000 changes a month are 300 MB a year.
    keep_audit_seconds: float = 366 * 86_400.0

    @property
    def scores(self) -> dict[int, float]:
        """How many times as far the settings let regions look, in whichever way they say it."""
        weights = dict.fromkeys(self.prefer_regions, PREFER_WEIGHT) | dict(self.region_weights)
        return {region_id: score_of(weight) for region_id, weight in weights.items()} | dict(self.region_scores)

    @property
    def keeps_events(self) -> bool:
        """Whether somebody wants to know what happens to agents."""
        return self.events or self.webhook is not None

    @property
    def inactive_seconds(self) -> float:
        """How long an agent may be silent before it counts as gone: twice the ping, and two seconds at the least."""
        return self.agent_inactive_seconds or max(2.0, 2 * self.agent_ping_seconds)

    @property
    def stun_addresses(self) -> tuple[tuple[str, int], ...]:
        """Where STUN is answered."""
        if self.stun_listen is not None:
            return self.stun_listen
        return tuple(dict.fromkeys((host, DEFAULT_STUN_PORT) for host, _ in self.listen))

    def relay_config(self, private_key: NodePrivate) -> RelayConfig:
        """The settings of the embedded relay, which listens on our port and never on its own."""
        ours = {each.name: getattr(self, each.name) for each in fields(ServerConfig)}
        rules = {each.name: getattr(self.relay, each.name) for each in fields(RelayRules)}
        return RelayConfig(private_key, **(ours | rules | {"stun_enabled": False}))
