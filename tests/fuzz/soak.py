"""Soak a region of relays in faults.  `make soak` plays these, and those of soak_workers.py.

Travellers send each other sealed packets through meshed relays of this process, one with TLS records of its own and
QUIC, one with OpenSSL's, and move between them.  Meanwhile they are killed, stall, and send garbage; mesh links break,
clocks jump, a disk is full, strangers come, a relay ends and starts anew.  No packet may come to, or from, a wrong key,
none twice, none before an earlier one of its connection (but over QUIC, whose datagrams keep no order).
After each cycle all is quiet: then every packet arrives, the relays have counted each, and memory is as it was.
"""

import gc
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

import trio

from derp.close_reason import CloseReason
from derp.errors import ConnectError
from derp.keys import NodePrivate
from derp.protocol.messages import Pong, RecvPacket
from tests.derp.server.mesh_world import MESH_KEY, NAMES, Node, tls_config
from tests.derp.server.world import HOST, Caller, Carrier, packets_sent
from tests.fuzz.laws import mutate
from tests.fuzz.strangers import FRAMES, Place, Stranger, check, sealed
from tests.support.disks import full_disk

TRAVELLERS: Final = 8
_STRANGERS: Final = 6
_FAULTS: Final = 8  # of a cycle
_GUARD_SECONDS: Final = 120.0
_JUMP_SECONDS: Final = 300.0
# Between two bursts of a traveller, and two faults: what a cycle lasts, and nothing that decides.
_PAUSE_SECONDS: Final = 0.005
_FAULT_SECONDS: Final = 0.1
# Cycles until everything that is made once has been made.
_WARM_CYCLES: Final = 3


async def until(condition: Callable[[], bool]) -> None:
    """Until it is so.  What it waits for are other tasks of this process, and sockets behind them."""
    while True:
        if condition():
            return
        await trio.sleep(_PAUSE_SECONDS)


class Traveller:
    """A key that connects to one relay after the other."""

    def __init__(self, region: "Region", number: int) -> None:
        self.private = NodePrivate(bytes([100 + number]) * 32)
        self.key = self.private.public().raw
        self.caller: Caller | None = None
        self.carrier: Carrier = "tls"
        self.is_stalled = False
        self.order = ""  # what its next burst does instead
        self.got = 0
        self.heard = set[bytes]()  # from whom, since somebody set it anew
        self._region = region
        self._random = region.random
        self._epoch = self._number = 0
        self._pongs = 0
        self._writes = trio.Lock()

    async def live(self) -> None:
        """Connect, send and receive; again whenever that ends."""
        region = self._region
        while True:
            node = self._random.choice(region.nodes)
            # Accounts are compared in silence, and a ping over QUIC says nothing of datagrams.
            carriers = [one for one in node.carriers if one != "quic" or not region.is_quiet]
            self.carrier = self._random.choice(carriers)
            try:
                self.caller = caller = await node.call(private=self.private, carrier=self.carrier)
                node.callers.remove(caller)  # its end is ours
                region.done[f"came by {self.carrier}"] += 1
                self._epoch += 1
                self._number = 0
                if self.carrier == "quic":
                    region.unordered.add((self.key, self._epoch))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._receive, caller)
                    await self._send(caller)
                    nursery.cancel_scope.cancel()
            except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError, EOFError, ConnectError):
                await trio.sleep(_PAUSE_SECONDS)
            finally:
                caller_now, self.caller = self.caller, None
                if caller_now is not None:
                    with trio.CancelScope(shield=True):
                        await caller_now.aclose()

    async def send(self, target: bytes, size: int = 0) -> None:
        """One packet."""
        async with self._writes:
            if self.caller is None:
                raise EOFError
            self._number += 1
            await self.caller.send(target, sealed(self.key, target, self._epoch << 32 | self._number, size))

    async def ping(self) -> None:
        """Whatever was sent before is on its way when this returns; what came before was received."""
        assert self.caller is not None
        waited = self._pongs
        async with self._writes:
            self.caller.core.send_ping(b"a moment")
            await self.caller.flush()
        await until(lambda: self._pongs > waited)

    async def _send(self, caller: Caller) -> None:
        random, region = self._random, self._region
        while True:
            if region.is_quiet:
                if self.carrier == "quic":
                    return
                await trio.sleep(_PAUSE_SECONDS)
                continue
            order, self.order = self.order, ""
            if order == "babble" and self.carrier != "quic":  # whose client takes whole frames only
                await caller.write(mutate(random, FRAMES))
            if order:
                return
            target = random.choice(region.travellers).key
            for _ in range(random.choice((1, 1, 5, 40))):
                await self.send(target, random.choice((0, 100, 1200)))
            await trio.sleep(_PAUSE_SECONDS)

    async def _receive(self, caller: Caller) -> None:
        last: dict[bytes, int] = {}  # the last packet of each sender on this connection
        seen = set[tuple[bytes, int]]()
        while True:
            await until(lambda: self._region.is_quiet or not self.is_stalled)
            data = await caller.stream.receive_some(65536)
            if not data:
                raise EOFError
            for event in caller.core.receive_data(data):
                if isinstance(event, Pong):
                    self._pongs += 1
                if not isinstance(event, RecvPacket):
                    continue
                seal = check(event, self.key)
                if seal is None or seal.source not in self._region.keys:
                    continue  # a stranger's
                assert (seal.source, seal.number) not in seen, "a packet twice"
                seen.add((seal.source, seal.number))
                if self.carrier != "quic" and self._region.keeps_order(seal.source, seal.number >> 32):
                    assert seal.number > last.get(seal.source, 0), "a packet before an earlier one"
                last[seal.source] = max(seal.number, last.get(seal.source, 0))
                self.got += 1
                self.heard.add(seal.source)


