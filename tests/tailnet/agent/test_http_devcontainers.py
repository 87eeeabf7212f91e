"""Devcontainers: those that containers are, and building one anew with a command line that a test made."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from tailnet.agent import http_devcontainers
from tailnet.agent.context import Context
from tailnet.agent.http_devcontainers import Devcontainers
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


async def only(devcontainers: Devcontainers) -> dict[str, Any]:
    (one,) = (await devcontainers.describe())["devcontainers"]
    return one


async def test_of_several_of_one_folder_the_one_that_runs(engine: Path) -> None:
    old = {**INSPECTED, "Name": "/z", "Id": "old", "State": {"Status": "exited"}}
    plain = {**INSPECTED, "Name": "/plain", "Id": "plain", "Config": {"Image": "x", "Labels": None}}
    (engine / "inspect").write_text(json.dumps([INSPECTED, old, plain]))
    said = await Devcontainers().describe()
    assert [each["name"] for each in said["containers"]] == ["plain", "web", "z"]
    assert [each["container"]["id"] for each in said["devcontainers"]] == ["abc"]


@pytest.mark.parametrize("failure", ["", "no space left on device"])
async def test_one_is_built_anew(builder: Path, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_devcontainers, "FRESH_SECONDS", 0.0)
    devcontainers = Devcontainers()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            context = Context(nursery, "https://tailnet.example.org", "token")
            one = await only(devcontainers)
            said = await devcontainers.recreate(one["id"], context)
            assert said["message"] == "Devcontainer recreation initiated"
            assert (await only(devcontainers))["status"] == "starting"
            with pytest.raises(Refused, match="is currently starting") as refused:
                await devcontainers.recreate(one["id"], context)
            assert refused.value.status == 409
            assert await wait_for(builder / "called") == "up --remove-existing-container --workspace-folder /src\n"
            (builder / "go").write_text(failure)
            while (one := await only(devcontainers))["status"] == "starting":
                pass
        assert one["status"] == ("error" if failure else "running")
        assert failure in one.get("error", "")


async def test_what_cannot_be_built(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devcontainers = Devcontainers()
    async with trio.open_nursery() as nursery:
        context = Context(nursery, "https://tailnet.example.org", "token")
        with pytest.raises(Refused, match="Devcontainer not found") as refused:
            await devcontainers.recreate("nobody's", context)
        assert refused.value.status == 404
        with pytest.raises(Refused, match="npm install"):
            await devcontainers.recreate((await only(devcontainers))["id"], context)
