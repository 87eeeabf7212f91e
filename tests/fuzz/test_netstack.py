"""A short run of every target of the netstack; for a longer one give the last test more numbers."""

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailnet.netstack import reassembly, scoreboard, segment, udp
from tests.fuzz.derp_targets import mutate
from tests.fuzz.netstack_targets import ACK, TARGETS, Node

EXAMPLES = 100
MUTATIONS = 250


@pytest.mark.parametrize("name", TARGETS)
def test_changed_seeds_obey_the_law(name: str) -> None:
    target, seeds = TARGETS[name]
    numbers = random.Random(name)
    for seed in seeds:
        target(seed)
    for _ in range(MUTATIONS):
        target(mutate(numbers, seeds))


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_obey_the_law(name: str) -> None:
    target, seeds = TARGETS[name]

    @settings(derandomize=True, max_examples=EXAMPLES, database=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.one_of(st.binary(max_size=200), st.sampled_from(seeds).flatmap(lambda s: st.binary().map(s.__add__))))
    def run(data: bytes) -> None:
        target(data)

    run()


# --- the targets can find something ---


def finds(name: str) -> bool:
    target, seeds = TARGETS[name]
    numbers = random.Random(1)
    for _ in range(2000):
        try:
            target(mutate(numbers, seeds))
        except Exception:
            return True
    return False


def test_a_forgotten_length_check_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "parse", lambda datagram: (*udp.HEADER.unpack_from(datagram)[:2], bytes(datagram[8:])))
    assert finds("codecs")


def test_options_that_run_over_their_end_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(options: Any) -> list[tuple[int, int]]:
        return list(segment._BLOCK.iter_unpack(bytes(options)))

    monkeypatch.setattr(segment, "parse_sack", careless)
    assert finds("codecs")


def test_pieces_without_a_bound_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = reassembly.Reassembly.__init__

    def boundless(self: reassembly.Reassembly, nxt: int, max_pieces: int) -> None:
        original(self, nxt, 1 << 30)

    monkeypatch.setattr(reassembly.Reassembly, "__init__", boundless)
    node = Node()
    for gap in range(2, 40, 2):
        node.stack.receive_packets([node.writer.build(1 + gap, node.ours, ACK, 1000, b"x")], node.now)
    with pytest.raises(AssertionError):
        node.check()


def test_a_pipe_that_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = scoreboard.Scoreboard.resend

    def forgets(self: scoreboard.Scoreboard, sent: scoreboard.Sent, now: float) -> None:
        original(self, sent, now)
        self.pipe += 1

    monkeypatch.setattr(scoreboard.Scoreboard, "resend", forgets)
    assert finds("segments")
