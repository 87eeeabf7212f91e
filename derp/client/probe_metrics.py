"""Results of probes as Prometheus text.  Layer L3: for `derp probe --prometheus`.

Gauges of the last run, one series per thing tried; what was skipped has none, so that an alert on `== 0` is an alert.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from derp.client.probe import Outcome, ProbeResult

_LABELS: Final = ("region_id", "region", "kind", "node", "to", "family")
_UP: Final = ("derp_probe_up", "1: the probe was good in the last run; 0: it was not.")
_LAST_RUN: Final = ("derp_probe_last_run_timestamp_seconds", "When the last run ended: an old one is no news.")
# ProbeResult.values by name: metric and help.
_VALUES: Final = {
    "seconds": ("derp_probe_seconds", "TLS: connecting. STUN: round trip. Packet: one way through the relays."),
    "expires_at": ("derp_probe_certificate_expires_timestamp_seconds", "When the first certificate of the chain ends."),
    "median_seconds": ("derp_probe_delay_median_seconds", "One-way delay of small packets, ten a second: the median."),
    "worst_seconds": ("derp_probe_delay_worst_seconds", "One-way delay of small packets, ten a second: the longest."),
    "bytes_per_second": ("derp_probe_bandwidth_bytes_per_second", "What a short burst reached; a lower bound."),
    "sent_packets": ("derp_probe_sent_packets", "Packets sent by the probe in the last run."),
    "lost_packets": ("derp_probe_lost_packets", "Packets of the last run that never arrived."),
}


def exposition(results: Sequence[ProbeResult], now: float) -> bytes:
    """The text format, version 0.0.4.  `now`: Unix time at which the run ended."""
    registry = CollectorRegistry()
    registry.register(_Run(results, now))
    return generate_latest(registry)


class _Run(Collector):
    def __init__(self, results: Sequence[ProbeResult], now: float) -> None:
        self._results = [result for result in results if result.outcome is not Outcome.SKIPPED]
        self._now = now

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily(*_UP, labels=_LABELS)
        for result in self._results:
            up.add_metric(_labels(result), float(result.outcome is Outcome.GOOD))
        yield up
        for name, (metric, meaning) in _VALUES.items():
            family = GaugeMetricFamily(metric, meaning, labels=_LABELS)
            for result in self._results:
                if name in result.values:
                    family.add_metric(_labels(result), result.values[name])
            if family.samples:
                yield family
        yield GaugeMetricFamily(*_LAST_RUN, value=self._now)


def _labels(result: ProbeResult) -> list[str]:
    family = f"ipv{result.family}" if result.family else ""
    return [str(result.region_id), result.region, result.kind.value, result.node, result.to, family]
