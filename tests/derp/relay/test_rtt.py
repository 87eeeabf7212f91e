"""Round-trip times fall into the buckets of the genuine relay."""

import pytest

from derp.relay.rtt import ERROR_BUCKET, NON_TCP_BUCKET, RTT_BUCKETS, rtt_bucket


def test_buckets_have_the_names_that_dashboards_read() -> None:
    assert " ".join(RTT_BUCKETS) == "10ms 20ms 50ms 100ms 150ms 250ms 500ms inf non-tcp error"
    assert (RTT_BUCKETS[NON_TCP_BUCKET], RTT_BUCKETS[ERROR_BUCKET]) == ("non-tcp", "error")


@pytest.mark.parametrize(
    ("microseconds", "bucket"),
    [(0, "10ms"), (10_000, "10ms"), (10_001, "20ms"), (99_999, "100ms"), (500_000, "500ms"), (500_001, "inf")],
)
def test_a_limit_belongs_to_its_bucket(microseconds: int, bucket: str) -> None:
    assert RTT_BUCKETS[rtt_bucket(microseconds)] == bucket
