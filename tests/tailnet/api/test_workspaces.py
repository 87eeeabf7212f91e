"""A user's workspaces: what a body holds, what is found, and that nobody sees another's without a grant."""

from typing import Any

import httpx
import pytest

from tailnet.api import workspaces as module
from tailnet.refusals import NO_SUCH_RESOURCE
from tailnet.store.rows import Right, Role, WorkspaceStatus
from tests.support.administration import grant
from tests.support.api_world import World
from tests.support.seeds import NOW, AgentSpec, came, fill, make_id, peer_id, seed_document, user_token

pytestmark = pytest.mark.stores

NAMES = "dev", "docs", "lab"


@pytest.fixture
def filled(world: World) -> World:
    agents = [AgentSpec("main", "dev", "alice"), AgentSpec("gpu", "dev", "alice"), AgentSpec("web", "shop", "bob")]
    fill(world.store, seed_document((*agents, AgentSpec("d", "docs", "alice"), AgentSpec("l", "lab", "alice"))))
    return world


async def get(world: World, target: str, name: str = "alice") -> httpx.Response:
    async with world.client(token=user_token(name)) as client:
        return await client.get(f"/api/v2/{target}")


async def found(world: World, query: str, name: str = "alice") -> tuple[list[str], int]:
    body: dict[str, Any] = (await get(world, f"workspaces?{query}", name)).json()
    return [each["name"] for each in body["workspaces"]], body["count"]


async def test_what_a_body_holds(filled: World) -> None:
    came(filled.store, peer_id("main"), NOW)
    body = (await get(filled, "users/me/workspace/dev")).json()
    expected = {
        "id": str(make_id("dev")),
        "created_at": "2026-01-02T03:04:05.678901Z",
        "owner_id": str(make_id("alice")),
        "owner_name": "alice",
        "name": "dev",
        "last_used_at": "2026-01-02T03:04:05.678901Z",
        "health": {"healthy": False, "failing_agents": [str(peer_id("gpu"))]},
    }
    assert {key: body[key] for key in expected} == expected
    build = body["latest_build"]
    assert (build["status"], build["transition"], build["job"]["status"]) == ("running", "start", "succeeded")
    assert (build["workspace_id"], build["workspace_owner_name"]) == (body["id"], "alice")
    [resource] = build["resources"]
    assert [agent["name"] for agent in resource["agents"]] == ["gpu", "main"]
    assert resource["agents"][1] == (await get(filled, f"workspaceagents/{peer_id('main')}")).json()
    assert (await get(filled, "workspaces?q=name:dev")).json() == {"workspaces": [body], "count": 1}


async def test_what_is_found(filled: World) -> None:
    filled.store.callers.set_workspace_status(make_id("lab"), WorkspaceStatus.STOPPED, NOW)
    assert await found(filled, "") == (list(NAMES), 3)
    assert await found(filled, "q=owner:me") == (list(NAMES), 3)
    assert await found(filled, "q=owner:alice+D") == (["dev", "docs"], 2)
    assert await found(filled, "q=owner:bob") == ([], 0)
    assert await found(filled, "q=status:stopped") == (["lab"], 1)
    assert await found(filled, 'q=name:"docs"') == (["docs"], 1)
    assert await found(filled, "limit=1&offset=1") == (["docs"], 3)
    assert await found(filled, "offset=5") == ([], 3)
    assert await found(filled, "", "bob") == (["shop"], 1)


async def test_what_is_shared_is_seen_as_its_owners(filled: World) -> None:
    whole = (await get(filled, "users/me/workspace/shop", "bob")).json()
    grant(filled.store, "shop", "alice", Right.READ)
    assert await found(filled, "") == ([*NAMES, "shop"], 4)
    assert await found(filled, "q=owner:me") == (list(NAMES), 3)
    assert await found(filled, "q=owner:bob") == (["shop"], 1)
    assert await found(filled, f"q=owner:{make_id('bob')}") == (["shop"], 1)
    for named in ("users/bob/workspace/shop", f"users/{make_id('bob')}/workspace/Shop"):
        assert (await get(filled, named)).json() == whole
    assert whole["owner_name"] == whole["latest_build"]["workspace_owner_name"] == "bob"
    assert (await get(filled, "users/me/workspace/shop")).status_code == 404
    grant(filled.store, "shop", "alice")
    filled.services.callers._checked_at = -1e9  # type: ignore[attr-defined]  # as after half a second
    assert await found(filled, "q=owner:bob") == ([], 0)
    assert (await get(filled, "users/bob/workspace/shop")).status_code == 404


@pytest.mark.parametrize("role", [Role.AUDITOR, Role.ADMIN])
async def test_who_reads_every_workspace_is_shown_them(filled: World, role: Role) -> None:
    whole = (await get(filled, "users/me/workspace/shop", "bob")).json()
    filled.store.callers.update_user(make_id("alice"), NOW, role=role)
    filled.services.callers._checked_at = -1e9  # type: ignore[attr-defined]  # as after half a second
    assert await found(filled, "") == ([*NAMES, "shop"], 4)
    assert await found(filled, "q=owner:me") == (list(NAMES), 3)
    assert await found(filled, "q=owner:bob") == (["shop"], 1)
    assert (await get(filled, "users/bob/workspace/shop")).json() == whole
    assert (await get(filled, "users/me/workspace/shop")).status_code == 404


async def test_a_page_has_a_bound(filled: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WORKSPACES", 2)
    assert await found(filled, "limit=100") == (["dev", "docs"], 3)


@pytest.mark.parametrize(
    ("query", "field"),
    [("q=template:x", "q"), ("limit=-1", "limit"), ("offset=x", "offset"), ("limit=9999999999", "limit")],
)
async def test_what_is_refused(filled: World, query: str, field: str) -> None:
    response = await get(filled, f"workspaces?{query}")
    assert response.status_code == 400
    assert [each["field"] for each in response.json()["validations"]] == [field]


@pytest.mark.parametrize("target", ["users/bob/workspace/shop", "users/me/workspace/shop", "users/me/workspace/none"])
async def test_nobody_sees_anothers(filled: World, target: str) -> None:
    response = await get(filled, target)
    assert (response.status_code, response.json()["message"]) == (404, NO_SUCH_RESOURCE)
    async with filled.client() as client:
        assert (await client.get(f"/api/v2/{target}")).status_code == 401
        assert (await client.get("/api/v2/workspaces")).status_code == 401
