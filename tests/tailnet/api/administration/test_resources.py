"""The six routes of each kind, and what tokens need beside."""

from typing import Any

import pytest

from tailnet.services.administration.resources import RESOURCES
from tests.support.administration import ALICE, BOB, DEV, MAIN, AdminWorld, everything
from tests.support.seeds import agent_token, make_id

NEW = make_id("something new")
# Kind -> an id of one's own, what it is made of, a change of it, and the field of the change.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "user": (str(NEW), {"username": "carol"}, {"role": "auditor"}),
    "token": ("aaaaaaaaaa", {"user_id": str(ALICE)}, {"purpose": "ci"}),
    "workspace": (str(NEW), {"owner_id": str(ALICE), "name": "lab"}, {"status": "stopped"}),
    "grant": (
        f"{DEV}:{BOB}",
        {"workspace_id": str(DEV), "user_id": str(BOB), "rights": ["read", "ssh"]},
        {"rights": ["read", "update"]},
    ),
    "agent": (str(NEW), {"workspace_id": str(DEV), "name": "new"}, {"instance_id": "i-0123"}),
    "app": (str(NEW), {"agent_id": str(MAIN), "slug": "new"}, {"display_name": "New"}),
    "script": (str(NEW), {"agent_id": str(MAIN)}, {"cron": "0 3 * * *"}),
}


def test_every_kind_has_its_case() -> None:
    assert set(CASES) == set(RESOURCES)


@pytest.mark.parametrize("kind", CASES)
async def test_its_life(world: AdminWorld, kind: str) -> None:
    ident, body, change = CASES[kind]
    plural = RESOURCES[kind].plural
    one = f"{plural}/{ident}"
    async with world.client() as client:
        assert (await client.get(one)).status_code == 404
        assert (await client.patch(one, json=change)).status_code == 404
        assert (await client.delete(one)).status_code == 404
        made = await client.put(one, json=body)
        assert made.status_code == 201
        assert made.json()["id"] == ident
        assert body.items() <= made.json().items()
        again = await client.put(one, json=body)
        assert (again.status_code, again.headers["etag"]) == (200, made.headers["etag"])
        assert "token" not in again.json()
        changed = await client.patch(one, json=change)
        assert changed.status_code == 200
        assert {**body, **change}.items() <= changed.json().items()
        shown = await client.get(one)
        assert (shown.json(), shown.headers["etag"]) == (changed.json(), changed.headers["etag"])
        back = await client.put(one, json=body)
        assert body.items() <= back.json().items(), "a PUT says the whole"
        assert ident in [each["id"] for each in (await client.get(plural, params={"limit": 1000})).json()["items"]]
        assert (await client.delete(one)).status_code == 204
        assert (await client.get(one)).status_code == 404
        created = await client.post(plural, json=body)
        assert created.status_code == 201
        assert (await client.get(f"{plural}/{created.json()['id']}")).status_code == 200
    actions = [each["action"] for each in world.store.audit.page({"kind": kind}, None, 10)]
    assert actions == ["create", "delete", "update", "update", "create"]


@pytest.mark.parametrize("kind", CASES)
async def test_ids_of_others(world: AdminWorld, kind: str) -> None:
    _, body, change = CASES[kind]
    async with world.client() as client:
        before = everything(world.store)
        for ident in ("x", "00000000-0000-0000-0000-000000000000", "..", "%00", f"{NEW}:x"):
            one = f"{RESOURCES[kind].plural}/{ident}"
            statuses = [
                (await client.get(one)).status_code,
                (await client.put(one, json=body)).status_code,
                (await client.patch(one, json=change)).status_code,
                (await client.delete(one)).status_code,
            ]
            assert set(statuses) <= {400, 404, 405}, (ident, statuses)
        assert everything(world.store) == before


async def test_duplicates(world: AdminWorld) -> None:
    async with world.client() as client:
        before = everything(world.store)
        for path, body, field in (
            (f"users/{NEW}", {"username": "alice"}, "username"),
            (f"agents/{NEW}", {"workspace_id": str(DEV), "name": "x", "token": agent_token("web")}, "token"),
            (f"apps/{NEW}", {"agent_id": str(MAIN), "slug": "editor"}, "slug"),
        ):
            response = await client.put(path, json=body)
            assert (response.status_code, response.json()["code"]) == (409, "conflict")
            assert response.json()["errors"][0]["field"] == field
        assert everything(world.store) == before


async def test_an_agent_with_all_that_it_runs(world: AdminWorld) -> None:
    app = {"id": str(make_id("app")), "slug": "editor", "url": "http://localhost:8080"}
    script = {"id": str(make_id("script")), "script": "echo", "run_on_start": True}
    body = {"workspace_id": str(DEV), "name": "new", "apps": [app], "scripts": [script], "metadata": [{"key": "cpu"}]}
    async with world.client() as client:
        made = await client.put(f"agents/{NEW}", json=body)
        assert made.status_code == 201
        found = (await client.get("apps", params={"agent_id": str(NEW)})).json()["items"]
        assert [(each["id"], each["slug"], each["position"]) for each in found] == [(app["id"], "editor", 0)]
        wrong = {**body, "apps": [{**app, "healthcheck": {"url": "http://x"}}]}
        response = await client.put(f"agents/{NEW}", json=wrong)
        assert response.json()["errors"] == [
            {"field": "apps[0].healthcheck.interval", "detail": "wants the seconds between two checks"}
        ]


async def test_tokens_are_replaced(world: AdminWorld) -> None:
    async with world.client() as client:
        token = (await client.post("tokens", json={"user_id": str(ALICE)})).json()
        rotated = await client.post(f"tokens/{token['id']}/rotate", json={"grace_seconds": 60})
        assert rotated.status_code == 201
        assert rotated.json()["token"].startswith(rotated.json()["id"])
        assert (await client.get(f"tokens/{token['id']}")).json()["expires_at"] is not None
        agent = await client.post(f"agents/{MAIN}/rotate")
        assert len(agent.json()["token"]) == 36
        assert (await client.post(f"agents/{MAIN}/rotate", json={"grace_seconds": -1})).status_code == 400
        assert (await client.post(f"tokens/{token['id']}/rotate", json={"grace": 1})).status_code == 400
        assert (await client.post(f"agents/{NEW}/rotate")).status_code == 404
        assert (await client.post(f"users/{ALICE}/revoke-tokens")).json() == {"revoked": 3}
        assert (await client.post(f"users/{NEW}/revoke-tokens")).status_code == 404
        assert (await client.post(f"agents/{MAIN}/revoke-tokens")).json() == {"revoked": 0}
