"""Probe results as Prometheus reads them."""

from prometheus_client.parser import text_string_to_metric_families

from derp.client.probe import Outcome, ProbeKind, ProbeResult
from derp.client.probe_metrics import RunTotals, exposition

GOOD_TLS = ProbeResult(ProbeKind.TLS, 901, "fra", "901a", Outcome.GOOD, values={"seconds": 0.1, "expires_at": 2e9})
BAD_PAIR = ProbeResult(ProbeKind.PACKET, 901, "fra", "901a", Outcome.BAD, to="901b", reason="no packet arrived")
SKIPPED = ProbeResult(ProbeKind.STUN, 901, "fra", "901a", Outcome.SKIPPED, family=6)
OTHER_NODE = ProbeResult(ProbeKind.TLS, 901, "fra", "901b", Outcome.GOOD)

Samples = dict[tuple[str, str, str], float]


def samples(*results: ProbeResult, totals: RunTotals | None = None) -> Samples:
    """(metric, node or outcome, to) -> value; every sample once, or Prometheus would refuse the page."""
    text = exposition(results, 1234.5, totals).decode()
    found: Samples = {}
    series = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            one = (sample.name, *sorted(sample.labels.items()))
            assert one not in series
            series.add(one)
            labels = sample.labels
            found[sample.name, labels.get("node", labels.get("outcome", "")), labels.get("to", "")] = sample.value
    return found


def outcomes(good: int, bad: int, skipped: int) -> Samples:
    counts = {"good": good, "bad": bad, "skipped": skipped}
    return {("derp_probe_results", name, ""): count for name, count in counts.items()}


def test_each_probe_is_a_series_with_its_values() -> None:
    assert samples(GOOD_TLS, BAD_PAIR) == {
        ("derp_probe_up", "901a", ""): 1.0,
        ("derp_probe_up", "901a", "901b"): 0.0,
        ("derp_probe_seconds", "901a", ""): 0.1,
        ("derp_probe_certificate_expires_timestamp_seconds", "901a", ""): 2e9,
        ("derp_probe_last_run_timestamp_seconds", "", ""): 1234.5,
    } | outcomes(1, 1, 0)


def test_what_was_skipped_has_no_series_and_is_counted() -> None:
    assert samples(SKIPPED) == {("derp_probe_last_run_timestamp_seconds", "", ""): 1234.5} | outcomes(0, 0, 1)


def test_the_family_and_the_kind_are_labels() -> None:
    stun = ProbeResult(ProbeKind.STUN, 901, 'f"ra', "901a", Outcome.GOOD, family=6, values={"seconds": 0.5})
    text = exposition([stun], 0).decode()
    assert 'family="ipv6",kind="stun",node="901a",region="f\\"ra",region_id="901",to=""} 0.5' in text


def test_two_nodes_of_one_name_are_one_series_and_the_bad_one_counts() -> None:
    bad = ProbeResult(ProbeKind.TLS, 901, "fra", "901a", Outcome.BAD)
    for order in ((GOOD_TLS, bad), (bad, GOOD_TLS)):
        assert samples(*order)["derp_probe_up", "901a", ""] == 0.0


def test_runs_and_failures_are_counted_from_run_to_run() -> None:
    totals = RunTotals()
    totals.note_run([GOOD_TLS, BAD_PAIR, OTHER_NODE, SKIPPED], 2.5)
    # A pair that works again; the other node is still there.
    better = ProbeResult(ProbeKind.PACKET, 901, "fra", "901a", Outcome.GOOD, to="901b")
    totals.note_run([GOOD_TLS, better, OTHER_NODE], 1.5)
    totals.map_failures += 1
    found = samples(GOOD_TLS, totals=totals)
    assert found["derp_probe_runs_total", "", ""] == 2
    assert found["derp_probe_map_failures_total", "", ""] == 1
    assert found["derp_probe_run_seconds", "", ""] == 1.5
    assert found["derp_probe_tries_total", "901a", ""] == 2  # and nothing for what was skipped
    assert found["derp_probe_failures_total", "901a", ""] == 0
    assert found["derp_probe_tries_total", "901a", "901b"] == 2
    assert found["derp_probe_failures_total", "901a", "901b"] == 1


def test_a_count_lives_as_long_as_its_nodes_are_in_the_map() -> None:
    totals = RunTotals()
    bandwidth = ProbeResult(ProbeKind.BANDWIDTH, 901, "fra", "901a", Outcome.BAD, to="901b")
    totals.note_run([GOOD_TLS, OTHER_NODE, bandwidth], 1)
    totals.note_run([GOOD_TLS, OTHER_NODE], 1)  # nothing passed, so there was no bandwidth
    totals.note_run([GOOD_TLS, OTHER_NODE, bandwidth], 1)
    assert samples(totals=totals)["derp_probe_failures_total", "901a", "901b"] == 2
    totals.note_run([GOOD_TLS], 1)
    found = samples(totals=totals)
    assert ("derp_probe_failures_total", "901a", "901b") not in found
    assert ("derp_probe_tries_total", "901b", "") not in found
    assert found["derp_probe_tries_total", "901a", ""] == 4


def test_a_single_run_has_no_counters() -> None:
    assert b"_total" not in exposition([GOOD_TLS], 0)


def test_packets_through_one_node_alone_are_told_from_the_mesh() -> None:
    own = ProbeResult(ProbeKind.PACKET, 901, "fra", "901a", Outcome.GOOD, to="901a")
    found = samples(own, BAD_PAIR)
    assert (found["derp_probe_up", "901a", ""], found["derp_probe_up", "901a", "901b"]) == (1.0, 0.0)
