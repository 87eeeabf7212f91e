"""The look of pages, here and on a coordinator: one style, tables that fit a phone, forms.  Layer L3.

Nothing on an operator's page runs or loads anything: sorting and filtering are links and forms, answered anew.  On a
narrow screen each row of a table becomes a card, with its column's name before each value.  Whatever is no `Html` is
text of others: it is escaped, without secrets and control characters.
"""

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from derp.text import fit_lines_to_show, fit_to_show

# Fewer columns fit a phone as they are.
_WIDE_COLUMNS: Final = 4
HTML_TYPE: Final = "text/html; charset=utf-8"
_STYLE: Final = """
:root{color-scheme:light dark;--line:#8884;--soft:#8882;--bad:#c22;--good:#283;--link:#06c}
@media(prefers-color-scheme:dark){:root{--bad:#f77;--good:#7c7;--link:#8bf}}
*{box-sizing:border-box}
body{font:15px/1.45 system-ui,sans-serif;margin:0 auto;max-width:100em;padding:0 1.25em 3em}
header{border-bottom:1px solid var(--line);display:flex;flex-wrap:wrap;gap:.2em 1.2em;padding:.9em 0}
header strong{font-size:1.1em;margin-right:.6em}
h1{font-size:1.5em;margin:.9em 0 .3em;overflow-wrap:anywhere}h2{font-size:1.15em;margin:1.6em 0 .3em}
a{color:var(--link)}a[aria-current]{color:inherit;font-weight:600;text-decoration:none}
p,li{margin:.5em 0;max-width:60em;overflow-wrap:anywhere}
.bad{color:var(--bad);font-weight:600}.good{color:var(--good);font-weight:600}.dim{opacity:.65}
table{border-collapse:collapse;margin:.5em 0}
th,td{padding:.3em .7em;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
th{white-space:nowrap;background:var(--soft)}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.k,code{font-family:ui-monospace,monospace;font-size:.92em;overflow-wrap:anywhere}
.wide{overflow-x:auto}.wide table{width:100%}
form{display:flex;flex-wrap:wrap;gap:.5em;align-items:end;margin:.7em 0;padding:.8em}
form{background:var(--soft);border-radius:6px}
header form{background:none;margin:0 0 0 auto;padding:0}
header button{padding:.1em .7em}
label{display:flex;flex-direction:column;font-size:.85em;gap:.15em;flex:1 1 14em}
label.s{flex:0 1 11em}
input,select,button{font:inherit;padding:.4em .5em;width:100%;border:1px solid var(--line);border-radius:4px}
button{width:auto;padding:.4em 1.1em;cursor:pointer}
.log{border:1px solid var(--line);border-radius:6px;max-height:60vh;overflow:auto;padding:.4em .7em}
.log p{font:.87em/1.5 ui-monospace,monospace;margin:0;max-width:none}
.log p,.v{white-space:pre-wrap;overflow-wrap:anywhere}
@media(max-width:52em){
body{padding:0 .8em 3em}
.cards thead{display:none}.cards table,.cards tbody,.cards tr,.cards td{display:block}
.cards tr{border:1px solid var(--line);border-radius:6px;margin:.6em 0;padding:.3em .6em}
.cards td{border:0;display:flex;justify-content:space-between;gap:1em;padding:.15em 0}
.cards td{text-align:right;overflow-wrap:anywhere}
.cards td:before{content:attr(data-label);opacity:.65;text-align:left;flex:none}
.cards td.e{display:none}
label,label.s{flex:1 1 100%}}
"""
# What a Content-Security-Policy says to allow this style and no other.
STYLE_SOURCE: Final = f"'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"


class Html(str):
    """Markup that was made here: what stands in it is escaped already."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.  `link`: where a click on its name leads; `is_number`: to the right, as numbers stand."""

    name: str
    is_number: bool = False
    link: str = ""
    mark: str = ""  # beside the name: an arrow where the rows are sorted by it


def text(value: object) -> Html:
    """Any value, fit to stand between tags and in quotes."""
    return value if isinstance(value, Html) else Html(html.escape(fit_to_show(str(value))))


def lines(value: object) -> Html:
    """The same for a text of several lines, which stay lines."""
    shown = html.escape(fit_lines_to_show(str(value)))
    return Html(f'<span class="v">{shown}</span>') if "\n" in shown else Html(shown)


def moment(at: datetime | None) -> Html:
    """A moment in UTC, to the second; a dash for None.  A script may say in its place how long ago that was."""
    if at is None:
        return Html("-")
    shown = f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    return Html(f'<time datetime="{shown.replace(" ", "T")}Z">{shown} UTC</time>')