class Region:
    """Relays, their travellers, and what happens to them."""

    names = NAMES[:2]
    # Python's own tables grow in steps; a leak of one object for each connection or packet is thousands soon.
    growth_objects = 3000

    def __init__(self, nursery: trio.Nursery, seed: int, folder: Path) -> None:
        self.random = Random(f"soak {seed}")
        self.nodes: list[Node] = []
        self.travellers = [Traveller(self, number) for number in range(TRAVELLERS)]
        self.keys = {traveller.key for traveller in self.travellers}
        self.is_quiet = False
        self.unordered = set[tuple[bytes, int]]()  # connections over QUIC of this cycle: key and epoch
        self.done = Counter[str]()
        self._jumped = 0.0
        self._folder = folder
        self._nursery = nursery
        self._stranger_number = 0
        self._strangers = tuple(NodePrivate(bytes([number]) * 32) for number in range(1, 4))

    async def start(self) -> None:
        """Relays that know of each other, and travellers on their way."""
        self.nodes += [self._make(name) for name in self.names]
        for node in self.nodes:
            await self._run(node)
        for traveller in self.travellers:
            self._nursery.start_soon(traveller.live)

    async def stop(self) -> None:
        """Before all tasks are cancelled."""

    def _make(self, name: str, port: int = 0) -> Node:
        place, log = ((HOST, port),), self._folder / f"{name}.log"
        if name == NAMES[0]:
            return Node(name, listen=place, admission_log=log, tls=replace(tls_config(), own_records=True), quic=True)
        return Node(name, listen=place, admission_log=log)

    async def _run(self, node: Node) -> None:
        node.server.reactor._clock = lambda: time.monotonic() + self._jumped
        await self._nursery.start(node.run)
        node.join(*(each.peer for each in self.nodes))

    async def cycle(self) -> int:
        """Faults for a while, then silence and the laws; how many objects there are then."""
        with trio.fail_after(_GUARD_SECONDS):
            self.is_quiet = False
            for _ in range(_FAULTS):
                await self.random.choice(self._faults())()
                await trio.sleep(_FAULT_SECONDS * self.random.random())
            self.is_quiet = True
            await until(lambda: all(one.carrier != "quic" for one in self.travellers))
            for traveller in self.travellers:
                traveller.is_stalled = False
            await self._all_arrive()
            before, got = await self._totals(), sum(traveller.got for traveller in self.travellers)
            for source in self.travellers:
                for target in self.travellers:
                    await source.send(target.key, 100)
            count = TRAVELLERS**2
            await until(lambda: sum(traveller.got for traveller in self.travellers) >= got + count)
            counted = {name: value - before[name] for name, value in (await self._totals()).items()}
            await self._check()
        assert sum(traveller.got for traveller in self.travellers) == got + count
        assert (counted["received"], counted["sent"], counted["dropped"]) == (count, count, 0)
        assert counted["forwarded out"] == counted["forwarded in"]
        self.unordered.clear()
        gc.collect()
        return len(gc.get_objects())

    def keeps_order(self, source: bytes, epoch: int) -> bool:
        """Whether all packets that a connection sent come in their order."""
        return (source, epoch) not in self.unordered

    async def _check(self) -> None:
        for node in self.nodes:
            assert node.server.lobby.closed_count[CloseReason.INTERNAL_ERROR] == 0
            assert node.router.pool.held_bytes == 0

    async def _all_arrive(self) -> None:
        """Until everybody has heard from everybody: all are connected once, nobody else is, the mesh is whole, and what
        was on its way when the silence began has come or is lost."""
        for traveller in self.travellers:
            traveller.heard.clear()
        while not all(traveller.heard == self.keys for traveller in self.travellers):
            for source in self.travellers:
                try:
                    for target in self.travellers:
                        if source.key not in target.heard:
                            await source.send(target.key)
                except (EOFError, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                    pass  # it is on its way to a relay
            await trio.sleep(_PAUSE_SECONDS)
        while not await self._is_alone():  # noqa: ASYNC110  # it waits for other tasks, or processes
            await trio.sleep(_PAUSE_SECONDS)
        for _ in range(2):  # across the mesh and back
            for traveller in self.travellers:
                await traveller.ping()

    async def _is_alone(self) -> bool:
        """Whether the relays have noticed that strangers, and travellers' former connections, are gone."""
        strangers = {private.public().raw for private in self._strangers}
        clients = [client for node in self.nodes for client in node.router.clients.values()]
        mine = sum(client.key in self.keys for client in clients)
        waiting = sum(len(node.server.lobby.waiting) for node in self.nodes)
        return mine == TRAVELLERS and not waiting and not any(client.key in strangers for client in clients)

    async def _totals(self) -> dict[str, int]:
        totals = Counter[str]()
        for node in self.nodes:
            counters = node.router.counters
            totals["received"] += counters.packets_received
            totals["forwarded in"] += counters.packets_forwarded_in
            totals["forwarded out"] += counters.packets_forwarded_out
            totals["dropped"] += sum(counters.packets_dropped)
            totals["sent"] += packets_sent(node.server)
        return totals

    def __str__(self) -> str:
        packets = sum(traveller.got for traveller in self.travellers)
        told = [f"{packets:,} packets arrived", *(f"{count:,} {what}" for what, count in sorted(self.done.items()))]
        return ", ".join(told)

    # --- faults

    def _faults(self) -> list[Callable[[], Awaitable[None]]]:
        often = [self._kill, self._babble, self._stall, self._visit, self._break_mesh]
        return [*often, *often, self._jump, self._fill_disk, self._restart]

    def _somebody(self, what: str) -> Traveller:
        self.done[what] += 1
        return self.random.choice(self.travellers)

    async def _kill(self) -> None:
        self._somebody("killed").order = "leave"

    async def _babble(self) -> None:
        self._somebody("babbled").order = "babble"

    async def _stall(self) -> None:
        one = self._somebody("stalled")
        one.is_stalled = not one.is_stalled

    def _place(self) -> Place:
        return Place(self.random.choice(self.nodes).peer.port, True, MESH_KEY, self._strangers)

    async def _visit(self) -> None:
        """By strangers, who are gone before this returns."""
        place = self._place()
        strangers = [Stranger(place, self._stranger_number + each, self.done) for each in range(_STRANGERS)]
        self._stranger_number += _STRANGERS
        try:
            async with trio.open_nursery() as crowd:
                for stranger in strangers:
                    crowd.start_soon(stranger.live)
        finally:
            with trio.CancelScope(shield=True):
                for stranger in strangers:
                    await stranger.leave()

    async def _break_mesh(self) -> None:
        node = self.random.choice(self.nodes)
        for state in node.mesh.states.values():
            if state.route is not None:
                self.done["mesh links broken"] += 1
                node.server.reactor.close(state.route.wire, CloseReason.SOCKET_FAILED, "by the soak")

    async def _jump(self) -> None:
        self.done["clock jumps"] += 1
        self._jumped += _JUMP_SECONDS

    async def _fill_disk(self) -> None:
        self.done["full disks"] += 1
        decisions = self.random.choice(self.nodes).relay.decisions
        assert decisions is not None
        with full_disk():
            decisions.write()

    async def _restart(self) -> None:
        self.done["relays restarted"] += 1
        at = self.random.randrange(len(self.nodes))
        old = self.nodes[at]
        await old.stop()
        self.nodes[at] = self._make(old.name, old.peer.port)
        await self._run(self.nodes[at])


@asynccontextmanager
async def soaked(kind: type[Region], seed: int) -> AsyncIterator[Region]:
    """A region on its way; its travellers go home at the end."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        async with trio.open_nursery() as nursery:
            region = kind(nursery, seed, Path(folder))
            await region.start()
            yield region
            await region.stop()
            nursery.cancel_scope.cancel()


async def soak(seed: int, seconds: float, tell: Callable[[str], object] = print, kind: type[Region] = Region) -> None:
    """Cycles for so long.  AssertionError when one breaks a law, or memory grows."""
    ends_at = time.monotonic() + seconds
    async with soaked(kind, seed) as region:
        cycles = most = 0
        while cycles <= _WARM_CYCLES or time.monotonic() < ends_at:
            objects = await region.cycle()
            cycles += 1
            if cycles <= _WARM_CYCLES:
                most = max(most, objects)
            assert objects < most + region.growth_objects, f"{objects:,} objects after cycle {cycles}, {most:,} before"
            if cycles % 20 == 0:
                tell(f"cycle {cycles}: {objects:,} objects, {region}")
        tell(f"{cycles} cycles, no find: {region}")
