"""Devcontainers: those that containers are, and building one anew with a command line that a test made."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from tailnet.agent import http_devcontainers
from tailnet.agent.context import Context
from tailnet.agent.http_devcontainers import Devcontainers
from tailnet.proto.generated.agent_pb2 import Manifest
from tailnet.refusals import Refused
from tests.support.engines import INSPECTED


@pytest.fixture
def builder(engine: Path) -> Path:
    """A `devcontainer` that writes down how it was called, and waits for leave to end."""
    program = engine / "devcontainer"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {engine}/called\nwhile [ ! -e {engine}/go ]; do sleep 0.02; done\n'
        f"cat {engine}/go >&2; [ ! -s {engine}/go ]\n"
    )
    program.chmod(0o755)
    return engine


async def wait_for(path: Path) -> str:
    while not path.exists() or not path.read_text():  # noqa: ASYNC110, ASYNC240  # another process
        await trio.sleep(0.01)
    return path.read_text()  # noqa: ASYNC240


async def only(devcontainers: Devcontainers, context: Context) -> dict[str, Any]:
    (one,) = (await devcontainers.describe(context))["devcontainers"]
    return one


@pytest.fixture
def context(nursery: trio.Nursery) -> Context:
    return Context(nursery, "https://tailnet.example.org", "token")


async def test_those_of_the_manifest(engine: Path, context: Context) -> None:
    """One runs, of another there is no container, a third has begun by hand."""
    context.manifest = Manifest(
        devcontainers=[
            {"id": bytes(15) + b"1", "workspace_folder": "/src", "name": "main", "config_path": "/src/x.json"},
            {"id": bytes(15) + b"2", "workspace_folder": "/other", "name": "other", "subagent_id": bytes(15) + b"3"},
        ]
    )
    own = {**INSPECTED, "Id": "own", "Config": {"Image": "x", "Labels": {"devcontainer.local_folder": "/own"}}}
    (engine / "inspect").write_text(json.dumps([INSPECTED, own]))
    main, other, own = (await Devcontainers().describe(context))["devcontainers"]
    assert (main["status"], main["config_path"], main["container"]["id"]) == ("running", "/src/x.json", "abc")
    assert main["id"] == "00000000-0000-0000-0000-000000000031"
    assert (other["status"], other["subagent_id"]) == ("stopped", "00000000-0000-0000-0000-000000000033")
    assert "container" not in other
    assert (own["name"], own["status"]) == ("own", "running")


async def test_of_several_of_one_folder_the_one_that_runs(engine: Path, context: Context) -> None:
    old = {**INSPECTED, "Name": "/z", "Id": "old", "State": {"Status": "exited"}}
    plain = {**INSPECTED, "Name": "/plain", "Id": "plain", "Config": {"Image": "x", "Labels": None}}
    (engine / "inspect").write_text(json.dumps([INSPECTED, old, plain]))
    said = await Devcontainers().describe(context)
    assert [each["name"] for each in said["containers"]] == ["plain", "web", "z"]
    assert [each["container"]["id"] for each in said["devcontainers"]] == ["abc"]


@pytest.mark.parametrize("failure", ["", "no space left on device"])
async def test_one_is_built_anew(
    builder: Path, context: Context, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_devcontainers, "FRESH_SECONDS", 0.0)
    devcontainers = Devcontainers()
    with trio.fail_after(30):
        one = await only(devcontainers, context)
        said = await devcontainers.recreate(one["id"], context)
        assert said["message"] == "Devcontainer recreation initiated"
        assert (await only(devcontainers, context))["status"] == "starting"
        with pytest.raises(Refused, match="is currently starting") as refused:
            await devcontainers.recreate(one["id"], context)
        assert refused.value.status == 409
        assert await wait_for(builder / "called") == "up --remove-existing-container --workspace-folder /src\n"
        (builder / "go").write_text(failure)
        while (one := await only(devcontainers, context))["status"] == "starting":
            pass
        assert one["status"] == ("error" if failure else "running")
        assert failure in one.get("error", "")


async def test_what_cannot_be_built(engine: Path, context: Context) -> None:
    devcontainers = Devcontainers()
    with pytest.raises(Refused, match="Devcontainer not found") as refused:
        await devcontainers.recreate("nobody's", context)
    assert refused.value.status == 404
    with pytest.raises(Refused, match="npm install"):
        await devcontainers.recreate((await only(devcontainers, context))["id"], context)
