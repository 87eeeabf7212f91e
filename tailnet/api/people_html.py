"""HTML of the pages for people (layer L3): signing in, a user's agents, and one agent.

Parts that change have an id; live.js puts newer ones in their places, and `..._parts` makes them for the page and for
the stream alike.  What agents say of themselves is text: derp/server/markup.py takes care of that, and `log_lines` of
what terminals would obey.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from derp.server import markup
from derp.server.markup import Column, Html
from tailnet.api.page_files import address
from tailnet.services.agent_metadata import MetadataView
from tailnet.services.agents import AgentLine, AgentLines, AgentView, AppView
from tailnet.services.overviews import AgentOverview, Reach
from tailnet.store.rows import AgentStatus, AppHealth, ConnectionReport, LifecycleState, LogLine

# Where people sign in and out.
LOGIN: Final = "/login"
LOGOUT: Final = "/logout"
BRAND: Final = "tailnet"
PLACES: Final = (("/", "all agents"), ("/docs", "API"))
# A line of a log that is longer is cut; the text of all logs has it whole.
MAX_LINE_CHARS: Final = 4096
# What a terminal obeys and shows nothing of: colours, titles, cursors.
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_LEVELS: Final = ("", "trace", "debug", "", "warn", "error")
_LOOKS: Final = (
    ("/healthz", "does it answer?"),
    ("/readyz", "should requests come here?"),
    ("/health", "is something wrong? for operators: what, and what to do"),
    ("/docs", "the API, for people"),
    ("/api/v2/openapi.json", "the API, for programs"),
    ("/debug/", "for operators: who is here, why something does not arrive, versions"),
    ("/metrics", "for operators: numbers for Prometheus"),
)
_WHAT_NEXT: Final = (
    Html("<h2>Nobody is here yet</h2>"),
    Html(
        "<p>Users and agents are imported from a file with ids and tokens of your choice; it says what is missing:</p>"
        "<p><code>tailnet admin import seed.json</code></p><p>What stands in the file: <code>tailnet admin import "
        "--help</code>. To look around with a user and an agent that are made up: <code>tailnet serve --dev</code></p>"
    ),
)


def front_html(reasons: Sequence[str], *, is_empty: bool = False, refused: str = "", after: str = "") -> bytes:
    """Signing in, what this is, is it well, where to look: it says strangers no more than /readyz does.

    `refused`: why the last try was none.  `after`: the path of the page that was asked for.
    """
    well = markup.state(not reasons, "well" if not reasons else f"not ready: {'; '.join(reasons)}")
    body = [Html("<h1>A tailnet's coordinator</h1>"), Html(f"<p>It is {well}.</p>")]
    if refused:
        body.append(Html(f'<p role="alert">{markup.state(False, refused)}</p>'))
    if is_empty:
        body += _WHAT_NEXT
    else:
        token = (markup.secret_field("token", "session token"),)
        body += [
            Html("<h2>Sign in to see your agents</h2>"),
            markup.form(LOGIN, token, "Sign in", {"after": after} if after else None, changes=True),
            Html(
                "<p class=dim>A session token is what <code>Coder-Session-Token</code> carries: ten characters, a "
                "hyphen, twenty-two. Whoever put you into this server has it.</p>"
            ),
        ]
    body += [
        Html(
            "<p>Agents and clients meet here: they learn each other's keys and addresses, and then talk to each other "
            "directly, or through relays that cannot read what they say.</p>"
        ),
        Html("<h2>Where to look</h2>"),
        markup.facts([(path, markup.link(path, what)) for path, what in _LOOKS]),
    ]
    return markup.document("tailnet", body, brand=BRAND)


def problem_html(message: str, detail: str) -> bytes:
    """Why a page cannot be shown, to somebody who is signed in."""
    body = (
        Html(f"<h1>{markup.text(message)}</h1>"),
        Html(f"<p>{markup.text(detail)}</p>" if detail else ""),
        Html(f"<p>{markup.link('/', 'All agents')}</p>"),
    )
    return markup.document("tailnet", body, brand=BRAND, places=(("/", "all agents"),))


def agents_html(username: str, lines: AgentLines, first: int, now: datetime) -> bytes:
    """All agents of a user, by workspace."""
    body = [Html("<h1>Agents</h1>")]
    if first == 0:
        body.append(_live("/live", 0, now))
    body += _places(agents_parts(lines, first))
    return _document("Agents", body, username, here="/")


def agents_parts(lines: AgentLines, first: int) -> Mapping[str, Html]:
    """What changes on the page of all agents, by id."""
    if not lines.count:
        none = Html(
            "<p>You have no agents yet. They are imported with their workspace and your id as its owner:</p>"
            "<p><code>tailnet admin import seed.json</code></p>"
        )
        return {"agents": none}
    names = ("agent", "workspace", "state", "health", "version", "relay", "last seen")
    table = markup.table([Column(name) for name in names], [_agent_row(each) for each in lines.lines], empty="No more.")
    more = [f"{first + 1} to {first + len(lines.lines)} of {lines.count}."] if lines.count > len(lines.lines) else []
    if first:
        more.append(markup.link(markup.query("/", first=max(0, first - _step(lines)) or ""), "Those before"))
    if first + len(lines.lines) < lines.count:
        more.append(markup.link(markup.query("/", first=first + len(lines.lines)), "Those after"))
    return {"agents": Html(table + (f"<p>{' '.join(map(markup.text, more))}</p>" if more else ""))}


def agent_html(
    username: str,
    workspace_name: str,
    shown: AgentOverview,
    metadata: Sequence[MetadataView],
    logs: Sequence[LogLine],
    now: datetime,
    asked: tuple[str, Sequence[str]],
    *,
    has_terminal: bool,
) -> bytes:
    """One agent.  `asked`: a peer's id, and why it does not know this agent; empty without.  `has_terminal`: whether
    the user may open one."""
    agent = shown.history.view.agent
    ident = str(agent.id)
    parts = {**agent_parts(shown), **metadata_parts(metadata)}
    text = f"/api/v2/workspaceagents/{ident}/logs?format=text"
    peer, sentences = asked
    question = (markup.field("peer", "Why does a peer not know this agent?", peer, hint="the id of a peer"),)
    body = [
        Html(f"<h1>{markup.text(agent.name)} <span class=dim>in {markup.text(workspace_name)}</span></h1>"),
        Html(f"<p>{markup.link(f'/agents/{ident}/terminal', 'Open a terminal')}</p>" if has_terminal else ""),
        _live(f"/agents/{ident}/live", logs[-1].id if logs else 0, now),
        *_places({"state": parts["state"]}),
        Html("<h2>Apps</h2>"),
        *_places({"apps": parts["apps"]}),
        Html("<h2>Metadata</h2>"),
        *_places({"metadata": parts["metadata"]}),
        Html("<h2>Logs</h2>"),
        Html(f'<div id="logs" class="log" role="log" tabindex="0" aria-label="logs">{log_lines(logs)}</div>'),
        Html(f"<p>{markup.link(text, 'all of it, as text')}</p>"),
        Html("<h2>Sessions on it, by its own account</h2>"),
        *_places({"connections": parts["connections"]}),
        Html("<h2>Who reaches it, and why not</h2>"),
        *_places({"reach": parts["reach"]}),
        Html('<div id="why">'),
        markup.form("#why", question, "Explain"),
        _sentences(sentences),
        Html("</div>"),
    ]
    return _document(agent.name, body, username)


def agent_parts(shown: AgentOverview) -> Mapping[str, Html]:
    """What changes on the page of an agent, but for metadata and logs, by id."""
    view = shown.history.view
    return {
        "state": _state(view),
        "apps": _apps(view.apps),
        "connections": _connections(shown.history.connections),
        "reach": _reach(shown.reach),
    }


def metadata_parts(items: Sequence[MetadataView]) -> Mapping[str, Html]:
    """What an agent's metadata scripts said last, by id."""
    rows = [
        (
            each.display_name or each.key,
            markup.state(False, markup.lines(_plain(each.error))) if each.error else markup.lines(_plain(each.value)),
            markup.moment(each.collected_at),
        )
        for each in items
    ]
    columns = [Column(name) for name in ("what", "value", "collected")]
    return {"metadata": markup.table(columns, rows, empty="It has no metadata scripts.")}


