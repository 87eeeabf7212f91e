"""The targets of the netstack can find something; test_targets.py runs them."""

from typing import Any

import pytest

from tailnet.netstack import reassembly, scoreboard, segment, udp
from tailnet.netstack.segment import ACK
from tests.fuzz import laws
from tests.fuzz.netstack_targets import TARGETS, Node


def finds(name: str) -> bool:
    return laws.finds(*TARGETS[name], 2000)


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
