"""What relays elsewhere ask: whose signature, the key set, and a stock derper's question."""

import json
from dataclasses import replace

import pytest
import trio

from derp.admission.keyset import open_key_set
from derp.admission.signed import Issuer
from tests.support.api_world import World

KEY = b"k" * 32
TOKEN = "s3cret-of-relays"


@pytest.fixture
async def relays(world: World) -> World:
    world.services = replace(world.services, config=replace(world.services.config, relays_token=TOKEN))
    await world.services.relay_keys.start()
    return world


def bearer(token: str = TOKEN, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **{name.replace("_", "-"): value for name, value in more.items()}}


async def test_the_issuer_is_for_everybody_and_the_set_for_relays(relays: World) -> None:
    keys = relays.services.relay_keys
    async with relays.client() as client:
        issuer = Issuer.parse((await client.get("/api/v2/relays/issuer")).text)
        answer = await client.get("/api/v2/relays/key-set", headers=bearer())
        for headers in ({}, bearer("another"), {"Authorization": TOKEN}):
            refused = await client.get("/api/v2/relays/key-set", headers=headers)
            assert (refused.status_code, refused.json()["message"]) == (401, "Relays only.")
    assert open_key_set(answer.content, [issuer]).version == keys.version
    assert answer.headers["cache-control"] == "no-store"


async def test_without_a_token_of_relays_nobody_has_the_set(world: World) -> None:
    async with world.client() as client:
        answer = await client.get("/api/v2/relays/key-set", headers=bearer(""))
    assert answer.status_code == 404
    assert "--relays-token-file" in answer.json()["detail"]


async def test_a_follower_waits_for_a_change_and_hears_of_it(relays: World, nursery: trio.Nursery) -> None:
    keys = relays.services.relay_keys
    nursery.start_soon(keys.run)
    async with relays.client() as client:
        first = await client.get("/api/v2/relays/key-set", headers=bearer())
        etag = first.headers["etag"]
        at_once = await client.get("/api/v2/relays/key-set", headers=bearer(If_None_Match=etag))
        assert (at_once.status_code, at_once.content) == (304, b"")
        keys.note(KEY)
        with trio.fail_after(20):
            waited = await client.get("/api/v2/relays/key-set", headers=bearer(If_None_Match=etag, Prefer="wait=25"))
    assert waited.status_code == 200
    assert open_key_set(waited.content, [keys.issuer]).keys == {KEY}
    nursery.cancel_scope.cancel()


async def test_a_stock_derper_is_answered_in_its_own_words(relays: World) -> None:
    relays.services.relay_keys.note(KEY)
    async with relays.client() as client:
        for key, allowed in ((KEY, True), (b"x" * 32, False)):
            body = json.dumps({"NodePublic": f"nodekey:{key.hex()}", "Source": "192.0.2.1"}).encode()
            answer = await client.post("/api/v2/relays/verify", content=body)
            assert (answer.status_code, answer.json()) == (200, {"Allow": allowed})


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"NodePublic": 1}', b'{"NodePublic": "nodekey:ab"}', b"\xff"])
async def test_what_is_no_question_is_refused(relays: World, body: bytes) -> None:
    async with relays.client() as client:
        assert (await client.post("/api/v2/relays/verify", content=body)).status_code == 400