def link(target: str, shown: object, *, title: str = "") -> Html:
    """A link; `title` is what a mouse shows."""
    more = f' title="{text(title)}"' if title else ""
    return Html(f'<a href="{html.escape(target)}"{more}>{text(shown)}</a>')


def code(value: object) -> Html:
    """A key or another thing to copy."""
    return Html(f'<span class="k">{text(value)}</span>')


def state(is_well: bool, words: object) -> Html:
    """Words in the colour of a state."""
    return Html(f'<span class="{"good" if is_well else "bad"}">{text(words)}</span>')


def facts(rows: Iterable[tuple[str, object]]) -> Html:
    """Names and values below each other."""
    lines = "".join(f"<tr><th>{text(name)}</th><td>{text(value)}</td></tr>" for name, value in rows)
    return Html(f"<table>{lines}</table>")


def table(columns: Sequence[Column], rows: Sequence[Sequence[object]], *, empty: str) -> Html:
    """Rows under columns; `empty` is said where there are none."""
    if not rows:
        return Html(f"<p class=dim>{text(empty)}</p>")
    head = "".join(_head(column) for column in columns)
    lines = []
    for row in rows:
        cells = "".join(_cell(column, value) for column, value in zip(columns, row, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    kind = ' class="wide cards"' if len(columns) >= _WIDE_COLUMNS else ""
    return Html(f"<div{kind}><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>")


def _head(column: Column) -> str:
    shown = link(column.link, column.name) if column.link else text(column.name)
    mark = f" {text(column.mark)}" if column.mark else ""
    return f"<th{' class=n' if column.is_number else ''}>{shown}{mark}</th>"


def _cell(column: Column, value: object) -> str:
    shown = text(value)
    kind = " ".join(name for name, holds in (("n", column.is_number), ("e", not shown)) if holds)
    return f'<td{f" class={chr(34)}{kind}{chr(34)}" if kind else ""} data-label="{text(column.name)}">{shown}</td>'


def field(name: str, label: str, value: str = "", *, hint: str = "", is_small: bool = False) -> Html:
    """A line of a form to write in."""
    small = " class=s" if is_small else ""
    return Html(
        f'<label{small}>{text(label)}<input name="{text(name)}" value="{text(value)}" placeholder="{text(hint)}" '
        "autocomplete=off spellcheck=false></label>"
    )


def secret_field(name: str, label: str) -> Html:
    """A line to write a secret in, which browsers hide and may keep; the name beside it is for them."""
    return Html(
        f'<input name=username autocomplete=username value="{text(label)}" hidden>'
        f'<label>{text(label)}<input type=password name="{text(name)}" autocomplete=current-password required></label>'
    )


def choice(name: str, label: str, options: Mapping[str, str], chosen: str) -> Html:
    """One of a few: what is sent -> what is shown."""
    lines = "".join(
        f'<option value="{text(sent)}"{" selected" if sent == chosen else ""}>{text(shown)}</option>'
        for sent, shown in options.items()
    )
    return Html(f'<label class=s>{text(label)}<select name="{text(name)}">{lines}</select></label>')


def form(
    action: str,
    fields: Iterable[Html],
    button: str,
    hidden: Mapping[str, str] | None = None,
    *,
    changes: bool = False,
) -> Html:
    """A form that asks by GET, so that what it asks is a link; one that `changes` something sends by POST."""
    method = " method=post" if changes else ""
    kept = "".join(
        f'<input type=hidden name="{text(name)}" value="{text(value)}">' for name, value in (hidden or {}).items()
    )
    asked = f"{''.join(fields)}{kept}<button>{text(button)}</button>"
    return Html(f'<form action="{html.escape(action)}"{method}>{asked}</form>')


def query(target: str, **values: object) -> str:
    """A link with a query; values that are empty are left out."""
    asked = urlencode({name: value for name, value in values.items() if value not in ("", None)}, doseq=True)
    return f"{target}?{asked}" if asked else target


def document(
    title: str,
    body: Iterable[Html],
    *,
    brand: str,
    places: Sequence[tuple[str, str]] = (),
    here: str = "",
    corner: Html | None = None,
) -> bytes:
    """A whole page.  `places`: (path, name) of the pages above all; `here`: the path of this one; `corner`: what stands
    beside them."""
    current = ' aria-current="page"'
    around = "".join(
        f'<a href="{html.escape(path)}"{current if path == here else ""}>{text(name)}</a>' for path, name in places
    )
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>"
    )
    top = f"<header><strong>{text(brand)}</strong>{around}{corner or ''}</header>"
    content = "\n".join(body)
    return f"{head}<body>{top}\n{content}\n</body></html>\n".encode()
