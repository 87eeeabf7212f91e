"""An agent's SSH server and golang.org/x/crypto/ssh, which many clients of agents are made with."""

import json
from pathlib import Path

import pytest
import trio

from tests.support.gobuild import SSH_PEER
from tests.support.peers import require
from tests.support.ssh import open_ssh_server, run

pytestmark = pytest.mark.interop

EXPECTED = {
    "version": ["SSH-2.0-tailnet"],
    "command": ["given |err\n|7"],
    "ended by signal": ["||signal KILL"],
    "environment": ["<nil>", "yes\n0"],
    "agent forwarding": ["false"],
    "unknown request": ["false"],
    "unknown subsystem": ["ssh: subsystem request failed"],
    "keepalive": ["true <nil>"],
    "unknown global request": ["false <nil>"],
    "unknown channel": ["ssh: rejected: unknown channel type (Unknown channel type)"],
    "terminal": ["vt100\n37 101\n-onlcr\n-echo\ngot typed\n50 120\n9"],
    "signal": ["got usr1\n3"],
    "dial tcp": ["HELLO"],
    "dial unix": ["HELLO"],
    "listen tcp": ["HELLO"],
    "listen no more": ["true"],
    "listen unix": ["HELLO"],
    "at once": [" ".join(f"{number}\n||{number}" for number in range(20))],
    "large": ["true"],
}


async def test_all_that_a_client_asks_for(tmp_path: Path) -> None:
    program = await trio.to_thread.run_sync(require, SSH_PEER)
    async with open_ssh_server(tmp_path) as server:
        done = await run([str(program), f"-address=127.0.0.1:{server.port}", f"-dir={tmp_path}"])
        assert done.stderr == b""
        found: dict[str, list[str]] = {}
        for line in done.stdout.splitlines():
            said = json.loads(line)
            found.setdefault(said["name"], []).append(said["text"])
        (nobody,) = found.pop("dial nobody")
        assert "rejected: connect failed" in nobody
        assert found == EXPECTED
        await server.wait_ended(1)
        assert server.ended == [None]
