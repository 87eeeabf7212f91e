"""What measurements mean: flags, the home and its stickiness, captive portals, sentences for people."""

from ipaddress import ip_address

import pytest

from derp.map import DERPMap
from derp.netcheck.report import History, Measurements, Report, is_captive_answer, verdicts, why_home
from tests.derp.netcheck.maps import derp_map, node, region

MAP = derp_map(region(1), region(2), region(3))
US4, US6 = ip_address("198.51.100.7"), ip_address("2001:db8::7")


def seen(**seconds: float) -> Report:
    """r1=0.01 is region 1 at 10 ms."""
    return Report(udp=True, stun_asked=True, region_seconds={int(name[1:]): at for name, at in seconds.items()})


def test_answers_become_flags_and_the_best_latencies() -> None:
    found = Measurements()
    found.note_asked()
    found.note_sent(4)
    found.add_stun(1, 0.030, US4, 1000)
    found.add_stun(1, 0.010, US4, 1000)
    found.add_stun(1, 0.005, US6, 2000)
    found.add_stun(2, 0.040, US4, 1000)
    report = found.finish(os_has_ipv6=True)
    assert report.region_seconds == {1: 0.005, 2: 0.040}
    assert report.region_ipv4_seconds == {1: 0.010, 2: 0.040}
    assert report.region_ipv6_seconds == {1: 0.005}
    assert (report.udp, report.ipv4, report.ipv6, report.ipv4_can_send, report.ipv6_can_send) == (
        *(True, True, True),
        *(True, False),
    )
    assert (report.global_ipv4, report.global_ipv6) == ("198.51.100.7:1000", "[2001:db8::7]:2000")
    assert report.mapping_varies is False
    assert report.os_has_ipv6


def test_one_answer_does_not_tell_whether_the_mapping_varies_and_another_port_does() -> None:
    found = Measurements()
    found.add_stun(1, 0.01, US4, 1000)
    assert found.finish().mapping_varies is None
    found.add_stun(2, 0.01, US4, 1001)
    found.add_stun(3, 0.01, US4, 1000)
    assert found.finish().mapping_varies is True


def test_https_says_nothing_of_udp_and_reasons_stay_only_for_silent_regions() -> None:
    found = Measurements()
    found.add_failure(1, "its certificate has expired")
    found.add_failure(2, "refused at first")
    found.add_https(2, 0.02, 4)
    report = found.finish()
    assert (report.udp, report.ipv4, report.ipv6) == (False, True, False)
    assert report.reasons == {1: "its certificate has expired"}


def test_a_probe_helps_until_region_family_and_mapping_are_known() -> None:
    found = Measurements()
    assert found.would_help(1, 4)
    found.add_stun(1, 0.01, US4, 1000)
    assert found.would_help(1, 4)
    assert found.would_help(1, 6)
    found.add_stun(2, 0.01, US4, 1000)
    assert not found.would_help(1, 4)
    assert found.would_help(3, 4)
    found.add_stun(1, 0.01, US6, 1000)
    assert not found.would_help(2, 6)


@pytest.mark.parametrize(("incremental", "expected"), [(False, 0.2), (True, 0.1)])
def test_once_enough_regions_answered_the_rest_gets_little_time(incremental: bool, expected: float) -> None:
    found = Measurements(incremental=incremental)
    found.add_stun(1, 0.1, US4, 1000)
    assert found.seconds_for_the_rest(2) is None
    found.add_stun(2, 0.05, US4, 1000)
    assert found.seconds_for_the_rest(2) == expected
    assert found.seconds_for_the_rest(None) is None


def walk(steps: list[tuple[float, Report]], asked: DERPMap = MAP, heard: dict[int, float] | None = None) -> list[int]:
    """The home after each (moment, report)."""
    history = History()
    return [
        history.settle(report, asked, started=at - 1, now=at, last_heard=(heard or {}).get).preferred
        for at, report in steps
    ]


def test_the_nearest_region_is_home() -> None:
    assert walk([(0, seen(r1=0.03, r2=0.02, r3=0.04))]) == [2]
    assert walk([(0, seen(r3=0.02, r2=0.02))]) == [2]
    assert walk([(0, seen())]) == [0]


def test_scores_weigh_latencies_and_nonsense_scores_do_nothing() -> None:
    asked = derp_map(region(1), region(2), scores={1: 0.5, 2: -1.0})
    assert walk([(0, seen(r1=0.03, r2=0.02))], asked) == [1]
    assert walk([(0, seen(r1=0.05, r2=0.02))], asked) == [2]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # less than 10 ms farther: kept
        ({"r1": 0.004, "r2": 0.010}, {"r1": 0.012, "r2": 0.003}, 1),
        # just below and just above those 10 ms, where the share alone would say: go
        ({"r1": 0.020, "r2": 0.050}, {"r1": 0.020, "r2": 0.0101}, 1),
        ({"r1": 0.020, "r2": 0.050}, {"r1": 0.020, "r2": 0.0099}, 2),
        # far, yet within half as far again
        ({"r1": 0.100, "r2": 0.200}, {"r1": 0.110, "r2": 0.090}, 1),
        # clearly farther
        ({"r1": 0.100, "r2": 0.200}, {"r1": 0.100, "r2": 0.040}, 2),
    ],
)
def test_the_home_is_kept_unless_another_is_clearly_nearer(
    first: dict[str, float], second: dict[str, float], expected: int
) -> None:
    assert walk([(0, seen(**first)), (30, seen(**second))]) == [1, expected]


