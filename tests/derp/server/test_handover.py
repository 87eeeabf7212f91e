"""Sockets that go from one process to the next: what is passed, and that a successor which fails changes nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from derp.errors import ConfigError
from derp.server.handover import VARIABLE, Handed, HandoverError, Inherited, hand_over
from tests.derp.server.world import HOST, PATIENCE_SECONDS, ask, call, open_server, relay_config
from tests.support.command import ENVIRONMENT
from tests.support.regions import Successor
from tests.support.relays import free_port, stop_process
from tests.support.systemd import activated

# Takes over as a relay does: answers one connection on the socket it was given, once it has said that it serves.
SUCCESSOR = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from derp.server.handover import Inherited
inherited = Inherited.from_environment(os.environ)
assert "{VARIABLE}" not in os.environ
sock = inherited.take("tcp", "", 0)
assert inherited.take("tcp", "", 0) is None
inherited.finish()
sock.setblocking(True)
connection, _ = sock.accept()
connection.sendall(b"from the new one")
"""


def listener() -> socket.socket:
    sock = socket.socket()
    sock.bind((HOST, 0))
    sock.listen()
    return sock


async def test_a_successor_serves_what_waits_in_the_backlog() -> None:
    with listener() as sock, socket.create_connection(sock.getsockname()) as caller:
        caller.settimeout(PATIENCE_SECONDS)
        with trio.fail_after(PATIENCE_SECONDS):
            successor = await hand_over([Handed("tcp", "", 0, sock)], [sys.executable, "-c", SUCCESSOR])
        sock.close()
        assert await trio.to_thread.run_sync(caller.recv, 100) == b"from the new one"
        with trio.fail_after(PATIENCE_SECONDS):
            assert await successor.wait() == 0


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("raise SystemExit(3)", "the new process ended with status 3"),
        ("import time; time.sleep(1000)", "the new process did not serve within 1 s"),
        (f"import os, json; os.close(json.loads(os.environ['{VARIABLE}'])['ready'])", "ended with status 0"),
    ],
)
async def test_a_successor_that_does_not_serve_changes_nothing(program: str, says: str) -> None:
    with listener() as sock:
        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(HandoverError, match=says):
            await hand_over([Handed("tcp", "", 0, sock)], [sys.executable, "-c", program], ready_seconds=1.0)
        with socket.create_connection(sock.getsockname()):
            sock.accept()[0].close()


async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(HandoverError, match="cannot start /nowhere: No such file"):
        await hand_over([], ["/nowhere"])


def test_what_nobody_wants_any_more_is_closed() -> None:
    with listener() as sock:
        ready, said = os.pipe()
        fd = os.dup(sock.fileno())
        environ = {VARIABLE: json.dumps({"sockets": [["tcp", "", 443, fd]], "ready": said}), "A": "b"}
        inherited = Inherited.from_environment(environ)
        assert environ == {"A": "b"}
        assert not os.get_inheritable(fd)
        assert inherited.take("udp", "", 443) is None
        inherited.finish()
        inherited.finish()
        assert os.read(ready, 100) == b"ready"
        os.close(ready)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_what_is_no_socket_goes_along(tmp_path: Path) -> None:
    wanted, unwanted = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    ready, said = os.pipe()
    os.set_inheritable(wanted, True)
    files = {"wanted": wanted, "unwanted": unwanted}
    environ = {VARIABLE: json.dumps({"sockets": [], "ready": said, "files": files})}
    inherited = Inherited.from_environment(environ)
    assert not os.get_inheritable(wanted)
    assert (inherited.take_file("wanted"), inherited.take_file("wanted")) == (wanted, None)
    inherited.finish()
    os.close(wanted)
    os.close(ready)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(unwanted)


def test_without_a_predecessor_everything_is_opened_anew() -> None:
    inherited = Inherited.from_environment({})
    assert inherited.take("tcp", "", 443) is None
    assert inherited.take_file("anything") is None
    inherited.finish()


# --- sockets of systemd

# Says what it was given for each place that its arguments name, and what it closed unwanted.
TAKES = f"""
import logging, os, sys
sys.path[:0] = {sys.path!r}
from derp.errors import ConfigError
from derp.server.handover import Inherited
logging.basicConfig(stream=sys.stdout, format="%(message)s")
try:
    inherited = Inherited.from_environment(os.environ)
except ConfigError as error:
    raise SystemExit(f"no: {{error}}")
assert not [name for name in os.environ if name.startswith("LISTEN_")]
for place in sys.argv[1:]:
    kind, host, port = place.split("/")
    sock = inherited.take(kind, host, int(port))
    print(place, sock and (sock.getsockname()[:2], sock.gettimeout(), os.get_inheritable(sock.fileno())))
inherited.finish()
"""


