"""Results of probes as Prometheus text.  Layer L3: for `derp probe --prometheus` and `--listen`.

Gauges of the last run, one series per thing tried; what was skipped has none, so that an alert on `== 0` is an alert.
A prober that runs again and again also counts, in RunTotals: a fault between two scrapes is then not lost.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from derp.client.probe import Outcome, ProbeResult
from derp.text import printable

Series: TypeAlias = tuple[str, str, str, str, str, str]

_LABELS: Final = ("region_id", "region", "kind", "node", "to", "family")
_UP: Final = ("derp_probe_up", "1: the probe was good in the last run; 0: it was not.")
_OUTCOMES: Final = ("derp_probe_results", "Probes of the last run by outcome; skipped: could not be tried from here.")
_LAST_RUN: Final = ("derp_probe_last_run_timestamp_seconds", "When the last run ended: an old one is no news.")
_RUN_SECONDS: Final = ("derp_probe_run_seconds", "How long the last run took.")
_RUNS: Final = ("derp_probe_runs", "Runs that ended.")
_MAP_FAILURES: Final = ("derp_probe_map_failures", "Runs with an older map, as the map could not be read.")
_TRIES: Final = ("derp_probe_tries", "How often this was tried.")
_FAILURES: Final = ("derp_probe_failures", "How often it was bad.")
# ProbeResult.values by name: metric and help.
_VALUES: Final = {
    "seconds": ("derp_probe_seconds", "TLS, QUIC: connecting. STUN: round trip. Packet: one way through the relays."),
    "expires_at": ("derp_probe_certificate_expires_timestamp_seconds", "When the first certificate of the chain ends."),
    "median_seconds": ("derp_probe_delay_median_seconds", "One-way delay of small packets, ten a second: the median."),
    "worst_seconds": ("derp_probe_delay_worst_seconds", "One-way delay of small packets, ten a second: the longest."),
    "bytes_per_second": ("derp_probe_bandwidth_bytes_per_second", "What a short burst reached; a lower bound."),
    "sent_packets": ("derp_probe_sent_packets", "Packets sent by the probe in the last run."),
    "lost_packets": ("derp_probe_lost_packets", "Packets of the last run that never arrived."),
}


@dataclass(slots=True)
class RunTotals:
    """Counts since the prober started.  `note_run` after each run; map_failures is the caller's to count.

    A series is kept while the map has its nodes: what a map drops is forgotten, so nothing grows for ever.
    """

    runs: int = 0
    map_failures: int = 0
    run_seconds: float = 0.0
    tries: dict[Series, tuple[int, int]] = field(default_factory=dict)
    """(tried, of those bad) by series."""

    def note_run(self, results: Sequence[ProbeResult], seconds: float) -> None:
        """Add a run that took so long."""
        self.runs += 1
        self.run_seconds = seconds
        # By node: where no packet passes there is no bandwidth either, and its count must not restart for that.
        nodes = {(str(result.region_id), printable(result.region), printable(result.node)) for result in results}
        self.tries = {
            series: counts
            for series, counts in self.tries.items()
            if all((*series[:2], node) in nodes for node in series[3:5] if node)
        }
        for series, result in _by_series(results).items():
            tried, bad = self.tries.get(series, (0, 0))
            self.tries[series] = (tried + 1, bad + (result.outcome is Outcome.BAD))


def exposition(results: Sequence[ProbeResult], now: float, totals: RunTotals | None = None) -> bytes:
    """The text format, version 0.0.4.  `now`: Unix time at which the run ended; totals: of a prober that goes on."""
    registry = CollectorRegistry()
    registry.register(_Run(results, now, totals))
    return generate_latest(registry)


class _Run(Collector):
    def __init__(self, results: Sequence[ProbeResult], now: float, totals: RunTotals | None) -> None:
        self._results = results
        self._now = now
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        tried = _by_series(self._results)
        up = GaugeMetricFamily(*_UP, labels=_LABELS)
        for series, result in tried.items():
            up.add_metric(series, float(result.outcome is Outcome.GOOD))
        yield up
        for name, (metric, meaning) in _VALUES.items():
            family = GaugeMetricFamily(metric, meaning, labels=_LABELS)
            for series, result in tried.items():
                if name in result.values:
                    family.add_metric(series, result.values[name])
            if family.samples:
                yield family
        outcomes = GaugeMetricFamily(*_OUTCOMES, labels=["outcome"])
        for outcome in Outcome:
            count = sum(result.outcome is outcome for result in self._results)
            outcomes.add_metric([outcome.value], count)
        yield outcomes
        yield GaugeMetricFamily(*_LAST_RUN, value=self._now)
        if self._totals is not None:
            yield from _counters(self._totals)


def _counters(totals: RunTotals) -> Iterable[Metric]:
    yield GaugeMetricFamily(*_RUN_SECONDS, value=totals.run_seconds)
    yield CounterMetricFamily(*_RUNS, value=totals.runs)
    yield CounterMetricFamily(*_MAP_FAILURES, value=totals.map_failures)
    tries = CounterMetricFamily(*_TRIES, labels=_LABELS)
    failures = CounterMetricFamily(*_FAILURES, labels=_LABELS)
    for series, (tried, bad) in totals.tries.items():
        tries.add_metric(series, tried)
        failures.add_metric(series, bad)
    yield tries
    yield failures


def _by_series(results: Sequence[ProbeResult]) -> Mapping[Series, ProbeResult]:
    """What was tried, by its labels.  Two nodes of one name would be one series twice, which makes Prometheus refuse
    the whole page: the bad one counts."""
    found: dict[Series, ProbeResult] = {}
    for result in results:
        if result.outcome is Outcome.SKIPPED:
            continue
        series = _labels(result)
        if series not in found or result.outcome is Outcome.BAD:
            found[series] = result
    return found


def _labels(result: ProbeResult) -> Series:
    # Empty for what concerns one node alone, so that `to!=""` is the mesh: PromQL cannot compare two labels.
    to = result.to if result.to != result.node else ""
    family = f"ipv{result.family}" if result.family else ""
    # The format escapes line ends alone, and people read it in terminals.
    region, node, to = map(printable, (result.region, result.node, to))
    return str(result.region_id), region, result.kind.value, node, to, family
