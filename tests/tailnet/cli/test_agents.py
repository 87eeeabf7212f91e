"""`tailnet agents` on a real coordinator."""

import json

import trio
from click.testing import CliRunner, Result

from tailnet.cli.root import cli
from tailnet.server.server import CoordinatorServer
from tests.support.seeds import peer_id, user_token
from tests.tailnet.client.test_rpc import url_of


async def agents(url: str, *words: str, user: str = "alice") -> Result:
    return await trio.to_thread.run_sync(
        lambda: CliRunner().invoke(cli, ["agents", "--url", url, "--token", user_token(user), *words])
    )


async def test_the_list(server: CoordinatorServer) -> None:
    said = await agents(url_of(server))
    assert said.exit_code == 0, said.output
    head, *rows = [line.split() for line in said.stdout.splitlines()]
    assert head == ["AGENT", "STATUS", "LIFECYCLE", "SYSTEM", "VERSION", "ID"]
    assert [(row[0], row[-1]) for row in rows] == [
        ("dev.gpu", str(peer_id("gpu"))),
        ("dev.main", str(peer_id("main"))),
    ]
    listed = [json.loads(line) for line in (await agents(url_of(server), "--json")).stdout.splitlines()]
    assert [(each["agent"], each["owner"], each["name"]) for each in listed] == [
        ("dev.gpu", "alice", "gpu"),
        ("dev.main", "alice", "main"),
    ]
