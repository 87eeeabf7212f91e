"""What all answers have in common: an id, headers for browsers, compression, a line in the log, a limit per user."""

import gzip
import json
import logging
from dataclasses import replace
from typing import Any

import httpx
import pytest
import trio
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from trio.testing import MockClock

from tailnet.api.app import create_app
from tailnet.api.middleware import COMPRESSED_FROM_BYTES, Middleware
from tailnet.store.store import Store
from tests.support.api_world import ACCESS_URL, LOCAL, World
from tests.support.seeds import agent_token, make_id, peer_id, user_token

ME = "/api/v2/workspaceagents/connection"
ALICE, BOB = user_token("alice"), user_token("bob")


@pytest.mark.parametrize("given", ["7f3a", "a" * 128, "00-4bf92f-01:b/c+d=", str(make_id("x"))])
async def test_a_sane_id_of_the_caller_is_kept(world: World, given: str) -> None:
    async with world.client(token=ALICE) as client:
        response = await client.get(ME, headers={"X-Request-Id": given})
    assert response.headers.get_list("x-request-id") == [given]


@pytest.mark.parametrize("given", ["", "a" * 129, "-x", "two words", "a;b", "<b>", "ä", 'a"b'])
async def test_any_other_is_replaced(world: World, given: str) -> None:
    async with world.client(token=ALICE) as client:
        response = await client.get(ME, headers=[(b"X-Request-Id", given.encode("latin-1"))])
    (made,) = response.headers.get_list("x-request-id")
    assert made != given
    assert len(made) == 36


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", ME, 200),
        ("POST", ME, 405),
        ("GET", "/nonsense", 404),
        ("GET", "/api/v2/workspaceagents/x", 400),
        ("GET", f"/api/v2/workspaceagents/{peer_id('nobody')}", 404),
        ("GET", "/api/v2/derp-map", 426),
        ("GET", "/healthz", 200),
        ("GET", "/api/v2/openapi.json", 200),
    ],
)
async def test_every_answer_has_an_id_and_the_headers(world: World, method: str, path: str, status: int) -> None:
    async with world.client(token=ALICE) as client:
        response = await client.request(method, path)
    assert response.status_code == status
    assert len(response.headers["x-request-id"]) == 36
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert response.headers["cache-control"] == "no-store"


