"""How a coordinator is: all checks run now and then in the background, and the last report (layer L3).

One run at a time, each check within its own deadline.  `run` measures each minute; operators who ask when the last
report is older than a few seconds have a new one made, strangers never do.  What is measured: health_probes.py; what it
means: health/judge.py.  Readers: api/health.py, the metrics, the support bundle.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import trio

from derp.text import error_text
from tailnet.health.codes import RULES, Check, Code, Severity
from tailnet.health.judge import Finding, judge, overall
from tailnet.health.readings import Failed, Reading
from tailnet.services.health_probes import Probe

_log = logging.getLogger("tailnet.server")

# A run is two connections of our own, a few datagrams and four reads of the store.
HEALTH_SECONDS: Final = 60.0
# What an operator is shown is no older, so that whoever mends something sees it; a loop of his costs a run in ten
# seconds at the most.
FRESH_SECONDS: Final = 10.0
CHECK_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check: what it measured, within how many seconds, and what that means."""

    reading: Reading
    findings: Sequence[Finding]
    seconds: float

    @property
    def check(self) -> Check:
        return self.reading.check

    @property
    def severity(self) -> Severity:
        return overall(self.findings)


@dataclass(frozen=True, slots=True)
class HealthReport:
    """One run.  `results` in the order of Check."""

    measured_at: datetime
    seconds: float
    results: Sequence[CheckResult]

    @property
    def findings(self) -> list[Finding]:
        """All of them, the worst first."""
        found = [finding for result in self.results for finding in result.findings]
        return sorted(found, key=lambda finding: -finding.severity)

    @property
    def severity(self) -> Severity:
        return overall(self.findings)

    def by_code(self) -> dict[Code, Severity]:
        """Every code, also those that were not found."""
        found = dict.fromkeys(RULES, Severity.OK)
        for finding in self.findings:
            found[finding.code] = max(found[finding.code], finding.severity)
        return found


class Health:
    """One per server; `run` as one task.  `last` is what is known without measuring."""

    def __init__(
        self, probes: Mapping[Check, Probe], clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.last: HealthReport | None = None
        self._probes = probes
        self._clock = clock
        self._measured = float("-inf")
        self._turn = trio.Lock()
        self._told: dict[Code, Severity] = {}

    async def run(self) -> None:
        """Measure each minute, until cancelled; first after one, when those who were away are back."""
        while True:
            await trio.sleep(HEALTH_SECONDS)
            await self.report(HEALTH_SECONDS / 2)

    async def report(self, max_age_seconds: float = FRESH_SECONDS) -> HealthReport:
        """The last report, or a new one when that is older.  Whoever comes while one is made gets that one."""
        async with self._turn:
            if self.last is None or trio.current_time() - self._measured > max_age_seconds:
                self.last = await self._measure()
                self._measured = trio.current_time()
                self._tell(self.last)
            return self.last

    async def _measure(self) -> HealthReport:
        began = trio.current_time()
        results: dict[Check, CheckResult] = {}

        async def measure(check: Check, probe: Probe) -> None:
            began = trio.current_time()
            reading: Reading = Failed(check, f"no result within {CHECK_SECONDS:g} s")
            try:
                with trio.move_on_after(CHECK_SECONDS):
                    reading = await probe()
            except Exception as error:
                # The boundary of this service: a check that breaks is a finding, and the others go on.
                _log.error("! health check %s failed", check.value, exc_info=error)
                reading = Failed(check, error_text(error))
            results[check] = CheckResult(reading, judge(reading), trio.current_time() - began)

        async with trio.open_nursery() as nursery:
            for check, probe in self._probes.items():
                nursery.start_soon(measure, check, probe)
        ordered = [results[check] for check in Check if check in results]
        return HealthReport(self._clock(), trio.current_time() - began, ordered)

    def _tell(self, report: HealthReport) -> None:
        """A line when something is found, gets worse or is over; none while it lasts."""
        now = {code: severity for code, severity in report.by_code().items() if severity}
        for finding in report.findings:
            if finding.severity > self._told.get(finding.code, Severity.OK):
                self._told[finding.code] = finding.severity
                level = logging.ERROR if finding.severity is Severity.ERROR else logging.WARNING
                stop = "" if finding.what.endswith((".", "?", "!")) else "."
                _log.log(level, "! health: %s: %s%s %s", finding.code.value, finding.what, stop, finding.advice)
        for code in self._told.keys() - now.keys():
            _log.warning("= health: %s is over", code.value)
        self._told = now
