"""OpenSSH's own clients against an agent's SSH server."""

import os
import shlex
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest
import trio

from tailnet.agent.counters import Kind
from tailnet.agent.ssh import host_key
from tests.support.ssh import SshServer, open_ssh_server, run


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SshServer]:
    async with open_ssh_server(tmp_path) as opened:
        yield opened


async def test_a_command(server: SshServer) -> None:
    done = await server.ssh("echo out; echo $HOME; echo err >&2; pwd; exit 7")
    assert done.stdout.decode().split() == ["out", str(server.home), str(server.home)]
    assert done.stderr == b"err\n"
    assert done.status == 7


async def test_a_command_reads_what_it_is_given(server: SshServer) -> None:
    text = os.urandom(3_000_000)
    done = await server.ssh("cat", stdin=text)
    assert done.stdout == text
    assert done.status == 0


async def test_a_login_shell(server: SshServer) -> None:
    (server.home / ".bash_profile").write_text("echo the profile was read\n")
    done = await server.ssh("-T", "--", "", stdin=b"echo $0; exit 3\n")
    assert b"the profile was read" in done.stdout
    assert done.status == 3


async def test_a_shell_on_a_terminal(server: SshServer) -> None:
    server.context.shell = "/bin/sh"  # which edits no lines
    async with server.client("-tt", "--", "") as client:
        await client.type(b"stty -echo; PS1=; echo ready\n")
        while await client.line() != "# ready":
            pass
        await client.type(b"tty; test -t 1 -a -t 2 && echo terminal; exit 5\n")
        assert (await client.line()).startswith("/dev/pts/")
        assert await client.line() == "terminal"
        assert await client.wait() == 5


async def test_a_shell_on_a_terminal_is_greeted(server: SshServer) -> None:
    server.context.shell, server.context.banners = "/bin/sh", ("Maintenance on Sunday",)
    async with server.client("-tt", "--", "") as client:
        assert await client.line() == "Maintenance on Sunday"
        await client.type(b"exit 5\n")
        assert await client.wait() == 5
    done = await server.ssh("echo out")
    assert done.stdout == b"out\n"


async def test_the_environment(server: SshServer) -> None:
    server.context.variables = {**server.context.variables, "OF_THE_MANIFEST": "1", "OF_BOTH": "manifest"}
    done = await server.ssh(
        "-oSetEnv=OF_THE_CLIENT=2 OF_BOTH=client CODER=no CODER_AGENT_TOKEN=mine CODER_SSH_SESSION_TYPE=vscode", "env"
    )
    found = dict(line.split("=", 1) for line in done.stdout.decode().splitlines() if "=" in line)
    assert found["OF_THE_MANIFEST"] == "1"
    assert found["OF_THE_CLIENT"] == "2"
    assert found["OF_BOTH"] == "client"
    assert found["CODER"] == "true"
    assert found["CODER_AGENT_TOKEN"] == "a-token"
    assert "CODER_SSH_SESSION_TYPE" not in found
    assert found["SSH_CLIENT"] == "fd7a:115c:a1e0::2 50000 22"
    assert found["SSH_CONNECTION"] == "fd7a:115c:a1e0::2 50000 fd7a:115c:a1e0::1 22"


async def test_sessions_are_counted_by_what_opened_them(server: SshServer) -> None:
    async with trio.open_nursery() as nursery:
        for kind, word in ((Kind.SSH, ""), (Kind.VSCODE, "VSCode"), (Kind.JETBRAINS, "jetbrains")):
            pipe = server.home / f"pipe-{word}"
            os.mkfifo(pipe)
            nursery.start_soon(server.ssh, f"-oSetEnv=CODER_SSH_SESSION_TYPE={word}", f"cat {pipe}")
            file = await trio.open_file(pipe, "w")  # when `cat` has opened it too
            assert server.context.counters.sessions[kind] == 1
            await file.aclose()


