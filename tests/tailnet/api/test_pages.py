"""Pages as HTML: long lists are cut, and names that peers gave themselves cannot bite."""

import pytest

from tailnet.api import pages
from tailnet.api.pages import agent_html, tailnet_html

AGENT = {"name": "<script>alert(1)</script>", "id": "an id", "said": None}
EMPTY_MAP = {"version": 0, "regions": [], "warnings": ["<b>"], "sources": []}
TAILNET = {
    "not_ready": ["<i>"],
    "derp_map": EMPTY_MAP,
    "connected_count": 1,
    "peers_count": 2,
    "found_count": 1,
    "peers": [{"peer_id": "x", "told": ["a", "b", "c"]}],
    "departures": [],
}


def test_names_are_text() -> None:
    page = agent_html({"agent": AGENT, "connections": [], "apps": [], "script_runs": []}).decode()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "<td>-</td>" in page, "what is not known is a dash"
    page = tailnet_html(TAILNET, '"><u>', "").decode()
    body = page.partition("</header>")[2]
    assert not {"<b>", "<i>", "<u>"} & {body[at : at + 3] for at in range(len(body))}


def test_what_agents_say_of_themselves_moves_no_cursor_and_tells_no_secret() -> None:
    said = "x\x1b[2J\x9b\u202e\n https://u:p@h/"
    agent = AGENT | {"name": said, "said": [said], "reason": said}
    for page in (
        agent_html({"agent": agent, "connections": [{"reason": said}], "apps": [], "script_runs": []}),
        tailnet_html(
            {**TAILNET, "not_ready": [said], "explanation": [said], "departures": [{"reason": said}]}, said, ""
        ),
    ):
        text = page.decode().replace("\n", "")
        assert text.isprintable()
        assert "u:p@" not in text


def test_a_long_cell_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    assert b"more" not in tailnet_html(TAILNET, "", "").partition(b"</header>")[2].replace(b", most first", b"")
    monkeypatch.setattr(pages, "MAX_IDS", 2)
    assert b"a<br>b<br>and 1 more" in tailnet_html(TAILNET, "", "")


def test_an_explanation_is_a_list() -> None:
    assert b"<li>A &amp; B</li>" in tailnet_html({**TAILNET, "explanation": ["A & B"]}, "a", "b")