async def takes(sockets: list[socket.socket], *places: str) -> list[str]:
    command = activated([sys.executable, "-c", TAKES, *places], sockets)
    fds = [sock.fileno() for sock in sockets]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, pass_fds=fds)
    return (done.stdout + done.stderr).decode().splitlines()


async def test_sockets_of_systemd_are_found_by_where_they_are_bound() -> None:
    with listener() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, socket.socket(socket.AF_INET6) as every:
        udp.bind((HOST, 0))
        every.bind(("::", 0))
        every.listen()
        at, stun, port = (sock.getsockname()[1] for sock in (tcp, udp, every))
        lines = await takes(
            [tcp, udp, every], f"udp/{HOST}/{at}", f"tcp/{HOST}/{at}", f"tcp/{HOST}/{at}", f"udp/{HOST}/{stun}",
            f"tcp/localhost/{port}", f"tcp//{port}",
        )  # fmt: skip
        assert lines == [
            f"udp/{HOST}/{at} None",
            f"tcp/{HOST}/{at} (('{HOST}', {at}), 0.0, False)",
            f"tcp/{HOST}/{at} None",  # each once
            f"udp/{HOST}/{stun} (('{HOST}', {stun}), 0.0, False)",
            f"tcp/localhost/{port} None",
            f"tcp//{port} (('::', {port}), 0.0, False)",
        ]


async def test_a_socket_of_systemd_that_no_setting_names_is_told() -> None:
    with listener() as tcp:
        (line,) = await takes([tcp])
        host, port = tcp.getsockname()
        assert line == f"! systemd gave a tcp socket at {host}:{port}, which no setting names: nobody serves it"


@pytest.mark.parametrize("made", [lambda: socket.socket(), lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)])
async def test_a_socket_that_nobody_can_serve_is_refused(made: Callable[[], socket.socket]) -> None:
    with made() as sock:
        (line,) = await takes([sock])
        assert line == "no: LISTEN_FDS: descriptor 3 is no listening TCP and no UDP socket: mend the .socket unit"


def test_sockets_that_systemd_gave_to_another_process_are_not_ours() -> None:
    environ = {"LISTEN_PID": str(os.getppid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:c"}
    inherited = Inherited.from_environment(environ)
    assert environ == {}
    assert inherited.take("tcp", "", 443) is None
    with pytest.raises(ConfigError, match="'x' is no number of sockets"):
        Inherited.from_environment({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"})


async def test_a_relay_whose_successor_fails_goes_on() -> None:
    async with open_server(relay_config()) as server:
        caller = await call(server)
        assert not await server.hand_over([sys.executable, "-c", "raise SystemExit(2)"])
        await caller.ping()
        assert (await ask(server, b"GET /healthz HTTP/1.0\r\n\r\n")).endswith(b"ok\n")
        await caller.aclose()


async def answered(port: int) -> bool:
    """Whether a fresh connection is answered; a refused or reset one is not."""
    try:
        async with await trio.open_tcp_stream(HOST, port) as stream:
            await stream.send_all(b"GET /healthz HTTP/1.0\r\n\r\n")
            received = b""
            while data := await stream.receive_some():
                received += data
    except (OSError, trio.BrokenResourceError):
        return False
    return received.startswith(b"HTTP/1.1 200")


async def test_while_a_relay_is_replaced_every_caller_is_answered(tmp_path: Path) -> None:
    port, stun = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_DGRAM)
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.settimeout(PATIENCE_SECONDS)
    command = [sys.executable, "-m", "derp", "serve", f"--listen={HOST}:{port}", f"--stun-port={stun}"]
    command += [f"--key-file={tmp_path}/key", "--json"]
    environment = ENVIRONMENT | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    process = await trio.lowlevel.open_process(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    answers: list[bool] = []
    successor: Successor | None = None
    try:
        with manager, trio.fail_after(3 * PATIENCE_SECONDS):
            assert await trio.to_thread.run_sync(manager.recv, 100) == b"READY=1"
            async with trio.open_nursery() as nursery:

                async def keep_calling() -> None:
                    while True:
                        answers.append(await answered(port))

                nursery.start_soon(keep_calling)
                process.send_signal(signal.SIGUSR2)
                heard = {await trio.to_thread.run_sync(manager.recv, 100) for _ in range(2)}
                (pid,) = {int(line.removeprefix(b"MAINPID=")) for line in heard if line.startswith(b"MAINPID=")}
                successor = Successor(pid)
                assert b"READY=1" in heard
                assert await process.wait() == 0
                seen = len(answers)
                while len(answers) < seen + 10:  # these are the new one's alone
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert answers
        assert all(answers)
    finally:
        with trio.CancelScope(shield=True):
            await stop_process(process)
            assert successor is None or await stop_process(successor)
