"""Which service has which port of an agent, and the tasks of its connections.  Layer L3.

    accept -> room for one more? -> serve(stream, context) in a task of its own -> its end, logged and counted
A row of `own_services` is all that a service needs.  Next hop: context.py.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import trio

from derp.log import Rarely, and_more, fields
from derp.text import error_text
from tailnet.agent.context import CLIENT_KEEP_ALIVE, SSH_KEEP_ALIVE, Context
from tailnet.agent.counters import user_address
from tailnet.agent.http import AgentHttp
from tailnet.agent.pty import ReconnectingPty
from tailnet.agent.speedtest import SpeedtestServer
from tailnet.netstack.limits import KeepAliveTimes
from tailnet.node.engine import Engine
from tailnet.node.streams import TunnelListener, TunnelStream

_log = logging.getLogger("tailnet.agent")
_refusals = Rarely(10.0)

Serve: TypeAlias = Callable[[TunnelStream, Context], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Service:
    """What is behind a port.  `serve` closes nothing: the stream is closed when it returns, and reset if it raises."""

    name: str
    serve: Serve
    max_connections: int = 256
    """At once.  An editor opens some ten to one agent."""
    keep_alive: KeepAliveTimes = CLIENT_KEEP_ALIVE


def own_services() -> dict[int, Service]:
    """By port.  Of one agent: terminals and tests outlive their connections, and are nobody else's."""
    return {
        **_ssh_services(),
        2: Service("pty", ReconnectingPty().serve),
        3: Service("speedtest", SpeedtestServer().serve),
        4: Service("http", AgentHttp().serve),
    }


def _ssh_services() -> dict[int, Service]:
    try:
        from tailnet.agent.ssh import serve
    except ModuleNotFoundError as missing:
        text = "ports 1 and 22 do not answer: `%s` is missing for SSH: install tailnet-derp[agent]"
        _log.warning(text, missing.name)
        return {}
    service = Service("ssh", serve, keep_alive=SSH_KEEP_ALIVE)
    return {1: service, 22: service}


async def serve_ports(engine: Engine, context: Context, services: Mapping[int, Service]) -> None:
    """Serve until cancelled."""
    context.engine = engine
    async with trio.open_nursery() as nursery:
        for port, service in services.items():
            nursery.start_soon(_serve_port, engine.listen(port), service, context)


async def _serve_port(listener: TunnelListener, service: Service, context: Context) -> None:
    counters = context.counters
    async with listener, trio.open_nursery() as nursery:
        while True:
            stream = await listener.accept()
            if counters.connections[service.name] >= service.max_connections:
                counters.refused[service.name] += 1
                stream.abort()
                held = _refusals.held_back(service.name, trio.current_time())
                if held is not None:
                    text = "%s: a connection was refused: %d are open%s"
                    _log.warning(text, service.name, service.max_connections, and_more(held))
                continue
            await nursery.start(_serve_connection, stream, service, context)


async def _serve_connection(
    stream: TunnelStream, service: Service, context: Context, task_status: trio.TaskStatus[None]
) -> None:
    address, began = user_address(stream), trio.current_time()
    context.counters.served[service.name] += 1
    reason = ""
    with context.counters.connection(service.name, stream):
        task_status.started()
        stream.keep_alive(service.keep_alive)
        async with stream:  # closed when all is well: an error resets it before
            try:
                await service.serve(stream, context)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                reason = error_text(error)
                stream.abort()
            except Exception as error:
                # One connection's service is broken; the agent and the other connections are not.
                context.counters.failed[service.name] += 1
                reason = error_text(error)
                _log.exception("%s: a connection of %s failed", service.name, address)
                stream.abort()
    seconds = trio.current_time() - began
    _log.info(
        "%s: a connection of %s ended after %.1f s%s",
        service.name,
        address,
        seconds,
        f": {reason}" if reason else "",
        extra=fields(event="connection", service=service.name, address=address, seconds=seconds, reason=reason),
    )
