"""The reconnecting PTY on port 2: terminals that outlive connections, and whoever is attached to them.  Layer L3.

The same id is the same terminal: who comes again, or as another one, sees the end of what was said and goes on.  A
terminal ends with its process, and five minutes after the last one left.  Next hop: pty_frames.py, pty_terminal.py.
"""

import logging
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import trio

from derp.text import error_text
from tailnet.agent.containers import ContainerError, shell_in
from tailnet.agent.context import Context
from tailnet.agent.counters import Kind
from tailnet.agent.pty_frames import Attach, PtyFrames, Request
from tailnet.agent.pty_terminal import Reader, Terminal, open_terminal
from tailnet.errors import RemoteProtocolError, TailnetError
from tailnet.node.streams import TunnelStream

_log = logging.getLogger("tailnet.agent")

ATTACH_SECONDS: Final = 30.0
"""From the connection to a terminal that runs."""
IDLE_SECONDS: Final = 300.0
# Each is a process and a ring of 64 KiB, for up to five minutes after it was left; a person has some ten tabs.
MAX_TERMINALS: Final = 64
# Windows of one terminal; each new one has the ring sent to it.
MAX_ATTACHED: Final = 16
# A reader that takes not one piece in so long is not there any more; a process that reads no keys gets no more.
SEND_SECONDS: Final = 60.0


class TerminalError(TailnetError):
    """There is no terminal for this client; the text says why, and is shown to its user."""


class ReconnectingPty:
    """The terminals of one agent.  `serve` is called for each connection."""

    def __init__(self, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        self._terminals: dict[UUID, Terminal] = {}
        self._opening = trio.Lock()

    async def serve(self, stream: TunnelStream, context: Context) -> None:
        """Attach a client, until it leaves or the terminal ends."""
        frames = PtyFrames()
        try:
            with trio.fail_after(ATTACH_SECONDS):
                requests = await _read_wish(stream, frames)
                wish = frames.attach
                if wish is None:  # the client left before it had said what it wants
                    return
                terminal = await self._find(wish, context)
        except trio.TooSlowError:
            await _say(stream, f"no terminal came within {ATTACH_SECONDS:g} s")
            return
        except (RemoteProtocolError, TerminalError, ContainerError) as error:
            await _say(stream, str(error))
            return
        with context.counters.session(Kind.RECONNECTING_PTY, stream) as session, terminal.attached() as reader:
            terminal.resize(wish.height, wish.width)
            try:
                async with trio.open_nursery() as nursery:

                    async def until_left() -> None:
                        session.reason = await _take_keys(stream, frames, terminal, requests)
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(until_left)
                    await _show(stream, reader)
                    nursery.cancel_scope.cancel()
            except* (trio.BrokenResourceError, trio.ClosedResourceError) as group:
                session.reason = error_text(group.exceptions[0])
                stream.abort()

    async def _find(self, wish: Attach, context: Context) -> Terminal:
        """The terminal of that id, or a new one."""
        async with self._opening:
            terminal = self._terminals.get(wish.terminal_id)
            if terminal is None or terminal.is_over:
                if len(self._terminals) >= MAX_TERMINALS:
                    raise TerminalError(f"{MAX_TERMINALS} terminals are open on this agent: end one of them first")
                started: Terminal = await context.nursery.start(self._keep, wish, context)
                return started
            if len(terminal.readers) >= MAX_ATTACHED:
                raise TerminalError(f"{MAX_ATTACHED} are attached to this terminal: leave it elsewhere first")
            return terminal

    async def _keep(self, wish: Attach, context: Context, task_status: trio.TaskStatus[Terminal]) -> None:
        """A terminal's whole life; it is started when the terminal is there."""
        argv = _command(wish, context)
        environment = {**context.environment(), "TERM": "xterm-256color"}
        try:
            terminal = await open_terminal(argv, environment, context.directory, wish.height, wish.width)
        except (OSError, ValueError) as error:  # a command may have a zero byte
            raise TerminalError(f"the agent cannot start {argv[0]}: {error_text(error)}") from None
        self._terminals[wish.terminal_id] = terminal
        try:
            task_status.started(terminal)
            async with trio.open_nursery() as nursery:

                async def expire() -> None:
                    await terminal.wait_left(self._idle_seconds)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(expire)
                await terminal.run()
                nursery.cancel_scope.cancel()
        except Exception:  # of one terminal; its context is the whole agent's
            _log.exception("terminal %s failed", wish.terminal_id)
        finally:
            if self._terminals.get(wish.terminal_id) is terminal:  # else another has begun meanwhile
                del self._terminals[wish.terminal_id]


def _command(wish: Attach, context: Context) -> Sequence[str]:
    """What runs in the terminal."""
    if wish.container:
        return shell_in(wish.container, wish.container_user, wish.command)
    return [context.shell, "-c", wish.command] if wish.command else [context.shell, "-l"]


async def _read_wish(stream: TunnelStream, frames: PtyFrames) -> list[Request]:
    """Until the client has said what it wants, or leaves: then frames.attach is None.  What came along with it."""
    requests: list[Request] = []
    while frames.attach is None and (data := await stream.receive_some()):
        requests = frames.receive_data(data)
    return requests


async def _show(stream: TunnelStream, reader: Reader) -> None:
    while data := await reader.receive():
        with trio.move_on_after(SEND_SECONDS) as scope:
            await stream.send_all(data)
        if scope.cancelled_caught:
            raise trio.BrokenResourceError(f"the client took nothing for {SEND_SECONDS:g} s")


async def _take_keys(stream: TunnelStream, frames: PtyFrames, terminal: Terminal, requests: list[Request]) -> str:
    """Until the client leaves; why, if that is not its own wish."""
    while True:
        for request in requests:
            terminal.resize(request.height, request.width)
            with trio.move_on_after(SEND_SECONDS) as scope:
                await terminal.send_all(request.data)
            if scope.cancelled_caught:
                return f"the process took no keys for {SEND_SECONDS:g} s"
        data = await stream.receive_some()
        if not data:
            return ""
        try:
            requests = frames.receive_data(data)
        except RemoteProtocolError as error:
            return str(error)


async def _say(stream: TunnelStream, reason: str) -> None:
    """To the user, who sees a terminal and nothing else."""
    with trio.move_on_after(SEND_SECONDS):
        await stream.send_all(f"\r\n{reason}\r\n".encode())
