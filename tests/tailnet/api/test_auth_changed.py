"""The control plane says that something changed: only it can, and only where it is asked at all."""

import time
from dataclasses import replace

import pytest

from tailnet.api.auth_changed import MAX_BODY_BYTES
from tailnet.auth.call_out_wire import SIGNATURE_HEADER, TIMESTAMP_HEADER, signature
from tests.support.api_world import World
from tests.support.control_plane import SECRET

PATH = "/api/v2/auth/changed"


def signed(body: bytes, secret: bytes = SECRET, at: float | None = None) -> dict[str, str]:
    timestamp = str(int(time.time() if at is None else at))
    return {TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: signature(secret, timestamp, body)}


@pytest.fixture
def told(world: World) -> list[int]:
    """Once for each time that all answers were forgotten."""
    seen: list[int] = []
    config = replace(world.services.config, auth_secret=SECRET)
    world.services = replace(world.services, config=config, forget_answers=lambda: seen.append(1))
    return seen


@pytest.mark.parametrize("body", [b"", b"{}", b'{"users": ["x"]}'])
async def test_it_is_taken_at_its_word(world: World, told: list[int], body: bytes) -> None:
    async with world.client() as client:
        response = await client.post(PATH, content=body, headers=signed(body))
    assert (response.status_code, response.content, told) == (204, b"", [1])


@pytest.mark.parametrize(
    "headers",
    [
        {},
        signed(b"{}", b"another secret of 32 characters."),
        signed(b"{ }"),
        signed(b"{}", at=time.time() - 3_600),
        signed(b"{}", at=time.time() + 3_600),
        {TIMESTAMP_HEADER: "now", SIGNATURE_HEADER: "v1="},
    ],
)
async def test_nobody_else_is(world: World, told: list[int], headers: dict[str, str]) -> None:
    async with world.client() as client:
        response = await client.post(PATH, content=b"{}", headers=headers)
    assert (response.status_code, told) == (401, [])
    assert "X-Tailnet-Signature" in response.json()["detail"]


async def test_a_body_that_is_too_long(world: World, told: list[int]) -> None:
    body = b"x" * (MAX_BODY_BYTES + 1)
    async with world.client() as client:
        assert (await client.post(PATH, content=body, headers=signed(body))).status_code == 413
    assert told == []


async def test_where_it_is_not_asked_there_is_nothing_to_change(world: World) -> None:
    async with world.client() as client:
        # An empty secret signs nothing.
        response = await client.post(PATH, content=b"{}", headers=signed(b"{}", b""))
    assert response.status_code == 404
