"""One agent for people: whose it is, what stands on it, and what a question about others gives away."""

from datetime import timedelta

import pytest

from tailnet.store.rows import LogBatch, MetadataValue
from tests.support.api_world import STRANGER, World
from tests.support.seeds import NOW, came, defined_document, fill, make_id, peer_id, user_token

MAIN, WEB = peer_id("main"), peer_id("web")
PAGE = f"/agents/{MAIN}"


async def shown(world: World, path: str = PAGE, who: str = "alice") -> tuple[int, str]:
    async with world.client(STRANGER, user_token(who) if who else "") as client:
        answer = await client.get(path)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        return answer.status_code, answer.text


async def test_what_stands_on_it(world: World) -> None:
    fill(world.store, defined_document())
    came(world.store, MAIN, NOW - timedelta(seconds=10))
    world.store.reports.put_metadata([MetadataValue(MAIN, "cpu", "42 %", "", NOW)])
    source = make_id("source")
    world.store.reports.insert_logs([LogBatch(MAIN, source, [(3, f"line {each}") for each in range(600)], NOW)])
    status, page = await shown(world)
    assert status == 200
    for text in ("main", "in dev", "connected", "Editor", "42 %", "line 599", "line 100", "2026-01-02 03:03:55 UTC"):
        assert text in page
    assert "line 99<" not in page, "only the end of the log"
    last_id = world.store.reports.list_last_logs(MAIN, 1)[0].id
    assert f'data-after="{last_id}"' in page
    assert f"{MAIN} is not connected here." in page


@pytest.mark.parametrize(
    ("path", "who", "status"),
    [
        (PAGE, "bob", 404),
        (PAGE, "", 401),
        (f"{PAGE}/live", "", 401),
        (f"{PAGE}/live", "bob", 404),
        (f"/agents/{make_id('nobody')}", "alice", 404),
        ("/agents/nonsense", "alice", 400),
    ],
)
async def test_whose_it_is_not(world: World, path: str, who: str, status: int) -> None:
    found, page = await shown(world, path, who)
    assert found == status
    assert "in dev" not in page
    assert 'id="state"' not in page
    assert ("Sign in" in page) is (status == 401)


async def test_why_not_gives_nothing_away(world: World) -> None:
    """Of another's agent, of one that is nobody, and of one that is connected the answer is the same."""
    answers = set()
    for peer in (WEB, make_id("nobody"), peer_id("gpu")):
        _, page = await shown(world, f"{PAGE}?peer={peer}")
        why = page.partition('id="why"')[2]
        assert f"No tunnel joins {peer} and this agent" in why
        answers.add(why.replace(str(peer), ""))
    assert len(answers) == 1
    assert "That is no id of a peer" in (await shown(world, f"{PAGE}?peer=%3Cscript%3E"))[1]


async def test_what_is_asked_is_text(world: World) -> None:
    _, page = await shown(world, f"{PAGE}?peer=%22%3E%3Cscript%3Ealert(1)%3C/script%3E")
    assert "<script>alert" not in page
