"""Keys, the account over HTTP, and what codes mean."""

import os
from datetime import UTC, datetime

from tailnet.api.administration.problems import MEANINGS
from tailnet.services.resume_keys import PURPOSE
from tests.support.administration import ALICE, AdminWorld


async def test_keys(world: AdminWorld) -> None:
    key = world.store.keys.signing_keys(PURPOSE, datetime.now(UTC), os.urandom)[0]
    async with world.client() as client:
        old = (await client.get("keys")).json()["items"][0]
        made = await client.post("keys", json={"purpose": PURPOSE})
        assert (made.status_code, made.json()["state"]) == (201, "next")
        listed = await client.get("keys")
        assert [each["state"] for each in listed.json()["items"]] == ["next", "signs"]
        assert key.id in listed.text
        assert key.secret.hex()[:16] not in listed.text
        assert (await client.delete(f"keys/{old['id']}")).status_code == 204
        assert (await client.get("keys")).json()["items"][0]["state"] == "signs"
        assert (await client.delete(f"keys/{made.json()['id']}")).status_code == 409
        assert (await client.delete(f"keys/{old['id']}")).status_code == 404
        assert (await client.post("keys", json={"purpose": "relay"})).status_code == 400
        assert (await client.post("keys", json={})).status_code == 400


async def test_the_account(world: AdminWorld) -> None:
    async with world.client() as client:
        for name in ("carol", "dave"):
            await client.post("users", json={"username": name})
        await client.patch(f"users/{ALICE}", json={"active": False})
        page = (await client.get("audit", params={"limit": 2})).json()
        assert [each["action"] for each in page["items"]] == ["update", "create"]
        assert page["items"][0]["before"] == {"active": True}
        rest = (await client.get("audit", params={"limit": 2, "cursor": page["next"]})).json()
        assert [each["after"]["username"] for each in rest["items"]] == ["carol"]
        assert rest["next"] is None
        found = (await client.get("audit", params={"target": str(ALICE)})).json()["items"]
        assert [(each["actor"], each["kind"]) for each in found] == [("plane", "user")]
        for wrong in ({"since": "soon"}, {"nonsense": "x"}, {"cursor": "x"}):
            assert (await client.get("audit", params=wrong)).status_code == 400
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            response = await client.request(method, "audit")
            assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")


async def test_codes_have_a_meaning(world: AdminWorld) -> None:
    async with world.client(token="") as client:
        for code, (status, meaning) in MEANINGS.items():
            assert (await client.get(f"problems/{code}")).text == f"{code} ({status}): {meaning}\n"
        assert (await client.get("problems/nonsense")).status_code == 404
