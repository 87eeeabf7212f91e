"""Which probes a map leads to, the first time and later."""

import pytest

from derp.map import DERPNode
from derp.netcheck.plan import (
    MAX_PORTAL_CHECKS,
    PortalCheck,
    ProbeSet,
    StunTarget,
    https_regions,
    plan_stun,
    portal_checks,
    stun_target,
)
from derp.netcheck.report import Report
from tests.derp.netcheck.maps import derp_map, node, region


def summary(sets: list[ProbeSet]) -> dict[tuple[int, int], list[tuple[str, float]]]:
    """(region, family) -> (node, delay) of each probe."""
    return {
        (probes[0].region_id, probes[0].target.family): [(one.node, round(one.delay_seconds, 3)) for one in probes]
        for probes in sets
    }


@pytest.mark.parametrize(
    ("fields", "ipv4", "ipv6"),
    [
        ({}, ("h.example", 3478), ("h.example", 3478)),
        ({"stun_port": 5000}, ("h.example", 5000), ("h.example", 5000)),
        ({"stun_port": -1}, None, None),
        ({"stun_port": 65536}, None, None),
        ({"ipv4": "192.0.2.1"}, ("192.0.2.1", 3478), ("h.example", 3478)),
        ({"ipv4": "none"}, None, ("h.example", 3478)),
        ({"ipv4": "192.0.2.1", "ipv6": "none"}, ("192.0.2.1", 3478), None),
        ({"ipv6": "2001:db8::1"}, ("h.example", 3478), ("2001:db8::1", 3478)),
        ({"ipv4": "2001:db8::1"}, None, ("h.example", 3478)),
        ({"host_name": "192.0.2.9"}, ("192.0.2.9", 3478), None),
        ({"host_name": "2001:db8::9"}, None, ("2001:db8::9", 3478)),
        ({"host_name": ""}, None, None),
        ({"stun_test_ip": "192.0.2.7"}, ("192.0.2.7", 3478), None),
        ({"stun_test_ip": "192.0.2.7", "ipv4": "none"}, None, None),
        ({"stun_test_ip": "192.0.2.7", "ipv4": "nonsense"}, ("192.0.2.7", 3478), None),
        ({"stun_test_ip": "2001:db8::7"}, None, ("2001:db8::7", 3478)),
        ({"stun_test_ip": "nonsense"}, None, None),
    ],
)
def test_where_a_node_answers_stun(
    fields: dict[str, object], ipv4: tuple[str, int] | None, ipv6: tuple[str, int] | None
) -> None:
    asked = DERPNode(**({"host_name": "h.example"} | fields))  # type: ignore[arg-type]  # a table of fields
    assert stun_target(asked, 4) == (ipv4 and StunTarget(*ipv4, 4))
    assert stun_target(asked, 6) == (ipv6 and StunTarget(*ipv6, 6))


def test_the_first_time_every_region_gets_three_tries_over_its_nodes_in_turn() -> None:
    asked = derp_map(region(1, node(1, "a"), node(1, "b", ipv6="none")), region(2, node(2, ipv6="none")))
    expected = {
        (1, 4): [("1a", 0.0), ("1b", 0.1), ("1a", 0.2)],
        (1, 6): [("1a", 0.0), ("1a", 0.2)],
        (2, 4): [("2a", 0.0), ("2a", 0.1), ("2a", 0.2)],
    }
    assert summary(plan_stun(asked)) == expected
    # A report without any latency teaches nothing.
    assert summary(plan_stun(asked, last=Report(), home=0)) == expected


def test_regions_that_may_not_be_home_are_not_measured() -> None:
    asked = derp_map(region(1, no_measure_no_home=True), region(2, avoid=True), region(3))
    assert {one for one, _ in summary(plan_stun(asked))} == {2, 3}  # as genuine clients do with Avoid at first
    last = Report(region_seconds={2: 0.001, 3: 0.05}, region_ipv4_seconds={2: 0.001, 3: 0.05})
    assert {one for one, _ in summary(plan_stun(asked, last=last, home=3))} == {3}
    assert {one for one, _ in summary(plan_stun(asked, last=last, home=2))} == {2, 3}


def test_later_only_the_nearest_and_the_home_are_asked() -> None:
    asked = derp_map(*(region(each) for each in range(1, 7)))
    seconds = {1: 0.05, 2: 0.01, 3: 0.04, 4: 0.02, 5: 0.9}  # 6 never answered
    last = Report(region_seconds=seconds, region_ipv4_seconds=seconds, region_ipv6_seconds=seconds)
    plan = summary(plan_stun(asked, last=last, home=5))
    assert set(plan) == {(2, 4), (2, 6), (4, 4), (4, 6), (3, 4), (5, 4), (5, 6)}
    assert plan[2, 4] == [("2a", 0.0), ("2a", 0.012)]
    assert plan[3, 4] == [("3a", 0.0)]
    assert plan[5, 6] == [("5a", 0.0), ("5a", 1.08), ("5a", 2.26), ("5a", 3.39)]


def test_where_ipv6_did_not_work_it_is_tried_only_once() -> None:
    asked = derp_map(region(1), region(2), region(3))
    seconds = {1: 0.01, 2: 0.02, 3: 0.03}
    plan = summary(plan_stun(asked, last=Report(region_seconds=seconds, region_ipv4_seconds=seconds), home=1))
    assert [len(plan[1, 4]), len(plan[1, 6])] == [4, 1]
    assert [len(plan[2, 4]), len(plan[2, 6])] == [2, 1]
    assert (3, 6) not in plan


def test_a_home_without_latency_is_asked_at_the_usual_pace() -> None:
    asked = derp_map(region(1), region(2))
    plan = summary(plan_stun(asked, last=Report(region_seconds={2: 0.01}, region_ipv4_seconds={2: 0.01}), home=1))
    assert plan[1, 4] == [("1a", 0.0), ("1a", 0.2), ("1a", 0.5), ("1a", 0.75)]


def test_over_https_only_regions_that_relay() -> None:
    asked = derp_map(
        region(1, avoid=True), region(2, node(2, stun_only=True)), region(3), region(4, no_measure_no_home=True)
    )
    assert [one.region_id for one in https_regions(asked)] == [3]


def test_captive_portals_are_looked_for_at_addresses_of_port_80_the_home_first() -> None:
    def open_80(region_id: int, ipv4: str) -> DERPNode:
        return node(region_id, ipv4=ipv4, can_port_80=True)

    asked = derp_map(
        region(1, open_80(1, "192.0.2.1")),
        region(2, open_80(2, "192.0.2.2")),
        region(3, node(3, ipv4="192.0.2.3")),
        region(4, open_80(4, "none")),
        region(5, open_80(5, "192.0.2.5"), avoid=True),
        *(region(each, open_80(each, f"192.0.2.{each}")) for each in range(6, 12)),
    )
    checks = portal_checks(asked, home=2)
    assert checks[:3] == [PortalCheck(2, "192.0.2.2"), PortalCheck(1, "192.0.2.1"), PortalCheck(6, "192.0.2.6")]
    assert len(checks) == MAX_PORTAL_CHECKS
