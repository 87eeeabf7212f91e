"""SACK and RACK on a table of segments."""

from hypothesis import given
from hypothesis import strategies as st

from tailnet.netstack.scoreboard import DELIVERED, LOST, UNDER_WAY, Scoreboard

BASE = 1 << 32
SIZE = 100


def board(count: int, gap: float = 0.001) -> Scoreboard:
    """So many segments of 100 bytes, sent one after the other from time 0 on."""
    made = Scoreboard(BASE)
    for number in range(count):
        made.add(bytes(SIZE), False, number * gap)
    return made


def wire(*blocks: tuple[int, int]) -> list[tuple[int, int]]:
    """Blocks of segments by their numbers, as they stand on the wire."""
    return [((BASE + a * SIZE) & 0xFFFFFFFF, (BASE + b * SIZE) & 0xFFFFFFFF) for a, b in blocks]


def states(scoreboard: Scoreboard) -> str:
    return "".join(".LD"[sent.state] for sent in scoreboard._segments[scoreboard._head :])


def test_acknowledgements() -> None:
    sent = board(5)
    assert (sent.pipe, sent.flight, sent.count) == (500, 500, 5)
    sent.on_ack(BASE + 250, (), 0.1)
    assert (sent.una - BASE, sent.pipe, sent.delivered, sent.count) == (250, 300, 200, 3)
    assert sent.sample == 0.1
    assert sent.newest == 0.1 - 0.001
    sent.on_ack(BASE + 500, (), 0.2)
    assert sent.is_empty
    assert sent.pipe == 0


def test_what_arrived_is_not_kept() -> None:
    """Else a silent connection holds 127 segments of 1,220 bytes for as long as it lives."""
    sent = board(100)
    sent.on_ack(BASE + 99 * SIZE, (), 0.1)
    assert sent.count == 1
    sent.on_ack(BASE + 100 * SIZE, (), 0.2)
    assert sent._segments == []
    sent.detect_losses(0.2, 0.1)
    assert not sent._by_time


def test_sack_marks_whole_segments_once() -> None:
    sent = board(8)
    sent.on_ack(BASE, wire((2, 4)), 0.1)
    assert states(sent) == "..DD...."
    assert (sent.delivered, sent.pipe, sent.sacked_count) == (200, 600, 2)
    sent.on_ack(BASE, wire((6, 7), (2, 4)), 0.1)
    assert states(sent) == "..DD..D."
    assert sent.delivered == 100
    sent.on_ack(BASE, wire((2, 7)), 0.1)
    assert states(sent) == "..DDDDD."
    assert (sent.delivered, sent.pipe) == (200, 300)
    sent.on_ack(BASE + 300, wire((2, 7)), 0.1)
    assert states(sent) == "DDDD."


def test_a_block_that_ends_within_a_segment() -> None:
    sent = board(4)
    sent.on_ack(BASE, [(BASE + 150 & 0xFFFFFFFF, BASE + 350 & 0xFFFFFFFF)], 0.1)
    assert states(sent) == "..D."
    sent.on_ack(BASE, wire((1, 4)), 0.1)
    assert states(sent) == ".DDD"


def test_a_block_without_the_fin_that_came_with_its_bytes() -> None:
    sent = board(2)
    sent.add(bytes(SIZE), True, 0.0)
    sent.on_ack(BASE, wire((1, 3)), 0.1)
    assert states(sent) == ".DD"


def test_lies_are_counted_and_change_nothing() -> None:
    sent = board(4)
    for block in [(6, 8), (3, 9), (3, 3), (3, 2)]:
        sent.on_ack(BASE, wire(block), 0.1)
    assert states(sent) == "...."
    assert sent.bad_blocks == 4


def test_a_duplicate_report() -> None:
    sent = board(4)
    sent.on_ack(BASE + 200, wire((0, 1)), 0.1)
    assert sent.duplicate_reports == 1
    sent.on_ack(BASE + 200, wire((3, 4)), 0.1)
    sent.on_ack(BASE + 200, wire((3, 4), (3, 4)), 0.1)
    assert sent.duplicate_reports == 2
    assert sent.bad_blocks == 0


def test_rack_finds_what_was_sent_before_what_arrived() -> None:
    sent = board(6, gap=0.002)
    sent.on_ack(BASE, wire((3, 6)), 0.1)
    window = sent.reordering_window(0.1, in_recovery=False)
    assert window == 0.0, "three segments arrived, and never anything out of order"
    assert sent.detect_losses(0.1, window) is None
    assert states(sent) == "LLLDDD"
    assert sent.pipe == 0
    first = sent.first_lost()
    assert first is not None
    assert first.start == BASE
    sent.resend(first, 0.1)
    assert states(sent) == ".LLDDD"
    assert sent.pipe == 100


def test_rack_waits_a_quarter_of_the_round_trip() -> None:
    sent = board(3, gap=0.0)
    sent.on_ack(BASE, wire((2, 3)), 0.100)
    window = sent.reordering_window(0.1, in_recovery=False)
    assert window == 0.025
    assert sent.detect_losses(0.100, window) == 0.125
    assert states(sent) == "..D"
    assert sent.detect_losses(0.125, window) is None
    assert states(sent) == "LLD"