def log_lines(lines: Sequence[LogLine]) -> Html:
    """Lines of a log.  Colours and cursors of terminals are left out, whatever else one would obey is written out."""
    return Html("".join(map(_log_line, lines)))


def _log_line(line: LogLine) -> str:
    output = _plain(line.output)
    level = _LEVELS[line.level] if 0 <= line.level < len(_LEVELS) else ""
    words = f"{level} {markup.lines(output)}" if level else markup.lines(output)
    told = f'<span class="bad">{words}</span>' if level == "error" else words
    return f"<p><span class=dim>{line.created_at.astimezone(UTC):%H:%M:%S}</span> {told}</p>"


def _plain(text: str) -> str:
    return _ESCAPES.sub("", text[:MAX_LINE_CHARS]).replace("\t", "    ").rstrip("\r\n")


def _document(title: str, body: Sequence[Html], username: str, here: str = "") -> bytes:
    corner = markup.form(LOGOUT, (), f"Sign out {username}", changes=True)
    script = Html(f'<script src="{address("/live.js")}" defer></script>')
    return markup.document(title, [*body, script], brand=BRAND, places=PLACES, here=here, corner=corner)


def _live(source: str, after: int, now: datetime) -> Html:
    """How fresh the page is; the place where the script reads what to follow."""
    at = f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return Html(
        f'<p id="live" class=dim role="status" data-source="{source}" data-after="{after}" data-now="{at}">'
        f"As of {now.astimezone(UTC):%H:%M:%S} UTC; reload for news.</p>"
    )


