"""Sessions are counted while they are open, and reported when they begin and end."""

import pytest

from tailnet.agent.counters import FAILED_STATUS, Counters, Kind, Session
from tests.support.agents import a_stream


def test_a_session_is_counted_and_reported() -> None:
    reports: list[tuple[Session, bool, int]] = []
    counters = Counters(lambda session, is_open: reports.append((session, is_open, session.status_code)))
    with counters.session(Kind.VSCODE, a_stream()) as session, counters.session(Kind.VSCODE, a_stream()):
        assert counters.sessions == {Kind.VSCODE: 2}
        session.status_code = 7
    assert counters.sessions[Kind.VSCODE] == 0
    began, other, other_ended, ended = reports
    assert began == (session, True, 0)
    assert ended == (session, False, 7)
    assert other[0] is other_ended[0] is not session
    assert session.id != other[0].id
    assert session.address == "fd7a:115c:a1e0::2"


def test_a_session_that_breaks_off_has_a_status() -> None:
    reports: list[tuple[bool, int]] = []
    counters = Counters(lambda session, is_open: reports.append((is_open, session.status_code)))
    with pytest.raises(OSError), counters.session(Kind.SSH, a_stream()):
        raise OSError
    assert reports == [(True, 0), (False, FAILED_STATUS)]
    assert counters.sessions[Kind.SSH] == 0