def test_one_slow_sample_does_not_move_the_home() -> None:
    # Recent best of region 1 is 10 ms, however slow it is now.
    assert walk([(0, seen(r1=0.010, r2=0.050)), (30, seen(r1=0.500, r2=0.050))]) == [1, 1]


def test_what_was_good_more_than_five_minutes_ago_no_longer_counts() -> None:
    slow = seen(r1=0.500, r2=0.050)
    assert walk([(0, seen(r1=0.010, r2=0.050)), (304, slow), (310, slow)]) == [1, 1, 2]


def test_a_home_that_is_silent_is_left_unless_its_relay_was_heard() -> None:
    steps = [(0.0, seen(r1=0.010)), (30.0, seen(r2=0.050))]
    assert walk(steps) == [1, 2]
    assert walk(steps, heard={1: 23.0}) == [1, 1]
    assert walk(steps, heard={1: 21.0}) == [1, 2]


def test_without_any_measurement_a_home_that_was_heard_lately_stays() -> None:
    steps = [(0.0, seen(r1=0.010)), (200.0, seen())]
    assert walk(steps) == [1, 0]
    assert walk(steps, heard={1: 81.0}) == [1, 1]
    assert walk(steps, heard={1: 79.0}) == [1, 0]


def test_a_full_netcheck_is_due_every_five_minutes_and_behind_a_portal() -> None:
    history = History()
    assert history.wants_full(0)
    history.settle(seen(r1=0.01), MAP, started=0, now=1)
    assert not history.wants_full(299)
    assert history.wants_full(301)
    assert not history.wants_full(302)
    history.settle(Report(captive_portal=True), MAP, started=302, now=303)
    assert history.wants_full(304)


@pytest.mark.parametrize(
    ("status", "header", "is_captive"),
    [(204, "response token", False), (204, "", True), (204, "response other", True), (200, "response token", True)],
)
def test_only_a_relay_answers_the_challenge(status: int, header: str, is_captive: bool) -> None:
    assert is_captive_answer(status, header, "token") is is_captive


def test_a_good_report_needs_no_words() -> None:
    report = History().settle(seen(r1=0.01, r2=0.02, r3=0.03), MAP, started=0, now=0)
    assert verdicts(report, MAP) == []


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (Report(captive_portal=True, stun_asked=True), "captive portal"),
        (Report(stun_asked=True, ipv4_can_send=True, region_seconds={1: 0.1}), "UDP is blocked"),
        (Report(stun_asked=True, ipv4_can_send=True), "none over HTTPS either"),
        (Report(stun_asked=True), "no STUN request could be sent"),
        (Report(), "whether UDP works is unknown"),
        (Report(stun_asked=True), "no region answered"),
        (Report(udp=True, stun_asked=True, mapping_varies=True), "direct paths will be rare"),
        (seen(r1=0.01, r3=0.01), "region 2 (r2) answered no STUN request"),
        (Report(stun_asked=True, reasons={2: "it has expired"}), "region 2 (r2) cannot be used: it has expired"),
    ],
)
def test_what_is_wrong_is_said(report: Report, words: str) -> None:
    assert any(words in sentence for sentence in verdicts(report, MAP))


def test_a_home_that_the_map_would_rather_avoid_is_pointed_out() -> None:
    asked = derp_map(region(1, avoid=True), region(2, node(2)))
    report = History().settle(seen(r1=0.01, r2=0.02), asked, started=0, now=0)
    assert report.preferred == 1
    assert any("NoMeasureNoHome" in sentence for sentence in verdicts(report, asked))


HEARD = "its relay was heard, or nothing was measured at all"


@pytest.mark.parametrize(
    ("home", "seconds", "says"),
    [
        (0, {}, ""),
        (1, {1: 0.01}, "region 1 at 10.0 ms; no other region was measured"),
        (1, {1: 0.01, 2: 0.02}, "region 1 at 10.0 ms; the next is region 2 at 20.0 ms x 0.75 = 15.0 ms"),
        (2, {1: 0.016, 2: 0.02}, "region 2 at 20.0 ms x 0.75 = 15.0 ms; the next is region 1 at 16.0 ms"),
        (
            1,
            {1: 0.02, 2: 0.02},
            "region 1 at 20.0 ms; region 2 at 20.0 ms x 0.75 = 15.0 ms looks nearer, but not by 10 ms and a third: "
            "it stays",
        ),
        (
            1,
            {1: 0.05, 2: 0.02},
            "region 1 at 50.0 ms; region 2 at 20.0 ms x 0.75 = 15.0 ms looks so much nearer that it moves there at its "
            "next report",
        ),
        (
            3,
            {1: 0.02},
            "region 3 was not measured, and stays because its relay was heard, or nothing was measured at all",
        ),
    ],
)
def test_why_a_region_is_the_home(home: int, seconds: dict[int, float], says: str) -> None:
    asked = derp_map(region(1), region(2), region(3), scores={2: 0.75, 3: -1.0})
    assert why_home(home, seconds, asked) == says


def test_a_report_says_why_its_home_stayed() -> None:
    history, asked = History(), derp_map(region(1), region(2))
    first = Report(udp=True, region_seconds={1: 0.02, 2: 0.03})
    assert history.settle(first, asked, started=0.0, now=1.0).preferred_because.startswith(
        "region 1 at 20.0 ms; the next"
    )
    again = history.settle(Report(udp=True, region_seconds={1: 0.02, 2: 0.015}), asked, started=30.0, now=31.0)
    assert again.preferred == 1
    assert again.preferred_because.endswith("looks nearer, but not by 10 ms and a third: it stays")
