"""A terminal for people (layer L3): /agents/{id}/terminal, xterm.js over the websocket of pty.py.

terminal.js does the work.  What its address names is handed on but for a command: a link of somebody else must not run
one.  Next hop: pty.py.
"""

import secrets
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from derp.server import markup
from derp.server.markup import Html
from tailnet.api.guards import TerminalOfPage
from tailnet.api.page_files import address
from tailnet.api.people_html import BRAND, PLACES
from tailnet.api.sign_in import PageRoute, page

router = APIRouter(prefix="/agents", route_class=PageRoute)

_SCRIPTS: Final = ("/xterm.js", "/xterm-addon-fit.js", "/terminal.js")
# What phones have no keys for, as JSON spells it.
_KEYS: Final = (
    ("Esc", r"\u001b"),
    ("Tab", r"\t"),
    ("Ctrl-C", r"\u0003"),
    ("Ctrl-D", r"\u0004"),
    ("\N{LEFTWARDS ARROW}", r"\u001b[D"),
    ("\N{UPWARDS ARROW}", r"\u001b[A"),
    ("\N{DOWNWARDS ARROW}", r"\u001b[B"),
    ("\N{RIGHTWARDS ARROW}", r"\u001b[C"),
)


@router.get("/{workspaceagent}/terminal", include_in_schema=False)
async def terminal_page(request: Request, agent: TerminalOfPage) -> Response:
    """The page."""
    nonce = secrets.token_urlsafe(16)
    buttons = "".join(f'<button type=button data-keys="{keys}">{name}</button>' for name, keys in _KEYS)
    scripts = "".join(
        f'<script src="{address(path)}" defer></script>'
        for path in ("/xterm.js", "/xterm-addon-fit.js", "/terminal.js")
    )
    body = (
        Html(f'<link rel=stylesheet href="{address("/xterm.css")}">'),
        Html(f'<link rel=stylesheet href="{address("/terminal.css")}">'),
        Html(
            f"<h1>{markup.link(f'/agents/{agent.id}', agent.name)} <span class=dim>in "
            f"{markup.text(agent.workspace_name)}</span></h1>"
        ),
        Html('<p class=dim><span id="note" role="status">Connecting.</span> '),
        Html('<button id="again" type=button hidden>Begin a new one</button></p>'),
        Html("<noscript><p>A terminal needs scripts; <code>tailnet ssh</code> needs none.</p></noscript>"),
        Html(f'<div id="terminal" data-socket="/api/v2/workspaceagents/{agent.id}/pty" data-nonce="{nonce}"></div>'),
        Html(f'<div id="keys">{buttons}</div>'),
        Html(scripts),
    )
    html = markup.document(f"{agent.name}: terminal", body, brand=BRAND, places=PLACES)
    return page(html, style_nonce=nonce)
