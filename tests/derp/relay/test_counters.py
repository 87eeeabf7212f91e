"""The relay's totals: all there from the start, drops kept by reason and kind."""

from derp.relay.counters import CloseReason, Counters, DropReason, PacketKind


def test_everything_starts_at_zero() -> None:
    counters = Counters()
    for name in Counters.__slots__:
        value = getattr(counters, name)
        assert value == 0 or set(value) == {0}, name
    assert len(counters.packets_dropped) == len(counters.bytes_dropped) == len(DropReason) * len(PacketKind)


def test_drops_are_kept_by_reason_and_kind() -> None:
    counters = Counters()
    for number, reason in enumerate(DropReason):
        counters.drop(reason, PacketKind.OTHER, 1 + number, 100 * (1 + number))
        counters.drop(reason, PacketKind.DISCO, 10, 5)
    assert [counters.dropped(reason) for reason in DropReason] == [11 + number for number in range(7)]
    assert counters.packets_dropped[2 * DropReason.QUEUE_HEAD + PacketKind.OTHER] == 4
    assert counters.bytes_dropped[2 * DropReason.QUEUE_HEAD + PacketKind.OTHER] == 400
    assert counters.bytes_dropped[2 * DropReason.QUEUE_HEAD + PacketKind.DISCO] == 5


def test_reasons_have_the_names_that_dashboards_read() -> None:
    names = "unknown_dest unknown_dest_on_fwd gone_disconnected queue_head queue_tail write_error dup_client"
    assert " ".join(reason.name.lower() for reason in DropReason) == names
    assert [kind.name.lower() for kind in PacketKind] == ["other", "disco"]
    assert all(reason.value == reason.name.lower() for reason in CloseReason)
