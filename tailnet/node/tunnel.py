"""A way to an agent that is made anew whenever it is lost.  Layer L3.

    async with connect(url, token, "dev.main") as tunnel:
        stream = await tunnel.dial(22)
The coordinator may go and come back, and so may the agent, with another key each time; streams that were open then end,
and new ones go the new way.  `join_streams` couples one with a local connection.  Next hop: membership.py.
"""

import logging
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from derp.client.client import open_background
from derp.client.dial import DialOptions
from derp.client.reconnect import STABLE_SECONDS, BackOff
from derp.text import error_text
from tailnet.client.agents import Login, find_agent
from tailnet.errors import DerpError
from tailnet.node.engine import DIAL_SECONDS
from tailnet.node.membership import Client, open_client
from tailnet.node.streams import TunnelStream
from tailnet.node.udp import ConnectedUdp
from tailnet.types import PeerID

log = logging.getLogger(__name__)

# What a way is lost by; anything else is a fault of ours.
_LOST: Final = (DerpError, OSError, trio.TooSlowError)
_LINGER_NOT: Final = struct.pack("ii", 1, 0)


class Tunnel:
    """Made by `open_tunnel`."""

    def __init__(
        self, url: str, token: str, agent_id: PeerID, *, is_direct: bool, options: DialOptions | None, back_off: BackOff
    ) -> None:
        self._url = url
        self._token = token
        self._agent_id = agent_id
        self._is_direct = is_direct
        self._options = options
        self._back_off = back_off
        self._client: Client | None = None
        self._dials: set[trio.CancelScope] = set()
        self._changed = trio.lowlevel.ParkingLot()

    async def dial(self, port: int, *, timeout_seconds: float = DIAL_SECONDS) -> TunnelStream:
        """A TCP connection to a port of the agent, once there is a way to it.  Raises OSError, trio.TooSlowError."""
        with trio.fail_after(timeout_seconds):
            while True:
                while (client := self._client) is None:
                    await self._changed.park()
                with trio.CancelScope() as scope:
                    self._dials.add(scope)
                    node_key = b""
                    try:
                        node_key = await client.member.wait_peer(self._agent_id)
                        return await client.dial(port, timeout_seconds=timeout_seconds)
                    except ConnectionRefusedError:
                        raise
                    except ConnectionError:
                        if client.member.key_of(self._agent_id) == node_key:
                            raise
                        # Another agent has come, or the one that was dialled has gone: its streams are over.
                    finally:
                        self._dials.discard(scope)
                # The way was lost meanwhile: the next one.

    async def dial_udp(self, port: int, *, timeout_seconds: float = DIAL_SECONDS) -> ConnectedUdp:
        """A UDP port of ours that talks to one of the agent's, once there is a way to it.  Raises trio.TooSlowError.

        It ends with that way, and whoever receives gets trio.ClosedResourceError.
        """
        with trio.fail_after(timeout_seconds):
            while True:
                while (client := self._client) is None:
                    await self._changed.park()
                with trio.CancelScope() as scope:
                    self._dials.add(scope)
                    try:
                        await client.member.wait_peer(self._agent_id)
                        return client.dial_udp(port)
                    finally:
                        self._dials.discard(scope)

    async def run(self, timeout_seconds: float, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the way open until cancelled.  What goes wrong the first time is raised, as by `open_client`."""
        failures, is_first = 0, True
        while True:
            began = trio.current_time()
            reason = ""
            try:
                async with open_client(
                    self._url,
                    self._token,
                    self._agent_id,
                    is_direct=self._is_direct,
                    options=self._options,
                    timeout_seconds=timeout_seconds,
                ) as client:
                    if is_first:
                        is_first = False
                        task_status.started()
                    else:
                        log.info("the tunnel is there again")
                    await self._offer(client)
            except* _LOST as group:
                if is_first:
                    raise
                reason = _first_reason(group)
            failures = 1 if trio.current_time() - began >= STABLE_SECONDS else failures + 1
            delay = self._back_off.delay(failures, random.random())
            log.warning("the tunnel is lost (%s); the next try is in %.1f s", reason, delay)
            await trio.sleep(delay)

    async def _offer(self, client: Client) -> None:
        """Have this client dial until it is lost."""
        self._client = client
        self._changed.unpark_all()
        try:
            await trio.sleep_forever()
        finally:
            self._client = None
            for scope in self._dials:
                scope.cancel()


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _first_reason(group: BaseExceptionGroup[BaseException]) -> str:
    error = _first(group)
    return "nothing was heard of the agent" if isinstance(error, trio.TooSlowError) else error_text(error)


@asynccontextmanager
async def open_tunnel(
    url: str,
    token: str,
    agent_id: PeerID,
    *,
    is_direct: bool = True,
    options: DialOptions | None = None,
    back_off: BackOff | None = None,
    timeout_seconds: float = DIAL_SECONDS,
) -> AsyncIterator[Tunnel]:
    """A tunnel to an agent that has been reached once.  Raises as `open_client` does."""
    tunnel = Tunnel(url, token, agent_id, is_direct=is_direct, options=options, back_off=back_off or BackOff())
    async with open_background() as nursery:
        try:
            await nursery.start(tunnel.run, timeout_seconds)
        except BaseExceptionGroup as group:
            if group.split(_LOST)[1] is not None:
                raise
            raise _first(group) from None
        yield tunnel


@asynccontextmanager
async def connect(
    url: str, token: str, agent: str, *, is_direct: bool = True, timeout_seconds: float = DIAL_SECONDS
) -> AsyncIterator[Tunnel]:
    """A tunnel to the agent that a user calls so: by its id, its name, or as `workspace.agent`.

    Raises ConfigError when no agent or several are called so, and as `open_client` does.
    """
    known = await find_agent(Login(url.rstrip("/"), token), agent)
    async with open_tunnel(url, token, known.id, is_direct=is_direct, timeout_seconds=timeout_seconds) as tunnel:
        yield tunnel


async def join_streams(local: trio.abc.HalfCloseableStream, remote: TunnelStream) -> tuple[int, int]:
    """Carry bytes both ways until both ends said their last; how many went to the agent, and came from it.

    Raises trio.BrokenResourceError or ClosedResourceError when one of them breaks; then the agent's side is reset, and
    the caller closes the other.
    """
    counts = [0, 0]

    async def carry(source: trio.abc.ReceiveStream, sink: trio.abc.HalfCloseableStream, at: int) -> None:
        while part := await source.receive_some():
            await sink.send_all(part)
            counts[at] += len(part)
        await sink.send_eof()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry, local, remote, 0)
            await carry(remote, local, 1)
    except BaseException as error:
        remote.abort()
        found = _first(error)
        if isinstance(found, trio.BrokenResourceError | trio.ClosedResourceError):
            raise found from None
        raise
    await remote.aclose()
    return counts[0], counts[1]


def reset_on_close(local: trio.SocketStream) -> None:
    """Have the close that follows say that the connection broke: what came may not be all."""
    local.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
