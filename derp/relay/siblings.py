"""A relay of several processes: what one worker knows of its siblings, and how packets get to their clients.  Layer L1.

Each worker has the clients whose connections it accepted, and a route to every other worker.  Packets for a client of
another worker leave as a batch, in the order in which they came; there relay/forward.py delivers them as it delivers a
client's.  Two connections of one key on two workers are as two in one process: the newest is active, then whichever
wrote last.  The words are protocol/siblings.py; server/siblings.py has the links.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from derp.protocol.frames import HEADER, HEADER_BYTES, KEY_BYTES, FrameType
from derp.protocol.siblings import BATCH, BATCH_HEAD_BYTES, batch_head, control_frame
from derp.relay.clients import Client, Member
from derp.relay.counters import Counters, DropReason, PacketKind
from derp.relay.queue import PacketQueue, frame_starts
from derp.relay.router import Route, Router

# A sibling runs on the same machine and takes a gigabyte a second: as much as may wait for another relay is behind by
# 10 ms.  One that takes nothing for longer is stuck, and packets wait in no worker's memory until it is replaced.
MAX_HELD_BYTES: Final = 16 * 1024 * 1024
# Presences in one control frame: some 60 bytes each.
_PRESENCES: Final = 500
_SEND: Final = FrameType.SEND_PACKET.value
_HEAD: Final = HEADER_BYTES + KEY_BYTES


@dataclass(frozen=True, slots=True)
class Place:
    """Which of the workers a process is."""

    number: int
    """Unique among all that were ever started."""
    slot: int
    """From 0 to `count` - 1: whose ports it has.  Two have one slot while one replaces the other."""
    count: int


class SiblingRoute:
    """The way to one other worker.  `wire` takes everything; `held_bytes` of it tells what waits there."""

    __slots__ = (
        "_end",
        "_run",
        "_source",
        "_start",
        "bytes_out",
        "connection_count",
        "index",
        "is_dirty",
        "key",
        "keys",
        "packets_out",
        "pending",
        "pending_bytes",
        "problem",
        "queue",
        "wire",
    )

    is_forwarder: Final = True

    def __init__(self, key: bytes, index: int, wire: Any) -> None:
        self.key = key
        self.index = index
        self.wire = wire
        self.keys: dict[bytes, bytes] = {}
        """What that worker has, with the frame that announces it to watchers."""
        self.pending: list[memoryview | bytes] = []
        self.pending_bytes = 0
        self.is_dirty = False
        self.queue: PacketQueue | None = None  # it never has one: the wire holds what the kernel does not take
        self.packets_out = self.bytes_out = 0
        self.connection_count, self.problem = 0, ""
        """How that worker stood when it last said so."""
        # the last run: while it is the end of `pending`, it may go on where it ended
        self._run: memoryview | None = None
        self._source = b""
        self._start = self._end = 0

    def take_run(
        self, view: memoryview, start: int, end: int, source_key: bytes, count: int, counters: Counters
    ) -> None:
        """Take the `count` SendPacket frames that lie in `view[start:end]`, all from one client; or drop them, when too
        much waits for that worker already."""
        if self.wire.held_bytes > MAX_HELD_BYTES:
            counters.drop(DropReason.QUEUES_FULL, PacketKind.OTHER, count, end - start - count * _HEAD)
            return
        pending = self.pending
        if start == self._end and pending and pending[-1] is self._run and source_key == self._source:
            self.pending_bytes += end - start
            pending[-2] = batch_head(source_key, end - self._start)
            pending[-1] = self._run = view[self._start : end]
        else:
            self._run = view[start:end]
            pending.append(batch_head(source_key, end - start))
            pending.append(self._run)
            self.pending_bytes += BATCH_HEAD_BYTES + end - start
            self._source, self._start = source_key, start
        self._end = end


class WorkerRouter(Router):
    """The router of one worker.  `links` are those to its siblings."""

    def __init__(self, own_key: bytes, place: Place, *, queue_delay_seconds: float = math.inf, **queues: int) -> None:
        """The bounds of queues as for a Router."""
        super().__init__(own_key, queue_delay_seconds=queue_delay_seconds, **queues)
        self.links: list[SiblingRoute] = []
        self.place = place
        self._last_number = place.slot
        # Keys that are here as well, while their active connection is at a sibling.
        self._active_elsewhere: set[bytes] = set()
        # Keys that went from a sibling, which leaves, to another one, from which we have not heard of them yet.
        self._went: dict[bytes, SiblingRoute] = {}

    def next_number(self) -> int:
        """Unique among all workers."""
        self._last_number += self.place.count
        return self._last_number

    # --- connections here

    def stands_for(self, key: bytes) -> bool:
        """The eldest of the workers that have a key counts it."""
        return all(self.place.number < link.index for link in self.links if key in link.keys)

    def register(self, client: Client) -> None:
        super().register(client)
        if client.is_own:
            return
        member = client.member
        assert member is not None
        self._active_elsewhere.discard(client.key)
        if client.key in self.elsewhere and len(member.connections) == 1:
            self.counters.dup_client_conns_total += 1
            self._mark_duplicates(member)
        self.tell_siblings(control_frame("came", self._presence(client)))

    def send_off(self, client: Client, now: float) -> None:
        super().send_off(client, now)
        member, link = self.members.get(client.key), self.elsewhere.get(client.key, (None,))[-1]
        if member is not None and member.mailbox is not None and isinstance(link, SiblingRoute):
            self._send_mail(member, link)  # it has come to a sibling already: nothing waits for it here
            self._reroute(member)

    def _withdraw(self, client: Client) -> Member | None:
        member = client.member
        if member is not None and len(member.connections) == 1:
            self._active_elsewhere.discard(client.key)
            self.duplicate_keys -= client.is_duplicate
        return super()._withdraw(client)

    def _tell_watchers_gone(self, key: bytes) -> None:
        self.tell_siblings(control_frame("left", key))
        if key not in self.elsewhere:
            super()._tell_watchers_gone(key)

    def note_writer(self, client: Client) -> None:
        """A frame came from one of several connections of a key.  A mesh peer has one on each worker and gets packets
        on none, so it need not be told of."""
        super().note_writer(client)
        if client.key in self._active_elsewhere and not client.is_mesh_peer:
            self._active_elsewhere.discard(client.key)
            self.routes[client.key] = client
            self.tell_siblings(control_frame("wrote", client.key))

    def _hold_back(self, member: Member) -> None:
        """Answers come to whichever worker has the link, and packets by any of them: a worker does not ask."""

    def _reroute(self, member: Member) -> None:
        links = self.elsewhere.get(member.key)
        if links is None or member.mailbox is not None:
            super()._reroute(member)
            return
        if member.connections and member.key not in self._active_elsewhere:
            self.routes[member.key] = member.connections[-1]
        else:
            self.routes[member.key] = links[-1]
        self._answer_questions(member.key)

    def handle_watch_conns(self, client: Client) -> None:
        was_watcher = client in self.watchers
        super().handle_watch_conns(client)
        if was_watcher or client not in self.watchers:
            return
        for link in self.links:
            frames = [frame for key, frame in link.keys.items() if self.elsewhere[key][-1] is link]
            self.send(client, b"".join(frames))

    def close_here(self, key: bytes) -> None:
        """A sibling was asked to close the connections of a key."""
        super().handle_close_peer(key)

    def handle_close_peer(self, key: bytes) -> None:
        self.close_here(key)
        self.tell_siblings(control_frame("close", key))

    def pass_to_sibling(self, buffer: bytearray, view: memoryview, at: int, stop: int) -> bool:
        """A ForwardPacket of another relay for a client of a sibling: its destination and packet become a SendPacket
        there, under the key of its source."""
        source_at = at + HEADER_BYTES
        route = self.routes.get(bytes(buffer[source_at + KEY_BYTES : source_at + 2 * KEY_BYTES]))
        if not isinstance(route, SiblingRoute):
            return False
        source_key = bytes(buffer[source_at : source_at + KEY_BYTES])
        start = at + KEY_BYTES
        buffer[start : start + HEADER_BYTES] = HEADER.pack(_SEND, stop - start - HEADER_BYTES)
        route.take_run(view, start, stop, source_key, 1, self.counters)
        if not route.is_dirty:
            route.is_dirty = True
            self.dirty.append(route)
        return True

    # --- siblings (server/siblings.py calls these)

    def add_sibling(self, link: SiblingRoute) -> None:
        """A link stands: tell it who is here."""
        self.links.append(link)
        here = [
            self._presence(member.connections[-1])
            for member in self.members.values()
            if member.connections and not member.connections[-1].is_own
        ]
        for at in range(0, len(here), _PRESENCES):
            self.send(link, control_frame("has", here[at : at + _PRESENCES]))

    def forget_some(self, link: SiblingRoute, count: int) -> bool:
        """The link ended: forget `count` of the keys behind it; False when none is left."""
        if link in self.links:
            self.links.remove(link)
        for key in list(link.keys)[:count]:
            self.sibling_left(link, key)
        return bool(link.keys)

    def sibling_has(self, link: SiblingRoute, frames: Iterable[bytes]) -> None:
        """What a sibling had when the link began.  Which of two connections is the newer one nobody knows then."""
        for frame in frames:
            self._note_key(link, frame, is_newest=False)

    def sibling_came(self, link: SiblingRoute, frame: bytes) -> None:
        """A connection was registered there: it is the newest of its key."""
        self._note_key(link, frame, is_newest=True)

    def _note_key(self, link: SiblingRoute, frame: bytes, *, is_newest: bool) -> None:
        key = frame[HEADER_BYTES:_HEAD]
        link.keys[key] = frame
        others = tuple(other for other in self.elsewhere.get(key, ()) if other is not link)
        self.elsewhere[key] = (*others, link)
        member = self.members.get(key)
        if member is None:
            member = self.members[key] = Member(key)
        if member.connections:
            if is_newest:
                self._active_elsewhere.add(key)
            self._mark_duplicates(member)
        if member.mailbox is not None:
            self._send_mail(member, link)
        self._reroute(member)
        if self.watchers:
            self._tell_watchers(frame)
        former = self._went.pop(key, link)
        if former is not link:
            self.sibling_left(former, key)

    def _send_mail(self, member: Member, link: SiblingRoute) -> None:
        """A client that we sent away came to a sibling: what waited for it follows, before anything newer."""
        pieces: list[bytes | memoryview] = []
        for frames in self._empty(member):
            view = memoryview(frames)
            for start, end in frame_starts(view):
                source_end = start + _HEAD
                head = batch_head(frames[start + HEADER_BYTES : source_end], end - start)
                pieces += (head + HEADER.pack(_SEND, end - start - HEADER_BYTES) + member.key, view[source_end:end])
        self.push(link, pieces)
        self.tell_siblings(control_frame("went", member.key, link.index))

    def sibling_left(self, link: SiblingRoute, key: bytes) -> None:
        """The last connection of a key there ended."""
        if link.keys.pop(key, None) is None:
            return
        if self._went.get(key) is link:
            del self._went[key]
        others = tuple(other for other in self.elsewhere[key] if other is not link)
        if others:
            self.elsewhere[key] = others
        else:
            del self.elsewhere[key]
            self._active_elsewhere.discard(key)
        member = self.members[key]
        if member.connections:
            self._mark_duplicates(member)
        self._reroute(member)
        if not member.connections and not others:
            super()._tell_watchers_gone(key)

    def sibling_went(self, link: SiblingRoute, key: bytes, index: int) -> None:
        """A client of a sibling that leaves has come to worker `index`.  That one told us too, but its word may come
        later than this; until then nobody may hear that the key is gone."""
        there = next((other for other in self.links if other.index == index), None)
        if there is not None and key in link.keys and key not in there.keys:
            self._went[key] = link
        else:
            self.sibling_left(link, key)

    def sibling_wrote(self, link: SiblingRoute, key: bytes) -> None:
        """A connection of a key there wrote: it is the active one now."""
        if key not in link.keys:
            return
        self.elsewhere[key] = (*(other for other in self.elsewhere[key] if other is not link), link)
        member = self.members[key]
        if member.connections:
            self._active_elsewhere.add(key)
        self._reroute(member)

    def tell_siblings(self, frame: bytes) -> None:
        for link in self.links:
            self.send(link, frame)


class Arrivals:
    """What relay/forward.py needs of a router for packets that a sibling passes on: they go to a client here, or
    nowhere.  The worker that got them from their client has counted them."""

    def __init__(self, router: Router, now: float) -> None:
        self.source = Client(b"", 0, None, now)
        """Whoever sends the batch that is being served."""
        self.counters = Counters()
        """Of all that came over this link."""
        self._router = router
        self.routes = self

    @property
    def dirty(self) -> list[Route]:
        return self._router.dirty

    def begin(self, source_key: bytes) -> None:
        """A batch of this client begins."""
        self.source.key = source_key
        self.source.member = self._router.members.get(source_key)

    def get(self, key: bytes, /) -> Route | None:
        router = self._router
        member = router.members.get(key)
        if member is None:
            return None
        if member.connections:
            return member.connections[-1]
        # To its mailbox, or after it: its sibling may not have heard yet where it went from here.
        return router.routes.get(key) if router.is_leaving else None

    def remember(self, source: Client, destination: Route) -> set[Client] | None:
        return self._router.remember(source, destination)

    def drop_unknown(
        self, source: Client, key: bytes, packets: int, packet_bytes: int, discos: int, now: float
    ) -> None:
        """The client left while its packets were on their way, and the sibling does not know yet."""
        for kind, count in ((PacketKind.DISCO, discos), (PacketKind.OTHER, packets - discos)):
            self._router.counters.drop(DropReason.UNKNOWN_DEST_ON_FWD, kind, count, count * packet_bytes)


def count_unsent(sent: int, frames: bytes, counters: Counters) -> None:
    """Count the packets among whole batches and control frames that end behind the first `sent` bytes as lost."""
    at = 0
    while at < len(frames):
        kind, length = HEADER.unpack_from(frames, at)
        if kind != BATCH:
            at += HEADER_BYTES + length
            continue
        stop = at + HEADER_BYTES + length
        at += BATCH_HEAD_BYTES
        while at < stop:
            size = int.from_bytes(frames[at + 1 : at + HEADER_BYTES], "big")
            at += HEADER_BYTES + size
            if at > sent:
                counters.drop(DropReason.WRITE_ERROR, PacketKind.OTHER, 1, size - KEY_BYTES)
