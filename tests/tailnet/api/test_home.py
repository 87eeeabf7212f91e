"""`/`: for strangers what this is and a form, which says no more than the probes do; for users their agents."""

import pytest

from tailnet import __version__
from tailnet.services import overviews
from tests.support.api_world import STRANGER, World
from tests.support.seeds import NOW, agent_token, came, left, peer_id, user_token


@pytest.mark.parametrize("reasons", [[], ["the store <does> not answer"]])
async def test_what_this_is_is_it_well_and_where_to_look(world: World, reasons: list[str]) -> None:
    world.reasons.extend(reasons)
    async with world.client(STRANGER) as client:
        answer = await client.get("/")
        head = await client.head("/")
        ready = await client.get("/readyz")
    assert answer.status_code == head.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = answer.text
    assert "Sign in to see your agents" in page
    assert ("not ready: the store &lt;does&gt; not answer" in page) is bool(reasons)
    assert (ready.status_code == 200) is not bool(reasons)
    for path in ("/healthz", "/readyz", "/debug/", "/metrics", "/docs", "/api/v2/openapi.json"):
        assert f'href="{path}"' in page


async def test_nothing_but_our_own_script_and_style_runs(world: World) -> None:
    async with world.client(STRANGER, user_token("alice")) as client:
        answer = await client.get("/")
        script = await client.get(answer.text.partition('<script src="')[2].partition('"')[0])
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "script-src 'self'" in policy
    assert "default-src 'none'" in policy
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "immutable" in script.headers["cache-control"]


async def test_it_tells_strangers_no_version(world: World) -> None:
    async with world.client(STRANGER) as client:
        assert __version__ not in (await client.get("/")).text


async def test_other_paths_are_still_no_page(world: World) -> None:
    async with world.client(STRANGER) as client:
        answer = await client.get("/nowhere")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json; charset=utf-8")


async def test_a_user_sees_his_own_agents_and_no_others(world: World) -> None:
    came(world.store, peer_id("main"), NOW)
    left(world.store, peer_id("gpu"), NOW)
    async with world.client(STRANGER, user_token("alice")) as client:
        page = (await client.get("/")).text
    assert [f'href="/agents/{peer_id(name)}"' in page for name in ("main", "gpu", "web")] == [True, True, False]
    assert "Sign out alice" in page
    assert "agent has lost connection" not in page.partition("main")[2].partition("gpu")[0]


@pytest.mark.parametrize("token", [agent_token("main"), "nonsense", user_token("nobody")])
async def test_a_token_that_is_none_is_told_so(world: World, token: str) -> None:
    async with world.client(STRANGER, token) as client:
        answer = await client.get("/")
    assert answer.status_code == 401
    assert "Sign in to see your agents" in answer.text
    assert "signed out or your session has expired" in answer.text
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_a_token_in_the_address_is_not_looked_at(world: World) -> None:
    async with world.client(STRANGER) as client:
        answer = await client.get("/", params={"coder_session_token": user_token("alice")})
    assert "Sign in to see your agents" in answer.text


async def test_long_lists_have_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overviews, "MAX_LINES", 1)
    async with world.client(STRANGER, user_token("alice")) as client:
        first = (await client.get("/")).text
        second = (await client.get("/?first=1")).text
        for nonsense in ("-1", "x", "9" * 30, "٣"):
            assert (await client.get("/", params={"first": nonsense})).text.count("/agents/") == 1
    assert "1 to 1 of 2." in first
    assert 'href="/?first=1"' in first
    assert str(peer_id("main")) in second
    assert 'id="live"' not in second, "only the first page is kept up to date"


async def test_a_newcomer_is_told_the_next_command(world: World) -> None:
    from tailnet.store.schema import metadata

    with world.store.database.writing() as connection:
        for table in reversed(metadata.sorted_tables):
            if table.name in ("users", "agents", "workspaces", "user_tokens"):
                connection.execute(table.delete())
    async with world.client(STRANGER) as client:
        page = (await client.get("/")).text
    assert "Nobody is here yet" in page
    assert "tailnet admin import seed.json" in page
    assert "Sign in" not in page
