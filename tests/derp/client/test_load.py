"""What relays say of their load, read as clients dial."""

import json
from dataclasses import replace
from ipaddress import ip_network

import pytest
import trio

from derp.client.dial import DialOptions
from derp.client.load import parse_load, read_region_load
from derp.errors import ConnectError, RemoteProtocolError
from tests.support.inprocess import HOST, map_of, node_of, open_relay_here

OPTIONS = DialOptions(environment=None)


@pytest.mark.parametrize("tls", [True, False])
async def test_the_fullest_relay_of_a_region_counts_and_who_is_silent_is_named(tls: bool) -> None:
    with trio.fail_after(60):
        async with (
            open_relay_here(tls=tls, max_connections=4) as tight,
            open_relay_here(tls=tls, max_connections=4_000) as wide,
        ):
            region = map_of(node_of(wide, 901), node_of(tight, 901, "b")).regions[901]
            read = await read_region_load(region, OPTIONS)
            assert read.load >= 0.25, "our own question is a connection"
            assert read.silent == ()
            gone = replace(region, nodes=(*region.nodes, replace(region.nodes[0], name="901c", derp_port=1)))
            read = await read_region_load(gone, OPTIONS)
            assert len(read.silent) == 1
            assert "901c" in read.silent[0]


async def test_a_relay_that_shows_us_nothing_says_what_to_do() -> None:
    with trio.fail_after(60):
        async with open_relay_here(tls=False, debug_allow=(ip_network("192.0.2.0/24"),)) as server:
            region = map_of(node_of(server, 901)).regions[901]
            with pytest.raises(ConnectError, match="name this machine's address in its --debug-allow"):
                await read_region_load(region, OPTIONS)


@pytest.mark.parametrize(
    ("host_name", "environment"),
    [("relay.example", {"HTTPS_PROXY": "socks5://proxy.example"}), ("a\nb", None)],
    ids=["a proxy that is none", "a name that no request can have"],
)
async def test_what_is_wrong_with_our_settings_or_the_map_is_a_relay_that_does_not_say(
    host_name: str, environment: dict[str, str] | None
) -> None:
    with trio.fail_after(60):
        async with open_relay_here(tls=False) as server:
            is_plain = environment is None
            node = replace(node_of(server, 901), host_name=host_name, ipv4=HOST, force_http=is_plain)
            with pytest.raises(ConnectError, match="node 901a: "):
                await read_region_load(map_of(node).regions[901], DialOptions(environment=environment))


async def test_a_relay_that_accepts_and_says_nothing_costs_the_deadline_and_no_more() -> None:
    listener = (await trio.open_tcp_listeners(0, host=HOST))[0]
    with trio.fail_after(60):
        async with listener, open_relay_here(tls=False) as server:
            node = replace(node_of(server, 901), derp_port=listener.socket.getsockname()[1])
            with pytest.raises(ConnectError, match=r"node 901a: .* within 0\.2 s"):
                await read_region_load(map_of(node).regions[901], OPTIONS, 0.2)


def test_pages_that_are_no_load() -> None:
    assert parse_load(b'{"load": 0.5, "limit": "loop"}') == (0.5, "loop")
    assert parse_load(b'{"load": 2, "limit": "a\\u0007b"}')[0] == 2.0
    for load in ("-1", "NaN", "Infinity", '"1"', "true", "null", "1e999"):
        with pytest.raises(RemoteProtocolError):
            parse_load(b'{"load": %s, "limit": "x"}' % load.encode())
    for body in (b"", b"[]", b"7", b"{}", b'{"load": 1}', json.dumps({"load": 1, "limit": 3}).encode(), b"[" * 100_000):
        with pytest.raises(RemoteProtocolError):
            parse_load(body)
