"""Rows of replicas.py in which something fails: what genuine peers feel of it by the balancer of deploy/replicas.

Peers are the Go program of tests/interop on the genuine layers; each dials anew within half a second of losing its
connection, says then that it is elsewhere, and has met its partner when each knows where the other is now.
"""

import itertools
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from http import HTTPStatus
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import click
import trio
import trio.lowlevel

from bench.agents import Report
from tests.support.composed import REPLICAS, Composed, running_compose
from tests.support.gobuild import DERPROLLING, build
from tests.support.rolling import roll
from tests.support.tailnet_peers import TAILNET, PeerError, StreamEnded, TailnetPeers, open_tailnet_peers
from tests.support.tailnet_servers import TAILSCALE_PREFIX, Agent, Seed, Server, address, import_seed
from tests.support.wg_pairs import Seen, Tunnels, open_tunnels

# Within this a peer that lost its connection dials anew, as genuine ones do after a first failure.
REDIAL_SECONDS: Final = (0.1, 0.5)
SETTLE_SECONDS: Final = 120.0
CLIENT_ADDRESS: Final = "fd7a:115c:a1e0:4444:8888:1111:2222:3333/128"
# Of packets by the relays: so often each client sends one, and so long a region has for a replica that came or went.
RELAYED_PERIOD: Final = "100ms"
RELAYED_SETTLE_SECONDS: Final = 3.0
# WireGuard pairs: half of them talk directly, half by relays; so many agents of each half are `tailnet agent`.
TUNNELS: Final = 20
TUNNELS_OURS: Final = 2
_LOOK_SECONDS: Final = 0.02


class Member:
    """An agent, or its client if there is a `partner`."""

    def __init__(self, fleet: "Fleet", target: Agent, partner: "Member | None" = None) -> None:
        self._fleet, self._target = fleet, target
        self._is_client = partner is not None
        self._peer = fleet.program.peer(f"{'client' if partner else 'agent'}-{target.name}")
        self.where = ""
        """What it said last of itself; empty while it has no connection."""
        self.connections = 0
        self.dialled_at = 0.0
        self.knows: set[str] = set()
        self.kinds: Counter[str] = Counter()
        self._resume: dict[str, str] = {}  # what makes a client the same peer again

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            with suppress(PeerError, StreamEnded):
                await self._connect()
                await self._listen()
            self.where = ""
            await trio.sleep(random.uniform(*REDIAL_SECONDS))

    async def move(self) -> None:
        """Say that it is elsewhere now."""
        where = f"{IPv4Address(next(self._fleet.addresses))}:1"
        own = CLIENT_ADDRESS if self._is_client else address(TAILSCALE_PREFIX, self._target.id)
        await self._peer.update(addresses=[own], endpoints=[where])
        self.where = where

    async def _connect(self) -> None:
        server = self._fleet.server
        if self._is_client:
            try:
                query = self._resume
                await self._peer.dial_client(server, self._target.owner, self._target, version="2.3", query=query)
            except PeerError as refused:
                if refused.status == HTTPStatus.UNAUTHORIZED:
                    self._resume = {}
                raise
            self._resume = {"resume_token": (await self._peer.call(TAILNET + "RefreshResumeToken"))["token"]}
        else:
            await self._peer.dial_agent(server, self._target)
        self.connections += 1
        self.dialled_at = time.monotonic()
        await self._peer.coordinate()
        await self.move()
        if self._is_client:
            await self._peer.add_tunnel(self._target.id)

    async def _listen(self) -> None:
        while True:
            with suppress(trio.TooSlowError):  # nobody had anything to say for a minute
                update = await self._peer.next_update()
                self.kinds[update.kind] += 1
                if update.node is not None:
                    self.knows = set(update.node.get("endpoints", ()))


