"""The replicas of one cluster, seen from one of them: keeps the ways to the others and moves frames.  Layer L3.

    services/hub.py -> send -> replica/cluster.py -> the reactor's flush -> a link or the bus -> the other replica
    a link or the bus -> replica/cluster.py -> services/hub.py -> own connections
A way to a replica is a direct link (bus/links.py) wherever one comes about, else the bus, if that carries frames.
Nobody's connection ends because a replica, a link or the bus is away.
"""

import logging
import random
import secrets
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import trio

from derp.errors import ConnectError, ListenError, TransportError
from derp.log import Rarely, and_more
from derp.server.pages import Page
from derp.text import error_text
from derp.transport.alarm import Alarm
from derp.transport.host import Host
from derp.transport.listen import open_listener
from tailnet import __version__
from tailnet.bus.contract import MAX_REPLICAS, RENEW_SECONDS, Address, Bus, Record, is_path, place_text
from tailnet.bus.links import Link, Links, Use
from tailnet.bus.unix import close_unix_listener, open_unix_listener
from tailnet.coordinator.messages import Effect
from tailnet.coordinator.nodes import Limits
from tailnet.errors import RemoteProtocolError
from tailnet.health.flaps import Lasting
from tailnet.health.readings import ReplicasReading
from tailnet.metrics import ReplicaReading
from tailnet.replica.cluster import Cluster, Hint, SessionEnded, SessionOpened, Silenced
from tailnet.replica.core import SharedCoordinator
from tailnet.replica.messages import MAX_NODE_BYTES, Bye, ReplicaID, Tell
from tailnet.replica.pair import SILENCE_SECONDS, End
from tailnet.replica.proof import ClusterKey
from tailnet.services import replicas_view, waves
from tailnet.services.hub import Hub, Receiver
from tailnet.services.sharing import Shared
from tailnet.transport.channel import Connected

_log = logging.getLogger("tailnet.replicas")

# Two replicas that lost each other dial at once, and not all in one moment.
REDIAL_SECONDS: Final = (0.25, 1.0)
# Of two, the one with the smaller id dials.  The other one does where that cannot.
HEAD_START_SECONDS: Final = 2.0
# Whoever has a session beats each second, and greets as often without one: a link that is silent longer is dead.
LINK_SILENCE_SECONDS: Final = SILENCE_SECONDS + 2.0
# The kernel takes nothing for so long: the other does not read, or is gone.
SEND_SECONDS: Final = SILENCE_SECONDS
# Requests wait so long for a replica that starts to meet the others, who are found and greeted within one.
READY_SECONDS: Final = 2.0
# Taken from a pair at a time: what is still in its queue can collapse to the newest.
SEND_BYTES: Final = 256 * 1024
_TELL_SECONDS: Final = 60.0
# A topic of hints: what callers may do has changed in the store.
RIGHTS: Final = "rights"


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """What one replica is told about itself.  `listen`: where it takes direct links; `address`: how others reach that,
    None if they cannot."""

    name: str
    listen: tuple[Address, ...]
    address: Address | None = None
    node_bytes: int = MAX_NODE_BYTES
    is_successor: bool = False  # another process may still have our port, and gives it up soon


