"""The page of a terminal without a browser: who gets it, and a policy that lets its scripts make styles and no more.
What it does is in tests/browser/test_terminal_page.py."""

import re
from typing import Any

from tests.support.api_world import World
from tests.support.seeds import fill, make_id, peer_id, seed_document, user_token

MAIN = peer_id("main")
PAGE = f"/agents/{MAIN}/terminal"


async def test_each_answer_has_a_nonce_of_its_own(world: World) -> None:
    async with world.client(token=user_token("alice")) as client:
        pages = [await client.get(PAGE) for _ in range(2)]
    found = set()
    for page in pages:
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        [nonce] = re.findall("'nonce-([^']+)'", policy)
        assert f'data-nonce="{nonce}"' in page.text
        assert "unsafe" not in policy
        assert "script-src 'self';" in policy, "scripts need no nonce, and have none"
        assert f'data-socket="/api/v2/workspaceagents/{MAIN}/pty"' in page.text
        found.add(nonce)
    assert len(found) == 2


async def test_who_gets_it(world: World) -> None:
    document: Any = seed_document()
    grant = {"workspace_id": str(make_id("dev")), "user_id": str(make_id("bob")), "rights": ["read"]}

    async def statuses() -> tuple[int, bool]:
        async with world.client(token=user_token("bob")) as client:
            status = (await client.get(PAGE)).status_code
            return status, "Open a terminal" in (await client.get(f"/agents/{MAIN}")).text

    fill(world.store, {**document, "grants": [grant]})
    assert await statuses() == (404, False), "whoever may only read is not offered one"
    async with world.client(token=user_token("alice")) as client:
        assert "Open a terminal" in (await client.get(f"/agents/{MAIN}")).text
    async with world.client() as client:
        stranger = await client.get(PAGE)
    assert stranger.status_code == 401
    assert f'value="{PAGE}"' in stranger.text, "back to what was asked for"


async def test_no_link_hands_on_a_command(world: World) -> None:
    async with world.client(token=user_token("alice")) as client:
        page = await client.get(f"{PAGE}?command=rm+-rf&reconnect=<script>")
        script = await client.get("/terminal.js")
    assert "rm -rf" not in page.text
    assert "<script>" not in page.text
    assert '"command"' not in script.text
