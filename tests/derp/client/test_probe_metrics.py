"""Probe results as Prometheus reads them."""

from prometheus_client.parser import text_string_to_metric_families

from derp.client.probe import Outcome, ProbeKind, ProbeResult
from derp.client.probe_metrics import exposition


def samples(*results: ProbeResult) -> dict[tuple[str, str, str], float]:
    """(metric, node, to) -> value."""
    text = exposition(results, 1234.5).decode()
    return {
        (sample.name, sample.labels.get("node", ""), sample.labels.get("to", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_each_probe_is_a_series_with_its_values() -> None:
    good = ProbeResult(ProbeKind.TLS, 901, "fra", "901a", Outcome.GOOD, values={"seconds": 0.1, "expires_at": 2e9})
    bad = ProbeResult(ProbeKind.PACKET, 901, "fra", "901a", Outcome.BAD, to="901b", reason="no packet arrived")
    assert samples(good, bad) == {
        ("derp_probe_up", "901a", ""): 1.0,
        ("derp_probe_up", "901a", "901b"): 0.0,
        ("derp_probe_seconds", "901a", ""): 0.1,
        ("derp_probe_certificate_expires_timestamp_seconds", "901a", ""): 2e9,
        ("derp_probe_last_run_timestamp_seconds", "", ""): 1234.5,
    }


def test_what_was_skipped_has_no_series() -> None:
    skipped = ProbeResult(ProbeKind.STUN, 901, "fra", "901a", Outcome.SKIPPED, family=6)
    assert set(samples(skipped)) == {("derp_probe_last_run_timestamp_seconds", "", "")}


def test_the_family_and_the_kind_are_labels() -> None:
    stun = ProbeResult(ProbeKind.STUN, 901, 'f"ra', "901a", Outcome.GOOD, family=6, values={"seconds": 0.5})
    text = exposition([stun], 0).decode()
    assert 'family="ipv6",kind="stun",node="901a",region="f\\"ra",region_id="901",to=""} 0.5' in text
