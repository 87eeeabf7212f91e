"""Errors of every kind have the one body; the schema is there, the interactive pages are not."""

import httpx
import pytest
from fastapi import FastAPI
from starlette.exceptions import HTTPException

from tailnet.api.app import create_app
from tests.support.api_world import World
from tests.support.seeds import user_token


@pytest.mark.parametrize(
    "path", ["/nowhere", "/api/v2/nonsense", "/docs/", "/redoc", "/api/v2/workspaceagents/connection/"]
)
async def test_unknown_routes(world: World, path: str) -> None:
    async with world.client(token=user_token("alice")) as client:
        response = await client.get(path)
    assert (response.status_code, response.text) == (404, '{"message":"Route not found."}\n')


async def test_another_method(world: World) -> None:
    async with world.client(token=user_token("alice")) as client:
        response = await client.post("/api/v2/workspaceagents/connection")
    assert (response.status_code, response.json()) == (405, {"message": "Method not allowed."})


async def test_a_failure_of_ours_is_logged_and_not_told(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> object:
        raise ZeroDivisionError("with a secret in it")

    monkeypatch.setattr(world.services.inspection, "describe", fail)
    async with world.client(("127.0.0.1", 1)) as client:
        response = await client.get("/debug/tailnet")
    assert response.status_code == 500
    assert response.json()["message"] == "An internal server error occurred."
    assert "secret" not in response.text
    assert "/debug/tailnet failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_errors_of_future_resources(world: World) -> None:
    app = create_app(world.services)
    _add_routes(app)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        response = await client.get("/number/x")
        assert response.status_code == 400
        body = response.json()
        assert body["message"] == "Validation failed."
        assert body["validations"][0]["field"] == "value"
        response = await client.get("/teapot")
        assert (response.status_code, response.json()) == (418, {"message": "short and stout"})


def _add_routes(app: FastAPI) -> None:
    @app.get("/number/{value}")
    async def number(value: int) -> None: ...

    @app.get("/teapot")
    async def teapot() -> None:
        raise HTTPException(418, "short and stout")


async def test_every_answer_has_its_schema(world: World) -> None:
    """A route that answers with bare JSON is one whose body no program can know before it calls."""
    async with world.client() as client:
        document = (await client.get("/api/v2/openapi.json")).json()
    assert {"/healthz", "/api/v2/workspaceagents/connection", "/debug/tailnet"} <= set(document["paths"])
    described = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            place = f"{method} {path}"
            for status, answer in operation["responses"].items():
                for media_type, content in answer.get("content", {}).items():
                    schema = content["schema"]
                    if media_type.startswith("text/"):
                        assert schema == {"type": "string"}, place
                    else:
                        for one in schema.get("anyOf", [schema]):  # gitauth answers older agents in their form
                            name = one.get("items", one)["$ref"].removeprefix("#/components/schemas/")
                            assert name == "Null" or described[name]["properties"], f"{place}: {status}"
            assert operation["responses"]["4XX"]["content"], place
    agent = described["WorkspaceAgent"]["properties"]
    assert agent["created_at"]["format"] == "date-time"
    assert "start_error" in agent["lifecycle_state"]["enum"]
    assert "latency" not in described["WorkspaceAgent"]["required"], "absent when empty"
    assert "parent_id" in described["WorkspaceAgent"]["required"], "null, but there"