def test_a_lost_retransmission_is_found() -> None:
    sent = board(10)
    sent.on_ack(BASE, wire((1, 4)), 0.1)
    sent.detect_losses(0.1, 0.0)
    lost = sent.first_lost()
    assert lost is not None
    sent.resend(lost, 0.1)
    sent.on_ack(BASE, wire((1, 10)), 0.11)
    assert sent.detect_losses(0.11, 0.0) is None, "they were sent before it"
    sent.add(bytes(SIZE), False, 0.12)
    sent.on_ack(BASE, wire((1, 11)), 0.22)
    sent.detect_losses(0.22, 0.0)
    assert states(sent) == "L" + 10 * "D"


def test_nobody_knows_which_transmission_was_acknowledged() -> None:
    """Karn: no round trip of it; and an answer sooner than any before is the first transmission's (RFC 8985 6.2)."""
    sent = board(3)
    sent.min_rtt = 0.05
    sent.lose_all()
    lost = sent.first_lost()
    assert lost is not None
    sent.resend(lost, 0.2)
    sent.on_ack(BASE + SIZE, (), 0.21)
    assert (sent.sample, sent.newest, sent.min_rtt) == (None, None, 0.05)
    assert sent._rack_sent_at < 0
    lost = sent.first_lost()
    assert lost is not None
    sent.resend(lost, 0.3)
    sent.on_ack(BASE + 2 * SIZE, (), 0.36)
    assert sent.sample is None
    assert sent._rack_sent_at == 0.3


def test_reordering_makes_patient() -> None:
    sent = board(6)
    sent.on_ack(BASE, wire((4, 5)), 0.100)
    assert not sent.reordering_seen
    sent.on_ack(BASE, wire((1, 2), (4, 5)), 0.101)
    assert sent.reordering_seen
    sent.on_ack(BASE, wire((1, 5)), 0.101)
    assert sent.reordering_window(1.0, in_recovery=True) > 0
    before = sent.reordering_window(1.0, in_recovery=True)
    sent.widen_reordering()
    assert sent.reordering_window(1.0, in_recovery=True) == 0.5, "now of the mean round trip"
    sent.widen_reordering()
    assert sent.reordering_window(1.0, in_recovery=True) == 0.5, "one step in a round trip"
    for _ in range(16):
        sent.end_recovery()
    assert sent.reordering_window(1.0, in_recovery=True) == before


def test_a_time_out_loses_everything_and_a_liar_everything_he_said() -> None:
    sent = board(4)
    sent.on_ack(BASE, wire((1, 2)), 0.1)
    sent.lose_all()
    assert states(sent) == "LDLL"
    assert sent.pipe == 0
    reneging = board(3)
    reneging.on_ack(BASE, wire((1, 2)), 0.1)
    reneging.on_ack(BASE + 100, (), 0.2)
    reneging.lose_all()
    assert states(reneging) == "LL"
    assert reneging.sacked_count == 0


def test_without_sack_the_first_is_lost() -> None:
    sent = board(3)
    assert sent.lose_first()
    assert not sent.lose_first()
    assert states(sent) == "L.."


def test_segments_are_cut_anew() -> None:
    sent = Scoreboard(BASE)
    sent.add(bytes(range(250)), True, 0.0)
    sent.add(bytes(50), False, 0.0)
    sent.recut(100)
    pieces = sent._segments
    assert [(p.start - BASE, p.end - BASE, p.fin) for p in pieces] == [
        (0, 100, False),
        (100, 200, False),
        (200, 251, True),
        (251, 301, False),
    ]
    assert b"".join(p.payload for p in pieces[:3]) == bytes(range(250))
    assert sent.pipe == 0
    assert states(sent) == "LLLL"


ACTIONS = st.lists(
    st.tuples(st.sampled_from("asdxrt"), st.integers(0, 30), st.integers(1, 30), st.floats(0, 0.1)), max_size=80
)


@given(ACTIONS)
def test_the_pipe_is_always_what_is_under_way(actions: list[tuple[str, int, int, float]]) -> None:
    """Whatever a peer says, the sums are those of the table."""
    sent = board(3)
    now = 0.01
    for kind, first, size, wait in actions:
        now += wait
        if kind == "a":
            sent.on_ack(
                min(BASE + first * SIZE + size, sent.nxt) if first * SIZE + BASE >= sent.una else sent.una, (), now
            )
        elif kind == "s":
            sent.on_ack(sent.una, wire((first, first + size), (size, size + first)), now)
        elif kind == "d":
            sent.detect_losses(now, size / 1000)
        elif kind == "x":
            sent.add(bytes(SIZE), False, now)
        elif kind == "t":
            sent.lose_all()
        elif (lost := sent.first_lost() or sent.last()) is not None:
            sent.resend(lost, now)
        held = sent._segments[sent._head :]
        assert sent.pipe == sum(each.end - each.start for each in held if each.state == UNDER_WAY)
        assert sent.sacked_count == sum(each.state == DELIVERED for each in held)
        under_way = [each for each in sent._by_time if each.state == UNDER_WAY]
        assert len(under_way) == len(set(map(id, under_way))) == sum(each.state == UNDER_WAY for each in held)
        lost_now = sent.first_lost()
        assert lost_now is next((each for each in held if each.state == LOST), None)
        assert sent._sacked_starts == sorted(sent._sacked_starts)
