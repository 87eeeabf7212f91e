"""Manifests as JSON, the newest and the oldest, and the stream that waits for a claim."""

import pytest

from tailnet.store.store import Store
from tests.support.api_world import World, make_world
from tests.support.seeds import agent_token, defined_document, fill, make_id

ME = "/api/v2/workspaceagents/me"


@pytest.fixture
def world(store: Store) -> World:
    made = make_world(store)
    fill(store, defined_document())
    return made


async def test_a_manifest(world: World) -> None:
    async with world.client(token=agent_token("main")) as client:
        body = (await client.get(f"{ME}/manifest")).json()
    assert body["agent_id"] == str(make_id("main"))
    assert (body["agent_name"], body["owner_name"], body["workspace_name"]) == ("main", "alice", "dev")
    assert [app["slug"] for app in body["apps"]] == ["editor", "shell"]
    assert body["apps"][0]["healthcheck"] == {"url": "http://localhost:13337/healthz", "interval": 5, "threshold": 6}
    assert body["scripts"][0]["timeout"] == 30_000_000_000
    assert [each["key"] for each in body["metadata"]] == ["cpu", "disk"]
    assert list(body["derpmap"]["Regions"]) == ["999"]
    assert body["environment_variables"] is None
    assert "parent_id" not in body


async def test_the_oldest_manifest(world: World) -> None:
    async with world.client(token=agent_token("main")) as client:
        body = (await client.get(f"{ME}/metadata")).json()
    assert body["startup_script"].startswith("#!/bin/sh")
    assert body["startup_script_timeout"] == 30_000_000_000
    assert set(body) == {
        "apps",
        "derpmap",
        "git_auth_configs",
        "environment_variables",
        "startup_script",
        "startup_script_timeout",
        "directory",
        "motd_file",
        "vscode_port_proxy_uri",
    }


async def test_an_agent_that_runs_nothing(world: World) -> None:
    async with world.client(token=agent_token("gpu")) as client:
        assert (await client.get(f"{ME}/manifest")).json()["scripts"] == []
        assert (await client.get(f"{ME}/metadata")).json()["startup_script"] == ""


async def test_no_workspace_is_claimed_later(world: World) -> None:
    async with world.client(token=agent_token("main")) as client:
        answer = await client.get(f"{ME}/reinit", params={"wait": "true"})
    assert answer.status_code == 409
    assert answer.json()["message"] == "Workspace is not a prebuilt workspace waiting to be claimed."
