"""Ports 1 and 22 of an agent: SSH for whoever comes through the tunnel.  Layer L3.

    serve -> ssh_connection.py, the protocol -> _Sessions.serve_session -> ssh_process.py: a shell, a command, sftp
                                             -> ssh_forward.py: connections to and from the agent's machine
docs/agent-ssh.md says what is served, and every bound.
"""

import logging
import os
import sys
from contextlib import suppress
from ipaddress import IPv6Address
from typing import Final

import trio
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from derp.text import error_text, printable
from tailnet.agent import ssh_forward, ssh_sftp
from tailnet.agent.context import Context, home_directory
from tailnet.agent.counters import Kind, user_address
from tailnet.agent.greeting import read_greeting
from tailnet.agent.ssh_connection import Request, SessionChannel, serve_connection
from tailnet.agent.ssh_process import SIGNALS, run_program
from tailnet.node.streams import TunnelStream

_log = logging.getLogger("tailnet.agent")

# What clients of agents know these by.
FAILED_STATUS: Final = 229
NO_FILE_TRANSFER_STATUS: Final = 65
_NO_FILE_TRANSFER: Final = b"File transfer has been disabled.\n"
_TRANSFER_PROGRAMS: Final = frozenset({"nc", "rsync", "scp", "sftp"})
_KIND_VARIABLE: Final = "CODER_SSH_SESSION_TYPE"
_KINDS: Final = {"vscode": Kind.VSCODE, "jetbrains": Kind.JETBRAINS}
# What the agent says of itself, and no client.
_OWN_PREFIX: Final = "CODER"


async def serve(stream: TunnelStream, context: Context) -> None:
    """One client, until it is gone and its sessions are over."""
    reason = await serve_connection(
        stream, _Sessions(stream, context), host_key(context.token), is_agent_forwarded=context.allow_agent_forwarding
    )
    if reason:
        _log.info("ssh: a client was sent away: %s", reason)


def host_key(token: str) -> bytes:
    """The seed of an agent's host key: the same as long as its token is, and telling nothing of that."""
    return HKDF(SHA256(), 32, salt=None, info=b"tailnet agent ssh host key").derive(token.encode())


class _Sessions:
    """What one client may ask for."""

    dial = staticmethod(ssh_forward.dial)
    listen = staticmethod(ssh_forward.listen)
    join = staticmethod(ssh_forward.join)

    def __init__(self, stream: TunnelStream, context: Context) -> None:
        self._stream = stream
        self._context = context

    async def serve_session(self, channel: SessionChannel) -> None:
        """From its start to its status."""
        sent = channel.environment
        kind = _KINDS.get(sent.pop(_KIND_VARIABLE, "").lower(), Kind.SSH)
        with self._context.counters.session(kind, self._stream) as session:
            try:
                status = await self._run(channel, sent)
            except (OSError, ValueError) as error:
                status = FAILED_STATUS
                session.reason = error_text(error)
                await _say(channel, f"The session could not be started: {printable(session.reason)}\n".encode())
            except trio.BrokenResourceError as error:
                # The client has gone before its program began.
                status, session.reason = FAILED_STATUS, error_text(error)
            session.status_code = 128 - status if status < 0 else status
            await _end(channel, status)

    async def _run(self, channel: SessionChannel, sent: dict[str, str]) -> int:
        """The status of what the client asked for; negative for a signal.  Raises OSError or ValueError."""
        context, request = self._context, channel.request
        if not context.is_file_transfer_allowed and _is_transfer(request):
            await _say(channel, _NO_FILE_TRANSFER)
            return NO_FILE_TRANSFER_STATUS
        environment = {name: value for name, value in sent.items() if not name.startswith(_OWN_PREFIX)}
        environment = {**context.environment(), **environment, **self._addresses()}
        if channel.agent_path is not None:
            environment["SSH_AUTH_SOCK"] = channel.agent_path
        if request.subsystem is not None:
            # A process, as OpenSSH has it: a disk that does not answer holds up nobody else, and it is hung up with
            # its client.  Without the site's packages it starts in 20 ms.
            command = [sys.executable, "-I", "-S", ssh_sftp.__file__]
            return await run_program(channel, command, home_directory(), environment)
        if request.command is None and channel.terminal is not None:
            await channel.send_all(await read_greeting(context))
        command = [context.shell, *(("-l",) if request.command is None else ("-c", request.command))]
        return await run_program(channel, command, context.directory, environment)

    def _addresses(self) -> dict[str, str]:
        """As sshd names both ends."""
        address, port = user_address(self._stream), self._stream.remote_address[1]
        here, here_port = IPv6Address(self._stream.local_address), self._stream.local_port
        return {
            "SSH_CLIENT": f"{address} {port} {here_port}",
            "SSH_CONNECTION": f"{address} {port} {here} {here_port}",
        }


def _is_transfer(request: Request) -> bool:
    words = (request.command or "").split(maxsplit=1)
    return request.subsystem == "sftp" or bool(words and os.path.basename(words[0]) in _TRANSFER_PROGRAMS)


async def _say(channel: SessionChannel, text: bytes) -> None:
    with suppress(trio.BrokenResourceError):
        await channel.send_error(text)


async def _end(channel: SessionChannel, status: int) -> None:
    with suppress(trio.BrokenResourceError):
        names = [name for name, number in SIGNALS.items() if number == -status]
        if names:
            await channel.exit_signal(names[0])
        else:
            # A signal that the protocol has no name for is told as shells tell it.
            await channel.exit(128 - status if status < 0 else status)
