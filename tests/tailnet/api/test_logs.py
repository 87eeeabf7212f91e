"""Lines of an agent's scripts: as JSON, as text, what is refused; the live ones are in tests/tailnet/server."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from tailnet.refusals import NO_SUCH_AGENT
from tailnet.services.logs import Logs
from tailnet.store.reports import EXTERNAL_LOG_SOURCE
from tailnet.store.rows import LogBatch, LogSource
from tests.support.api_world import World
from tests.support.seeds import NOW, make_id, peer_id, user_token

pytestmark = pytest.mark.stores

MAIN = peer_id("main")
PATH = f"/api/v2/workspaceagents/{MAIN}/logs"


def print_lines(world: World) -> None:
    """Two sources, every level, and what JSON has to escape."""
    world.store.reports.add_log_source(LogSource(MAIN, make_id("source"), "Start", "/icon.png", NOW))
    world.store.reports.insert_logs(
        [
            LogBatch(MAIN, make_id("source"), [(1, "a"), (2, "<b>\u2028")], NOW),
            LogBatch(peer_id("gpu"), EXTERNAL_LOG_SOURCE, [(3, "another's")], NOW),
            LogBatch(MAIN, EXTERNAL_LOG_SOURCE, [(3, "c"), (4, ""), (5, "é")], NOW + timedelta(seconds=1)),
        ]
    )


async def get(world: World, target: str = PATH, token: str = user_token("alice")) -> httpx.Response:
    async with world.client(token=token) as client:
        return await client.get(target)


async def test_every_field_of_every_line(world: World) -> None:
    assert (await get(world)).content == b"[]\n"
    print_lines(world)
    response = await get(world)
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    lines: list[dict[str, Any]] = response.json()
    assert lines[1] == {
        "id": lines[0]["id"] + 1,
        "created_at": "2026-01-02T03:04:05.678901Z",
        "output": "<b>\u2028",
        "level": "debug",
        "source_id": str(make_id("source")),
    }
    assert b"\\u003cb\\u003e\\u2028" in response.content
    assert [(line["level"], line["output"]) for line in lines] == [
        ("trace", "a"),
        ("debug", "<b>\u2028"),
        ("info", "c"),
        ("warn", ""),
        ("error", "é"),
    ]
    assert {line["source_id"] for line in lines[2:]} == {str(EXTERNAL_LOG_SOURCE)}
    assert (await get(world, PATH.replace("/logs", "/startup-logs"))).content == response.content


@pytest.mark.parametrize("page_lines", [1, 2, 5, 1_000])
async def test_pages_are_one_array(world: World, page_lines: int) -> None:
    print_lines(world)
    whole = (await get(world)).content
    object.__setattr__(world.services, "logs", Logs(world.store, page_lines=page_lines))
    assert (await get(world)).content == whole


async def test_after(world: World) -> None:
    print_lines(world)
    ids = [line["id"] for line in (await get(world)).json()]
    for index, line_id in enumerate(ids):
        answered = (await get(world, f"{PATH}?after={line_id}&before=1")).json()
        assert [line["id"] for line in answered] == ids[index + 1 :]
    assert (await get(world, f"{PATH}?after=9999999999999999999")).json() == []


async def test_as_text(world: World) -> None:
    print_lines(world)
    response = await get(world, f"{PATH}?format=text")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.text.split("\n") == [
        "2026-01-02T03:04:05Z [trace] [agent.main|Start] a",
        "2026-01-02T03:04:05Z [debug] [agent.main|Start] <b>\u2028",
        "2026-01-02T03:04:06Z [info] [agent.main|External] c",
        "2026-01-02T03:04:06Z [warn] [agent.main|External] ",
        "2026-01-02T03:04:06Z [error] [agent.main|External] é",
        "",
    ]


@pytest.mark.parametrize(
    ("query", "status", "message", "field"),
    [
        ("after=-1", 400, "Invalid query parameters.", "after"),
        ("after=x", 400, "Invalid query parameters.", "after"),
        ("after=1.0", 400, "Invalid query parameters.", "after"),
        ("after=%C2%B2", 400, "Invalid query parameters.", "after"),
        ("format=xml", 400, "Invalid format parameter.", "format"),
        ("format=text&follow", 400, "Text format is not supported with follow mode.", ""),
        ("follow=false", 426, "This address speaks websocket only.", ""),
    ],
)
async def test_what_is_refused(world: World, query: str, status: int, message: str, field: str) -> None:
    response = await get(world, f"{PATH}?{query}")
    assert (response.status_code, response.json()["message"]) == (status, message)
    assert response.json()["detail"]
    assert [each["field"] for each in response.json().get("validations", [])] == ([field] if field else [])


async def test_who_may_look(world: World) -> None:
    assert (await get(world, token="")).status_code == 401
    stranger = await get(world, token=user_token("bob"))
    assert (stranger.status_code, stranger.json()["message"]) == (404, NO_SUCH_AGENT)
    assert (await get(world, "/api/v2/workspaceagents/nonsense/logs")).status_code == 400
    with world.store.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE agent_logs RENAME TO away")
    assert (await get(world)).status_code == 503
