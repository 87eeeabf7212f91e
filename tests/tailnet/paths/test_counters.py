"""The label set, and that a new node has counted nothing."""

from tailnet.paths.counters import Counters, Drop


def test_every_reason_is_counted_from_the_start() -> None:
    counters = Counters()
    assert counters.drops == dict.fromkeys(Drop, 0)
    assert {getattr(counters, name) for name in Counters.__slots__ if name != "drops"} == {0}


def test_labels_are_words() -> None:
    assert all(reason.value == reason.name.lower() for reason in Drop)
