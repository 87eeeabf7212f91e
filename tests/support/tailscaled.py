"""One genuine tailscaled, in userspace mode and with a folder of its own, and what `tailscale` asks of it.

`async with open_tailscaled(program) as node`: it runs, and belongs to no tailnet yet (tests/support/tailnets.py).  All
requests go to its socket, as those of the command line do.  What others dial at its addresses arrives on 127.0.0.1.
"""

import json
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from typing import Any, Literal

import trio

from tests.support.peers import PATIENCE_SECONDS
from tests.support.relays import stop_process

# No packet between nodes but over a relay: pings of direct paths are neither sent nor answered.  STUN goes on.
# One processor, as a netcheck that has its answer before it has noted that it asked takes that for a broken socket, and
# binds anew; connections over loopback do not survive that.
RELAYED = {"TS_DEBUG_NEVER_DIRECT_UDP": "1", "GOMAXPROCS": "1"}
PingKind = Literal["disco", "TSMP", "ICMP"]
# How often a page is asked again while something has to come.
_LOOK_SECONDS = 0.02
# One ping after the other, answered or not; what has no answer by then never gets one.
_PING_SECONDS = 0.025
_LOST_SECONDS = 2.0
_HOST = "local-tailscaled.sock"


class Tailscaled:
    """A running tailscaled.  Made and ended by open_tailscaled."""

    def __init__(self, folder: Path, process: trio.Process) -> None:
        self.socket = folder / "tailscaled.sock"
        self._output = folder / "output"
        self._process = process

    async def status(self) -> dict[str, Any]:
        """What `tailscale status --json` prints."""
        body = await self._ask("GET", "status")
        status: dict[str, Any] = json.loads(body)
        return status

    async def wait_status(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status that it holds for."""
        status: dict[str, Any] = {}
        with trio.move_on_after(PATIENCE_SECONDS):
            while True:
                status = await self.status()
                if condition(status):
                    return status
                await trio.sleep(_LOOK_SECONDS)
        raise AssertionError(f"{json.dumps(status, indent=1)}\n{self.output()}")

    async def ping(self, address: str, kind: PingKind) -> dict[str, Any]:
        """What `tailscale ping` is told about one ping; it waits for the answer as long as the caller lets it."""
        result: dict[str, Any] = json.loads(await self._ask("POST", f"ping?ip={address}&type={kind}"))
        return result

    async def wait_answer(self, address: str) -> None:
        """Until the node there answers a ping."""
        answers: list[float] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.ping_forever, address, answers)
            await self.wait_status(lambda _: bool(answers))
            nursery.cancel_scope.cancel()

    async def ping_forever(self, address: str, answers: list[float]) -> None:
        """Ping steadily until cancelled; the times of the answers."""

        async def ping() -> None:
            with trio.move_on_after(_LOST_SECONDS):
                if not (await self.ping(address, "disco"))["Err"]:
                    answers.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(ping)
                await trio.sleep(_PING_SECONDS)

    async def dial(self, address: str, port: int) -> trio.SocketStream:
        """What `tailscale nc` does: a TCP connection through the tailnet.  The caller closes it."""
        stream = await trio.open_unix_socket(self.socket)
        head = f"Connection: upgrade\r\nUpgrade: ts-dial\r\nDial-Host: {address}\r\nDial-Port: {port}\r\n"
        try:
            await stream.send_all(_request("POST", "dial", head))
            answer = b""
            while b"\r\n\r\n" not in answer:
                part = await stream.receive_some(1)  # not a byte of what follows
                assert part, f"{answer!r}\n{self.output()}"
                answer += part
            assert answer.startswith(b"HTTP/1.1 101 "), answer
        except BaseException:
            await stream.aclose()
            raise
        return stream

    async def stop(self) -> None:
        """End it as systemd would."""
        assert await stop_process(self._process), self.output()

    def output(self) -> str:
        """What it has logged so far."""
        return self._output.read_text(errors="replace")

    async def wait_listening(self) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                assert self._process.poll() is None, self.output()
                try:
                    stream = await trio.open_unix_socket(self.socket)
                except OSError:
                    await trio.sleep(_LOOK_SECONDS)
                    continue
                await stream.aclose()
                return

    async def _ask(self, method: str, path: str) -> bytes:
        async with await trio.open_unix_socket(self.socket) as stream:
            await stream.send_all(_request(method, path, "Connection: close\r\n"))
            answer = b"".join([part async for part in stream])
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.0 200 "), answer
        return body


def _request(method: str, path: str, head: str) -> bytes:
    # Answers to HTTP/1.0 are not chunked; only 1.1 can be upgraded.
    version = "1.1" if "Upgrade" in head else "1.0"
    return f"{method} /localapi/v0/{path} HTTP/{version}\r\nHost: {_HOST}\r\n{head}\r\n".encode()


@asynccontextmanager
async def open_tailscaled(program: Path, environment: Mapping[str, str]) -> AsyncIterator[Tailscaled]:
    """Start it with more environment variables, and end it by its id."""
    with tempfile.TemporaryDirectory(prefix="tailscaled-") as name:
        folder = Path(name)
        command = [str(program), "--tun=userspace-networking", "--port=0", "--no-logs-no-support"]
        command += [f"--statedir={folder}", f"--state={folder / 'state'}", f"--socket={folder / 'tailscaled.sock'}"]
        with (folder / "output").open("wb") as output:
            process = await trio.lowlevel.open_process(
                command,
                stdin=DEVNULL,
                stdout=output,
                stderr=STDOUT,
                env=os.environ | {"TS_LOGS_DIR": name} | dict(environment),
            )
        try:
            node = Tailscaled(folder, process)
            await node.wait_listening()
            yield node
        finally:
            stopped = await stop_process(process)
        assert stopped, "tailscaled did not stop on SIGTERM"
