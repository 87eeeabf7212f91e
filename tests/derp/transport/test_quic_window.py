"""Congestion control in virtual time: senders, a link each way with a queue, losses, and acknowledgements that wait
behind packets of others."""

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from math import inf
from statistics import median

import pytest

from derp.transport.quic_window import FIRST_PACKETS, LEAST_PACKETS, PacketWindow, SentPacket

SIZE, ACK_BYTES = 1400, 60
MBIT = 125_000.0  # bytes a second
ONE_WAY_SECONDS = 0.01
ACK_SECONDS, PACE_SECONDS = 0.005, 0.002


@dataclass(eq=False)
class Packet:
    number: int
    sent_bytes: int
    sent_time: float
    sent_at: tuple[int, float, float, bool] = (0, 0.0, 0.0, False)


class World:
    """What happens when, in virtual seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.random = random.Random(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), act))

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        while self._events and self._events[0][0] <= until:
            self.now, _, act = heapq.heappop(self._events)
            act()
        self.now = until


class Link:
    """One way: a rate, a queue of so many seconds, losses."""

    def __init__(self, world: World, rate: float = 20 * MBIT, loss: float = 0.0) -> None:
        self.world, self.rate, self.loss = world, rate, loss
        self.held_seconds = 0.05
        self.free_at = 0.0

    @property
    def queue_seconds(self) -> float:
        return max(self.free_at - self.world.now, 0.0)

    def carry(self, size: int, arrive: Callable[[], None]) -> bool:
        if self.queue_seconds > self.held_seconds or self.world.random.random() < self.loss:
            return False
        self.free_at = max(self.free_at, self.world.now) + size / self.rate
        self.world.at(self.free_at + ONE_WAY_SECONDS, arrive)
        return True


class Sender:
    """Sends as fast as its window allows, or `call_seconds` apart; losses are seen three packets later."""

    def __init__(self, there: Link, back: Link, call_seconds: float = 0.0) -> None:
        self.world, self.there, self.back = there.world, there, back
        self.window = PacketWindow(max_datagram_size=SIZE)
        self.call_seconds = call_seconds
        self.arrived_bytes = 0
        self.queues: list[float] = []
        self._sent: dict[int, Packet] = {}
        self._numbers = count()
        self._credit, self._credited_at = 0.0, 0.0
        self._unacked: list[Packet] = []
        self._heard_at = 0.0
        self.world.at(self.world.now, self._wake)

    def measure(self, seconds: float) -> float:
        """Mbit/s that come through in the next seconds."""
        before = self.arrived_bytes
        self.queues.clear()
        self.world.run(seconds)
        return (self.arrived_bytes - before) / seconds / MBIT

    def _wake(self) -> None:
        if self._sent and self.world.now > self._heard_at + 0.3:  # a probe takes the place of the oldest
            oldest = self._sent.pop(next(iter(self._sent)))
            self.window.on_packets_expired(packets=[oldest])
        self._send()
        wait = self.call_seconds or PACE_SECONDS
        self.world.at(self.world.now + wait, self._wake)

    def _send(self) -> None:
        window, now = self.window, self.world.now
        rate = min(window.pacing_rate, 1e9)
        burst = max(FIRST_PACKETS * SIZE, rate * 0.01)
        self._credit = min(self._credit + (now - self._credited_at) * rate, burst)
        self._credited_at = now
        packets = []
        while self._credit > 0 and window.bytes_in_flight + (len(packets) + 1) * SIZE <= window.congestion_window:
            packets.append(Packet(next(self._numbers), SIZE, now))
            self._credit -= SIZE
            if self.call_seconds:
                break
        for packet in packets:
            window.on_packet_sent(packet=packet)
            self._sent[packet.number] = packet
            self.there.carry(SIZE, lambda packet=packet: self._arrive(packet))  # type: ignore[misc]
        if self.call_seconds:
            window.note_idle()

    def _arrive(self, packet: Packet) -> None:
        self.arrived_bytes += SIZE
        self.queues.append(self.there.queue_seconds)
        if not self._unacked:
            self.world.at(self.world.now + ACK_SECONDS, self._acknowledge)
        self._unacked.append(packet)

    def _acknowledge(self) -> None:
        packets, self._unacked = self._unacked, []
        if not self.back.carry(ACK_BYTES, lambda: self._hear(packets)):
            self._unacked = packets  # the next one says it again
            self.world.at(self.world.now + ACK_SECONDS, self._acknowledge)

    def _hear(self, packets: list[Packet]) -> None:
        now = self._heard_at = self.world.now
        window = self.window
        known = [packet for packet in packets if self._sent.pop(packet.number, None) is not None]
        for packet in known:
            window.on_packet_acked(now=now, packet=packet)
        if known:
            window.on_rtt_measurement(now=now, rtt=now - known[-1].sent_time)
            lost = [packet for number, packet in self._sent.items() if number < known[-1].number - 3]
            for packet in lost:
                del self._sent[packet.number]
            window.on_packets_lost(now=now, packets=lost)
        if not self.call_seconds:
            self._send()


class Reno(PacketWindow):
    """A TCP on the same path: it doubles until something is lost, halves then, and grows by a packet a round trip."""

    threshold, gave_way_at = inf, -1.0

    def on_packet_acked(self, *, now: float, packet: SentPacket) -> None:
        self.bytes_in_flight -= packet.sent_bytes
        if packet.sent_time > self.gave_way_at:
            is_slow = self.congestion_window >= self.threshold
            self.congestion_window += SIZE * SIZE // self.congestion_window if is_slow else SIZE

    def on_packets_lost(self, *, now: float, packets: Iterable[SentPacket]) -> None:
        for packet in packets:
            self.bytes_in_flight -= packet.sent_bytes
            if packet.sent_time > self.gave_way_at:
                self.gave_way_at = now
                self.threshold = self.congestion_window = max(self.congestion_window // 2, LEAST_PACKETS * SIZE)

    def on_rtt_measurement(self, *, now: float, rtt: float) -> None:
        """It goes by losses."""


def links(rate: float = 20 * MBIT, loss: float = 0.0) -> tuple[Link, Link]:
    world = World()
    return Link(world, rate, loss), Link(world, rate, loss)


def test_it_begins_with_ten_packets_and_without_a_rate() -> None:
    window = PacketWindow(max_datagram_size=SIZE)
    assert (window.congestion_window, window.pacing_rate) == (FIRST_PACKETS * SIZE, inf)


@pytest.mark.parametrize("mbit", [1, 20, 100])
def test_it_fills_a_path_within_a_second_and_leaves_no_queue(mbit: int) -> None:
    sender = Sender(*links(mbit * MBIT))
    sender.world.run(1.0)
    assert sender.measure(3.0) > 0.93 * mbit
    assert median(sender.queues) < 0.025


@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_single_losses_are_no_congestion(loss: float) -> None:
    sender = Sender(*links(loss=loss))
    sender.world.run(3.0)
    assert sender.measure(3.0) > 0.85 * 20


def test_more_than_a_tenth_lost_is_congestion() -> None:
    sender = Sender(*links())
    sender.world.run(2.0)
    before = sender.window.congestion_window
    sender.there.loss = 0.3
    sender.world.run(1.0)
    assert sender.window.congestion_window < before / 4
    sender.there.loss = 0.0
    sender.world.run(5.0)
    assert sender.measure(1.0) > 0.8 * 20


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.05])
def test_acknowledgements_that_wait_behind_packets_of_others_slow_nobody_down(loss: float) -> None:
    one, other = links(loss=loss)
    first, second = Sender(one, other), Sender(other, one)
    first.world.run(4.0)
    before = second.arrived_bytes
    assert first.measure(4.0) > 0.8 * 20
    assert (second.arrived_bytes - before) / 4 / MBIT > 0.8 * 20


def test_a_path_that_became_slower_or_faster_is_seen() -> None:
    there, back = links()
    sender = Sender(there, back)
    sender.world.run(2.0)
    there.rate = 5 * MBIT
    sender.world.run(2.0)
    assert sender.measure(2.0) > 0.9 * 5
    assert median(sender.queues) < 0.04
    there.rate = 20 * MBIT
    sender.world.run(3.0)
    assert sender.measure(2.0) > 0.85 * 20


def test_who_had_little_to_send_fills_the_path_when_he_has_more() -> None:
    sender = Sender(*links(), call_seconds=0.05)
    sender.world.run(10.0)
    assert sender.window.congestion_window >= FIRST_PACKETS * SIZE
    sender.call_seconds = 0.0
    sender.world.run(0.5)
    assert sender.measure(2.0) > 0.85 * 20


def test_who_paused_still_knows_the_path() -> None:
    sender = Sender(*links())
    sender.world.run(2.0)
    sender.call_seconds = 0.02
    sender.world.run(10.0)
    sender.call_seconds = 0.0
    sender.world.run(0.05)
    assert sender.measure(0.2) > 0.75 * 20


def test_two_share_a_path() -> None:
    there, back = links()
    first = Sender(there, back)
    first.world.run(1.0)
    second = Sender(there, back)
    first.world.run(10.0)
    before = second.arrived_bytes
    mine = first.measure(10.0)
    others = (second.arrived_bytes - before) / 10 / MBIT
    assert mine + others > 0.9 * 20
    assert min(mine, others) > 0.25 * 20


@pytest.mark.parametrize(("held_seconds", "share"), [(0.2, 0.35), (0.05, 0.2)])
def test_a_tcp_on_the_same_path_keeps_a_share_of_it(held_seconds: float, share: float) -> None:
    there, back = links()
    there.held_seconds = held_seconds
    tcp = Sender(there, back)
    tcp.window = Reno(max_datagram_size=SIZE)
    tcp.world.run(3.0)
    ours = Sender(there, back)
    tcp.world.run(5.0)
    before = ours.arrived_bytes
    theirs = tcp.measure(30.0)
    assert theirs > share * 20
    assert theirs + (ours.arrived_bytes - before) / 30 / MBIT > 0.95 * 20


def test_nothing_coming_through_leaves_two_packets_and_a_path_that_is_looked_for_anew() -> None:
    sender = Sender(*links())
    sender.world.run(2.0)
    sender.window.on_persistent_congestion()
    assert sender.window.congestion_window == LEAST_PACKETS * SIZE
    sender.world.run(1.0)
    assert sender.measure(1.0) > 0.85 * 20


def test_packets_that_count_no_more_free_the_window() -> None:
    window = PacketWindow(max_datagram_size=SIZE)
    packets = [Packet(number, SIZE, 0.0) for number in range(3)]
    for packet in packets:
        window.on_packet_sent(packet=packet)
    window.on_packets_expired(packets=packets)
    assert window.get_log_data()["bytes_in_flight"] == 0
