"""SIGHUP on a running relay: every setting that its table calls reloadable is taken, and by whom it is seen."""

import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from derp.close_reason import CloseReason
from derp.config import Rate, RelayConfig
from derp.config.settings import SETTINGS
from derp.keys import NodePrivate
from derp.relay.limits import Limits
from derp.server.server import RelayServer
from tests.derp.server.test_door import last_get
from tests.derp.server.world import Caller, ask, call, count_of, open_server, relay_config
from tests.support.networks import networks

HERE = networks("127.0.0.0/8")
KEY = NodePrivate.generate()


class Change(NamedTuple):
    """What is written, and the look at the server that sees it.  `given`: of settings that are a part of others."""

    changes: dict[str, Any]
    is_seen: Callable[[RelayServer], Awaitable[bool]]
    given: Any = None


async def page(server: RelayServer, path: bytes, *headers: bytes) -> bytes:
    return await ask(server, last_get(path, *headers))


async def forwarded(server: RelayServer) -> bool:
    return (await page(server, b"/metrics", b"X-Forwarded-For: 127.0.0.9")).startswith(b"HTTP/1.1 200")


async def closed_to_us(server: RelayServer) -> bool:
    return (await page(server, b"/metrics")).startswith(b"HTTP/1.1 403")


async def blank(server: RelayServer) -> bool:
    return (await page(server, b"/")).endswith(b"\r\n\r\n")


def value(read: Callable[[RelayServer], object], wanted: object) -> Callable[[RelayServer], Awaitable[bool]]:
    async def is_seen(server: RelayServer) -> bool:
        return read(server) == wanted

    return is_seen


def lists(server: RelayServer) -> bool:
    return server.relay.sessions.admission.refused_by_list(KEY.public().raw) is not None


def admits(server: RelayServer) -> bool:
    return server.lobby.admits()


NO_MORE = {"accept_connection_limit": 1e-9, "accept_connection_burst": 0}
CHANGES: dict[str, Change] = {
    "home": Change({"home": "blank"}, blank),
    "debug_allow": Change({"debug_allow": networks("203.0.113.0/24")}, closed_to_us),
    "trusted_proxies": Change(
        {"trusted_proxies": networks("127.0.0.1/32"), "debug_allow": networks("127.0.0.9/32")}, forwarded
    ),
    "deny_keys": Change({"deny_keys": frozenset({KEY.public().raw})}, value(lists, True)),
    "allow_keys": Change({"allow_keys": frozenset({bytes(32)})}, value(lists, True)),
    "max_connections": Change({"max_connections": 0}, value(admits, False), 0),
    "accept_connection_limit": Change(NO_MORE, value(admits, False)),
    "accept_connection_burst": Change(NO_MORE, value(admits, False)),
    "tcp_write_timeout": Change({"tcp_write_timeout_seconds": 7.0}, value(lambda s: s.reactor.write_seconds, 7.0)),
    "mesh_write_timeout": Change(
        {"mesh_write_timeout_seconds": 7.0}, value(lambda s: s.relay.sessions.mesh_write_seconds, 7.0)
    ),
    "handshake_timeout": Change(
        {"handshake_timeout_seconds": 7.0}, value(lambda s: s.lobby._config.handshake_timeout_seconds, 7.0)
    ),
    "drain": Change({"drain_seconds": 7.0}, value(lambda s: s.config.drain_seconds, 7.0)),
    "log_level": Change({"log_level": "error"}, value(lambda s: logging.getLogger().level, logging.ERROR)),
    "rate_config": Change({"rate": Rate(7, 8)}, value(lambda s: s.relay.sessions.limiter.rate, Rate(7, 8)), "file"),
    "rate_keys": Change(
        {"rate_by_key": {bytes(32): Rate(7, 8)}}, value(lambda s: len(s.relay.sessions.limiter.rate_by_key), 1)
    ),
    "limits": Change(
        {"limits": Limits(node=Rate(9))}, value(lambda s: s.relay.sessions.limiter.limits.node, Rate(9)), "file"
    ),
}


def test_every_reloadable_setting_is_here() -> None:
    assert set(CHANGES) == {row.name for row in SETTINGS if row.reloadable}


@pytest.fixture(autouse=True)
def keeps_log_level() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


@pytest.mark.parametrize("name", CHANGES)
async def test_a_running_relay_takes_it(name: str) -> None:
    changes, is_seen, given = CHANGES[name]
    config = relay_config(accept_connection_limit=math.inf, debug_allow=HERE)
    settings = config

    def reread() -> RelayConfig:
        return settings

    async with open_server(config, reread) as server:
        assert not await is_seen(server)
        settings = replace(config, **changes, given={name: given})
        server.reload()
        assert await is_seen(server)


async def test_whoever_is_denied_now_is_sent_away_and_others_stay() -> None:
    denied, other = NodePrivate.generate(), NodePrivate.generate()
    config = relay_config()
    settings = replace(config, deny_keys=frozenset({denied.public().raw}))
    async with open_server(config, lambda: settings) as server:
        callers: list[Caller] = [await call(server, private=private) for private in (denied, other)]
        server.reload()
        await callers[0].wait_closed()
        await callers[1].ping()
        assert count_of(server, CloseReason.NOT_ADMITTED) == 1
        for caller in callers:
            await caller.aclose()