class Fleet:
    """Pairs of an agent and its client, and the services that they meet by."""

    def __init__(
        self,
        place: Composed,
        program: TailnetPeers,
        tunnels: Tunnels,
        nursery: trio.Nursery,
        targets: Sequence[Agent],
    ) -> None:
        self.place, self.program, self.tunnels = place, program, tunnels
        self.server = Server("ours", place.url, place.processes["balancer"], Path())
        self.addresses = itertools.count(int(IPv4Address("10.0.0.1")))
        """Where members say that they are, each time elsewhere."""
        self._nursery = nursery
        self.pairs: list[tuple[Member, Member]] = []
        for target in targets:
            self.add(target)

    def add(self, target: Agent) -> tuple[Member, Member]:
        """One more pair, which begins to dial."""
        agent = Member(self, target)
        client = Member(self, target, agent)
        self.pairs.append((agent, client))
        for member in (agent, client):
            self._nursery.start_soon(member.run)
        return agent, client

    @property
    def members(self) -> list[Member]:
        return [member for pair in self.pairs for member in pair]

    @property
    def connections(self) -> int:
        return sum(member.connections for member in self.members)

    def said(self, kind: str) -> int:
        """How many such updates all of them were told."""
        return sum(member.kinds[kind] for member in self.members)

    async def met(self, pairs: Collection[tuple[Member, Member]] = ()) -> float:
        """When each of these pairs, or of all, has met.  Raises trio.TooSlowError."""
        waiting = list(pairs or self.pairs)
        with trio.fail_after(SETTLE_SECONDS):
            while waiting := [pair for pair in waiting if not _has_met(*pair)]:  # noqa: ASYNC110  # others tell nobody
                await trio.sleep(_LOOK_SECONDS)
        return time.monotonic()


def _has_met(agent: Member, client: Member) -> bool:
    return bool(agent.where and client.where) and agent.where in client.knows and client.where in agent.knows


@asynccontextmanager
async def fleet_of(pairs: int, spare: int = 0) -> AsyncIterator[tuple[Fleet, list[Agent]]]:
    """So many pairs that have met, WireGuard pairs that talk and are counted, and agents that nobody is yet."""
    seed = Seed()
    owner = seed.add_user("load")
    targets = [seed.add_agent(owner) for _ in range(TUNNELS + pairs + spare)]
    with tempfile.TemporaryDirectory(prefix="bench-replicas-") as scratch:
        folder = Path(scratch)
        with running_compose(folder) as place:
            await trio.to_thread.run_sync(lambda: import_seed(folder, seed, place.store))
            began = time.monotonic()
            async with (
                # First, while the balancer still has nobody: so each replica has some of both.
                open_tunnels(place.url, place.certificate, targets[:TUNNELS], ours=TUNNELS_OURS) as tunnels,
                open_tailnet_peers(trusted=place.certificate) as program,
                trio.open_nursery() as nursery,
            ):
                click.echo(f"  {TUNNELS} WireGuard pairs talk after {time.monotonic() - began:.1f} s", err=True)
                began = time.monotonic()
                fleet = Fleet(place, program, tunnels, nursery, targets[TUNNELS : TUNNELS + pairs])
                click.echo(f"  {pairs} pairs have met after {await fleet.met() - began:.1f} s", err=True)
                await tunnels.met()
                await tunnels.begin()
                yield fleet, targets[TUNNELS + pairs :]
                nursery.cancel_scope.cancel()


