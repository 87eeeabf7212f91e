"""The flags of events."""

from tailnet.netstack.events import End, What


def test_flags_are_bits_of_their_own() -> None:
    assert sum(What) == (1 << len(What)) - 1


def test_every_end_is_a_sentence() -> None:
    assert all(end.value.islower() or end.value[0].islower() for end in End)
    assert len({end.value for end in End}) == len(End)
