"""Bursts, turns and dials of one peer, on real connections of a stack."""

from tailnet.netstack.limits import Limits
from tailnet.netstack.stack import Stack
from tests.support.netsim import ADDRESSES, Link, Simulation, Stream

A, B = ADDRESSES


def lengths(simulation: Simulation) -> list[tuple[float, int, int]]:
    """(when, from which port, how long) of each packet of side 0, from now on."""
    seen: list[tuple[float, int, int]] = []

    def tap(side: int, packet: bytes) -> bytes:
        if side == 0:
            seen.append((simulation.now, int.from_bytes(packet[40:42], "big"), len(packet)))
        return packet

    simulation.tap = tap
    return seen


def test_no_burst_is_longer_than_the_quantum() -> None:
    simulation = Simulation(forward=Link(0.01), backward=Link(0.01))
    source, target = simulation.pair()
    seen = lengths(simulation)
    stream = Stream(simulation, source, target, bytes(2_000_000))
    simulation.run(60, lambda: stream.is_done)
    at_once: dict[float, int] = {}
    for at, _, size in seen:
        if size > 60:
            at_once[at] = at_once.get(at, 0) + 1
    assert max(at_once.values()) == 16
    times = sorted(at_once)
    # A queue of 32 that is served at the peer's pace is never full: two bursts are never closer than the pace.
    assert sum(at_once[at] for at in times if at < times[0] + 0.0005) <= 17


def test_a_direct_way_takes_more() -> None:
    simulation = Simulation(forward=Link(0.01), backward=Link(0.01))
    simulation.stacks[0].set_burst(B, 44)
    source, target = simulation.pair()
    seen = lengths(simulation)
    stream = Stream(simulation, source, target, bytes(2_000_000))
    simulation.run(60, lambda: stream.is_done)
    assert max(sum(at == each for each, _, size in seen if size > 60) for at in {at for at, _, _ in seen}) > 16


def test_connections_take_turns() -> None:
    simulation = Simulation(forward=Link(0.005), backward=Link(0.005))
    listener = simulation.stacks[1].listen(80)
    pairs = [simulation.dial(listener) for _ in range(4)]
    running = [Stream(simulation, source, target, bytes(1_000_000)) for source, target in pairs]
    simulation.run(60, lambda: any(stream.is_done for stream in running))
    assert min(len(stream.got) for stream in running) > 500_000


def test_dials_are_bounded_and_all_answered() -> None:
    """200 at once through a queue of 32 cost no retransmission."""
    simulation = Simulation(
        forward=Link(0.001, rate=4e6, queue=32, drop_head=True),
        backward=Link(0.001, rate=4e6, queue=32, drop_head=True),
    )
    simulation.stacks[1].listen(80)
    dials = [simulation.stacks[0].connect(B, 80) for _ in range(200)]
    simulation.run(5, lambda: all(dial.sender.window for dial in dials))
    assert all(dial.sender.window for dial in dials)
    assert simulation.links[0].overflowed == simulation.links[1].overflowed == 0
    assert simulation.now - 1000 < 0.5


def test_a_dial_that_is_given_up_makes_room() -> None:
    stack = Stack([A], bytes, 0.0, Limits(dials_in_flight=2))
    dials = [stack.connect(B, 80) for _ in range(4)]
    assert len(stack.packets_to_send(0.0)) == 2
    dials[0].close()
    dials[3].close()
    assert len(stack.packets_to_send(0.0)) == 1
    dials[1].abort()
    assert len(stack.packets_to_send(0.0)) == 0
