"""/debug/load of a real relay: its numbers, and that strangers do not see it."""

import json
import time
from ipaddress import ip_network

import pytest

from derp.relay.limits import Limits, Rate
from derp.relay.load import LoadMeter
from tests.derp.server.world import ask, call, open_server, relay_config

GET = b"GET /debug/load HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


async def test_a_relay_says_how_near_it_is_to_its_limits() -> None:
    limits = Limits(node=Rate(bytes_per_second=1_000_000, packets_per_second=1_000))
    async with open_server(relay_config(max_connections=8, limits=limits)) as server:
        one, other = await call(server), await call(server)
        # Nothing had been relayed a second ago; a machine that stands still may make nine of it.
        server.relay.meter = LoadMeter()
        server.relay.meter.note(time.thread_time(), 0, 0, server.reactor.now - 1.0)
        await one.send(other.key, *(bytes(1_000) for _ in range(16)))
        await one.ping()
        counters = server.relay.router.counters
        assert counters.packets_received == 16
        server.relay.meter.note(time.thread_time(), counters.bytes_received, 16, server.reactor.now)
        told = json.loads((await ask(server, GET)).partition(b"\r\n\r\n")[2])
        assert told["connections"] == 2
        assert told["shares"]["connections"] == 3 / 8, "with this question's"
        assert told["shares"]["bytes"] > 0
        assert told["shares"]["bytes"] == pytest.approx(
            told["bytes_per_second"] / 1_000_000, abs=0.0001
        )  # both rounded
        assert told["shares"]["packets"] > 0
        assert told["shares"]["memory"] == 0
        assert told["load"] == max(told["shares"].values())
        assert told["shares"][told["limit"]] == told["load"]
        await one.aclose()
        await other.aclose()


async def test_strangers_do_not_see_it() -> None:
    async with open_server(relay_config(debug_allow=(ip_network("192.0.2.0/24"),))) as server:
        answer = await ask(server, GET)
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"shares" not in answer
