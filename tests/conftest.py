"""For all tests: what this process hands down to the programs it starts, and what a busy machine may do."""

import os
import select
import signal

import pytest
from hypothesis import HealthCheck, settings

from derp.transport import poller
from tests.support.kqueue import stand_in

# A shell that runs the tests in the background has them ignore SIGINT, and what is ignored stays so in every program
# they start; those that test interruption would then wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same of nohup and SIGHUP, by which terminals and sessions end.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A machine that is busy with something else draws examples slowly; that says nothing about what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# REACTOR_POLLER=kqueue tries that way on a system that has none: its words, served by epoll.
if os.environ.get(poller.ENVIRONMENT) == "kqueue" and not hasattr(select, "kqueue"):
    poller.select = stand_in()  # type: ignore[attr-defined]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-store", action="store_true", help="all that uses a store runs on SQLite and PostgreSQL")


def pytest_configure(config: pytest.Config) -> None:
    # Three parts share two cores there: of 17,000 results about one fails and never again.  It gets a second try;
    # a fault that is always there fails both, and more than three are no chance.  At a desk nothing is run twice.
    if os.environ.get("CI") and config.pluginmanager.hasplugin("rerunfailures"):
        config.option.reruns, config.option.max_suite_reruns = 1, 3


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What needed its second try is a fault to mend: the first error is told although all is green."""
    for report in terminalreporter.getreports("rerun"):
        terminalreporter.section(f"SECOND TRY {report.nodeid}")
        terminalreporter.line(report.longreprtext)
