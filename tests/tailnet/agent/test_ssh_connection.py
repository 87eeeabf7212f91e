"""Hostile and unlucky clients: what each costs, and that nothing of it stays."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tailnet.agent import ssh_connection
from tests.support.ssh import PATIENCE_SECONDS, SshServer, open_ssh_server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SshServer]:
    async with open_ssh_server(tmp_path) as opened:
        yield opened


async def read_all(stream: trio.SocketStream) -> bytes:
    """To the end, of whatever kind it is."""
    data = b""
    with trio.fail_after(PATIENCE_SECONDS):
        try:
            while part := await stream.receive_some():
                data += part
        except trio.BrokenResourceError:
            pass
    return data


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-1.5-old\r\n",
        b"SSH-2.0-" + b"x" * 100_000,
        b"\0" * 100_000,
        b"SSH-2.0-x\r\n" + b"\xff" * 1000,
        b"SSH-2.0-x\r\n" + (1 << 18).to_bytes(4, "big") + bytes(1000),
        b"SSH-2.0-x\r\n" + bytes.fromhex("0000000c0a140000000000000000000000000000"),
        b"SSH-2.0-x\xff\xfe\r\n",
    ],
    ids=["http", "ssh1", "long", "zeros", "huge packet", "larger packet", "broken kexinit", "no text"],
)
async def test_garbage_is_sent_away(server: SshServer, said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of what might be the beginning of something the rest is waited for.
    monkeypatch.setattr(ssh_connection, "HANDSHAKE_SECONDS", 0.5)
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    async with stream:
        await stream.send_all(said)
        assert (await read_all(stream)).startswith(b"SSH-2.0-tailnet\r\n")
    await server.wait_ended(1)
    assert server.ended == [None]
    monkeypatch.undo()
    assert (await server.ssh("echo still here")).stdout == b"still here\n"
