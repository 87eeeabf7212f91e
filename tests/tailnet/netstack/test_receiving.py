"""The window that is offered, and when a segment is acknowledged."""

from tailnet.netstack.limits import Limits
from tailnet.netstack.receiving import Receiver

LIMITS = Limits(min_receive_bytes=4000, first_receive_bytes=8000, max_receive_bytes=64_000)
MSS = 1000


class Memory:
    def __init__(self, left: int) -> None:
        self.left = left

    def grant(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True


def receiver(memory: int = 1 << 20) -> Receiver:
    return Receiver(0, MSS, LIMITS, Memory(memory).grant)


def test_the_window_never_moves_back() -> None:
    one = receiver()
    one.window()
    edge = one.edge
    for number in range(8):
        one.receive(1 + number * MSS, bytes(MSS), 0.0, push=False)
        one.window()
        assert one.edge >= edge
        edge = one.edge
    assert one.window() == 0


def test_a_small_opening_is_not_told() -> None:
    """Silly window syndrome: RFC 9293 section 3.8.6.2.2."""
    one = receiver()
    assert one.window() == 8000
    for number in range(8):
        one.receive(1 + number * MSS, bytes(MSS), 0.0, push=False)
    assert one.window() == 0
    one.acknowledged()
    one.read(500, 0.0, 0.0)
    assert not one.ack_now
    assert one.window() == 0
    one.read(1500, 0.0, 0.0)
    assert one.ack_now
    assert one.window() == 2000


def test_a_node_without_memory_offers_the_least() -> None:
    one = receiver(memory=100)
    assert one.buffer_bytes == 4000
    assert one.window() == 4000


def test_the_buffer_grows_with_the_reader_up_to_its_bound() -> None:
    one = receiver()
    now, at = 0.0, 1
    for _ in range(200):
        now += 0.01
        size = one.window()
        for start in range(at, at + size, MSS):
            one.receive(start, bytes(min(MSS, at + size - start)), now, push=False)
        at += size
        one.read(1 << 20, now, 0.01)
    assert one.buffer_bytes == 64_000


def test_a_slow_reader_gets_no_more() -> None:
    one = receiver()
    at = 1
    for second in range(50):
        one.receive(at, bytes(MSS), float(second), push=False)
        at += MSS
        one.read(1 << 20, float(second), 0.01)
    assert one.buffer_bytes == 8000


def test_when_an_acknowledgement_is_due() -> None:
    one = receiver()
    one.receive(1, bytes(MSS), 5.0, push=False)
    assert (one.ack_now, one.ack_at) == (False, 5.025)
    one.receive(1 + MSS, bytes(MSS), 5.01, push=False)
    assert one.ack_now, "the second segment"
    one.acknowledged()
    assert (one.ack_now, one.ack_at) == (False, None)
    one.receive(1 + 2 * MSS, bytes(10), 6.0, push=True)
    assert one.ack_now, "pushed"
    one.acknowledged()
    one.receive(5000, bytes(10), 7.0, push=False)
    assert one.ack_now, "out of order"
    one.acknowledged()
    one.receive(1 + 2 * MSS + 10, bytes(10), 7.0, push=False)
    assert one.ack_now, "before a gap"
