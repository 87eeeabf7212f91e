"""Measuring how a coordinator is, from outside where its peers come from and from inside (layer L3).

Each probe gives one reading of health/readings.py and raises nothing for what it looks at; health.py runs them and sets
deadlines.  Relay, websocket and certificate are asked as any client asks, by the public address: what a proxy or a
firewall in front does to peers, it does to these.  Next hop: derp/client, store_watch.py, the store.
"""

import shutil
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar
from urllib.parse import urlsplit

import trio
from cryptography import x509

from derp.client.client import DerpClient, open_derp_client
from derp.client.dial import DialOptions, RelayAddress, open_relay_stream
from derp.client.probe import Outcome, probe_stun
from derp.client.region import region_addresses
from derp.client.stun import open_stun
from derp.errors import DerpError
from derp.keys import NodePrivate
from derp.log import dropped_line_count
from derp.map import DEFAULT_STUN_PORT, DERPRegion
from derp.server.relay import Relay
from derp.transport.http import ClientHttp, exchange
from derp.transport.stream import mapped_errors
from derp.transport.tls import TlsServer
from tailnet.coordinator.arrivals import Fight
from tailnet.errors import StoreError
from tailnet.health.codes import Check
from tailnet.health.flaps import Growth
from tailnet.health.readings import (
    AddressReading,
    AgentsReading,
    Certificate,
    CertificateReading,
    ClockReading,
    DiskReading,
    FoughtFor,
    LogReading,
    MapReading,
    OutboxReading,
    OwnNodeReading,
    PeersReading,
    Reading,
    RelayKeysReading,
    RelayReading,
    ResumeKeysReading,
    Skipped,
    SourceReading,
    StoreReading,
    StunAnswer,
    StunReading,
    WebSocketReading,
)
from tailnet.services.derp_maps import DerpMaps
from tailnet.services.map_layers import has_relay
from tailnet.services.own_node import OwnNode
from tailnet.services.presence import AgentPresence
from tailnet.services.relay_keys import RelayKeys
from tailnet.services.resume_keys import ResumeKeys
from tailnet.services.store_watch import StoreWatch
from tailnet.store.keys import ROTATE_AFTER
from tailnet.store.outbox import Outbox
from tailnet.store.store import Store

Probe = Callable[[], Awaitable[Reading]]
T = TypeVar("T")

# Shorter than the deadline of a whole check, so that the reason is a sentence of what was tried.
DIAL_SECONDS: Final = 8.0
READS: Final = 3
# What was lost an hour ago is history.
LATELY_SECONDS: Final = 3_600.0
# Threads beside the store's own readers; one that hangs in a dead database keeps its place until it returns.
_THREADS: Final = 3
_MAX_BODY_BYTES: Final = 4_096
_NO_RELAY: Final = "the embedded relay is off"


class Keeper(Protocol):
    """Who renews the certificate: derp/server/certificates.py."""

    failures: int


