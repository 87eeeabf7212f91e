"""The relay's brain: who is here, where packets for a key go, and who must be told what.  Layer L1.

The router leaves its effects where server/session.py finds them: gather lists in `Route.pending`, routes with work in
`dirty`, connections to end in `closing`.  The flush after each batch of sockets empties all three.  The hot path is
relay/forward.py; relay/mesh.py adds routes to other relays.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final, Protocol

from derp.close_reason import CloseReason
from derp.protocol.frames import HEADER_BYTES, KEY_BYTES, FrameType, PeerGoneReason, encode_frame
from derp.protocol.messages import PeerPresent, encode
from derp.protocol.settle import HERE, MAX_ANSWERS, Settle, SettleStep
from derp.relay.clients import Client, Member
from derp.relay.counters import Counters, DropReason, PacketKind
from derp.relay.mailbox import Hold, Mailbox, Mailboxes
from derp.relay.pool import QueuePool
from derp.relay.queue import MAX_MESH_NOTICE_BYTES, MAX_NOTICE_BYTES, PacketQueue, count_lost, frame_starts

# A client that takes its home back within its first seconds only probed this relay; the genuine relay counts so too.
_SETTLED_SECONDS: Final = 5.0

_NONE_LOST: Final = (b"", 0)

# The link to another relay carries everybody's packets, and a genuine relay makes their senders wait there instead of
# dropping any.  As much as eight (2**3) clients may hold, 16 MiB by default, is 13 ms at 10 Gbit/s; such links are few.
_MESH_QUEUE_SHIFT: Final = 3

# What other relays may ask of one key: as many as a region has, and workers of each.  Whoever asks beyond that gets no
# answer, and waits HOLD_SECONDS.
_MAX_QUESTIONS: Final = 64


class Route(Protocol):
    """Where packets for a key are written: a client here, or a link to the relay that has the client."""

    key: bytes
    wire: Any
    pending: list[memoryview | bytes]
    pending_bytes: int
    packets_out: int
    bytes_out: int
    is_dirty: bool
    queue: PacketQueue | None

    @property
    def is_forwarder(self) -> bool: ...


class Router:
    """All state of one relay.  One thread calls it; nothing in it blocks, and nothing a client does makes it raise."""

    def __init__(
        self,
        own_key: bytes,
        *,
        queue_depth: int,
        queue_bytes: int,
        queue_total: int = sys.maxsize,
        queue_delay_seconds: float = math.inf,
    ) -> None:
        """`queue_total`: bytes that all queues may hold together.  `queue_delay_seconds`: PacketQueue's `max_wait`."""
        self.own_key = own_key
        self.counters = Counters()
        self.routes: dict[bytes, Route] = {}
        self.members: dict[bytes, Member] = {}
        # Keys with a connection at another worker of this relay (relay/siblings.py), the active one last.
        self.elsewhere: dict[bytes, tuple[Route, ...]] = {}
        self.clients: dict[int, Client] = {}
        self.watchers: set[Client] = set()
        self.dirty: list[Route] = []
        self.closing: list[tuple[Client, CloseReason]] = []
        self.duplicate_keys = 0
        self.home_clients = 0
        self.not_ideal_clients = 0
        # Clients that sent packets, disco apart, to a key that is nowhere: the last such key, and how many since
        # somebody took this table (server/relay.py, every second).
        self.lost_by: dict[Client, tuple[bytes, int]] = {}
        self.announcements = 0  # what all watchers were told since the last flush
        self.counts_flush = False  # whether the next flush has anything to count
        self.pool = QueuePool(queue_total)
        self.is_leaving = False  # packets for clients that went elsewhere are passed on, also those of other relays
        self.mailboxes = Mailboxes(self.counters)
        self.mesh_links: list[Route] = []  # those that stand, to relays that know protocol/settle.py
        # Connections that were told that nothing more comes and have not ended, by key; and what others asked of keys.
        self._seen_off: dict[bytes, set[Client]] = {}
        self._questions: dict[bytes, list[Settle]] = {}
        self.queue_depth = queue_depth
        self.queue_bytes = queue_bytes
        self.queue_delay_seconds = queue_delay_seconds
        self._last_number = 0

    # --- connections come and go

    def next_number(self) -> int:
        """A number for a new connection, unique for the life of the relay."""
        self._last_number += 1
        return self._last_number

    def stands_for(self, key: bytes) -> bool:
        """Whether a key that is connected here counts here, where several workers of one relay may have it."""
        return True

    def register(self, client: Client) -> None:
        """A connection finished its handshake: packets for its key go to it from now on."""
        member = self.members.get(client.key)
        if member is None:
            member = self.members[client.key] = Member(client.key)
        client.member = member
        member.connections.append(client)
        if len(member.connections) > 1:
            self.counters.dup_client_conns_total += 1
            self._mark_duplicates(member)
        self.clients[client.number] = client
        if member.mailbox is None:
            if not client.is_mesh_peer:  # all relays announce all relays, and others' answers come by this one
                self._hold_back(member)
        elif not isinstance(member.mailbox, Hold):  # it came back
            self._give_mail(member, client)
        self.routes[client.key] = member.mailbox or client
        self.not_ideal_clients += not client.is_ideal
        if self.watchers and not client.is_own:
            self._tell_watchers(self._presence(client))

    def unregister(self, client: Client) -> None:
        """A registered connection ended.  If it was the last one of its key, we tell all who heard from that key."""
        member = self._withdraw(client)
        client.wire = None  # the keep-alive wheel holds the client for another minute, but not its socket and TLS state
        if member is None:
            self._note_end(client)
            return
        self._reroute(member)
        if not member.connections:
            self._tell_gone(client)

    def send_off(self, client: Client, now: float) -> None:
        """Nothing goes to this connection any more; what still comes from it is relayed until it ends.  Where there is
        another relay for its client to go to, packets for it wait until it shows up there, and nobody is told."""
        member = self._withdraw(client)
        if member is None:
            return
        goes_elsewhere = self.is_leaving and not (client.is_mesh_peer or client.is_own)
        if goes_elsewhere:
            self._seen_off.setdefault(client.key, set()).add(client)
        if goes_elsewhere and not member.connections and not member.forwarders:
            member.mailbox = self.mailboxes.open(member.key, now)
        self._reroute(member)
        if not member.connections and not goes_elsewhere:
            self._tell_gone(client)

    def _withdraw(self, client: Client) -> Member | None:
        """Take a connection out of everything; None if it was out already."""
        member = client.member
        if member is None:
            return None
        client.member = None
        del self.clients[client.number]
        if client in self.watchers:
            self.count_announcements()
            self.watchers.remove(client)
        self.home_clients -= client.is_preferred
        self.not_ideal_clients -= not client.is_ideal
        for heard in client.heard_from or ():
            if heard.sent_to is not None:
                heard.sent_to.discard(client)
        client.heard_from = None
        if client.queue is not None:
            client.queue.discard(DropReason.GONE_DISCONNECTED)
            client.queue = None
        was_several = len(member.connections) > 1
        member.connections.remove(client)
        if was_several:
            self._mark_duplicates(member)
        if not member.connections and isinstance(member.mailbox, Hold):
            self._end_hold(member)
        return member

    def _tell_gone(self, client: Client) -> None:
        """Tell the other relays that the last connection of a key has ended."""
        if not client.is_own:
            self._tell_watchers_gone(client.key)

    def _tell_watchers_gone(self, key: bytes) -> None:
        if self.watchers:
            self.counters.peer_gone_disconnected_frames += len(self.watchers)
            self._tell_watchers(_peer_gone(key, PeerGoneReason.DISCONNECTED))

    def _mark_duplicates(self, member: Member) -> None:
        several = len(member.connections) > 1 or member.key in self.elsewhere
        had_several = any(client.is_duplicate for client in member.connections)
        self.duplicate_keys += several - had_several
        for client in member.connections:
            client.is_duplicate = several

    def _reroute(self, member: Member) -> None:
        """Write to a mailbox, else to the active connection here, else to the relay that announced the key first, else
        nowhere."""
        route: Route | None = member.mailbox or member.active
        if route is None and member.forwarders:
            route = member.forwarders[0]
        if route is not None:
            self.routes[member.key] = route
            self._answer_questions(member.key)
            return
        self.routes.pop(member.key, None)
        del self.members[member.key]
        for destination in member.sent_to or ():
            if destination.heard_from is not None:
                destination.heard_from.discard(member)
            self.counters.peer_gone_disconnected_frames += 1
            self.send(destination, _peer_gone(member.key, PeerGoneReason.DISCONNECTED))
        member.sent_to = None
        self._answer_questions(member.key)

    def note_writer(self, client: Client) -> None:
        """A frame came from one of several connections of a key: it is the active one now."""
        member = client.member
        if member is not None and member.connections[-1] is not client:
            member.connections.remove(client)
            member.connections.append(client)
            self.routes[client.key] = member.mailbox or client

    def remember(self, source: Client, destination: Route) -> set[Client] | None:
        """Note that `destination` got a packet of `source`'s key, so it hears when that key leaves."""
        member = source.member
        if member is None or not isinstance(destination, Client):
            return None
        member.remember(destination)
        return member.sent_to

    # --- keys of which a leaving relay keeps packets

    def close_mailbox(self, mailbox: Mailbox) -> None:
        """The key showed up nowhere in time: it has gone.  Or, for a Hold: nobody waits any longer."""
        member = self.members[mailbox.key]
        if isinstance(mailbox, Hold):
            self._end_hold(member)
            self._reroute(member)
            return
        self._drop_mail(member)
        self._reroute(member)
        self._tell_watchers_gone(mailbox.key)

    def _drop_mail(self, member: Member) -> None:
        for frames in self._empty(member):
            count_lost(frames, DropReason.GONE_DISCONNECTED, self.counters)

    def _give_mail(self, member: Member, client: Client) -> None:
        """Packets of several senders: each is a piece of its own, so that a queue tells them apart."""
        for frames in self._empty(member):
            pieces = [frames[start:end] for start, end in frame_starts(memoryview(frames))]
            for piece in pieces:
                source = self.members.get(piece[HEADER_BYTES : HEADER_BYTES + KEY_BYTES])
                if source is not None:
                    source.remember(client)
            client.packets_out += len(pieces)
            client.bytes_out += len(frames) - len(pieces) * (HEADER_BYTES + KEY_BYTES)
            self.push(client, pieces)

    def _empty(self, member: Member) -> list[bytes]:
        mailbox, member.mailbox = member.mailbox, None
        assert mailbox is not None
        self.mailboxes.close(mailbox)
        if mailbox.pending:  # of this batch
            mailbox.frames.append(b"".join(mailbox.pending))
            mailbox.pending, mailbox.pending_bytes = [], 0
        if isinstance(mailbox, Hold):
            mailbox.wires = tuple(client.wire for client in member.connections)
        return mailbox.frames

    # --- the order of packets of keys that come from a leaving relay (protocol/settle.py)

    def _hold_back(self, member: Member) -> None:
        """A key has come, here or to another relay, from one that is leaving.  What waits there comes first: newer
        packets wait here until that relay says that all is on its way, and so does what its connection here sends."""
        link = member.forwarders[0] if member.forwarders else None
        if link is not None and link.is_leaving and link in self.mesh_links:
            number = self.next_number() | (HERE if member.connections else 0)
            member.mailbox = self.mailboxes.hold(member.key, number, link)
            self.push(link, (Settle(SettleStep.ASKED, member.key, self.own_key, number).encode(),))

    def _end_hold(self, member: Member) -> None:
        assert isinstance(member.mailbox, Hold)
        asked, told = member.mailbox.link, member.mailbox.told
        if member.connections:
            self._give_mail(member, member.connections[-1])
        elif member.forwarders:
            self._forward_mail(member, member.forwarders[0])
        else:
            self._drop_mail(member)
        for settle in told:
            self._tell_settled(settle)
        self._forget_claim(member, asked)

    def _forget_claim(self, member: Member, asked: Any) -> None:
        """A relay from which a key came here, or went to another one, has it no more, and tells nobody so.  If we leave
        next, it would look like a place to go to, as we do to it: packets went to and fro for up to HOLD_SECONDS, and
        newer ones came before them."""
        if asked in member.forwarders and (member.connections or member.forwarders[0] is not asked):
            asked.keys.discard(member.key)
            self.remove_forwarder(member.key, asked)

    def _note_end(self, client: Client) -> None:
        """All that this connection sent has been relayed."""
        seen_off = self._seen_off.get(client.key)
        if seen_off is not None:
            seen_off.discard(client)
            if not seen_off:
                del self._seen_off[client.key]
                self._answer_questions(client.key)

    def _answer_questions(self, key: bytes) -> None:
        """Unless they have to wait on."""
        member = self.members.get(key)
        if key in self._questions and key not in self._seen_off and (member is None or member.mailbox is None):
            answers = min(len(self.mesh_links), MAX_ANSWERS)
            for question in self._questions.pop(key):
                self._tell_settled(replace(question, step=SettleStep.ANSWERED, answers=answers))

    def _tell_settled(self, settle: Settle) -> None:
        frame = settle.encode()
        for link in self.mesh_links:
            self.push(link, (frame,))

    def handle_settle(self, settle: Settle) -> None:
        """A mesh peer asks, or one has answered."""
        if settle.step is SettleStep.ASKED:
            questions = self._questions.setdefault(settle.key, [])
            if len(questions) < _MAX_QUESTIONS:
                questions.append(settle)
            self._answer_questions(settle.key)
            return
        hold = self.mailboxes.asked(settle.number) if settle.asker == self.own_key else None
        if hold is not None and hold.key == settle.key:
            hold.answers += 1
            if hold.answers >= settle.answers:
                self.close_mailbox(hold)
        elif settle.step is SettleStep.ANSWERED:
            told = replace(settle, step=SettleStep.TOLD)
            member = self.members.get(settle.key)
            mailbox = member.mailbox if member is not None and not member.connections else None
            if settle.number & HERE and isinstance(mailbox, Hold) and len(mailbox.told) < _MAX_QUESTIONS:
                mailbox.told.append(told)  # what waits here goes there first: its senders may be there already
            else:
                self._tell_settled(told)

    # --- keys behind other relays (relay/mesh.py calls these)

    def add_forwarder(self, key: bytes, link: Route) -> None:
        """The relay behind `link` says it has `key`.  A client here wins; else the first relay that said so."""
        member = self.members.get(key)
        if member is None:
            member = self.members[key] = Member(key)
        if link in member.forwarders:
            return
        if member.forwarders:
            self.counters.multiforwarder_created += len(member.forwarders) == 1
        if member.mailbox is not None and not isinstance(member.mailbox, Hold):
            self._forward_mail(member, link)
        elif member.mailbox is None and not member.connections:
            self._hold_back(member)
        if isinstance(member.mailbox, Hold):
            member.forwarders = (link, *member.forwarders)
        else:
            member.forwarders = (*member.forwarders, link)
        self._reroute(member)

    def _forward_mail(self, member: Member, link: Route) -> None:
        """The key is at another relay now: its packets follow, before newer ones.  The other relays still come to us,
        who pass on what they have for it until we end: its new place may not be known everywhere yet."""
        mailbox = member.mailbox
        assert mailbox is not None
        self._empty(member)
        pieces = mailbox.as_forwarded()
        self.counters.packets_forwarded_out += len(pieces) // 2
        self.counters.bytes_forwarded_out += sum(map(len, pieces[1::2]))
        self.push(link, pieces)

    def mesh_routes(self) -> set[Route]:
        """The links to other relays that have announced keys.  Walks over all keys."""
        return {link for member in self.members.values() for link in member.forwarders}

    def remove_forwarder(self, key: bytes, link: Route) -> None:
        """The relay behind `link` lost `key`, or we lost that relay."""
        member = self.members.get(key)
        if member is None:
            return
        if link not in member.forwarders:
            # The genuine relay counts so: where several relays claim a key, one that does not is no news.
            self.counters.packet_forwarder_delete_other_value += len(member.forwarders) < 2
            return
        if len(member.forwarders) == 2:
            self.counters.multiforwarder_deleted += 1
        member.forwarders = tuple(other for other in member.forwarders if other is not link)
        self._reroute(member)
        if self.is_leaving and key not in self.members:  # it may have gone there from here, which nobody was told
            self._tell_watchers_gone(key)

    # --- frames other than packets

    def handle_note_preferred(self, client: Client, preferred: bool, now: float) -> None:
        if client.is_preferred == preferred:
            return
        client.is_preferred = preferred
        self.home_clients += 1 if preferred else -1
        if now - client.connected_at > _SETTLED_SECONDS:
            if preferred:
                self.counters.home_moves_in += 1
            else:
                self.counters.home_moves_out += 1

    def handle_ping(self, client: Client, payload: bytes) -> None:
        """Echo the first 8 bytes.  A client that does not read gets one pong, like from the genuine relay."""
        self.counters.got_ping += 1
        if client.queue is not None and client.queue.notice_bytes:
            return
        self.counters.sent_pong += 1
        self.send(client, encode_frame(FrameType.PONG, payload[:8]))

    def handle_watch_conns(self, client: Client) -> None:
        """Tell a mesh peer who is here, now and from now on.  Our own key watching itself is ignored."""
        if client.key == self.own_key or client in self.watchers:
            return
        self.count_announcements()  # the new watcher does not hear of these one by one: its list has them
        self.watchers.add(client)
        client.is_watcher = True
        here = (member.connections[-1] for member in self.members.values() if member.connections)
        present = [self._presence(each) for each in here if not each.is_own]
        self._count_announced(len(present), 1)
        self.send(client, b"".join(present))

    def handle_close_peer(self, key: bytes) -> None:
        """A mesh peer asks to close every connection of `key`; an unknown key is ignored."""
        member = self.members.get(key)
        for client in tuple(member.connections) if member is not None else ():
            self.closing.append((client, CloseReason.CLOSED_BY_MESH))

    # --- telling clients

    def push(self, route: Route, pieces: Sequence[memoryview | bytes]) -> None:
        """Send whole frames behind those that are pending."""
        size = sum(map(len, pieces))
        if not size:
            return
        route.pending += pieces
        route.pending_bytes += size
        if not route.is_dirty:
            route.is_dirty = True
            self.dirty.append(route)

    def send(self, client: Route, frame: bytes) -> None:
        """Send a frame that is no packet, ahead of queued packets."""
        if client.queue is not None:
            if not client.queue.push_notice(frame):
                self.note_lost_notice(client)
            return
        client.pending.append(frame)
        client.pending_bytes += len(frame)
        if not client.is_dirty:
            client.is_dirty = True
            self.dirty.append(client)

    def _tell_watchers(self, frame: bytes) -> None:
        self.announcements += 1
        self.counts_flush = True
        for watcher in self.watchers:
            self.send(watcher, frame)

    def count_announcements(self) -> None:
        """All that was announced since the last flush leaves in one go for each watcher."""
        if self.announcements:
            self._count_announced(self.announcements, len(self.watchers))
            self.announcements = 0

    def _count_announced(self, count: int, watchers: int) -> None:
        self.counters.mesh_update_batches.observe(count, watchers)
        self.counters.mesh_update_loops.observe(1, watchers)

    def _presence(self, client: Client) -> bytes:
        if not client.presence:
            # Kept, as it costs 4 us: a mesh peer that comes back to 100,000 clients would stop everybody for 0.4 s.
            address = ip_address(client.address) if client.address else None
            client.presence = encode(PeerPresent(client.key, address, client.port, int(client.flags)))
        return client.presence

    def new_queue(self, route: Route) -> PacketQueue:
        """A queue for a route whose socket just became full."""
        is_mesh_peer = isinstance(route, Client) and route.is_mesh_peer
        notice_bytes = MAX_MESH_NOTICE_BYTES if is_mesh_peer else MAX_NOTICE_BYTES
        shift = _MESH_QUEUE_SHIFT if route.is_forwarder else 0
        return PacketQueue(
            self.queue_depth << shift,
            self.queue_bytes << shift,
            self.counters,
            self.pool,
            max_wait_seconds=self.queue_delay_seconds,
            max_notice_bytes=notice_bytes,
            shift=shift,
            owner=route if isinstance(route, Client) else None,
        )

    def note_lost_notice(self, route: Route) -> None:
        """A notice did not fit the queue of `route`.  A mesh peer that misses one announcement is wrong from then on;
        when it reconnects it learns everything anew."""
        if isinstance(route, Client) and route.is_watcher:
            self.closing.append((route, CloseReason.TOO_SLOW))

    # --- drops

    def drop_unknown(
        self, source: Client, key: bytes, packets: int, packet_bytes: int, discos: int, now: float
    ) -> None:
        """`packets` packets of `packet_bytes` bytes each are for a key that is nowhere; `discos` of them are disco."""
        reason = DropReason.UNKNOWN_DEST
        source.packets_nowhere += packets
        source.bytes_nowhere += packets * packet_bytes
        if discos:
            self.counters.drop(reason, PacketKind.DISCO, discos, discos * packet_bytes)
            self._tell_not_here(source, key, now)
        if packets > discos:
            self.lost_by[source] = (key, self.lost_by.get(source, _NONE_LOST)[1] + packets - discos)
            self.counters.drop(reason, PacketKind.OTHER, packets - discos, (packets - discos) * packet_bytes)

    def pass_to_sibling(self, buffer: bytearray, view: memoryview, at: int, stop: int) -> bool:
        """Whether the ForwardPacket frame in `buffer[at:stop]`, for a key that is not here, went to another worker of
        this relay."""
        return False

    def drop_forwarded(self, mesh: Client, key: bytes, packet_bytes: int, is_disco: bool, now: float) -> None:
        """A mesh peer forwarded a packet for a key that is not here."""
        self.counters.drop(DropReason.UNKNOWN_DEST_ON_FWD, is_disco, 1, packet_bytes)
        if is_disco:
            self._tell_not_here(mesh, key, now)

    def _tell_not_here(self, client: Client, key: bytes, now: float) -> None:
        if client.member is not None and client.may_tell_not_here(now):
            self.counters.peer_gone_not_here_frames += 1
            self.send(client, _peer_gone(key, PeerGoneReason.NOT_HERE))


def _peer_gone(key: bytes, reason: PeerGoneReason) -> bytes:
    return encode_frame(FrameType.PEER_GONE, key + bytes((reason,)))
