"""Bodies that are none: what each is answered, and that nothing of it is kept."""

import pytest

from tests.support.api_world import World
from tests.support.seeds import agent_token

LOGS = "/api/v2/workspaceagents/me/logs"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "Request body must be valid JSON."),
        (b"{", 400, "Request body must be valid JSON."),
        (b'{"logs": [{"output": "a"}]} x', 400, "Request body must be valid JSON."),
        (b'{"logs": [{"output": "\xff"}]}', 400, "Request body must be valid JSON."),
        (b'{"logs": NaN}', 400, "Request body must be valid JSON."),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, 400, "Request body must be valid JSON."),
        (b"[]", 400, "Validation failed."),
        (b'{"logs": 7}', 400, "Validation failed."),
        (b'{"logs": [{"output": 7}]}', 400, "Validation failed."),
        (b'{"log_source_id": "x", "logs": [{"output": "a"}]}', 400, "Validation failed."),
        (b" " * (1024 * 1024 + 1), 413, "Request body is too large."),
    ],
)
async def test_bodies_that_are_none(world: World, body: bytes, status: int, message: str) -> None:
    async with world.client(token=agent_token("main")) as client:
        answer = await client.patch(LOGS, content=body)
    assert (answer.status_code, answer.json()["message"]) == (status, message)
    assert world.outbox.waiting_bytes == 0


async def test_whatever_its_content_type_says_and_the_last_of_two_keys(world: World) -> None:
    body = b'{"logs": [], "logs": [{"output": "a"}]}'
    async with world.client(token=agent_token("main")) as client:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json"):
            answer = await client.patch(LOGS, content=body, headers={"content-type": kind})
            assert (answer.status_code, answer.content) == (200, b"null\n")


async def test_a_missing_field_is_named(world: World) -> None:
    async with world.client(token=agent_token("main")) as client:
        answer = await client.post("/api/v2/workspaceagents/me/log-source", json={"display_name": "x"})
    assert answer.status_code == 400
    assert answer.json() == {
        "message": "Validation failed.",
        "validations": [{"field": "id", "detail": 'Validation failed for tag "required" with value: ""'}],
    }
