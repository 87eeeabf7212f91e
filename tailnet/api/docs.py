"""A page of the API for people (layer L3): /docs, made of the same document that programs read (openapi.py).

Plain HTML that loads and runs nothing, so no stranger's server learns who reads it.  Open to everybody, as the
document is: it says what can be asked, and nothing of anybody.
"""

import html
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

Json = Mapping[str, Any]

_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
_STYLE: Final = (
    "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:60em;padding:0 1em}code,pre{font:13px monospace}"
    "summary{cursor:pointer}b{display:inline-block;min-width:4.5em}table{border-collapse:collapse;margin:.5em 0}"
    "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd;vertical-align:top}"
    "details{margin:.3em 0}details>*:not(summary){margin-left:1.5em}"
)
_CALLERS: Final = {
    "agent": "An agent's token.",
    "user": "A user's session token.",
    "operator": "An operator: by address, or with an administrator's token.",
    "relay": "A relay elsewhere: the token of the server's --relays-token-file.",
}

router = APIRouter()


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The page."""
    return HTMLResponse(docs_html(request.app.openapi()), headers=_HEADERS)


def docs_html(document: Json) -> str:
    """The page of an OpenAPI document."""
    info = document["info"]
    head = f"{_text(info['title'])} {_text(info['version'])}"
    parts = [
        f'<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>{head}: the API</title><style>{_STYLE}</style><h1>{head}: the API</h1>"
        '<p>The same <a href="/api/v2/openapi.json">for programs</a>. A token goes into '
        + ", ".join(_scheme(each) for each in document["components"]["securitySchemes"].values())
        + ".</p>"
    ]
    by_tag: dict[str, list[tuple[str, str, Json]]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            by_tag.setdefault(operation.get("tags", ["other"])[0], []).append((method.upper(), path, operation))
    for tag, operations in sorted(by_tag.items()):
        parts.append(f"<h2>{_text(tag)}</h2>")
        parts += ["".join(_operation(*each)) for each in operations]
    parts.append("<h2>Objects</h2>")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(f"<details id={_anchor(name)}><summary>{_text(name)}</summary>{_object(schema)}</details>")
    return "".join(parts) + "</html>\n"


def _operation(method: str, path: str, operation: Json) -> Iterator[str]:
    yield f"<details><summary><b>{method}</b> <code>{_text(path)}</code> {_text(operation['summary'])}</summary>"
    if "description" in operation:
        yield f"<p>{_text(operation['description'])}</p>"
    yield f"<p>{_CALLERS.get(operation.get('x-caller', ''), 'Open to everybody.')}</p>"
    parameters = operation.get("parameters", ())
    if parameters:
        yield "<table><tr><th>parameter<th>in<th>type<th>meaning</tr>"
        for each in parameters:
            where = each["in"] + (", required" if each.get("required") else "")
            meaning = _text(each.get("description", ""))
            yield f"<tr><td><code>{_text(each['name'])}</code><td>{where}<td>{_type(each['schema'])}<td>{meaning}</tr>"
        yield "</table>"
    for content in operation.get("requestBody", {}).get("content", {}).values():
        yield f"<h4>Body</h4>{_object(content['schema'])}"
    yield "<table><tr><th>status<th>answer</tr>"
    for status, answer in sorted(operation["responses"].items()):
        kinds = [f"{_type(each['schema'])} ({_text(kind)})" for kind, each in answer.get("content", {}).items()]
        yield f"<tr><td>{_text(status)}<td>{_text(answer['description'])} {'; '.join(kinds)}</tr>"
    yield "</table></details>"


def _object(schema: Json) -> str:
    if not schema.get("properties"):
        return f"<p>{_type(schema)}</p>"
    required = schema.get("required", ())
    rows = (
        f"<tr><td><code>{_text(name)}</code><td>{_type(each)}<td>{'always' if name in required else ''}</tr>"
        for name, each in schema["properties"].items()
    )
    about = f"<p>{_text(schema['description'])}</p>" if "description" in schema else ""
    return f"{about}<table><tr><th>field<th>type<th>there</tr>{''.join(rows)}</table>"


def _type(schema: Json) -> str:
    """A type in a few words, HTML."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#{_anchor(name)}">{_text(name)}</a>'
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return " or ".join(_type(each) for each in schema[word])
    if "enum" in schema:
        return " | ".join(f"<code>{_text(str(each))}</code>" for each in schema["enum"])
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    more = schema.get("additionalProperties")
    if kind == "object" and isinstance(more, Mapping):
        return f"object of {_type(more)} by name"
    return _text(f"{kind} ({schema['format']})" if "format" in schema else kind)


def _scheme(scheme: Json) -> str:
    if scheme["type"] == "http":
        return "<code>Authorization: Bearer</code>"
    return f"the {scheme['in']} <code>{_text(scheme['name'])}</code>"


def _anchor(name: str) -> str:
    return html.escape("object-" + "".join(each if each.isalnum() else "-" for each in name))


def _text(text: str) -> str:
    return html.escape(str(text))
