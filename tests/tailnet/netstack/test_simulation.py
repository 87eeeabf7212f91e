"""Two stacks over bad links in virtual time: the streams are equal, nothing stalls, little is sent twice."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailnet.netstack.connection import Connection
from tailnet.netstack.limits import Limits
from tailnet.netstack.states import State
from tests.support.netsim import ADDRESSES, START, Link, Simulation, Stream


def transfer(simulation: Simulation, size: int, seconds: float = 600) -> Stream:
    """So many bytes from side 0 to side 1; they arrive as they were."""
    source, target = simulation.pair()
    data = simulation.random.randbytes(size)
    stream = Stream(simulation, source, target, data)
    simulation.run(seconds, lambda: stream.is_done)
    assert bytes(stream.got) == data, f"{len(stream.got)} of {size} bytes"
    assert stream.is_done
    return stream


def rate(simulation: Simulation, size: int) -> float:
    """Mbit/s of a transfer."""
    source, target = simulation.pair()
    began = simulation.now
    stream = Stream(simulation, source, target, bytes(size))
    simulation.run(600, lambda: stream.is_done)
    assert stream.is_done
    return size * 8 / (simulation.now - began) / 1e6


LINKS = st.builds(
    Link,
    delay=st.floats(0, 0.1),
    jitter=st.sampled_from([0.0, 0.0, 0.001, 0.02]),
    loss=st.sampled_from([0.0, 0.0, 0.005, 0.02, 0.1]),
    duplication=st.sampled_from([0.0, 0.0, 0.02]),
    rate=st.sampled_from([0.0, 1e5, 1e6, 1e7]),
    queue=st.sampled_from([8, 32, 512]),
    drop_head=st.booleans(),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(forward=LINKS, backward=LINKS, seed=st.integers(0, 1 << 30), size=st.integers(1, 150_000))
def test_streams_are_equal_over_any_link(forward: Link, backward: Link, seed: int, size: int) -> None:
    simulation = Simulation(seed, forward, backward)
    stream = transfer(simulation, size)
    # One retransmission time-out and its successors at the worst; at a tenth lost four of them in a row happen.
    assert stream.longest_stall < 40
    sent = simulation.stacks[0].counters
    needed = size / 1220 + 1
    # As many again at the worst: where a way shuffles by ten round trips, until duplicates have told of it.
    assert sent.retransmissions <= 6 + needed + 2 * (forward.lost + backward.lost + forward.overflowed)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(link=LINKS, seed=st.integers(0, 1 << 30), sizes=st.tuples(st.integers(0, 60_000), st.integers(0, 60_000)))
def test_both_directions_at_once_and_both_close(link: Link, seed: int, sizes: tuple[int, int]) -> None:
    simulation = Simulation(seed, link, Link(delay=link.delay, loss=link.loss))
    one, other = simulation.pair()
    there = Stream(simulation, one, other, simulation.random.randbytes(sizes[0]))
    back = Stream(simulation, other, one, simulation.random.randbytes(sizes[1]))
    simulation.run(600, lambda: there.is_done and back.is_done)
    assert (bytes(there.got), bytes(back.got)) == (there.data, back.data)
    simulation.run(400)
    assert one.state is other.state is State.CLOSED
    assert [stack.connection_count for stack in simulation.stacks] == [0, 0]


@pytest.mark.parametrize("seed", range(8))
def test_each_loss_costs_one_retransmission(seed: int) -> None:
    """Without reordering RACK never sends twice what was not lost."""
    simulation = Simulation(seed, Link(0.01, loss=0.01), Link(0.01))
    transfer(simulation, 2_000_000)
    counters = simulation.stacks[0].counters
    assert simulation.links[0].lost >= 5
    assert counters.retransmissions <= simulation.links[0].lost + counters.tail_probes
    assert simulation.stacks[1].counters.duplicate_bytes <= 1220 * counters.tail_probes
    assert counters.rtos == 0


@pytest.mark.parametrize("seed", range(4))
def test_reordering_is_no_loss(seed: int) -> None:
    simulation = Simulation(seed, Link(0.02, jitter=0.004), Link(0.02, jitter=0.004))
    transfer(simulation, 3_000_000)
    counters = simulation.stacks[0].counters
    assert counters.retransmissions <= 0.02 * counters.segments_sent
    assert counters.rtos == 0


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_a_way_that_shuffles_more_than_it_delays(seed: int) -> None:
    """Round trips of 0 to 20 ms by chance, 1,640 segments.  A patience of the smallest one sent up to 8,000 twice."""
    simulation = Simulation(seed, Link(0.0, jitter=0.02, rate=1e7, queue=512), Link(0.0, rate=1e7))
    transfer(simulation, 2_000_000)
    assert simulation.stacks[0].counters.retransmissions < 1640


def test_a_full_queue_does_not_stall() -> None:
    """A relay's queue of 32, of which the oldest is dropped, at 100 Mbit/s."""
    simulation = Simulation(1, Link(0.0005, rate=12.5e6, queue=32, drop_head=True), Link(0.0005))
    stream = transfer(simulation, 10_000_000)
    counters = simulation.stacks[0].counters
    assert stream.longest_stall < 0.05
    assert counters.rtos == 0
    assert counters.retransmissions < 0.02 * counters.segments_sent


