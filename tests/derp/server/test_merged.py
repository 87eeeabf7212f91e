from dataclasses import fields, replace
from typing import Any

import msgpack

from derp.metrics import MeshReading, RelayStatistics, SelfCheckReading, TenantReading, metrics_page
from derp.relay.clients import Client
from derp.relay.counters import Counters, DropReason, Histogram
from derp.relay.load import LoadReading
from derp.server.merged import ClientElsewhere, merge, row_of, take_apart


def reading(number: int) -> RelayStatistics:
    """Every number of it is this one, in whatever type it has."""
    counters = Counters()
    for name in Counters.__slots__:
        value = getattr(counters, name)
        if isinstance(value, Histogram):
            value.observe(number)
            value.observe(10_000)
        elif isinstance(value, list):
            setattr(counters, name, [number] * len(value))
        else:
            setattr(counters, name, number)
    values: dict[str, Any] = {each.name: number for each in fields(RelayStatistics)}
    values |= {
        "counters": counters,
        "in_trios_place": True,
        "mesh": (MeshReading("b.example", number > 1, number, number),),
        "self_check": SelfCheckReading({"path": number > 1}, number, number, float(number)),
        "load": LoadReading(**{each.name: float(number) for each in fields(LoadReading)}),
        "tenants": {"acme": TenantReading(float(number), number, number, {"node": number}, number, float(number))},
    }
    mappings = ("rejected", "closed", "stun", "stun_family", "key_sets", "questions", "bootstrap")
    for name in (
        *mappings,
        "quic",
        "quic_dropped",
        "tls_requests",
        "health_texts",
        "tls_active",
        "quota_acts",
        "quota_over_bytes",
    ):
        values[name] = {"one": number, f"of {number}": 1}
    return RelayStatistics(**values)


def test_what_was_taken_apart_and_carried_is_put_together_again() -> None:
    one = reading(7)

    carried = msgpack.unpackb(msgpack.packb(take_apart(one)))

    assert take_apart(merge(one, [])) == carried == take_apart(one)
    assert merge(one, [carried]).counters.written_frames.count == 4


def test_counts_are_added_and_what_is_no_count_is_not() -> None:
    merged = merge(reading(1), [take_apart(reading(5))])

    assert merged.accepted == merged.connections == merged.counters.packets_received == 6
    assert merged.counters.packets_dropped == [6] * len(merged.counters.packets_dropped)
    assert merged.counters.written_frames.count == 4
    assert merged.counters.written_frames.total == 20_006
    assert merged.closed == {"one": 6, "of 1": 1, "of 5": 1}
    assert merged.clients_remote == 5
    assert merged.certificate_expires_at == 1
    assert merged.rate_bytes_per_second == 5
    assert merged.in_trios_place is True
    assert merged.mesh == (MeshReading("b.example", True, 6, 5),)
    assert merged.tenants == {"acme": TenantReading(5.0, 5, 6, {"node": 6}, 6, 5.0)}
    assert merged.self_check == SelfCheckReading({"path": True}, 6, 6, 5.0)
    assert merged.load is not None
    assert set(merged.load.shares.values()) == {5.0}, "the fullest worker counts"
    assert (merged.load.bytes_per_second, merged.load.packets_per_second) == (6.0, 6.0)


def test_what_one_worker_has_not_is_as_the_others_have_it() -> None:
    without = replace(reading(1), self_check=None, certificate_expires_at=None, mesh=())

    merged = merge(without, [take_apart(reading(5))])

    assert merged.certificate_expires_at == 5
    assert merged.mesh == (MeshReading("b.example", True, 5, 5),)
    assert merged.self_check is not None


def shown(read: RelayStatistics) -> bytes:
    return metrics_page(lambda: read)()


def parts_of(taken: dict[str, Any]) -> list[dict[str, Any]]:
    """Those in which names are our own words."""
    return [taken, taken["counters"], taken["self_check"], taken["load"], taken["tenants"]["acme"],
            taken["mesh"]["b.example"]]  # fmt: skip


def test_what_only_a_newer_worker_knows_is_left_out() -> None:
    newer = take_apart(reading(5))
    for part in parts_of(newer):
        part |= {"a_count": 7, "a_list": [1, 2], "a_part": {"a_count": 7}}
    newer["counters"]["packets_dropped"] += [5, 5]
    newer["counters"]["written_frames"]["bounds"].append(1_000)
    newer["counters"]["written_frames"]["seen"] += [0] * 900
    newer["stun"], newer["accepted"] = 5, {"ipv4": 5}  # and says otherwise what we know

    for own in (reading(1), replace(reading(1), mesh=(), tenants={}, self_check=None, load=None)):
        merged = merge(own, [newer])
        assert merged.connections == merged.counters.got_ping == 6
        assert merged.counters.packets_dropped[:-2] == [6] * 2 * len(DropReason)
        assert merged.counters.written_frames.total == 20_006
        assert (merged.stun, merged.accepted) == (own.stun, own.accepted)
        assert b"derp_clients 6.0" in shown(merged)


def test_what_an_older_worker_does_not_know_is_zero() -> None:
    older = take_apart(reading(5))
    for part in parts_of(older):
        for name in list(part)[-3:]:
            del part[name]
    older["mesh"] = {"b.example": {}}
    older["counters"]["packets_dropped"] = [5, 5]

    for own in (reading(1), replace(reading(1), mesh=(), tenants={}, self_check=None, load=None)):
        merged = merge(own, [older])
        assert merged.connections == merged.counters.got_ping == 6
        assert merged.counters.packets_dropped[:3] == [6, 6, 1]
        assert merged.tls_active == own.tls_active
        assert b"derp_clients 6.0" in shown(merged)


def test_a_connection_is_shown_as_its_own_worker_shows_it() -> None:
    client = Client(b"k" * 32, 7, None, 3.5, address="192.0.2.1", port=9, is_prober=True, app_name="app")
    client.bytes_in = 1 << 40

    again = ClientElsewhere(msgpack.unpackb(msgpack.packb(row_of(client, 4.0))))

    assert row_of(again, 4.0) == row_of(client, 4.0)
    assert (again.key, again.number, again.queue) == (b"k" * 32, 7, None)


def test_a_connection_of_an_older_worker_is_shown_without_what_that_one_does_not_tell() -> None:
    row = {"key": b"k" * 32, "number": 7, "connected_at": 3.5, "address": "192.0.2.1", "queue": (1, 2, 3, 4.5, "more")}

    shown = row_of(ClientElsewhere(row), 4.0)

    assert shown == row_of(Client(b"k" * 32, 7, None, 3.5, address="192.0.2.1"), 4.0) | {"queue": (1, 2, 3, 4.5)}
