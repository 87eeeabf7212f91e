"""The congestion window: what makes it grow, and what makes it shrink."""

from dataclasses import dataclass

import pytest

from derp.transport.quic_window import FIRST_PACKETS, LEAST_PACKETS, PacketWindow

SIZE = 1400


@dataclass
class Packet:
    sent_bytes: int
    sent_time: float


class Path:
    """Round trips of full windows."""

    def __init__(self) -> None:
        self.window = PacketWindow(max_datagram_size=SIZE)
        self.now = 100.0

    def round(self, *, lost: int = 0, rtt: float = 0.05, share: float = 1.0) -> int:
        """A round trip in which `share` of the window is sent and `lost` packets do not arrive; the window then."""
        count = int(self.window.congestion_window * share) // SIZE
        packets = [Packet(SIZE, self.now) for _ in range(count)]
        for packet in packets:
            self.window.on_packet_sent(packet=packet)
        self.now += rtt
        self.window.on_rtt_measurement(now=self.now, rtt=rtt)
        if lost:
            self.window.on_packets_lost(now=self.now, packets=packets[:lost])
        for packet in packets[lost:]:
            self.window.on_packet_acked(now=self.now, packet=packet)
        # past the end of the round, whose length is a smoothed one
        self.now += 0.1
        return self.window.congestion_window // SIZE


def test_it_begins_as_the_specification_has_it_and_doubles() -> None:
    path = Path()
    assert path.window.congestion_window == FIRST_PACKETS * SIZE
    assert [path.round() for _ in range(3)] == [20, 40, 80]
    assert path.window.bytes_in_flight == 0


@pytest.mark.parametrize("lost", [1, 2, 4])
def test_single_losses_are_no_congestion(lost: int) -> None:
    path = Path()
    while path.round() < 80:
        pass
    before = path.window.congestion_window
    assert path.round(lost=lost) * SIZE >= before
    assert path.window.bytes_in_flight == 0


def test_a_tenth_lost_is_congestion() -> None:
    path = Path()
    while path.round() < 80:
        pass
    path.round()
    before = path.window.congestion_window
    path.round(lost=before // SIZE // 5)
    path.round(share=0.1)
    assert path.window.congestion_window < 0.75 * before * 2


def test_after_a_shrink_it_grows_by_a_sixteenth_a_round() -> None:
    path = Path()
    while path.round() < 80:
        pass
    path.round(lost=40)
    path.round(share=0.2)
    shrunk = path.round(share=0.2)
    path.round()
    for _ in range(11):
        path.round()
    assert 1.9 * shrunk < path.window.congestion_window // SIZE < 2.3 * shrunk


def test_a_queue_is_emptied_and_no_more_than_that() -> None:
    path = Path()
    while path.round() < 80:
        pass
    before = path.window.congestion_window
    path.round(rtt=0.075, share=0.1)
    path.round(share=0.1)
    assert path.window.congestion_window == pytest.approx(before * 0.05 / 0.075, rel=0.1)


def test_a_growing_queue_shrinks_it_but_not_below_the_first_window() -> None:
    path = Path()
    for _ in range(4):
        path.round()
    before = path.window.congestion_window
    for _ in range(30):
        path.round(rtt=0.2, share=0.4)
    assert FIRST_PACKETS * SIZE <= path.window.congestion_window < before / 8


def test_beside_a_queue_that_never_empties_it_counts_the_queue_in() -> None:
    path = Path()
    path.round()
    for _ in range(200):
        path.round(rtt=0.2)
    assert path.window.congestion_window > FIRST_PACKETS * SIZE


def test_a_window_that_was_not_used_does_not_grow() -> None:
    path = Path()
    for _ in range(20):
        path.round(share=0.3)
    assert path.window.congestion_window == FIRST_PACKETS * SIZE


def test_nothing_coming_through_leaves_two_packets() -> None:
    path = Path()
    path.round()
    path.window.on_persistent_congestion()
    assert path.window.congestion_window == LEAST_PACKETS * SIZE


def test_packets_that_count_no_more_free_the_window() -> None:
    path = Path()
    packets = [Packet(SIZE, 0.0)] * 3
    for packet in packets:
        path.window.on_packet_sent(packet=packet)
    path.window.on_packets_expired(packets=packets)
    assert path.window.get_log_data()["bytes_in_flight"] == 0
