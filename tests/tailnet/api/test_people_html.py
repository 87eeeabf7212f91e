"""HTML of pages for people: lines of logs without what terminals obey, and nothing of others that is markup."""

import pytest

from tailnet.api.people_html import MAX_LINE_CHARS, agents_parts, front_html, log_lines, metadata_parts, problem_html
from tailnet.services.agent_metadata import MetadataView
from tailnet.services.agents import AgentLines
from tailnet.store.rows import LogLine
from tests.support.seeds import NOW, make_id

HOSTILE = "<script>alert(1)</script>"


def line(output: str, level: int = 3) -> LogLine:
    return LogLine(7, make_id("source"), level, NOW, output)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;a title\x07shown", "shown"),
        ("\x1b]8;;http://x\x1b\\a link\x1b]8;;\x1b\\", "a link"),
        ("\x1b[2J\x1b[Hx", "x"),
        ("a\tb\r\n", "a    b"),
        ("10%\r20%", "10%\\r20%"),
        ("\x1b", "\\x1b"),
        ("\u202eevil", "\\u202eevil"),
        ("one\ntwo", '<span class="v">one\ntwo</span>'),
        (HOSTILE, "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("https://u:p@h/", "https://&lt;secret&gt;@h/"),
    ],
)
def test_a_line_of_a_log(output: str, expected: str) -> None:
    assert log_lines([line(output)]) == f"<p><span class=dim>03:04:05</span> {expected}</p>"


@pytest.mark.parametrize(
    ("level", "expected"), [(0, "x"), (3, "x"), (4, "warn x"), (5, '<span class="bad">error x</span>'), (99, "x")]
)
def test_levels_are_words(level: int, expected: str) -> None:
    assert log_lines([line("x", level)]).endswith(f"</span> {expected}</p>")


def test_a_long_line_is_cut() -> None:
    assert log_lines([line("x" * 2 * MAX_LINE_CHARS)]).count("x") == MAX_LINE_CHARS


def test_metadata_that_failed() -> None:
    view = MetadataView("cpu", HOSTILE, "", 1, 1, None, 0, "old", "\x1b[31mexit 1")
    part = metadata_parts([view])["metadata"]
    assert '<span class="bad">exit 1</span>' in part
    assert "old" not in part
    assert "<script>" not in part


def test_nobody_and_nothing() -> None:
    assert "You have no agents yet" in agents_parts(AgentLines([], 0), 0)["agents"]
    assert b"tailnet serve --dev" in front_html([], is_empty=True)
    assert b"Sign in" in front_html([])


def test_words_of_others_are_text() -> None:
    for page in (front_html([HOSTILE], refused=HOSTILE, after=f'"{HOSTILE}'), problem_html(HOSTILE, HOSTILE)):
        assert b"<script>" not in page