@pytest.mark.parametrize(("delay", "least"), [(0.0, 200), (0.010, 100), (0.025, 80)])
def test_without_loss_the_window_opens(delay: float, least: float) -> None:
    """10 MB with slow start; without loss nothing but windows of 4 MiB limits."""
    simulation = Simulation(1, Link(delay, rate=125e6), Link(delay, rate=125e6))
    assert rate(simulation, 10_000_000) > least


# What CUBIC keeps under random loss (RFC 9438 section 5.1): the larger of its own and of Reno's with alpha 0.529 and
# beta 0.7, whose window is sqrt(alpha (1 + beta) / (2 (1 - beta) p)), which is that of Reno itself.
@pytest.mark.parametrize(("delay", "loss"), [(0.010, 0.005), (0.010, 0.01), (0.025, 0.005), (0.025, 0.01)])
def test_under_loss_it_keeps_what_cubic_keeps(delay: float, loss: float) -> None:
    rtt = 2 * delay
    cubic = 1.054 * (rtt / loss) ** 0.75
    reno = (1.5 / loss) ** 0.5
    expected = max(cubic, reno) * 1220 * 8 / rtt / 1e6
    rates = []
    for seed in range(4):
        simulation = Simulation(seed, Link(delay, loss=loss), Link(delay))
        rates.append(rate(simulation, 3_000_000))
    assert sum(rates) / len(rates) >= 0.8 * expected


def test_a_reader_that_pauses_and_goes_on() -> None:
    simulation = Simulation(1, Link(0.01), Link(0.01))
    source, target = simulation.pair()
    stream = Stream(simulation, source, target, simulation.random.randbytes(2_000_000))
    stream.paused = True
    simulation.run(300)
    assert source.sender.window == 0
    assert target.readable_bytes >= 512 * 1024 - 2 * 1220
    probes = simulation.stacks[0].counters.probes
    assert 5 < probes < 15
    stream.paused = False
    stream.read()
    simulation.run(60, lambda: stream.is_done)
    assert bytes(stream.got) == stream.data


def test_a_reader_that_goes_on_while_the_news_of_it_is_lost() -> None:
    """The window's opening is a segment that nobody sends again: the probe finds it."""
    simulation = Simulation(1, Link(0.01), Link(0.01))
    source, target = simulation.pair()
    stream = Stream(simulation, source, target, simulation.random.randbytes(2_000_000))
    stream.paused = True
    simulation.run(10)
    simulation.links[1].outages.append((simulation.now, simulation.now + 0.1))
    stream.paused = False
    stream.read()
    simulation.run(30, lambda: stream.is_done)
    assert bytes(stream.got) == stream.data


@pytest.mark.parametrize("outage", [0.3, 3.0, 20.0])
def test_an_outage_ends_soon_after_the_way_is_back(outage: float) -> None:
    simulation = Simulation(1, Link(0.01), Link(0.01))
    source, target = simulation.pair()
    stream = Stream(simulation, source, target, simulation.random.randbytes(5_000_000))
    simulation.run(0.1)
    for link in simulation.links:
        link.outages.append((simulation.now, simulation.now + outage))
    simulation.run(200, lambda: stream.is_done)
    assert bytes(stream.got) == stream.data
    # The time-out has doubled up to the outage's length: it is over after as long again at most.
    assert stream.longest_stall < 2.2 * outage + 0.5


