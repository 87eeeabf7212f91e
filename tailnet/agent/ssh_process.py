"""The program of a session: started with pipes or on a terminal, carried both ways, ended with its client.  L3.

A client that vanishes is a hangup: SIGHUP, and after a grace SIGKILL, to the program's process group and to
what stands in the terminal's foreground.  What has a session or a group of its own (setsid, a job under nohup) stays.
Next hop: terminals.py, processes.py, ssh_terminal.py, ssh_connection.py.
"""

import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Final

import trio

from tailnet.agent.processes import signal_groups
from tailnet.agent.ssh_connection import SessionChannel
from tailnet.agent.ssh_terminal import open_terminal
from tailnet.agent.terminals import groups_of, hang_up, on_terminal, set_size

_READ_BYTES: Final = 32 * 1024
# What a program wrote last comes out of its terminal a moment after its end, and the terminal holds no more than this;
# a program in the background may write to it for ever.
_LAST_WORDS_SECONDS: Final = 0.25
_LAST_WORDS_BYTES: Final = 64 * 1024
# RFC 4254 section 6.10, and what OpenSSH knows besides; by their names without SIG.
SIGNALS: Final[Mapping[str, signal.Signals]] = {
    each.name.removeprefix("SIG"): each
    for each in (
        *(signal.SIGABRT, signal.SIGALRM, signal.SIGFPE, signal.SIGHUP, signal.SIGILL, signal.SIGINT, signal.SIGKILL),
        *(signal.SIGPIPE, signal.SIGQUIT, signal.SIGSEGV, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2),
    )
}


async def run_program(
    channel: SessionChannel, command: Sequence[str], directory: str, environment: Mapping[str, str]
) -> int:
    """Run a program for a client until it has ended and all it said was sent; its status, negative for a signal.

    Raises OSError when it cannot be started.  It is hung up when the client goes, or when this is cancelled.
    """
    terminal = channel.terminal
    async with AsyncExitStack() as stack:
        if terminal is None:
            pipe = subprocess.PIPE
            process = await _open(command, directory, environment, pipe, pipe, pipe)
            for end in (process.stdin, process.stdout, process.stderr):
                assert end is not None
                stack.push_async_callback(end.aclose)
            return await _Program(channel, process, None).run()
        ours, theirs = open_terminal(terminal.size, terminal.modes)
        stream = await stack.enter_async_context(trio.lowlevel.FdStream(ours))
        try:
            environment = {**environment, "TERM": terminal.kind, "SSH_TTY": os.ttyname(theirs)}
            process = await _open(on_terminal(theirs, command), directory, environment, theirs, theirs, theirs)
        finally:
            os.close(theirs)
        return await _Program(channel, process, stream).run()


async def _open(
    command: Sequence[str], directory: str, environment: Mapping[str, str], stdin: int, stdout: int, stderr: int
) -> trio.Process:
    return await trio.lowlevel.open_process(
        command, stdin=stdin, stdout=stdout, stderr=stderr, cwd=directory, env=environment, start_new_session=True
    )


class _Program:
    """One that runs, and the channel of its client."""

    def __init__(self, channel: SessionChannel, process: trio.Process, terminal: trio.lowlevel.FdStream | None) -> None:
        self._channel = channel
        self._process = process
        self._terminal = terminal
        self._reading = trio.CancelScope()
        self._is_reaped = False
        """Whether its status was taken: until then no other process gets its number."""

    async def run(self) -> int:
        is_finished = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey)
            try:
                with trio.CancelScope() as carrying:
                    nursery.start_soon(self._watch_client, carrying)
                    if self._terminal is None:
                        await self._carry_pipes(nursery)
                    else:
                        await self._carry_terminal(nursery, self._terminal)
                    is_finished = True
            finally:
                if not is_finished:
                    await hang_up(self._groups(), self._reap)
            nursery.cancel_scope.cancel()
        return await self._reap()

    async def _reap(self) -> int:
        status = await self._process.wait()
        self._is_reaped = True
        return status

    async def _watch_client(self, carrying: trio.CancelScope) -> None:
        await self._channel.wait_gone()
        carrying.cancel()

    async def _carry_pipes(self, nursery: trio.Nursery) -> None:
        process, channel = self._process, self._channel
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        nursery.start_soon(_feed, channel, process.stdin)
        async with trio.open_nursery() as outputs:
            outputs.start_soon(_carry, process.stdout, channel.send_all)
            outputs.start_soon(_carry, process.stderr, channel.send_error)
        await self._reap()

    async def _carry_terminal(self, nursery: trio.Nursery, terminal: trio.lowlevel.FdStream) -> None:
        nursery.start_soon(_feed, self._channel, terminal)
        async with trio.open_nursery() as outputs:
            outputs.start_soon(self._carry_terminal_output, terminal)
            await self._reap()
            # Programs in the background may hold the terminal for ever.
            self._reading.deadline = trio.current_time() + _LAST_WORDS_SECONDS

    async def _carry_terminal_output(self, terminal: trio.lowlevel.FdStream) -> None:
        left = _LAST_WORDS_BYTES
        # Linux answers with an error when the last program has closed it.
        with suppress(trio.BrokenResourceError):
            while left > 0:
                is_over = self._is_reaped
                with trio.CancelScope() as self._reading:
                    if is_over:
                        self._reading.deadline = trio.current_time() + _LAST_WORDS_SECONDS
                    part = await terminal.receive_some(_READ_BYTES)
                if self._reading.cancelled_caught or not part:
                    return
                await self._channel.send_all(part)
                left -= len(part) * is_over

    async def _obey(self) -> None:
        """Signals, and sizes of the terminal."""
        channel = self._channel
        while True:
            await channel.wait_asked()
            if channel.size is not None:
                if self._terminal is not None:
                    set_size(self._terminal.fileno(), channel.size.rows, channel.size.columns)
                channel.size = None
            names, channel.signals = channel.signals, []
            for name in names:
                if name in SIGNALS:
                    signal_groups(self._groups(), SIGNALS[name])

    def _groups(self) -> set[int]:
        """Of what runs for the client now."""
        terminal = None if self._terminal is None else self._terminal.fileno()
        return groups_of(None if self._is_reaped else self._process.pid, terminal)


async def _feed(channel: SessionChannel, sink: trio.abc.SendStream) -> None:
    """Until the client has said its last.  What a program does not want is dropped, so that its end is heard."""
    is_wanted = True
    with suppress(trio.BrokenResourceError):
        while part := await channel.receive_some():
            if is_wanted:
                try:
                    await sink.send_all(part)
                except trio.BrokenResourceError:
                    is_wanted = False
    if channel.terminal is None:
        await sink.aclose()


async def _carry(source: trio.abc.ReceiveStream, send: Callable[[bytes], Awaitable[None]]) -> None:
    with suppress(trio.BrokenResourceError):
        while part := await source.receive_some(_READ_BYTES):
            await send(bytes(part))
