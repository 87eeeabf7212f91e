"""Bad input at every route: the documented status, the documented body, and nothing written.

Routes are found in the app itself, so a new one is asked the same without a new line here: by wrong tokens, for
others' agents, with ids, queries and bodies that are none.  What is expected follows from a route's guard, its path,
its parameters and the body that it says it reads.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
import sqlalchemy as sa
import trio
from fastapi import FastAPI
from fastapi.routing import APIRoute, APIWebSocketRoute

from tailnet.api.app import create_app
from tailnet.api.openapi import caller_of, routes_of
from tailnet.api.rpc_admission import RefusedPeer, RpcAdmission
from tailnet.coordinator.resume import ResumeTokens
from tailnet.store.rows import Role
from tailnet.store.schema import metadata
from tailnet.store.store import Store
from tailnet.tokens import COOKIE, parse_user_token
from tests.support.api_sockets import ask_for_socket
from tests.support.api_world import STRANGER, World
from tests.support.openapi_document import document, make_app
from tests.support.seeds import NOW, agent_token, defined_document, fill, make_id, peer_id, user_token

MIB = 1024 * 1024
HANG_SECONDS = 30.0
RELAYS_TOKEN = "s3cret-of-relays"
EXPIRED = "expired123-0123456789012345678901"
# Good of another kind, of nobody, and none at all.
BAD_TOKENS: Mapping[str, tuple[str, ...]] = {
    "agent": ("", "nonsense", str(make_id("no token")), user_token("alice"), "\xff" * 3, "x" * 5000),
    "user": (
        *("", "nonsense", user_token("nobody"), user_token("alice")[:-1] + "z", agent_token("main"), EXPIRED),
        *(user_token("carol"), "\xff" * 3, "x" * 5000),
    ),
    "operator": ("", "nonsense", user_token("alice"), agent_token("main")),
    "relay": ("", "nonsense", user_token("alice"), RELAYS_TOKEN[:-1] + "z", "\xff" * 3, "x" * 5000),
}
# None of them is JSON that any route takes.
BAD_BODIES: Mapping[str, bytes] = {
    "empty": b"",
    "cut": b'{"a": [1, 2',
    "two values": b'{"a":1} {"a":2}',
    "invalid UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "NaN": b'{"a": NaN}',
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 30_000 + b"1" + b"}" * 30_000,
    "a form": b"a=1&b=2",
    "a list": b"[]",
    "a string": b'"x"',
    "a number": b"1",
    "null": b"null",
    "a huge number": b"1" * 10_000,
}
TOO_LARGE = b'{"a":"' + b"x" * MIB + b'"}'
# Of another kind than a schema wants.
OTHERS: Mapping[str, Any] = {"string": 7, "integer": "x", "number": "x", "object": "x", "array": "x", "boolean": "x"}
BAD_QUERIES = ("x", "-1", "1.5", "9" * 40, "\x00", "\u0663", "%ff", "'; DROP TABLE agents; --")
BAD_IDS = ("x", "0" * 36, str(peer_id("main")) + "0", "{" + str(peer_id("main")) + "}", "%00", "..%2f..", "x" * 3000)
# Endless answers, which are asked for only where they are refused.
ENDLESS = {"/live", "/agents/{workspaceagent}/live", "/api/v2/workspaceagents/me/reinit"}
ENDLESS |= {"/api/v2/workspaceagents/{workspaceagent}/watch-metadata"}
# Forms of a browser, and not the JSON of the API.
FORMS = {"/login": {400, 401, 413}, "/logout": {303}}
# Without --auth-url it is no route; what it refuses with one is in test_auth_changed.py.
ABSENT = {"/api/v2/auth/changed": {404}}
# A body is nothing to it; the agent is not connected.
BODILESS = {"/api/v2/workspaceagents/{workspaceagent}/containers/devcontainers/{devcontainer}/recreate": {400}}
# Read over: "before" is, as everywhere; what asks by its presence has no wrong value.
NO_NUMBERS_OF = {"before"}


@dataclass(frozen=True)
class Asked:
    """A route, and what is expected of it."""

    method: str  # "WS": a websocket
    path: str
    caller: str | None
    numbers: tuple[str, ...]  # parameters of the query that are integers
    body: Mapping[str, Any]  # the schema of the body that it reads

    @property
    def is_of_administrators(self) -> bool:
        return self.path.startswith("/api/v2/admin/")

    @property
    def is_page(self) -> bool:
        return not self.path.startswith(("/api/", "/external-auth/")) and self.caller != "operator"

    def target(self, agent: str = str(peer_id("main")), user: str = "alice", workspace: str = "dev") -> str:
        parts = {"workspaceagent": agent, "user": user, "workspacename": workspace, "provider": "nobody"}
        return re.sub(r"{(\w+)(:path)?}", lambda part: parts.get(part[1], "nothing"), self.path)


def found() -> Iterator[Asked]:
    described = document()["paths"]
    for route in routes_of(make_app()):
        if isinstance(route, APIRoute):
            for method in sorted(route.methods):
                operation = described.get(route.path_format, {}).get(method.lower(), {})
                numbers = tuple(
                    each["name"]
                    for each in operation.get("parameters", ())
                    if each["in"] == "query" and "integer" in json.dumps(each["schema"])
                )
                content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
                yield Asked(method, route.path, caller_of(route.dependant), numbers, content.get("schema", {}))
        elif isinstance(route, APIWebSocketRoute):
            yield Asked("WS", route.path, caller_of(route.dependant), (), {})


ROUTES = list(found())


def named(routes: list[Asked]) -> list[Any]:
    return [pytest.param(each, id=f"{each.method}{each.path}".replace("/", "_")) for each in routes]


@dataclass
class Place:
    """The world, its app, and what is in its store."""

    world: World
    app: FastAPI

    def stored(self) -> dict[str, list[Any]]:
        with self.world.store.database.reading() as connection:
            return {
                table.name: sorted(map(repr, connection.execute(sa.select(table)))) for table in metadata.sorted_tables
            }

    @asynccontextmanager
    async def unchanged(self) -> AsyncIterator[None]:
        await self.world.outbox.flush()
        before = self.stored()
        with trio.fail_after(HANG_SECONDS):
            yield
        await self.world.outbox.flush()
        assert self.stored() == before

    async def ask(
        self, asked: Asked, target: str, token: str = "", content: bytes = b"", kind: str = "application/json"
    ) -> httpx.Response:
        headers = {"content-type": kind} if asked.method not in ("GET", "HEAD", "WS") else {}
        if token:
            text = token.encode("latin-1").decode("latin-1")
            headers |= {"authorization": f"Bearer {text}"} if asked.caller == "relay" else {"coder-session-token": text}
        if asked.method == "WS":
            status, answered, body = await ask_for_socket(self.app, target, headers, STRANGER)
            return httpx.Response(status, headers=answered, content=body)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=STRANGER)
        async with httpx.AsyncClient(transport=transport, base_url="http://tailnet.example.com") as client:
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            return await client.request(asked.method, target, headers=raw, content=content)


@pytest.fixture
def place(world: World, store: Store) -> Place:
    fill(store, defined_document())
    names = ("carol", "dora")
    users = [{"id": str(make_id(name)), "username": name, "token": user_token(name)} for name in names]
    fill(store, {"users": users, "agents": []})
    store.callers.update_user(make_id("dora"), NOW, role=Role.ADMIN)
    store.callers.update_user(make_id("carol"), NOW, active=False)
    expired = parse_user_token(EXPIRED)
    store.callers.add_user_token(make_id("alice"), expired.id, expired.secret_digest, NOW, NOW - timedelta(seconds=1))
    world.services = replace(world.services, config=replace(world.services.config, relays_token=RELAYS_TOKEN))
    return Place(world, create_app(world.services))


def token_of(asked: Asked) -> str:
    if asked.is_of_administrators:
        return user_token("dora")
    return {"agent": agent_token("main"), "user": user_token("alice"), "relay": RELAYS_TOKEN}.get(
        asked.caller or "", ""
    )


def check_refusal(asked: Asked, answer: httpx.Response, statuses: set[int], why: str) -> None:
    """One of the statuses, and a body of the form that the API says."""
    assert answer.status_code in statuses, f"{why}: {answer.status_code} {answer.text[:300]}"
    if asked.method == "HEAD":
        return
    if asked.is_page:
        assert answer.headers["content-type"].startswith("text/html"), why
        assert "default-src 'none'" in answer.headers["content-security-policy"], why
        return
    check_body(answer, why)
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"] == "Bearer", why


def check_body(answer: httpx.Response, why: str) -> None:
    assert answer.headers["content-type"] == "application/json; charset=utf-8", why
    body = answer.json()
    assert answer.text.endswith("}\n"), why
    assert set(body) <= {"message", "detail", "validations"}, why
    assert body["message"], why
    assert body.get("detail", "x"), f"{why}: an empty detail is left out"
    for each in body.get("validations", [{"field": "x", "detail": "x"}]):
        assert set(each) == {"field", "detail"}, why
        assert each["field"], why
        assert each["detail"], why


@pytest.mark.parametrize("asked", named([each for each in ROUTES if each.caller is not None]))
async def test_wrong_tokens(place: Place, asked: Asked) -> None:
    assert asked.caller is not None
    statuses = {403} if asked.caller == "operator" else {401}
    async with place.unchanged():
        for token in BAD_TOKENS[asked.caller]:
            answer = await place.ask(asked, asked.target(), token)
            check_refusal(asked, answer, statuses, f"token {token[:40]!r}")
            assert not token or token not in answer.text, "no token is shown"


@pytest.mark.parametrize("asked", named([each for each in ROUTES if each.is_of_administrators]))
async def test_what_is_for_administrators_alone(place: Place, asked: Asked) -> None:
    async with place.unchanged():
        check_refusal(asked, await place.ask(asked, asked.target(), user_token("alice")), {403}, "no administrator")


@pytest.mark.parametrize("asked", named([each for each in ROUTES if "{workspaceagent}" in each.path]))
async def test_agents_of_others_and_ids_that_are_none(place: Place, asked: Asked) -> None:
    bodies = set()
    async with place.unchanged():
        for ident in (peer_id("web"), make_id("nobody")):
            answer = await place.ask(asked, asked.target(str(ident)), token_of(asked))
            check_refusal(asked, answer, {404}, f"agent {ident}")
            bodies.add(answer.text.replace(str(ident), ""))
        for text in BAD_IDS:
            answer = await place.ask(asked, asked.target(text), token_of(asked))
            # With a slash in it, it is another path, which may be nobody's.
            check = answer if answer.status_code != 404 else None
            if check is not None:
                check_refusal(asked, answer, {400}, f"id {text[:40]!r}")
    assert len(bodies) == 1, "nobody can tell whether an id exists"


@pytest.mark.parametrize("asked", named([each for each in ROUTES if "{user}" in each.path]))
async def test_other_users(place: Place, asked: Asked) -> None:
    async with place.unchanged():
        for user in ("bob", "nobody", str(make_id("bob")), "%00", "x" * 3000):
            answer = await place.ask(asked, asked.target(user=user, workspace="shop"), token_of(asked))
            check_refusal(asked, answer, {404}, f"user {user[:40]!r}")


@pytest.mark.parametrize("asked", named([each for each in ROUTES if each.method in ("POST", "PATCH", "PUT")]))
async def test_bodies_that_are_none(place: Place, asked: Asked) -> None:
    others = FORMS | ABSENT | BODILESS
    statuses = others.get(asked.path, {400})
    async with place.unchanged():
        for kind in ("application/json", "text/plain", ""):
            for name, content in BAD_BODIES.items():
                if kind == "application/json" or name in ("empty", "cut", "a list"):
                    answer = await place.ask(asked, asked.target(), token_of(asked), content, kind)
                    check_unless_limited(asked, answer, statuses, f"{kind} {name}")
        answer = await place.ask(asked, asked.target(), token_of(asked), TOO_LARGE)
        check_unless_limited(asked, answer, others.get(asked.path, {413}), "too large")


def check_unless_limited(asked: Asked, answer: httpx.Response, statuses: set[int], why: str) -> None:
    if answer.status_code != 303:
        check_refusal(asked, answer, statuses, why)
    else:
        assert 303 in statuses, why


@pytest.mark.parametrize("asked", named([each for each in ROUTES if each.body]))
async def test_fields_of_another_kind_and_keys_given_twice(place: Place, asked: Asked) -> None:
    properties: Mapping[str, Any] = asked.body["properties"]
    assert properties
    async with place.unchanged():
        for field, schema in properties.items():
            wrong = OTHERS[next(kind for kind in kinds_of(schema) if kind != "null")]
            answer = await place.ask(asked, asked.target(), token_of(asked), json.dumps({field: wrong}).encode())
            check_refusal(asked, answer, {400}, f"{field} = {wrong!r}")
            fields = {each["field"].partition(".")[0].lower() for each in answer.json().get("validations", ())}
            assert field.lower() in fields, answer.text
            # Of a key that stands twice the last counts: it is the wrong one.
            good = json.dumps(example(schema))
            twice = f'{{"{field}": {good}, "{field}": {json.dumps(wrong)}}}'.encode()
            answer = await place.ask(asked, asked.target(), token_of(asked), twice)
            check_refusal(asked, answer, {400}, f"{field} twice")
            fields = {each["field"].partition(".")[0].lower() for each in answer.json().get("validations", ())}
            assert field.lower() in fields, answer.text
        for nothing in (b"{}", b'{"unknown": 1, "unknown": 2}'):
            answer = await place.ask(asked, asked.target(), token_of(asked), nothing)
            # Only a report of nothing is one: old agents ask so for the interval.
            if answer.status_code != 200 or not asked.path.endswith("/report-stats"):
                check_refusal(asked, answer, {400}, nothing.decode())
        for field in asked.body.get("required", ()):
            others = {name: example(schema) for name, schema in properties.items() if name != field}
            answer = await place.ask(asked, asked.target(), token_of(asked), json.dumps(others).encode())
            check_refusal(asked, answer, {400}, f"without {field}")
            wanted = {"field": field, "detail": 'Validation failed for tag "required" with value: ""'}
            assert wanted in answer.json()["validations"]


def kinds_of(schema: Mapping[str, Any]) -> list[str]:
    if "anyOf" in schema:
        return [kind for each in schema["anyOf"] for kind in kinds_of(each)]
    return [schema["type"]]


def example(schema: Mapping[str, Any]) -> Any:
    kind = next(kind for kind in kinds_of(schema) if kind != "null")
    if schema.get("format") == "uuid":
        return str(make_id("an example"))
    return {"string": "x", "integer": 1, "number": 1.5, "object": {}, "array": [], "boolean": True}[kind]


@pytest.mark.parametrize(
    "asked", named([each for each in ROUTES if each.method in ("GET", "HEAD") and each.path not in ENDLESS])
)
async def test_queries_that_are_none(place: Place, asked: Asked) -> None:
    # What is made when somebody asks first is made now.
    plain = await place.ask(asked, asked.target(), token_of(asked))
    async with place.unchanged():
        for number in asked.numbers:
            for value in BAD_QUERIES:
                target = f"{asked.target()}?{urlencode({number: value})}"
                answer = await place.ask(asked, target, token_of(asked))
                if number in NO_NUMBERS_OF or (value == "9" * 40 and answer.status_code == 200):
                    assert answer.status_code < 500, target
                    continue
                if answer.status_code == plain.status_code >= 400:
                    continue  # nothing of it is asked for here
                check_refusal(asked, answer, {400}, target)
                assert answer.json()["validations"][0]["field"] == number, target
        for query in ("&".join(["a=b"] * 5000), "%", "%ff=%zz&&=", "a" * 7000, "first=x&peer=%00&peer=%ff", "=", "???"):
            target = f"{asked.target()}?{query}"
            answer = await place.ask(asked, target, token_of(asked))
            # What nobody asks for is read over, as everywhere.
            assert answer.status_code < 500 or asked.path in ("/readyz", "/health"), (query[:40], answer.text[:200])
            if answer.status_code >= 400 and not asked.is_page and asked.method != "HEAD":
                check_body(answer, query[:40])


@pytest.mark.parametrize("asked", named([each for each in ROUTES if each.method not in ("HEAD", "WS")]))
async def test_other_methods(place: Place, asked: Asked) -> None:
    known = {each.method for each in ROUTES if each.path == asked.path} | {"HEAD", "OPTIONS"}
    async with place.unchanged():
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"} - known:
            other = Asked(method, asked.path, asked.caller, (), {})
            answer = await place.ask(other, asked.target(), token_of(asked), b'{"a":1}')
            # A path may be that of another resource by another method.
            assert answer.status_code in (401, 404, 405), f"{method} {answer.text[:200]}"
            assert "set-cookie" not in answer.headers
            if not other.is_page:
                check_body(answer, method)


SOCKETS = [
    (path, operation["get"].get("x-caller"))
    for path, operation in document()["paths"].items()
    if "101" in operation.get("get", {}).get("responses", ()) and not any(each.path == path for each in ROUTES)
]


@pytest.mark.parametrize(("path", "caller"), SOCKETS)
async def test_the_sockets_of_peers(place: Place, path: str, caller: str) -> None:
    """They never reach the app: what the front door asks answers alike."""
    admission = RpcAdmission(place.world.services.callers, lambda: ResumeTokens([]), wall_seconds=lambda: 0.0)
    asked = Asked("GET", path, caller, (), {})
    upgrade = {"upgrade": "websocket", "connection": "Upgrade", "host": "x"}

    async def judge(target: str, token: str) -> httpx.Response:
        refused = await admission.judge("GET", target, upgrade | ({"coder-session-token": token} if token else {}))
        assert isinstance(refused, RefusedPeer), target
        return httpx.Response(refused.status, headers=dict(refused.headers), content=refused.body)

    async with place.unchanged():
        for token in BAD_TOKENS[caller]:
            check_refusal(asked, await judge(asked.target(), token), {401}, f"token {token[:40]!r}")
        if "{workspaceagent}" in path:
            for text in ("x", "0" * 36, "x" * 3000):
                check_refusal(asked, await judge(asked.target(text), token_of(asked)), {400}, text[:40])
            for ident in (peer_id("web"), make_id("nobody")):
                check_refusal(asked, await judge(asked.target(str(ident)), token_of(asked)), {404}, str(ident))
        if not path.endswith("me/coordinate"):
            for version in ("x", "1", "2.x", "99.0", "-1.0", "2.99999999999", "%00"):
                answer = await judge(f"{asked.target()}?version={version}", token_of(asked))
                check_refusal(asked, answer, {400}, version)
                assert answer.json()["validations"][0]["field"] == "version"


def test_the_walk_saw_the_routes() -> None:
    assert len(ROUTES) > 40
    assert {each.caller for each in ROUTES} == {"agent", "user", "operator", "relay", None}
    assert len([each for each in ROUTES if each.body]) >= 8
    assert len(SOCKETS) == 4
    assert COOKIE