def _note_tunnels(report: Report, row: str, what: str, seen: tuple[Seen, Seen], *, gap: float | None = None) -> None:
    """`gap`: how long relayed pairs may be silent; None: they may lose nothing."""
    direct, relayed = seen
    report.note(row, f"{what}direct WireGuard pairs: packets lost", direct.lost, "", 0)
    if gap is None:
        report.note(row, f"{what}relayed WireGuard pairs: packets lost", relayed.lost, "", 0)
    else:
        report.note(row, f"{what}relayed WireGuard pairs: the longest silence", relayed.silences[-1], "s", gap)
    for kind, found in (("direct", direct), ("relayed", relayed)):
        middle, longest = (1000 * found.silences[at] for at in (len(found.silences) // 2, -1))
        click.echo(
            f"  {kind} WireGuard pairs: of {found.sent:,} packets {found.lost} lost, {found.twice} twice, {found.late} "
            f"behind newer ones; silences of {middle:.0f} ms in the median pair, {longest:.0f} ms at most;\n    "
            f"{found.dials} dials, met {found.met_after:.3f} s after the last; {found.strayed} went another way; "
            f"told {found.kinds}"
        )


def _told(kind: str, seen: tuple[Seen, Seen]) -> int:
    """How many such updates WireGuard pairs were told."""
    return sum(each.kinds.get(kind, 0) for each in seen)


async def kill(report: Report, pairs: int) -> None:
    """One of three replicas is killed, and started again."""
    async with fleet_of(pairs) as (fleet, _):
        connected = fleet.connections
        began = time.monotonic()
        await trio.to_thread.run_sync(fleet.place.stop, REPLICAS[0], signal.SIGKILL)
        await trio.lowlevel.checkpoint()
        while fleet.connections == connected:  # noqa: ASYNC110  # others do it
            await trio.sleep(_LOOK_SECONDS)
        all_met = await fleet.met()
        await fleet.tunnels.met()
        await trio.to_thread.run_sync(fleet.place.start, REPLICAS[0])
        await trio.sleep(RELAYED_SETTLE_SECONDS)
        seen = await fleet.tunnels.end()
        redialled = [member for member in fleet.members if member.dialled_at > began]
        last = max(member.dialled_at for member in redialled)
        report.note("kill", "all pairs have met, after the last redial", all_met - last, "s", 5.0)
        _note_tunnels(report, "kill", "", seen, gap=2.0)
        met_after = max(each.met_after for each in seen)
        report.note("kill", "all WireGuard pairs have met, after the last redial", met_after, "s", 5.0)
        told = fleet.said("DISCONNECTED") + _told("DISCONNECTED", seen)
        report.note("kill", "DISCONNECTED told to anybody", told, "", 0)
        click.echo(
            f"  {len(redialled)} of {2 * pairs} peers dialled anew, the last one {last - began:.1f} s after the kill; "
            f"LOST was told {fleet.said('LOST')} times"
        )


async def rolling(report: Report, pairs: int) -> None:
    """All three are replaced, one after the other, while peers move."""
    async with fleet_of(pairs) as (fleet, _):
        began, elsewhere = time.monotonic(), 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_moving, fleet)
            for service in REPLICAS:
                before = {member: (member.connections, member.kinds["LOST"]) for member in fleet.members}
                await trio.to_thread.run_sync(fleet.place.stop, service)
                await trio.to_thread.run_sync(fleet.place.start, service)
                elsewhere += sum(
                    member.kinds["LOST"] - lost
                    for member, (connections, lost) in before.items()
                    if member.connections == connections
                )
            nursery.cancel_scope.cancel()
        ended = time.monotonic()
        all_met = await fleet.met()
        await fleet.tunnels.met()
        seen = await fleet.tunnels.end()
        _note_tunnels(report, "rolling", "", seen)
        report.note("rolling", "LOST told to peers at other replicas", elsewhere, "", 0)
        told = fleet.said("DISCONNECTED") + _told("DISCONNECTED", seen)
        report.note("rolling", "DISCONNECTED told to anybody", told, "", 0)
        report.note("rolling", "all pairs have met, after the last replica is back", all_met - ended, "s", 5.0)
        click.echo(
            f"  {fleet.connections - 2 * pairs} redials of {2 * pairs} peers in {ended - began:.0f} s; "
            f"LOST was told {fleet.said('LOST')} times in all"
        )


async def relayed(report: Report, pairs: int) -> None:
    """One replica is killed, then all three are replaced: genuine DERP clients whose packets go by their relays."""
    # They are clients of no coordinator, whom its relay would know for a minute alone.
    strangers = {"TAILNET_RELAY_OPEN": "true"}
    with (
        tempfile.TemporaryDirectory(prefix="bench-replicas-") as scratch,
        running_compose(Path(scratch), strangers) as place,
    ):

        async def killed(_: int) -> None:
            await trio.to_thread.run_sync(place.stop, REPLICAS[0], signal.SIGKILL)
            await trio.sleep(RELAYED_SETTLE_SECONDS)

        async def replaced(number: int) -> None:
            await trio.to_thread.run_sync(place.stop, REPLICAS[number])
            await trio.to_thread.run_sync(place.start, REPLICAS[number])
            await trio.sleep(RELAYED_SETTLE_SECONDS)

        address, port = place.address("balancer", 443)
        talk = partial(roll, build(DERPROLLING), clients=2 * pairs, period=RELAYED_PERIOD, address=address)
        found = await talk([port], killed)
        report.note("relayed", "longest silence around a kill", found["silence_ms"]["max"] / 1000, "s", 2.0)
        await trio.to_thread.run_sync(place.start, REPLICAS[0])
        found = await talk([port] * len(REPLICAS), replaced)
        report.note("relayed", "packets lost while all are replaced", found["lost"], "", 0)
        report.note("relayed", "packets twice or behind newer ones", found["twice"] + found["late"], "", 0)
        click.echo(f"  of {found['sent']:,} packets, silences up to {found['silence_ms']['max']:.0f} ms")


async def _keep_moving(fleet: Fleet) -> None:
    while True:
        member = random.choice(fleet.members)
        if member.where:
            with suppress(PeerError):
                await member.move()
        await trio.sleep(_LOOK_SECONDS)


async def away(report: Report, pairs: int, seconds: float) -> None:
    """The bus is paused or stopped, the store is stopped, and both, for a while each."""
    async with fleet_of(pairs, spare=4) as (fleet, spare):
        place, tunnels = fleet.place, fleet.tunnels
        valkey, postgres = partial(_stopped, place, "valkey"), partial(_stopped, place, "postgres")
        faults: list[tuple[str, Sequence[Callable[[], Awaitable[Callable[[], Awaitable[None]]]]]]] = [
            ("bus paused", [partial(_paused, place, "valkey")]),
            ("bus stopped", [valkey]),
            ("store stopped", [postgres]),
            ("both stopped", [valkey, postgres]),
        ]
        for target in spare:
            await _be_known(fleet, target)
        for (what, begin), target in zip(faults, spare, strict=True):
            connected = fleet.connections
            ends = [await each() for each in begin]
            began = time.monotonic()
            await trio.sleep(seconds / 2)
            pair = fleet.add(target)
            met_at = await fleet.met([pair])
            click.echo(f"  {what}: a new pair has met {met_at - began - seconds / 2:.2f} s after it began to dial")
            await trio.sleep(max(0.0, began + seconds - time.monotonic()))
            lost = fleet.connections - connected - 2 + await tunnels.dials()
            report.note("away", f"{what} for {seconds:.0f} s: connections lost", lost, "", 0)
            for end in ends:
                await end()
            returned = time.monotonic()
            for member in fleet.members:
                await member.move()
            report.note(
                "away", f"{what}: all know where all are, after its return", await fleet.met() - returned, "s", 5.0
            )
            seen = await tunnels.end()
            _note_tunnels(report, "away", f"{what}: ", seen)
            await tunnels.begin()
        told = sum(fleet.said(kind) + _told(kind, seen) for kind in ("LOST", "DISCONNECTED"))
        report.note("away", "LOST or DISCONNECTED told to anybody", told, "", 0)


async def _stopped(place: Composed, service: str) -> Callable[[], Awaitable[None]]:
    await trio.to_thread.run_sync(place.stop, service)

    async def start() -> None:
        place.start(service)  # PostgreSQL ends with the thread that started it

    return start


async def _paused(place: Composed, service: str) -> Callable[[], Awaitable[None]]:
    place.processes[service].send_signal(signal.SIGSTOP)

    async def go_on() -> None:
        place.processes[service].send_signal(signal.SIGCONT)

    return go_on


async def _be_known(fleet: Fleet, target: Agent) -> None:
    """The agent and its user were at each replica a moment ago, so that it knows them without its store."""
    for service in REPLICAS:
        url = "http://{}:{}".format(*fleet.place.address(service, 3000))
        server = Server("ours", url, fleet.server.process, Path())
        peers = fleet.program.peer(f"early-agent-{target.name}-{service}"), fleet.program.peer(f"early-{service}")
        await peers[0].dial_agent(server, target)
        await peers[1].dial_client(server, target.owner, target)
        for peer in peers:
            await peer.hang_up()