class Replicas:
    """One per server that has a bus.  The Hub gets `coordinator` and `send`; `open`, then `run` as one task."""

    def __init__(
        self,
        host: Host,
        key: ClusterKey,
        bus: Bus,
        settings: ReplicaSettings,
        rights_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """`rights_changed` is called when another replica changed what callers may do."""
        self.id = ReplicaID(secrets.token_bytes(8))
        self.own_name = settings.name
        self.settings = settings
        limits = Limits(node_bytes=min(settings.node_bytes, MAX_NODE_BYTES))
        self.cluster: Cluster[Receiver] = Cluster(
            self.id, settings.name, key, secrets.token_bytes, limits, wall_clock=time.time, program=__version__
        )
        self.bus = bus
        self.records: dict[ReplicaID, Record] = {}
        """All replicas that discovery knows, ourselves among them."""
        self.linked: dict[ReplicaID, Link] = {}
        self.leaving = self.cluster.leaving
        """Replicas that said goodbye."""
        self.session_count = 0
        self.ends: Counter[End] = Counter()
        self.silence_count = 0
        self.failed_links = 0
        """Links that ended by a defect of ours."""
        self.apart: Lasting[ReplicaID | Address] = Lasting()
        """Replicas without a session, and places where there is none."""
        self.map_differs: Lasting[ReplicaID] = Lasting()
        self.dial_troubles: dict[Address, str] = {}
        self.found: dict[Address, ReplicaID] = {}
        """Who was there the last time, ourselves perhaps."""
        self.listening: list[socket.socket] = []
        self.shared: dict[str, Shared] = {}
        """What replicas tell each other, by topic; whoever puts a server together says what before `run`."""
        self.serve_relay: Callable[[Link], Awaitable[None]] | None = None
        """Takes over a link between two relays; None: there is no relay here."""
        self.map_difference: Callable[[ReplicaID], str] = lambda other: ""
        """In which regions that replica's DERP map differs from ours, as a part of a sentence."""
        self._rights_changed = rights_changed
        self._links = Links(self.id, key, self._serve_link)
        self._host = host
        self._hub: Hub
        self._nursery: trio.Nursery
        self._listening = trio.CancelScope()
        self._diallers: dict[Address, trio.CancelScope] = {}
        self._alarm = Alarm(host, self._handle_timeout, self.cluster)
        self._is_touched = False
        self._carried = trio.Event()  # something waits for the bus to carry it
        self._rarely = Rarely(_TELL_SECONDS)
        self._ready_at = float("inf")  # at the latest
        self._has_looked = False  # at what discovery knows

    @property
    def coordinator(self) -> SharedCoordinator[Receiver]:
        """The brain that knows of peers elsewhere."""
        return self.cluster.coordinator

    @property
    def now(self) -> float:
        """By the clock of all that happens to the cluster."""
        return self._host.tick()

    @property
    def refused_links(self) -> int:
        """Connections that did not prove to be replicas."""
        return self._links.refused_count

    def read(self) -> ReplicaReading:
        """What is counted, for metrics."""
        return replicas_view.read(self)

    def problem(self) -> str | None:
        """Why requests should go elsewhere for now: we have just started, others are there, and we have met none."""
        if self.session_count or trio.current_time() >= self._ready_at:
            return None
        is_alone = self._has_looked and not self.records.keys() - {self.id}
        if is_alone and all(self.found.get(each) == self.id or each in self.dial_troubles for each in self._diallers):
            return None
        return "this replica has not met the others yet"

    async def look(self) -> ReplicasReading:
        """For /health: how the others are."""
        return replicas_view.look(self, self.now)

    def page(self) -> Page:
        """For operators: who is there."""
        return replicas_view.replicas_page(self)

    def send(self, effect: Effect[Receiver], now: float) -> None:
        """What the coordinator says to other replicas; leaves with the next flush."""
        self._is_touched = True
        self._carry_out(self.cluster.carry_out((effect,), now), now)

    def change_rights(self) -> None:
        """Somebody may have other rights now, as the store has it: here at once, elsewhere within a round trip."""
        self._rights_changed()
        self.tell(RIGHTS, b"")

    def tell(self, topic: str, payload: bytes, others: Collection[ReplicaID] | None = None) -> None:
        """Say something to these, or to all, that have a session with us.

        Raises LocalProtocolError if it fits into no frame.
        """
        with self._step() as now:
            self._carry_out(self.cluster.tell(Tell(topic, payload), now, others), now)

    def tell_with_step(self, topic: str, payload: bytes) -> None:
        """The same in the midst of a step, whose flush sends it."""
        self._is_touched = True
        self._carry_out(self.cluster.tell(Tell(topic, payload), self._host.now), self._host.now)

    def has_others(self) -> bool:
        """Whether somebody hears what is told."""
        return any(pair.is_open for pair in self.cluster.pairs.values())

    async def leave(self, open_channels: Collection[Connected], seconds: float, end_seconds: float) -> None:
        """This replica drains: nobody finds it any more, and its peers go to the others within so many seconds.

        `end_seconds`: what its own end takes behind that.  Where nobody else is there, peers stay.
        """
        with self._step() as now:
            self._carry_out(self.cluster.tell(Bye(max(1, round(seconds + end_seconds))), now), now)
        await self.bus.leave()
        if any(pair.is_open and other not in self.leaving for other, pair in self.cluster.pairs.items()):
            await waves.send_away(open_channels, self._active_at, self._move, self._host, seconds)

    def _active_at(self, channel: Connected) -> float:
        connection = self._hub.connection_of(channel)
        return 0.0 if connection is None else self.coordinator.active_at(connection)

    def _move(self, channel: Connected, now: float) -> None:
        connection = self._hub.connection_of(channel)
        if connection is not None:
            self.coordinator.handle_move(connection, now)
            self._is_touched = True

    def open(self) -> None:
        """Bind the ports for other replicas.  Raises ListenError; nothing stays open then."""
        try:
            for host, port in self.settings.listen:
                self.listening.append(
                    open_unix_listener(host)
                    if is_path((host, port))
                    else open_listener(host, port, user_timeout_seconds=SILENCE_SECONDS)
                )
        except ListenError:
            self.close()
            if not self.settings.is_successor:
                raise

    def close(self) -> None:
        """Give the ports back."""
        while self.listening:
            sock = self.listening.pop()
            close_unix_listener(sock) if sock.family == socket.AF_UNIX else sock.close()

    async def run(self, hub: Hub, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        self._hub = hub
        self._ready_at = trio.current_time() + READY_SECONDS
        self._host.flushers.append(self._flush)
        own = Record(self.id, self.settings.name, self._own_address(), __version__, time.time())
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for shared in self.shared.values():
                    await nursery.start(shared.run)
                nursery.start_soon(self._listen)
                nursery.start_soon(self.bus.run, own, self)
                nursery.start_soon(self._look_around, own)
                if self.bus.can_carry:
                    nursery.start_soon(self._send_by_bus)
                task_status.started()
        finally:
            self._host.flushers.remove(self._flush)
            self.close()

    def _own_address(self) -> Address | None:
        address = self.settings.address
        if address is None or address[1] or is_path(address) or not self.listening:
            return address
        return address[0], self.listening[0].getsockname()[1]  # any free port was taken

    async def _listen(self) -> None:
        """A predecessor has our ports for a moment longer; until then we dial."""
        with self._listening:
            while self.settings.listen and not self.listening:
                await trio.sleep(REDIAL_SECONDS[0])
                with suppress(ListenError):
                    self.open()
            # Whoever accepts is closed before `close`, which asks the sockets for their files.
            accepting = [trio.socket.from_stdlib_socket(sock.dup()) for sock in self.listening]
            listeners = [trio.SocketListener(each) for each in accepting]
            if listeners:
                await trio.serve_listeners(self._links.accept, listeners, handler_nursery=self._nursery)

    def stop_listening(self) -> None:
        """Leave the ports to the process that takes our place: others reach that one from now on.  Links stay."""
        self._listening.cancel()
        while self.listening:
            self.listening.pop().close()

    # What the bus tells.

    def see_records(self, records: Mapping[ReplicaID, Record]) -> None:
        self.records = dict(records)
        self._has_looked = True
        self._dial_these(
            {
                record.address: other
                for other, record in records.items()
                if other != self.id and record.address is not None
            }
        )
        with self._step() as now:
            for other in records:
                self._use_bus(other, now)

    def see_addresses(self, addresses: Collection[Address]) -> None:
        self._has_looked = True
        self._dial_these(dict.fromkeys(addresses))

    def hear_frame(self, sender: ReplicaID, frame: bytes) -> None:
        if sender not in self.linked and sender in self.cluster.pairs and self.cluster.pairs[sender].has_link:
            self._hear(sender, (frame,))

    def see_carrier(self, is_well: bool) -> None:
        """A bus that does not bring back our own beats may keep all others' too: nobody is judged by that."""
        with self._step() as now:
            by_bus = [other for other, pair in self.cluster.pairs.items() if pair.has_link and other not in self.linked]
            self.cluster.is_deaf = not is_well and bool(by_bus)
            if is_well:
                for other in self.records:
                    self._use_bus(other, now)

    def _use_bus(self, other: ReplicaID, now: float) -> None:
        """The bus carries what no link does."""
        is_the_way = self.bus.can_carry and other in self.records and other not in self.linked and other != self.id
        if is_the_way and not self.cluster.pair(other).has_link:
            self.cluster.link_opened(other, now)

    # Dialling.

    def _dial_these(self, wanted: Mapping[Address, ReplicaID | None]) -> None:
        for address in [each for each in self._diallers if each not in wanted]:
            self._diallers.pop(address).cancel()
            self.dial_troubles.pop(address, None)
            self.found.pop(address, None)
        for address, other in wanted.items():
            if address not in self._diallers and len(self._diallers) < MAX_REPLICAS:
                scope = self._diallers[address] = trio.CancelScope()
                self._nursery.start_soon(self._dial_forever, address, other, scope)

    async def _dial_forever(self, address: Address, other: ReplicaID | None, scope: trio.CancelScope) -> None:
        with scope:
            while other != self.id:
                if other is not None and (link := self.linked.get(other)) is not None:
                    # It dialled us: that we could not reach it meanwhile is over.
                    self.dial_troubles.pop(address, None)
                    await link.ended.wait()
                    continue
                if other is not None and self.id > other:
                    await trio.sleep(HEAD_START_SECONDS)
                    if other in self.linked:
                        continue
                other = await self._dial(address) or other
                await trio.sleep(random.uniform(*REDIAL_SECONDS))

    async def _dial(self, address: Address) -> ReplicaID | None:
        """One link, from its beginning to its end; who was there, if anybody.

        The link is served elsewhere: it outlives the discovery that told of it.
        """
        try:
            link = await self._links.dial(address)
        except TransportError as error:
            if address not in self.dial_troubles:
                _log.warning("! no link to the replica at %s: %s", place_text(address), error)
            self.dial_troubles[address] = error_text(error)
            return None
        self.dial_troubles.pop(address, None)
        self.found[address] = link.other
        self._nursery.start_soon(self._serve_link, link)
        await link.ended.wait()
        return link.other

    async def dial_relay(self, other: ReplicaID) -> Link:
        """A link to the relay of whoever is where that replica was found.  Raises TransportError."""
        address = replicas_view.place_of(self, other)
        if address is None:
            raise ConnectError("where it takes links of others is not known: has it a --replica-listen?")
        return await self._links.dial(address, Use.RELAY)

    def note_found(self, other: ReplicaID, there: ReplicaID) -> None:
        """Somebody else is where that replica was: perhaps the process that takes its place."""
        address = replicas_view.place_of(self, other)
        if address is not None:
            self.found[address] = there

    # Links.

    async def _serve_link(self, link: Link) -> None:
        """Use a proved link until it ends, and close it."""
        if link.use is Use.RELAY:
            await self._serve_relay_link(link)
            return
        try:
            if not self._take_link(link):
                return
            try:
                with link.scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._send_by_link, link)
                        await self._receive_by_link(link)
                        nursery.cancel_scope.cancel()
                reason = "it was closed"
            except* (TransportError, RemoteProtocolError) as errors:
                reason = error_text(errors.exceptions[0])
            except* Exception:
                self.note_defect(link.other)
                reason = "a defect"
            self._lose_link(link, reason)
        finally:
            self._lose_link(link, "this replica ends")
            link.ended.set()
            await trio.aclose_forcefully(link.stream)

    async def _serve_relay_link(self, link: Link) -> None:
        """Give a proved link to the relay here, or close it."""
        try:
            if self.serve_relay is not None:
                await self.serve_relay(link)
                return
        except Exception:
            self.note_defect(link.other)
        await trio.aclose_forcefully(link.stream)

    def note_defect(self, other: ReplicaID) -> None:
        """In an `except`: a defect of ours costs one link, which is dialled anew, and the operator gets the whole
        story."""
        self.failed_links += 1
        _log.exception("! the link to replica %s failed; please report this", self.name_of(other))

    def _take_link(self, link: Link) -> bool:
        """Whether this link is the way to its replica from now on: of two, the one that the smaller id dialled, and
        of two of those the newer, for whoever dialled it has lost the other."""
        other, current = link.other, self.linked.get(link.other)
        if other == self.id or (current is None and len(self.linked) >= MAX_REPLICAS):
            return False
        if current is not None:
            if self._is_by_smaller(current) and not self._is_by_smaller(link):
                return False
            current.scope.cancel()
        with self._step() as now:
            if self.cluster.pair(other).has_link:
                self._carry_out(self.cluster.link_closed(other, now), now)
            self.cluster.link_opened(other, now, link.binding)
            self.linked[other] = link
        _log.info("+ replica %s: linked with %s", self.name_of(other), link.address)
        return True

    def _is_by_smaller(self, link: Link) -> bool:
        return link.is_dialled == (self.id < link.other)

    def _lose_link(self, link: Link, reason: str) -> None:
        if self.linked.get(link.other) is not link:
            return  # another one took its place
        del self.linked[link.other]
        with self._step() as now:
            self._carry_out(self.cluster.link_closed(link.other, now), now)
            self._use_bus(link.other, now)
        _log.info("- replica %s: the link ended: %s", self.name_of(link.other), reason)

    async def _receive_by_link(self, link: Link) -> None:
        while True:
            with trio.move_on_after(LINK_SILENCE_SECONDS) as silence:
                frames = await link.receive()
            if silence.cancelled_caught or not frames:
                return
            self._hear(link.other, frames)

    async def _send_by_link(self, link: Link) -> None:
        pair = self.cluster.pair(link.other)
        while True:
            await link.wake.wait()
            link.wake = trio.Event()
            while frames := pair.frames_to_send(SEND_BYTES):
                with trio.move_on_after(SEND_SECONDS) as slow:
                    await link.send(frames)
                if slow.cancelled_caught:
                    link.scope.cancel()

    async def _send_by_bus(self) -> None:
        while True:
            await self._carried.wait()
            self._carried = trio.Event()
            for other, pair in list(self.cluster.pairs.items()):
                while other not in self.linked and (frames := pair.frames_to_send(SEND_BYTES)):
                    await self.bus.send(other, frames)

    # Steps: what no connection of the reactor caused.

    @contextmanager
    def _step(self) -> Iterator[float]:
        yield self._host.tick()
        self._is_touched = True
        self._host.flush()

    def _hear(self, other: ReplicaID, frames: Sequence[bytes]) -> None:
        with self._step() as now:
            for frame in frames:
                self._carry_out(self.cluster.receive_frame(other, frame, now), now)

    def _handle_timeout(self, now: float) -> None:
        self._is_touched = True
        self._carry_out(self.cluster.handle_timeout(now), now)

    def _carry_out(self, effects: Sequence[Effect[Receiver]], now: float) -> None:
        own: list[Effect[Receiver]] = []
        for effect in effects:
            match effect:
                case Hint():
                    self._take_hint(effect)
                case SessionOpened(other):
                    self.session_count += 1
                    self._greet(other, now)
                    _log.info("= replica %s: session %d", self.name_of(other), self.cluster.pair(other).session_count)
                case SessionEnded(other, end, reason):
                    self.ends[end] += 1
                    _log.info("= replica %s: the session ended: %s", self.name_of(other), reason)
                    if other in self.leaving:
                        self._forget_shared(other)
                    link = self.linked.get(other)
                    if link is not None and end not in (End.LINK, End.REPLACED):
                        link.scope.cancel()
                case Silenced(other) if other in self.leaving:
                    _log.info("- replica %s has left", self.name_of(other))
                case Silenced(other):
                    self.silence_count += 1
                    _log.warning("! replica %s is silent; its peers count as lost", self.name_of(other))
                case _:
                    own.append(effect)
        if own:
            self._hub.carry_out(own, now)

    def _greet(self, other: ReplicaID, now: float) -> None:
        """A session begins: say what we share."""
        for topic, shared in self.shared.items():
            if greeting := shared.greet():
                self._carry_out(self.cluster.tell(Tell(topic, greeting), now, (other,)), now)

    def _forget_shared(self, other: ReplicaID) -> None:
        for shared in self.shared.values():
            shared.forget(other)

    def _take_hint(self, hint: Hint) -> None:
        message = hint.message
        if isinstance(message, Bye):
            _log.info("- replica %s leaves within %d s", self.name_of(hint.replica), message.seconds)
        elif message.topic == RIGHTS:
            self._rights_changed()
        elif (shared := self.shared.get(message.topic)) is not None:  # what a later version shares is not for us
            shared.hear(hint.replica, message.payload)

    def _flush(self) -> None:
        """Have sent what this step made for others."""
        if not self._is_touched:
            return
        self._is_touched = False
        for other, pair in self.cluster.pairs.items():
            if pair.has_output:
                self._wake(other)
        self._alarm.look()

    def _wake(self, other: ReplicaID) -> None:
        link = self.linked.get(other)
        (self._carried if link is None else link.wake).set()

    # Who is there.

    def name_of(self, other: ReplicaID) -> str:
        """For people: its name, if it has told one, and the beginning of its id."""
        pair, record = self.cluster.pairs.get(other), self.records.get(other)
        name = pair.hello.name if pair is not None and pair.hello is not None else record.name if record else ""
        return f"{name} ({other.hex()[:6]})" if name else other.hex()[:6]

    async def _look_around(self, own: Record) -> None:
        """A replica that is silent, that no way leads to and that discovery does not know, does not come back.  One
        that is heard, and does not answer, may not know that it is: our record says so."""
        while True:
            await trio.sleep(RENEW_SECONDS)
            own.hears.clear()
            own.hears.update(replicas_view.unanswering(self, self.now))
            gone = [
                other
                for other, pair in self.cluster.pairs.items()
                if not pair.is_present and other not in self.linked and other not in self.records
            ]
            with self._step() as now:
                for other in gone:
                    self._carry_out(self.cluster.forget(other, now), now)
                    self._forget_shared(other)
                replicas_view.lasting(self, now)
            for other, why in self.cluster.refused.items():
                more = self._rarely.held_back("refused", trio.current_time())
                if more is not None:
                    _log.warning("! replica %s cannot be talked to: %s%s", self.name_of(other), why, and_more(more))
