"""HTML of the pages for the person on call (layer L3): tables of what api/debug.py gives as JSON.

Every text goes through `_text`: peers choose their own names.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

from derp.text import fit_to_show

# Ids named in one cell.
MAX_IDS: Final = 20

_STYLE: Final = (
    "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}"
    "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}"
    "input{width:24em}.bad{color:#b00}"
)


def tailnet_html(page: Mapping[str, Any], a: str, b: str) -> str:
    """Everybody, with a form for the question why A does not know B.  `page`: a TailnetPage as JSON."""
    body = ["<h1>Tailnet</h1>"]
    if page["not_ready"]:
        body.append(f"<p class=bad>Not ready: {_text('; '.join(page['not_ready']))}</p>")
    body.append(
        "<form><p>Why does A not know B? "
        f'<input name=a placeholder="A: a peer id" value="{_text(a)}"> '
        f'<input name=b placeholder="B: a peer id" value="{_text(b)}"> '
        "<button>Explain</button></p></form>"
        '<form action=agent><p>What did an agent report? <input name=id placeholder="an agent\'s id"> '
        "<button>Show</button></p></form>"
    )
    if "explanation" in page:
        body.append("<ul>" + "".join(f"<li>{_text(each)}</li>" for each in page["explanation"]) + "</ul>")
    derp_map = page["derp_map"]
    body.append(f"<h2>DERP map, version {derp_map['version']}</h2>")
    body += [f"<p class=bad>{_text(each)}</p>" for each in derp_map["warnings"]]
    body.append(_table(derp_map["regions"], "There are no regions."))
    body.append(_table(derp_map["sources"], "It has no sources beside the embedded relay."))
    body.append(f"<h2>{page['connected_count']} connected of {page['peers_count']} known</h2>")
    body.append(_table(page["peers"], "Nobody is here."))
    body.append("<h2>Last who left</h2>")
    body.append(_table(page["departures"], "Nobody has left."))
    body.append('<p><a href="?format=json">as JSON</a></p>')
    return _document("Tailnet", body)


def agent_html(page: Mapping[str, Any]) -> str:
    """One agent.  `page`: an AgentPage as JSON."""
    shown = page["agent"]
    body = [
        f"<h1>Agent {_text(shown['name'])}</h1>",
        _table([{"what": name.replace("_", " "), "value": value} for name, value in shown.items()], ""),
        "<h2>Who was on it, by its own account</h2>",
        _table(page["connections"], "It reported no session."),
        "<h2>Apps</h2>",
        _table(page["apps"], "It has none."),
        "<h2>What its scripts did</h2>",
        _table(page["script_runs"], "None has run."),
        f'<p><a href="?id={shown["id"]}&amp;format=json">as JSON</a>, <a href="tailnet">everybody</a></p>',
    ]
    return _document(f"Agent {shown['name']}", body)


def _text(text: str) -> str:
    return html.escape(fit_to_show(text))


def _document(title: str, body: Sequence[str]) -> str:
    head = f'<!doctype html><meta charset="utf-8"><title>{_text(title)}</title><style>{_STYLE}</style>'
    return head + "".join(body)


def _table(rows: Sequence[Mapping[str, Any]], nothing: str) -> str:
    if not rows:
        return f"<p>{nothing}</p>"
    head = "".join(f"<th>{_text(name.replace('_', ' '))}</th>" for name in rows[0])
    lines = ("".join(f"<td>{_cell(value)}</td>" for value in row.values()) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        more = f"<br>and {len(value) - MAX_IDS} more" if len(value) > MAX_IDS else ""
        return "<br>".join(_text(str(each)) for each in value[:MAX_IDS]) + more
    return _text(str(value))
