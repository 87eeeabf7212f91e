"""Preconditions, keys, pages and bodies of requests, as HTTP writes them; whatever is refused changes nothing."""

from typing import Any

import pytest

from tailnet.api.administration.requests import MAX_BODY_BYTES
from tests.support.administration import ALICE, OTHER_TOKEN, AdminWorld, everything
from tests.support.seeds import make_id

CAROL = f"users/{make_id('carol')}"
BODY = {"username": "carol"}


@pytest.mark.parametrize(
    ("headers", "fresh", "again"),
    [
        ({}, 201, 200),
        ({"If-None-Match": "*"}, 201, 412),
        ({"If-Match": "*"}, 412, 200),
        ({"If-Match": '"ETAG"'}, 412, 200),
        ({"If-Match": '"x", "ETAG"'}, 412, 200),
        ({"If-Match": '"x"'}, 412, 412),
        ({"If-Match": 'W/"ETAG"'}, 412, 412),
        ({"If-Match": "*", "If-None-Match": "*"}, 412, 412),
        ({"If-Match": "ETAG"}, 400, 400),
        ({"If-Match": ""}, 400, 400),
        ({"If-Match": '"x" "y"'}, 400, 400),
        ({"If-Match": '"x",' * 2_000}, 400, 400),
        ({"If-None-Match": '"x"'}, 400, 400),
    ],
)
async def test_preconditions_of_a_put(world: AdminWorld, headers: dict[str, str], fresh: int, again: int) -> None:
    async with world.client() as client:
        before = everything(world.store)
        assert (await client.put(CAROL, json=BODY, headers=headers)).status_code == fresh
        if fresh >= 400:
            assert everything(world.store) == before
        etag = (await client.put(CAROL, json=BODY)).headers["etag"].strip('"')
        before = everything(world.store)
        sent = {name: value.replace("ETAG", etag) for name, value in headers.items()}
        response = await client.put(CAROL, json=BODY, headers=sent)
        assert response.status_code == again
        assert everything(world.store) == before
        if again == 412:
            assert response.json()["code"] == "precondition_failed"


async def test_preconditions_of_the_others(world: AdminWorld) -> None:
    async with world.client() as client:
        etag = (await client.put(CAROL, json=BODY)).headers["etag"]
        stale = {"If-Match": '"0123"'}
        assert (await client.patch(CAROL, json={"active": False}, headers=stale)).status_code == 412
        assert (await client.delete(CAROL, headers=stale)).status_code == 412
        assert (await client.get(CAROL, headers={"If-None-Match": etag})).status_code == 304
        assert (await client.get(CAROL, headers={"If-None-Match": f"W/{etag}"})).status_code == 304
        assert (await client.get(CAROL, headers={"If-None-Match": '"0123"'})).status_code == 200
        changed = await client.patch(CAROL, json={"active": False}, headers={"If-Match": etag})
        assert changed.status_code == 200
        assert (await client.delete(CAROL, headers={"If-Match": etag})).status_code == 412, "it is another state now"
        assert (await client.delete(CAROL, headers={"If-Match": changed.headers["etag"]})).status_code == 204


async def test_a_key_carries_a_request_out_once(world: AdminWorld) -> None:
    async with world.client() as client, world.client(OTHER_TOKEN) as other:
        key = {"Idempotency-Key": "5ac0"}
        body = {"user_id": str(ALICE), "purpose": "ci"}
        first = await client.post("tokens", json=body, headers=key)
        again = await client.post("tokens", json=body, headers=key)
        assert first.status_code == again.status_code == 201
        assert first.json() == again.json()
        assert first.headers["etag"] == again.headers["etag"]
        before = everything(world.store)
        for path, changed, more in (
            ("tokens", {**body, "purpose": "cd"}, {}),
            ("users", {"username": "carol"}, {}),
            ("tokens", body, {"If-Match": "*"}),
        ):
            response = await client.post(path, json=changed, headers=key | more)
            assert (response.status_code, response.json()["code"]) == (422, "idempotency_key_reused")
        assert everything(world.store) == before
        assert (await other.post("tokens", json=body, headers=key)).json()["id"] != first.json()["id"]
        assert (await client.post("tokens", json=body, headers={"Idempotency-Key": ""})).status_code == 400
        gone = {"Idempotency-Key": "5ac1"}
        token = f"tokens/{first.json()['id']}"
        assert [(await client.delete(token, headers=gone)).status_code for _ in range(2)] == [204, 204]
        assert (await client.delete(token)).status_code == 404


async def test_no_token_lies_in_the_store(world: AdminWorld) -> None:
    async with world.client() as client:
        made = await client.post("tokens", json={"user_id": str(ALICE)}, headers={"Idempotency-Key": "5ac0"})
        agent = await client.post(f"agents/{make_id('main')}/rotate", headers={"Idempotency-Key": "5ac1"})
    text = repr(everything(world.store))
    assert made.json()["token"].partition("-")[2] not in text
    assert agent.json()["token"] not in text


async def test_pages(world: AdminWorld) -> None:
    async with world.client() as client, world.client(OTHER_TOKEN) as other:
        for number in range(7):
            await client.post("users", json={"username": f"user {number}"})
        seen: list[str] = []
        cursor: dict[str, Any] = {}
        while True:
            page = (await client.get("users", params={"limit": 2, "q": "user", **cursor})).json()
            seen += [each["username"] for each in page["items"]]
            if page["next"] is None:
                break
            cursor = {"cursor": page["next"]}
        assert sorted(seen) == [f"user {number}" for number in range(7)]
        good = (await client.get("users", params={"limit": 2})).json()["next"]
        for wrong in (
            {"cursor": good + "A"},
            {"cursor": "x" + good[1:]},
            {"cursor": "nonsense"},
            {"cursor": good, "q": "user"},
            {"limit": "0"},
            {"limit": "1001"},
            {"limit": "-1"},
            {"limit": "x"},
            {"nonsense": "x"},
            {"active": "maybe"},
        ):
            response = await client.get("users", params=wrong)
            assert (response.status_code, response.json()["code"]) == (400, "invalid"), wrong
            assert response.json()["errors"]
        assert (await other.get("users", params={"cursor": good})).status_code == 400, "it is its caller's own"
        assert (await client.get("workspaces", params={"cursor": good})).status_code == 400
        assert (await client.get("users?limit=1&limit=2")).status_code == 400
        assert (await client.get("users", params={"cursor": good, "limit": 1})).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"{} {}",
        b'{"username": NaN}',
        b"\xff",
        b'{"username": "\\ud800"}',
        b"[" * 100_000,
    ],
)
async def test_bodies_that_are_none(world: AdminWorld, content: bytes) -> None:
    async with world.client() as client:
        before = everything(world.store)
        for method, path in (("POST", "users"), ("PUT", CAROL), ("PATCH", f"users/{ALICE}")):
            response = await client.request(method, path, content=content)
            assert (response.status_code, response.json()["code"]) == (400, "invalid")
        assert everything(world.store) == before


async def test_a_body_that_is_too_large(world: AdminWorld) -> None:
    async with world.client() as client:
        response = await client.put(CAROL, content=b'{"username": "' + b"x" * MAX_BODY_BYTES + b'"}')
        assert (response.status_code, response.json()["code"]) == (413, "too_large")
