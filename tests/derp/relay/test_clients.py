"""Connections and keys as values: what watchers are told of them, who is active, who heard from whom."""

from typing import Any

import pytest

from derp.protocol.frames import PeerPresentFlags
from derp.relay.clients import Client, Member
from tests.derp.relay.world import key


def connection(name: str = "a", **flags: Any) -> Client:
    return Client(key(name), 1, None, 0.0, **flags)


@pytest.mark.parametrize(
    ("settings", "flags"),
    [
        ({}, PeerPresentFlags.REGULAR),
        ({"is_ideal": True, "can_ack_pings": True}, PeerPresentFlags.REGULAR),
        ({"is_mesh_peer": True}, PeerPresentFlags.MESH_PEER),
        ({"is_prober": True}, PeerPresentFlags.PROBER),
        ({"is_ideal": False}, PeerPresentFlags.NOT_IDEAL),
        ({"is_mesh_peer": True, "is_prober": True, "is_ideal": False}, 14),
    ],
)
def test_flags_say_regular_only_of_regular_clients(settings: dict[str, Any], flags: int) -> None:
    assert connection(**settings).flags == flags


def test_the_last_of_the_connections_is_active() -> None:
    member = Member(key("a"))
    assert member.active is None
    member.connections += [connection(), second := connection()]
    assert member.active is second


def test_remembering_is_mutual_and_costs_nothing_before() -> None:
    member, receiver = Member(key("a")), connection("b")
    assert (member.sent_to, receiver.heard_from) == (None, None)
    member.remember(receiver)
    member.remember(receiver)
    assert (member.sent_to, receiver.heard_from) == ({receiver}, {member})


def test_notices_of_absence_are_three_and_then_one_a_second() -> None:
    client = connection()
    assert [client.may_tell_not_here(10.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert [client.may_tell_not_here(10.0 + tenths / 10) for tenths in range(1, 31)].count(True) == 3
    assert not client.may_tell_not_here(13.5)
    assert [client.may_tell_not_here(1e6) for _ in range(5)] == [True] * 3 + [False] * 2
