"""A genuine client tries a whole agent of ours, by the relay alone and directly: all that an agent serves."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
import trio

from tests.support.agent_client import AgentClient, AgentClientError, open_agent_client
from tests.support.engines import make_engine
from tests.support.tailnet_servers import TAILNET_COMMAND, Seed, running_server

pytestmark = pytest.mark.interop

MIB = 1 << 20
STORY_SECONDS = 180.0  # a hang guard
BLOCK_BYTES = 2 * MIB


@asynccontextmanager
async def an_agent(folder: Path, *, is_direct: bool) -> AsyncIterator[AgentClient]:
    """Our coordinator, `tailnet agent` at home in a folder, and a genuine client that has reached it.

    The container engine beside the agent is a script: what it says is that of a real one.
    """
    (folder / "bin").mkdir()
    make_engine(folder / "bin")
    builder = folder / "bin" / "devcontainer"
    builder.write_text("#!/bin/sh\nexec sleep 1000\n")
    builder.chmod(0o755)
    seed = Seed()
    alice = seed.add_user("alice")
    agent = seed.add_agent(alice)
    with running_server("ours", folder / "server", seed) as server:
        command = [*TAILNET_COMMAND, "agent", "--url", server.url, *([] if is_direct else ["--relay-only"])]
        path = f"{folder}/bin:{os.environ['PATH']}"
        environment = os.environ | {"HOME": str(folder), "PATH": path, "CODER_AGENT_TOKEN": agent.token}
        with trio.fail_after(STORY_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(trio.run_process, command, env=environment))
                async with open_agent_client(server.url, alice.token, agent.id) as client:
                    await client.wait_way(is_direct)
                    yield client
                nursery.cancel_scope.cancel()


@pytest.fixture(params=[False, True], ids=["by the relay", "directly"])
async def client(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AgentClient]:
    async with an_agent(tmp_path, is_direct=request.param) as client:
        yield client


async def test_all_that_an_agent_serves(client: AgentClient, tmp_path: Path) -> None:
    await client.ask("ping", kind="TSMP")
    await terminals(client, tmp_path)
    await speed(client)
    await http(client)
    await forwarded_ports(client)
    await ssh(client, tmp_path)


async def terminals(client: AgentClient, folder: Path) -> None:
    """Create, leave, come again and see what was said, two at one."""
    wish = {
        "ID": str(uuid4()),
        "Height": 30,
        "Width": 100,
        "Command": "",
        "Container": "",
        "ContainerUser": "",
        "BackendType": "",
    }
    await client.ask("pty_open", name="one", terminal=wish)
    await client.ask("pty_type", name="one", text="pwd; stty size; kept=value; echo be''fore\r")
    shown = (await client.ask("pty_wait", name="one", text="before"))["text"]
    assert str(folder) in shown
    assert "30 100" in shown
    await client.ask("pty_close", name="one")
    await client.ask("pty_open", name="one", terminal=wish)
    await client.ask("pty_wait", name="one", text="before")
    older = {name: wish[name] for name in ("ID", "Height", "Width", "Command")}
    await client.ask("pty_open", name="two", terminal=older)
    await client.ask("pty_wait", name="two", text="before")
    await client.ask("pty_type", name="two", height=31, width=101)
    await client.ask("pty_type", name="two", text="stty size; echo $kept-af''ter\r")
    shown = (await client.ask("pty_wait", name="one", text="value-after"))["text"]
    assert "31 101" in shown
    await client.ask("pty_type", name="one", text="seq 100000; exit\r")
    assert "99999\r\n100000\r\n" in (await client.ask("pty_wait", name="one", text=""))["text"]
    assert "100000" in (await client.ask("pty_wait", name="two", text=""))["text"]


async def speed(client: AgentClient) -> None:
    """The genuine test, in both directions, one after the other."""
    for upload in (False, True, False):
        measured = await client.ask("speedtest", seconds=1, upload=upload)
        assert measured["size"] >= BLOCK_BYTES
        assert measured["size"] % BLOCK_BYTES == 0


async def http(client: AgentClient) -> None:
    """Every route."""
    assert await client.get("/") == (200, {"message": "Hello from the agent!"})
    status, ports = await client.get("/api/v0/listening-ports")
    assert status == 200
    assert {"process_name", "network", "port"} == set(ports["ports"][0])
    status, said = await client.get("/api/v0/containers")
    assert (status, said["containers"][0]["name"]) == (200, "web")
    watched = await client.ask("watch", path="/api/v0/containers/watch", count=1)
    assert [json.loads(text) for text in watched["messages"]] == [said]
    recreate = f"/api/v0/containers/devcontainers/{said['devcontainers'][0]['id']}/recreate"
    assert (await client.get(recreate, "POST"))[0] == 202
    assert (await client.get(recreate, "POST"))[0] == 409
    assert (await client.get(recreate.replace("recreate", "x/recreate"), "POST"))[0] == 404
    status, report = await client.get("/api/v0/netcheck")
    assert (status, report["net_info"]["PreferredDERP"]) == (200, 999)
    for path, shown in (("/debug/magicsock", "peer "), ("/debug/prometheus", "agent_connections_served_total")):
        page = await client.ask("http", method="GET", path=path)
        assert page["status"] == 200
        assert shown in page["text"]
    status, manifest = await client.get("/debug/manifest")
    assert (status, manifest["agent_name"]) == (200, "agent1")
    assert (await client.get("/nothing"))[0] == 404


async def forwarded_ports(client: AgentClient) -> None:
    """A port of the agent's machine; and one where nobody listens."""

    async def echo(stream: trio.SocketStream) -> None:
        async for part in stream:
            await stream.send_all(part)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        await client.ask("echo", port=port, size=MIB)
        await client.ask("ssh_tcp", port=port, size=MIB)
        nursery.cancel_scope.cancel()
    await client.ask("refused", port=port)


async def ssh(client: AgentClient, folder: Path) -> None:
    command = "cat; pwd; echo $CODER $OWN; echo bad >&2; exit 3"
    said = await client.ask("ssh_exec", command=command, text="in\n", env={"OWN": "mine"})
    assert said["text"].split() == ["in", str(folder), "true", "mine"]
    assert (said["stderr"], said["status"]) == ("bad\n", 3)
    said = await client.ask("ssh_shell", height=31, width=101, text="stty size; tty; echo $TERM; exit 4\r")
    assert said["status"] == 4
    for part in ("31 101", "/dev/pts/", "xterm-256color"):
        assert part in said["text"]
    await client.ask("sftp", path=str(folder / "file"), size=3 * MIB)
    assert (folder / "file").stat().st_size == 3 * MIB


async def test_an_agent_that_is_not_there(tmp_path: Path) -> None:
    """The client is told; it does not wait for ever."""
    seed = Seed()
    alice = seed.add_user("alice")
    agent = seed.add_agent(alice)
    with running_server("ours", tmp_path, seed) as server, pytest.RaisesGroup(AgentClientError):
        async with open_agent_client(server.url, alice.token, agent.id):
            pass