async def test_a_program_that_a_signal_ends(server: SshServer) -> None:
    done = await server.ssh("-v", "kill -TERM $$", LogLevel="DEBUG1")
    assert b"exit-signal" in done.stderr
    assert done.status == 255, "OpenSSH's way to say it"


async def test_a_session_that_cannot_begin(server: SshServer) -> None:
    server.context.shell = "/not/there"
    done = await server.ssh("true")
    assert done.status == 229
    assert b"could not be started" in done.stderr


async def test_a_directory_that_is_not_there(server: SshServer) -> None:
    server.context.wanted_directory = "/not/there"
    done = await server.ssh("pwd")
    assert done.status == 0


async def test_the_host_key_stays_with_the_token(server: SshServer) -> None:
    found = []
    for _ in range(2):
        done = await run(["ssh-keyscan", "-p", str(server.port), "127.0.0.1"])
        found.append([line for line in done.stdout.splitlines() if b"ssh-ed25519" in line])
    assert found[0] == found[1] != []
    assert host_key("one") == host_key("one") != host_key("other")
    assert len(host_key("one")) == 32


async def test_files_are_carried(server: SshServer, tmp_path: Path) -> None:
    source, there, back = tmp_path / "source", tmp_path / "there", tmp_path / "back"
    source.write_bytes(os.urandom(5_000_000))
    for legacy in ([], ["-O"]):
        await server.copy(str(source), f"user@127.0.0.1:{there}", *legacy)
        await server.copy(f"user@127.0.0.1:{there}", str(back), *legacy)
        assert back.read_bytes() == source.read_bytes()
        there.unlink()
        back.unlink()


@pytest.mark.parametrize("words", [["scp"], ["scp", "-O"], ["sftp"]])
async def test_file_transfer_can_be_forbidden(server: SshServer, words: list[str]) -> None:
    server.context.is_file_transfer_allowed = False
    done = await run([*server.words(words[0]), *words[1:], "user@127.0.0.1:.profile", str(server.home / "copy")])
    assert b"File transfer has been disabled." in done.stderr
    assert done.status != 0
    assert (await server.ssh("/usr/bin/rsync --server")).status == 65
    assert (await server.ssh("echo rsync")).status == 0


async def test_a_large_file_keeps_its_hash(server: SshServer) -> None:
    """Both ways at once, while the other end takes its time."""
    source, copy = server.home / "source", server.home / "copy"
    block = os.urandom(1 << 20)
    source.write_bytes(b"".join(block[at:] + block[:at] for at in range(200)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.copy, str(source), f"user@127.0.0.1:{copy}")
        done = await server.ssh(f"sha256sum < {source}; cat {source} | sha256sum")
    digest = sha256(source.read_bytes()).hexdigest()
    assert done.stdout.decode().split()[::2] == [digest, digest]
    assert sha256(copy.read_bytes()).hexdigest() == digest
    words = [*server.words("ssh"), "user@127.0.0.1", f"cat {source}"]
    done = await run(["sh", "-c", f"{shlex.join(words)} | (sleep 0.2; sha256sum)"])
    assert done.stdout.decode().split()[0] == digest


async def test_an_ssh_agent_is_forwarded_only_where_that_is_allowed(server: SshServer) -> None:
    words = ["ssh-agent", *server.words("ssh", "-A", IdentityAgent="SSH_AUTH_SOCK"), "user@127.0.0.1"]
    done = await run([*words, "echo ${SSH_AUTH_SOCK:-none}"])
    assert done.stdout == b"none\n"
    server.context.allow_agent_forwarding = True
    done = await run([*words, "ssh-add -l; test -S $SSH_AUTH_SOCK && echo $SSH_AUTH_SOCK"])
    said, path = done.stdout.decode().splitlines()
    assert said == "The agent has no identities."
    await server.wait_ended(2)
    assert not await trio.Path(path).exists()
