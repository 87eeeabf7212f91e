"""Pages of the parts below the API: who may see them, what they are, and where they are found."""

from dataclasses import replace

import pytest

from derp.server.pages import Page, Query, Question, Reply
from tailnet import __version__
from tailnet.services.why import SlowQuestion
from tailnet.store.rows import Role
from tailnet.store.store import Store
from tests.support.api_world import LOCAL, STRANGER, World, make_world
from tests.support.seeds import NOW, make_id, user_token


def ask(asked: Query) -> Reply:
    return Reply(202, "text/plain", f"{sorted(asked.items())}".encode())


async def ask_others(asked: Query) -> Reply:
    return ask(asked)


PAGES = {
    "/debug/slow": SlowQuestion("slow", ask_others),
    "/debug/why": Question("why <not>", ask),
    "/debug/clients/": Question("clients", ask),
    "/debug/clients": Page("clients", "application/json", lambda: b"[]"),
    "/debug/check": Page("check", "text/plain", lambda: b"fault", is_fault=lambda body: body == b"fault"),
}


@pytest.fixture
def world(store: Store) -> World:
    made = make_world(store)
    return replace(made, services=replace(made.services, pages=PAGES))


async def test_pages_and_questions_are_answered(world: World) -> None:
    async with world.client(LOCAL) as client:
        answer = await client.get("/debug/why?from=a&to=b%20c&from=late")
        assert (answer.status_code, answer.text) == (202, "[('from', ['a', 'late']), ('to', ['b c'])]")
        slow = await client.get("/debug/slow?from=a")
        assert (slow.status_code, slow.text) == (202, "[('from', ['a'])]")
        assert (await client.get("/debug/why?" + "a=1&" * 1000)).status_code == 400
        assert (await client.get("/debug/clients/?all=1")).text == "[('all', ['1'])]"
        clients = await client.get("/debug/clients")
        assert (clients.json(), clients.headers["content-type"]) == ([], "application/json")
        assert clients.headers["cache-control"] == "no-store"
        assert (await client.get("/debug/check")).status_code == 500
        missing = await client.get("/debug/pprof")
        assert missing.status_code == 404
        assert missing.json()["detail"] == (
            "There are: /api/v2/openapi.json, /debug/check, /debug/clients, /debug/clients/, /debug/derp-map, "
            "/debug/log, /debug/settings, /debug/slow, /debug/tailnet, /debug/why, /health?format=text, /metrics"
        )


async def test_the_index_has_links_to_all_and_to_what_other_resources_answer(world: World) -> None:
    async with world.client(LOCAL) as client:
        index = (await client.get("/debug/")).text
        for path in {*PAGES, "/debug/tailnet", "/metrics", "/debug/why?format=html"} - {"/debug/why"}:
            assert f'href="{path}"' in index
        assert "why &lt;not&gt;" in index
        assert all(word in index for word in (__version__, "Python", "OpenSSL", "trio", ">well</span>"))
        assert (await client.get("/debug")).headers["location"] == "/debug/"
        assert "Tailnet" in (await client.get("/debug/tailnet")).text, "its own resource answers it"


async def test_strangers_see_none_of_it_and_administrators_all(world: World) -> None:
    paths = ("/debug", "/debug/", "/debug/why?key=x", "/debug/clients", "/debug/pprof")
    async with world.client(STRANGER) as client:
        assert {(await client.get(path)).status_code for path in paths} == {403}
    async with world.client(LOCAL) as client:
        proxied = {"X-Forwarded-For": ""}
        assert {(await client.get(path, headers=proxied)).status_code for path in paths} == {403}, "who is behind it?"
    world.store.callers.update_user(make_id("alice"), NOW, role=Role.ADMIN)
    async with world.client(STRANGER, user_token("alice")) as client:
        assert (await client.get("/debug/clients")).status_code == 200