@dataclass
class Probes:
    """What of a server is looked at.  region: the embedded relay's as the map has it, before others lie over it."""

    store: Store
    watch: StoreWatch
    outbox: Outbox
    maps: DerpMaps
    keys: ResumeKeys
    relay_keys: RelayKeys
    presence: AgentPresence
    own_node: OwnNode
    access_url: str
    is_address_meant: bool  # the settings name it, or it is meant to be this machine's own
    region: DERPRegion | None = None
    relay: Relay | None = None
    tls: TlsServer | None = None
    keeper: Keeper | None = None
    fights: Callable[[], Iterable[Fight]] = tuple
    replicas: Probe | None = None
    dial: DialOptions = field(default_factory=DialOptions)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _lost: dict[str, Growth] = field(default_factory=dict)
    _lines_lost: Growth = field(default_factory=lambda: Growth(LATELY_SECONDS))
    _contested: Growth = field(default_factory=lambda: Growth(LATELY_SECONDS))

    def __post_init__(self) -> None:
        self._limiter = trio.CapacityLimiter(_THREADS)

    def table(self) -> Mapping[Check, Probe]:
        """Every check with what measures it."""
        return {
            Check.ADDRESS: self.address,
            Check.RELAY: self.reach_relay,
            Check.WEBSOCKET: self.websocket,
            Check.STUN: self.stun,
            Check.STORE: self.read_store,
            Check.OUTBOX: self.read_outbox,
            Check.CLOCK: self.compare_clocks,
            Check.MAP: self.read_map,
            Check.CERTIFICATE: self.certificates,
            Check.AGENTS: self.agents,
            Check.OWN_NODE: self.look_at_node,
            Check.RESUME_KEYS: self.resume_keys,
            Check.RELAY_KEYS: self.contested_keys,
            Check.DISK: self.disk,
            Check.LOG: self.log,
            Check.PEERS: self.look_at_peers,
            Check.REPLICAS: self.replicas or self.alone,
        }

    # --- from outside

    async def address(self) -> Reading:
        """Whether a coordinator answers at the access URL."""
        address = self._public_address("/healthz")
        reading = AddressReading(self.access_url, self.is_address_meant)
        began = trio.current_time()
        try:
            with mapped_errors(address.label(), connecting=True), trio.fail_after(DIAL_SECONDS):
                stream, _ = await open_relay_stream(address, self.dial)
                async with stream:
                    http = ClientHttp(max_body_bytes=_MAX_BODY_BYTES)
                    asked = http.send_request("GET", address.path, [("Host", address.host_header())])
                    answer = await exchange(stream, http, asked)
        except DerpError as error:
            return replace(reading, problem=str(error))
        if answer.status != 200 or answer.body.strip() != b"OK":
            return replace(reading, problem=f"{address.label()} answers {answer.status} and not as a coordinator does")
        return replace(reading, seconds=trio.current_time() - began)

    async def reach_relay(self) -> Reading:
        """A client of our relay, as peers are: by its address in the map."""
        if self.relay is None or self.region is None:
            return Skipped(Check.RELAY, _NO_RELAY)
        reading = RelayReading(region_addresses(self.region)[0].label())
        try:
            async with _client(self.relay, self.region, self.dial) as client:
                reading = replace(
                    reading,
                    is_ours=client.server_key == self.relay.public_key.raw,
                    websocket_reason=client.websocket_reason,
                )
                return replace(reading, seconds=await client.ping())
        except DerpError as error:
            return replace(reading, problem=str(error))

    async def websocket(self) -> Reading:
        """The same by websocket, which is how peers coordinate."""
        if self.relay is None or self.region is None:
            return Skipped(Check.WEBSOCKET, f"{_NO_RELAY}, and nothing else takes a websocket without a token")
        reading = WebSocketReading(region_addresses(self.region)[0].label())
        try:
            async with _client(self.relay, self.region, replace(self.dial, force_websocket=True)) as client:
                return replace(reading, seconds=await client.ping())
        except DerpError as error:
            return replace(reading, problem=str(error))

    async def stun(self) -> Reading:
        """Every STUN server that the embedded region names."""
        region = self.region
        if region is None:
            return Skipped(Check.STUN, _NO_RELAY)
        answers: list[StunAnswer] = []
        async with open_stun() as stun:

            async def ask(at: int) -> None:
                node = region.nodes[at]
                for result in await probe_stun(stun, region, node):
                    if result.outcome is not Outcome.SKIPPED:
                        seconds = result.values.get("seconds")
                        port = node.stun_port or DEFAULT_STUN_PORT
                        answers.append(StunAnswer(node.host_name, port, result.family, result.reason, seconds))

            async with trio.open_nursery() as nursery:
                for at in range(len(region.nodes)):
                    nursery.start_soon(ask, at)
        if not answers:
            return Skipped(Check.STUN, "the embedded region names no STUN server that can be asked from here")
        return StunReading(sorted(answers, key=lambda each: (each.host, each.port, each.family)))

    async def certificates(self) -> Reading:
        """Our own certificate, and the one that peers see at the access URL."""
        found: list[Certificate] = []
        if self.tls is not None:
            found.append(_certificate("that this server shows", self.tls.leaf))
        if urlsplit(self.access_url).scheme == "https":
            address = self._public_address("/")
            try:
                with mapped_errors(address.label(), connecting=True), trio.fail_after(DIAL_SECONDS):
                    stream, facts = await open_relay_stream(address, self.dial)
                    await trio.aclose_forcefully(stream)
            except DerpError:
                facts = None  # the checks of address and relay say why
            if facts is not None and facts.chain:
                leaf = x509.load_der_x509_certificate(facts.chain[0])
                if self.tls is None or leaf != self.tls.leaf:
                    found.append(_certificate(f"at {address.label()}", leaf))
        if not found:
            return Skipped(Check.CERTIFICATE, "neither this server nor its access URL has TLS")
        return CertificateReading(found, self.keeper.failures if self.keeper is not None else 0)

    # --- from inside

    async def read_store(self) -> Reading:
        """How long the store takes, and whether it takes anything."""
        took: list[float] = []
        problem = ""
        try:
            for _ in range(READS):
                began = trio.current_time()
                await self._in_thread(self.store.database.check)
                took.append(trio.current_time() - began)
        except StoreError as error:
            problem = str(error)
        trouble = self.watch.trouble()
        return StoreReading(
            problem=problem or ("" if trouble is None else str(trouble)),
            read_seconds=statistics.median(took) if took else None,
            write_seconds=self.watch.write_seconds,
            servers=self.watch.servers,
            has_island=self.watch.has_island,
        )

    async def read_outbox(self) -> Reading:
        """What waits, and what was given up."""
        readings, now = self.outbox.readings(), trio.current_time()
        oldest = max(readings, key=lambda kind: readings[kind].oldest_seconds, default="")
        lost = {
            kind: self._lost.setdefault(kind, Growth(LATELY_SECONDS)).look(sum(each.lost.values()), now)
            for kind, each in readings.items()
        }
        return OutboxReading(
            waiting=sum(each.waiting for each in readings.values()),
            waiting_bytes=self.outbox.waiting_bytes,
            max_bytes=self.outbox.max_bytes,
            oldest_seconds=readings[oldest].oldest_seconds if oldest else 0.0,
            oldest_kind=oldest,
            lost={kind: count for kind, count in lost.items() if count},
        )

    async def compare_clocks(self) -> Reading:
        """Our clock against the database's, and against the times that it holds."""
        try:
            began = self.clock()
            theirs, newest = await self._in_thread(self.store.presence.read_clocks)
            ended = self.clock()
        except StoreError:
            return Skipped(Check.CLOCK, "the store cannot be read")
        middle = began + (ended - began) / 2
        return ClockReading(
            ahead_seconds=None if theirs is None else (middle - theirs).total_seconds(),
            future_seconds=None if newest is None else (newest - ended).total_seconds(),
        )

    async def read_map(self) -> Reading:
        """The DERP map that is in use, and its sources."""
        published = self.maps.current
        is_usable = has_relay(published.map)
        return MapReading(
            version=published.version,
            regions=len(published.map.regions),
            has_relay=is_usable,
            sources=[
                SourceReading(each.name, "" if each.ok else each.reason, each.good_since is not None)
                for each in self.maps.statuses
            ],
            # That there is no relay at all has a code of its own.
            lint=self.maps.findings() if is_usable else (),
        )

    async def agents(self) -> Reading:
        """Who comes again and again."""
        flapping = self.presence.flaps.flapping(self.clock().timestamp())
        return AgentsReading(self.presence.connected_count, [(str(agent_id), count) for agent_id, count in flapping])

    async def look_at_node(self) -> Reading:
        """Whether the server's own node is there, if anybody wanted it."""
        return OwnNodeReading(self.own_node.trouble)

    async def resume_keys(self) -> Reading:
        """Whether the keys of resume tokens are replaced in time, and read."""
        now = self.clock()
        return ResumeKeysReading(
            overdue_seconds=(now - self.keys.newest_at - ROTATE_AFTER).total_seconds(),
            unread_seconds=(now - self.keys.read_at).total_seconds(),
        )

    async def disk(self) -> Reading:
        """How much room the store's file has."""
        path = self.store.database.dialect.disk()
        if path is None:
            return Skipped(Check.DISK, "the database's disk is on its own machine: watch it there")
        total, _, free = await self._in_thread(lambda: shutil.disk_usage(path))
        return DiskReading(str(path), free, total)

    async def contested_keys(self) -> Reading:
        """Whether somebody announces the keys of others."""
        return RelayKeysReading(self._contested.look(self.relay_keys.contested, trio.current_time()))

    async def log(self) -> Reading:
        """Whether somebody reads it fast enough."""
        return LogReading(self._lines_lost.look(dropped_line_count(), trio.current_time()))

    async def look_at_peers(self) -> Reading:
        """Whether some are more than one process."""
        return PeersReading([FoughtFor(str(each.peer_id), each.count, each.addresses) for each in self.fights()])

    async def alone(self) -> Reading:
        """In the place of `replicas`."""
        return Skipped(Check.REPLICAS, "this server has no --bus, so it serves alone")

    def _public_address(self, path: str) -> RelayAddress:
        url = urlsplit(self.access_url)
        is_tls = url.scheme == "https"
        pin = self.tls.pin if self.tls is not None and self.tls.is_self_signed else ""
        port = url.port or (443 if is_tls else 80)
        return RelayAddress(url.hostname or "", port, is_tls, url.path.rstrip("/") + path, cert_name=pin)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        # Not Database.run: a database that hangs would hold the whole report up, and not only its own check.
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)


@asynccontextmanager
async def _client(relay: Relay, region: DERPRegion, dial: DialOptions) -> AsyncIterator[DerpClient]:
    """A client of our relay for a moment, whom its admission lets in, whoever else has to ask."""
    key = NodePrivate.generate()
    with relay.sessions.admission.expecting(key.public().raw):
        async with open_derp_client(
            region, key, is_prober=True, app_name="tailnet health", options=dial, timeout_seconds=DIAL_SECONDS
        ) as client:
            yield client


def _certificate(place: str, leaf: x509.Certificate) -> Certificate:
    begin, end = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    return Certificate(place, end - time.time(), end - begin)