def test_a_peer_that_is_gone_is_given_up() -> None:
    simulation = Simulation(1, Link(0.01), Link(0.01))
    source, target = simulation.pair()
    stream = Stream(simulation, source, target, bytes(5_000_000))
    simulation.run(0.05)
    for link in simulation.links:
        link.outages.append((simulation.now, simulation.now + 1e6))
    began = simulation.now
    simulation.run(1000, lambda: source.state is State.CLOSED)
    assert 60 < simulation.now - began < 200
    assert not stream.is_done
    assert simulation.links[0].lost < 60, "it fell silent long before"


def test_two_hundred_connections_at_once() -> None:
    simulation = Simulation(1, Link(0.002, loss=0.002), Link(0.002, loss=0.002))
    listener = simulation.stacks[1].listen(80)
    sources = [simulation.stacks[0].connect(ADDRESSES[1], 80) for _ in range(200)]
    targets: dict[tuple[bytes, int], Connection] = {}

    def accepted() -> bool:
        while (target := listener.accept()) is not None:
            targets[target.remote_address, target.remote_port] = target
        return len(targets) == 200

    simulation.run(60, accepted)
    streams = []
    for source in sources:
        target = targets[source.local_address, source.local_port]
        streams.append(Stream(simulation, source, target, simulation.random.randbytes(20_000)))
    simulation.run(60, lambda: all(stream.is_done for stream in streams))
    assert all(bytes(stream.got) == stream.data for stream in streams)


def test_the_same_seed_is_the_same_history() -> None:
    def history() -> tuple[float, int, int]:
        simulation = Simulation(7, Link(0.01, loss=0.02, jitter=0.01), Link(0.01, loss=0.02))
        transfer(simulation, 300_000)
        return simulation.now, simulation.links[0].sent, simulation.links[1].sent

    assert history() == history()


def test_small_buffers_work_too() -> None:
    limits = Limits(min_receive_bytes=2000, first_receive_bytes=2000, max_receive_bytes=2000, min_send_bytes=500)
    simulation = Simulation(3, Link(0.01, loss=0.01), Link(0.01, loss=0.01), limits)
    transfer(simulation, 50_000)


@pytest.mark.parametrize(("rate", "queue"), [(20_000, 32), (20_000, 512), (50_000, 512)])
def test_a_slow_way_with_data_in_both_directions(rate: float, queue: int) -> None:
    """Acknowledgements wait for seconds behind the data beside them: hardly anything is sent for nothing."""
    simulation = Simulation(1, *(Link(delay=0.005, rate=rate, queue=queue) for _ in range(2)))
    here, there = simulation.pair()
    data = bytes(400_000)
    streams = Stream(simulation, here, there, data), Stream(simulation, there, here, data)
    simulation.run(600, lambda: all(stream.is_done for stream in streams))
    assert all(stream.is_done for stream in streams)
    assert simulation.now - START < 1.3 * len(data) / rate
    retransmissions = sum(stack.counters.retransmissions for stack in simulation.stacks)
    overflowed = sum(link.overflowed for link in simulation.links)
    assert retransmissions - overflowed < 0.1 * sum(stack.counters.segments_sent for stack in simulation.stacks)


def test_a_pause_of_the_way_is_no_congestion() -> None:
    """Everything is late at once, and the time-out passes: the duplicates tell that nothing had been lost."""
    simulation = Simulation(1, Link(0.01, rate=12.5e6), Link(0.01))
    source, target = simulation.pair()
    stream = Stream(simulation, source, target, simulation.random.randbytes(9_000_000))
    simulation.run(0.2)
    before = source.sender.cubic.cwnd
    for link in simulation.links:
        link.delay = 0.15
    simulation.run(0.02)
    for link in simulation.links:
        link.delay = 0.01
    simulation.run(60, lambda: stream.is_done)
    counters = simulation.stacks[0].counters
    assert bytes(stream.got) == stream.data
    assert counters.spurious_recoveries >= 1
    assert source.sender.cubic.ssthresh >= before
    assert simulation.links[0].lost == 0