async def test_a_defect_of_ours_has_them_too(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> object:
        raise ZeroDivisionError

    monkeypatch.setattr(world.services.inspection, "describe", fail)
    async with world.client(LOCAL) as client:
        response = await client.get("/debug/tailnet", headers={"X-Request-Id": "find-me"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "find-me"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "/debug/tailnet failed (request find-me)" in caplog.text


async def test_a_page_keeps_its_own_policy(world: World) -> None:
    async with world.client(LOCAL) as client:
        response = await client.get("/debug/")
    assert response.headers.get_list("content-security-policy") == [
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    ]


async def test_other_sites_are_told_nothing(world: World) -> None:
    async with world.client(token=ALICE) as client:
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
        preflight = await client.options(ME, headers=asked)
        response = await client.get(ME, headers=asked)
    assert preflight.status_code == 405
    for each in (preflight, response):
        assert not [name for name in each.headers if name.startswith("access-control-")]


# --- the log


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[int, dict[str, Any]]]:
    found = [each for each in caplog.records if each.name == "tailnet.api.access"]
    return [(each.levelno, dict(vars(each)["fields"])) for each in found]


async def test_one_line_per_request(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with world.client(token=ALICE) as client:
        await client.get(f"{ME}?coder_session_token={ALICE}&q=x", headers={"X-Request-Id": "one"})
    ((level, line),) = lines(caplog)
    assert level == logging.INFO
    assert line.pop("milliseconds") >= 0
    assert line == {
        "event": "request",
        "method": "GET",
        "path": ME,
        "status": 200,
        "caller_kind": "user",
        "caller": str(make_id("alice")),
        "request_id": "one",
    }
    ours = "".join(each.getMessage() for each in caplog.records if each.name.startswith("tailnet"))
    assert "request one" in ours
    assert ALICE.partition("-")[2] not in ours


async def test_an_agent_by_its_id(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with world.client(token=agent_token("main")) as client:
        response = await client.get("/api/v2/workspaceagents/me/metadata")
    ((_, line),) = lines(caplog)
    assert (line["caller_kind"], line["caller"]) == ("agent", str(peer_id("main")))
    assert response.headers["cache-control"] == "no-store"


async def test_a_stranger_has_no_name(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with world.client(token="x" * 33) as client:
        await client.get("/" + "y" * 5000)
        await client.get(ME)
    (_, long), (_, unknown) = lines(caplog)
    assert (len(long["path"]), long["status"]) == (259, 404)
    assert (unknown["status"], unknown["caller_kind"], unknown["caller"]) == (401, "", "")


async def test_probes_are_quiet_until_they_fail(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with world.client() as client:
        await client.get("/healthz")
        await client.get("/readyz")
        world.reasons.append("draining")
        await client.get("/readyz")
    assert [level for level, _ in lines(caplog)] == [logging.DEBUG, logging.DEBUG, logging.INFO]


async def test_who_leaves_before_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def forever(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep_forever()

    scope = {"type": "http", "method": "GET", "path": "/slow", "headers": []}
    with trio.move_on_after(0.01):
        await Middleware(forever)(scope, _nothing, _drop)
    ((_, line),) = lines(caplog)
    assert (line["path"], line["status"]) == ("/slow", 499)


async def _nothing() -> dict[str, Any]:
    await trio.sleep_forever()


async def _drop(message: Any) -> None: ...


async def test_a_websocket_is_told_its_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sent: list[Any] = []

    async def accept(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept", "headers": [(b"X-Own", b"1")]})

    async def keep(message: Any) -> None:
        sent.append(message)

    await Middleware(accept)({"type": "websocket", "path": "/ws", "headers": [(b"x-request-id", b"w")]}, _nothing, keep)
    assert sent == [{"type": "websocket.accept", "headers": [(b"x-own", b"1"), (b"x-request-id", b"w")]}]
    assert lines(caplog)[0][1]["status"] == 101


# --- compression


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip", "gzip"), ("br, gzip;q=0.5", "gzip"), ("", None), ("identity", None), ("gzip;q=0", None), ("xgzip", None)],
)
async def test_compression_for_who_reads_it(world: World, accepted: str, encoding: str | None) -> None:
    async with world.client() as client:
        plain = await client.get("/api/v2/openapi.json", headers={"Accept-Encoding": "identity"})
        response = await client.get("/api/v2/openapi.json", headers={"Accept-Encoding": accepted})
        small = await client.get("/healthz", headers={"Accept-Encoding": accepted})
    assert response.headers.get("content-encoding") == encoding
    assert response.json() == plain.json()
    if encoding:
        assert int(response.headers["content-length"]) < len(plain.content) / 3
    assert "content-encoding" not in small.headers


async def test_what_is_streamed_as_events_is_not_held_back_by_compression() -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * COMPRESSED_FROM_BYTES * 2, "more_body": False})

    async with httpx.AsyncClient(transport=httpx.ASGITransport(Middleware(stream)), base_url="http://x") as client:
        response = await client.get("/", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in response.headers
    assert response.headers.get_list("cache-control") == ["no-cache"]


def test_the_compressed_form_is_gzip() -> None:
    # What the tests above leave to httpx: that stock tools read it.
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(["x" * 5000]).encode()})

    sent: list[Any] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/", "headers": [(b"accept-encoding", b"gzip")]}
    trio.run(Middleware(answer), scope, _nothing, keep)
    assert json.loads(gzip.decompress(sent[1]["body"])) == ["x" * 5000]


# --- the limit


async def test_who_asks_too_often_waits_alone(store: Store, world: World, autojump_clock: MockClock) -> None:
    world.services = replace(world.services, config=replace(world.services.config, api_rate_limit=3))
    app = create_app(world.services)

    async def get(token: str, path: str = ME) -> httpx.Response:
        headers = {"Coder-Session-Token": token}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url=ACCESS_URL, headers=headers
        ) as client:
            return await client.get(path)

    agent = f"/api/v2/workspaceagents/{peer_id('main')}"
    assert [(await get(ALICE, path)).status_code for path in (ME, agent, ME)] == [200, 200, 200]
    for path in (ME, agent):
        refused = await get(ALICE, path)
        assert refused.status_code == 429
        assert 55 <= int(refused.headers["retry-after"]) <= 60
        body = refused.json()
        assert body["message"] == "You've been rate limited for sending more than 3 requests in a minute."
        assert body["detail"] == f"Please try again in {refused.headers['retry-after']} s."
    assert (await get(BOB)).status_code == 200
    assert (await get("")).status_code == 401
    assert world.services.limits.refused_count == 2
    await trio.sleep(int(refused.headers["retry-after"]))
    assert (await get(ALICE)).status_code == 200


async def test_some_answers_go_out_as_they_are() -> None:
    """Results of a stream would wait in a compressor for those behind them."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("x" * 5_000)(scope, receive, send)

    transport = httpx.ASGITransport(Middleware(app, uncompressed={"/stream"}))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://x", headers={"Accept-Encoding": "gzip"}
    ) as client:
        assert "content-encoding" not in (await client.get("/stream")).headers
        assert (await client.get("/other")).headers["content-encoding"] == "gzip"