def _places(parts: Mapping[str, Html]) -> list[Html]:
    return [Html(f'<div id="{name}">{part}</div>') for name, part in parts.items()]


def _step(lines: AgentLines) -> int:
    return max(1, len(lines.lines))


def _agent_row(line: AgentLine) -> Sequence[object]:
    row = line.agent
    return (
        markup.link(f"/agents/{row.id}", row.name),
        line.workspace_name,
        _status(line.status),
        markup.state(not line.unhealthy, line.unhealthy or "healthy"),
        row.version,
        f"{line.home} {1000 * line.home_seconds:.0f} ms" if line.home_seconds is not None else "",
        markup.moment(row.last_connected_at),
    )


def _status(status: AgentStatus) -> Html:
    return markup.state(status is AgentStatus.CONNECTED, status.value)


def _state(view: AgentView) -> Html:
    row = view.agent
    regions = sorted(view.latencies.items(), key=lambda each: each[1].seconds)
    latencies = "<br>".join(
        markup.text(f"{name} {1000 * each.seconds:.0f} ms{', its home' if each.preferred else ''}")
        for name, each in regions
    )
    lifecycle = row.lifecycle_state.name.lower().replace("_", " ")
    is_well = row.lifecycle_state in (LifecycleState.CREATED, LifecycleState.STARTING, LifecycleState.READY)
    facts: list[tuple[str, object]] = [
        ("state", _status(view.status)),
        ("health", markup.state(not view.unhealthy, view.unhealthy or "healthy")),
        ("lifecycle", lifecycle if is_well else markup.state(False, lifecycle)),
        ("version", f"{row.version or '-'}, API {row.api_version or '-'}"),
        ("machine", f"{row.operating_system} {row.architecture}".strip() or "-"),
        ("directory", row.expanded_directory or row.directory or "-"),
        ("latency to relays", Html(latencies or "-")),
        ("first seen", markup.moment(row.first_connected_at)),
        ("last seen", markup.moment(row.last_connected_at)),
        ("ready since", markup.moment(row.ready_at)),
        ("id", markup.code(row.id)),
    ]
    return markup.facts(facts)


def _apps(apps: Sequence[AppView]) -> Html:
    columns = [Column(name) for name in ("app", "health", "says", "when")]
    rows = []
    for app in apps:
        said = app.statuses[0] if app.statuses else None
        is_well = app.health in (AppHealth.HEALTHY, AppHealth.DISABLED)
        health = app.health.name.lower() if app.health is not AppHealth.DISABLED else "not checked"
        rows.append(
            (
                app.display_name or app.slug,
                markup.state(is_well, health) if app.health is not AppHealth.DISABLED else health,
                f"{said.state.name.lower()}: {said.message}" if said is not None else "",
                markup.moment(said.created_at) if said is not None else "",
            )
        )
    return markup.table(columns, rows, empty="It has no apps.")


def _connections(reports: Sequence[ConnectionReport]) -> Html:
    columns = [Column(name) for name in ("when", "what", "kind", "from", "app", "reason")]
    rows = [
        (
            markup.moment(each.at),
            each.action.name.lower(),
            each.type.name.lower().replace("_", " "),
            each.ip,
            each.app_name,
            each.reason,
        )
        for each in reports
    ]
    return markup.table(columns, rows, empty="It reported no session.")


def _reach(reach: Reach) -> Html:
    peers = "".join(f"<h3>{markup.code(peer)}</h3>{_sentences(sentences)}" for peer, sentences in reach.peers)
    more = reach.peers_count - len(reach.peers)
    rest = f"<p>And {more} more.</p>" if more else ""
    return Html(_sentences(reach.sentences) + peers + rest)


def _sentences(sentences: Sequence[str]) -> Html:
    if not sentences:
        return Html("")
    lines = "".join(f"<li>{markup.text(each)}</li>" for each in sentences)
    return Html(f"<ul>{lines}</ul>")
