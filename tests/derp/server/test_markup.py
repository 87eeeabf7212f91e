"""The look of pages: whatever is no markup of ours is text, and tables say of each value what it is."""

import base64
import hashlib
import re
from datetime import datetime, timedelta, timezone

import pytest

from derp.server import markup
from derp.server.markup import Column, Html

HOSTILE = "<script>alert(1)</script>\"'&\x1b[2J"


def test_text_of_others_is_text_wherever_it_stands() -> None:
    columns = (Column(HOSTILE), Column("b", link=f"?sort={HOSTILE}", mark=HOSTILE))
    page = markup.document(
        HOSTILE,
        [
            markup.text(HOSTILE),
            markup.link(HOSTILE, HOSTILE, title=HOSTILE),
            markup.code(HOSTILE),
            markup.state(False, HOSTILE),
            markup.facts([(HOSTILE, HOSTILE)]),
            markup.table(columns, [[HOSTILE, HOSTILE]], empty=HOSTILE),
            markup.table(columns, [], empty=HOSTILE),
            markup.field(HOSTILE, HOSTILE, HOSTILE, hint=HOSTILE),
            markup.choice(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, HOSTILE),
            markup.form(HOSTILE, [], HOSTILE, {HOSTILE: HOSTILE}),
        ],
        brand=HOSTILE,
        places=[(HOSTILE, HOSTILE)],
        here=HOSTILE,
    ).decode()
    assert "<script>" not in page
    assert "alert(1)" in page
    # No attribute ends before its value does.
    assert re.findall(r'="[^"]*"[^\s>"]', page.partition("</style>")[2]) == []


def test_markup_is_not_escaped_again() -> None:
    assert markup.text(Html("<b>x</b>")) == "<b>x</b>"
    assert markup.text("<b>") == "&lt;b&gt;"
    assert markup.link("/a?b=1&c=2", "x") == '<a href="/a?b=1&amp;c=2">x</a>'


def test_a_cell_names_its_column_and_an_empty_one_is_left_out_on_phones() -> None:
    columns = [Column("rx bytes", is_number=True), *(Column(name) for name in "abc")]
    found = markup.table(columns, [["5,160", "", "x", "y"]], empty="")
    assert '<td class="n" data-label="rx bytes">5,160</td>' in found
    assert '<td class="e" data-label="a"></td>' in found
    assert 'class="wide cards"' in found
    assert "cards" not in markup.table([Column("a"), Column("b")], [["1", "2"]], empty="")


def test_a_table_without_rows_says_so() -> None:
    assert markup.table([Column("a")], [], empty="Nobody.") == "<p class=dim>Nobody.</p>"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "/x"),
        ({"a": "", "b": None}, "/x"),
        ({"a": "nodekey:1", "b": "x y&z"}, "/x?a=nodekey%3A1&b=x+y%26z"),
    ],
)
def test_a_link_leaves_out_what_is_empty(values: dict[str, object], expected: str) -> None:
    assert markup.query("/x", **values) == expected


def test_the_page_that_is_here_is_no_link_to_elsewhere() -> None:
    page = markup.document("t", [], brand="b", places=[("/a", "one"), ("/b", "two")], here="/b").decode()
    assert '<a href="/b" aria-current="page">two</a>' in page
    assert '<a href="/a">one</a>' in page
    assert 'name="viewport"' in page


def test_lines_stay_lines_and_nothing_else_does() -> None:
    assert markup.lines("a") == "a"
    assert markup.lines("a\n<b>\x1b") == '<span class="v">a\n&lt;b&gt;\\x1b</span>'


def test_a_moment_is_in_utc() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1)))
    assert markup.moment(at) == '<time datetime="2026-01-02T02:04:05Z">2026-01-02 02:04:05 UTC</time>'
    assert markup.moment(None) == "-"


def test_the_policy_allows_the_style_that_stands_there() -> None:
    style = markup.document("t", [], brand="b").partition(b"<style>")[2].partition(b"</style>")[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style).digest()).decode()}'" == markup.STYLE_SOURCE


def test_a_form_that_changes_something_is_sent_by_post() -> None:
    assert "method=post" in markup.form("/x", [markup.secret_field("token", "t")], "b", changes=True)
    assert "method" not in markup.form("/x", [], "b")
    assert "type=password" in markup.secret_field("token", "t")
