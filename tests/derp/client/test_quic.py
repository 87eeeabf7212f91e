"""QUIC raced with TCP: who wins, what is remembered, whose error is told."""

import socket

import pytest
import trio

from derp.client.client import Identity, Reached, reach
from derp.client.dial import Carrier, DialOptions
from derp.client.quic import FORGET_SECONDS, QuicTries
from derp.errors import ConfigError, ConnectError
from derp.keys import NodePrivate
from derp.map import DERPRegion
from derp.transport.proxy import Proxy
from tests.derp.server.world import HOST, PATIENCE_SECONDS, config_for, open_server, port_of
from tests.support.inprocess import map_of, node_of


def quic_options(**changes: object) -> DialOptions:
    settings: dict[str, object] = {"insecure_for_tests": True, "environment": None, "quic": QuicTries()}
    return DialOptions(**(settings | changes))  # type: ignore[arg-type]  # what each is, the test says


async def reached_by(target: str | DERPRegion, options: DialOptions) -> Carrier:
    reached: Reached = await reach(target, Identity(NodePrivate.generate()), options, "", PATIENCE_SECONDS)
    await trio.aclose_forcefully(reached.dialled.stream)
    return reached.dialled.carrier


async def test_a_relay_with_quic_is_reached_by_it_and_one_without_by_tcp() -> None:
    options = quic_options()
    assert options.quic is not None
    async with open_server(config_for("quic")) as server:
        assert await reached_by(f"https://{HOST}:{port_of(server)}", options) is Carrier.QUIC
        assert options.quic.may_try(HOST, port_of(server))
    async with open_server(config_for("tls")) as server:
        url = f"https://{HOST}:{port_of(server)}"
        assert await reached_by(url, options) is Carrier.DERP_FAST_START
        assert not options.quic.may_try(HOST, port_of(server))


async def test_a_map_says_which_relays_have_quic_and_where() -> None:
    async with open_server(config_for("quic")) as server, open_server(config_for("tls")) as other:
        for node, carrier in (
            (node_of(server, 901, quic_port=port_of(server)), Carrier.QUIC),
            (node_of(server, 901), Carrier.DERP_FAST_START),
            (node_of(other, 901, quic_port=port_of(server)), Carrier.DERP_FAST_START),  # of another certificate
        ):
            region = map_of(node).regions[901]
            assert await reached_by(region, quic_options()) is carrier
        assert server.ports.quic is not None
        # The third was told by QUIC that this is another relay, and went by TCP.
        assert server.ports.quic.totals()["accepted"] == 2
        assert await reached_by(map_of(node_of(server, 901)).regions[901], quic_options(only_quic=True)) is Carrier.QUIC


async def test_udp_that_is_swallowed_costs_a_head_start_once() -> None:
    async with open_server(config_for("tls")) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind((HOST, port_of(server)))
            options = quic_options()
            url = f"https://{HOST}:{port_of(server)}"
            assert await reached_by(url, options) is Carrier.DERP_FAST_START
            silent.setblocking(False)
            assert len(silent.recv(2000)) == 1400
            assert await reached_by(url, options) is Carrier.DERP_FAST_START
            while True:  # what the first attempt had sent again meanwhile
                try:
                    silent.recv(2000)
                except BlockingIOError:
                    break
            assert await reached_by(url, options) is Carrier.DERP_FAST_START
            with pytest.raises(BlockingIOError):
                silent.recv(2000)


async def test_without_the_option_nothing_is_sent_by_udp() -> None:
    async with open_server(config_for("tls")) as server:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind((HOST, port_of(server)))
            silent.setblocking(False)
            assert (
                await reached_by(f"https://{HOST}:{port_of(server)}", quic_options(quic=None))
                is Carrier.DERP_FAST_START
            )
            with pytest.raises(BlockingIOError):
                silent.recv(2000)


async def test_who_asks_for_a_websocket_gets_one() -> None:
    async with open_server(config_for("quic")) as server:
        options = quic_options(force_websocket=True)
        assert await reached_by(f"https://{HOST}:{port_of(server)}", options) is Carrier.WEBSOCKET


async def test_a_proxy_carries_everything() -> None:
    async with open_server(config_for("quic")) as server:
        options = quic_options(proxy=Proxy("http", HOST, 9))
        with pytest.raises(ConnectError, match="proxy"):
            await reached_by(f"https://{HOST}:{port_of(server)}", options)
        assert server.ports.quic is not None
        assert server.ports.quic.totals()["accepted"] == 0


async def test_if_neither_comes_about_the_error_of_tcp_is_told() -> None:
    with pytest.raises(ConnectError, match="nothing listens") as caught:
        await reached_by(f"https://{HOST}:9", quic_options())
    assert "QUIC" not in str(caught.value)


async def test_quic_alone_says_what_is_the_matter_with_it() -> None:
    with pytest.raises(ConnectError, match="QUIC"):
        await reached_by(f"https://{HOST}:9", quic_options(only_quic=True))
    with pytest.raises(ConfigError, match="https"):
        await reached_by(f"http://{HOST}:9", quic_options(only_quic=True))


async def test_a_failure_is_forgotten_in_time(autojump_clock: trio.testing.MockClock) -> None:
    tries = QuicTries()
    tries.note("relay", 443, came_about=False)
    assert not tries.may_try("relay", 443)
    assert tries.may_try("relay", 444)
    await trio.sleep(FORGET_SECONDS)
    assert tries.may_try("relay", 443)
    tries.note("relay", 443, came_about=False)
    tries.note("relay", 443, came_about=True)
    assert tries.may_try("relay", 443)
    for number in range(1000):
        tries.note("relay", number, came_about=False)
    assert tries.may_try("relay", 1)
    assert not tries.may_try("relay", 999)
