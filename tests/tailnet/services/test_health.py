"""The report: one run at a time, no older than asked for, deadlines, and what the log is told."""

import logging
from datetime import UTC, datetime

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tailnet.health.codes import RULES, Check, Code, Severity
from tailnet.health.readings import DiskReading, LogReading, Reading, Skipped
from tailnet.services.health import CHECK_SECONDS, FRESH_SECONDS, HEALTH_SECONDS, Health

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Looked:
    """A check that says what it is told, and counts."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.count = 0
        self.gate: trio.Event | None = None

    async def __call__(self) -> Reading:
        self.count += 1
        if self.gate is not None:
            await self.gate.wait()
        return self.reading


async def test_a_report_is_kept_for_a_while(autojump_clock: MockClock) -> None:
    log = Looked(LogReading(0))
    service = Health({Check.LOG: log}, lambda: NOW)
    assert service.last is None
    first = await service.report()
    assert first is service.last
    assert (first.measured_at, first.severity, first.findings) == (NOW, Severity.OK, [])
    await trio.sleep(FRESH_SECONDS - 1)
    assert await service.report() is first
    await trio.sleep(2)
    assert await service.report() is not first
    assert log.count == 2


async def test_who_comes_while_one_is_made_gets_that_one(nursery: trio.Nursery) -> None:
    log = Looked(LogReading(0))
    log.gate = trio.Event()
    service = Health({Check.LOG: log})
    reports = []

    async def ask() -> None:
        reports.append(await service.report())

    for _ in range(3):
        nursery.start_soon(ask)
    await wait_all_tasks_blocked()
    assert log.count == 1
    log.gate.set()
    await wait_all_tasks_blocked()
    assert reports == [reports[0]] * 3
    assert log.count == 1


async def test_who_gives_up_leaves_the_turn_to_others() -> None:
    log = Looked(LogReading(0))
    log.gate = trio.Event()
    service = Health({Check.LOG: log})
    with trio.move_on_after(0):
        await service.report()
    log.gate = None
    assert (await service.report()).severity is Severity.OK


async def test_a_check_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    hanging, log = Looked(DiskReading("/", 1, 1)), Looked(LogReading(1))
    hanging.gate = trio.Event()
    report = await Health({Check.DISK: hanging, Check.LOG: log}).report()
    assert {each.code: each.what for each in report.findings} == {
        Code.CHECK_FAILED: f"disk: no result within {CHECK_SECONDS:g} s",
        Code.LOG_LOST: "1 log lines were dropped",
    }
    assert report.seconds == CHECK_SECONDS


async def test_every_code_has_a_severity_and_the_worst_comes_first() -> None:
    checks = {
        Check.LOG: Looked(LogReading(1)),
        Check.DISK: Looked(DiskReading("/", 1, 1)),
        Check.MAP: Looked(LogReading(0)),
    }
    report = await Health(checks).report()
    assert [each.code for each in report.findings] == [Code.DISK_FULL, Code.LOG_LOST]
    codes = report.by_code()
    assert codes.keys() == RULES.keys()
    assert (codes[Code.DISK_FULL], codes[Code.LOG_LOST], codes[Code.MAP_LINT]) == (2, 1, 0)
    assert report.severity is Severity.ERROR


async def test_it_is_measured_by_itself(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    log = Looked(LogReading(0))
    service = Health({Check.LOG: log})
    nursery.start_soon(service.run)
    await trio.sleep(HEALTH_SECONDS - 1)
    assert log.count == 0, "those who were away are coming back"
    await trio.sleep(2 * HEALTH_SECONDS)
    assert log.count == 2


async def test_the_log_is_told_once_when_it_begins_gets_worse_and_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tailnet.server")
    disk = Looked(DiskReading("/", 1 << 29, 1 << 40))
    service = Health({Check.DISK: disk})

    async def told() -> list[tuple[str, str]]:
        caplog.clear()
        await service.report(-1.0)
        return [(each.levelname, each.getMessage()) for each in caplog.records]

    [(level, line)] = await told()
    assert level == "WARNING"
    assert line.startswith("! health: disk-full: /: 512 of")
    assert line.endswith(RULES[Code.DISK_FULL].advice)
    assert await told() == []
    disk.reading = DiskReading("/", 1, 1 << 40)
    assert [level for level, _ in await told()] == ["ERROR"]
    disk.reading = DiskReading("/", 1 << 29, 1 << 40)
    assert await told() == [], "better, and not over"
    disk.reading = Skipped(Check.DISK, "elsewhere")
    assert await told() == [("WARNING", "= health: disk-full is over")]
    disk.reading = DiskReading("/", 1 << 29, 1 << 40)
    assert [level for level, _ in await told()] == ["WARNING"], "again"
