from dataclasses import fields, replace
from typing import Any

import msgpack

from derp.metrics import MeshReading, RelayStatistics, SelfCheckReading, TenantReading
from derp.relay.clients import Client
from derp.relay.counters import Counters, Histogram
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
    for name in (*mappings, "tls_requests", "health_texts", "tls_active", "quota_acts", "quota_over_bytes"):
        values[name] = {"one": number, f"of {number}": 1}
    return RelayStatistics(**values)


def test_what_was_taken_apart_and_carried_is_put_together_again() -> None:
    one = reading(7)

    carried = msgpack.unpackb(msgpack.packb(take_apart(one)))
    again = merge([carried])

    assert take_apart(again) == take_apart(one)
    assert again.counters.written_frames.count == 2


def test_counts_are_added_and_what_is_no_count_is_not() -> None:
    merged = merge([take_apart(reading(1)), take_apart(reading(5))])

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

    merged = merge([take_apart(without), take_apart(reading(5))])

    assert merged.certificate_expires_at == 5
    assert merged.mesh == (MeshReading("b.example", True, 5, 5),)
    assert merged.self_check is not None


def test_a_connection_is_shown_as_its_own_worker_shows_it() -> None:
    client = Client(b"k" * 32, 7, None, 3.5, address="192.0.2.1", port=9, is_prober=True, app_name="app")
    client.bytes_in = 1 << 40

    again = ClientElsewhere(msgpack.unpackb(msgpack.packb(row_of(client, 4.0))))

    assert row_of(again, 4.0) == row_of(client, 4.0)
    assert (again.key, again.number, again.queue) == (b"k" * 32, 7, None)
