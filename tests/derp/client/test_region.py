"""The order in which a region's nodes are tried: as values, in virtual time, and on real sockets."""

import pytest
import trio
import trio.testing

from derp.client.client import open_derp_client
from derp.client.dial import DialOptions, RelayAddress
from derp.client.region import region_addresses, region_label, walk
from derp.errors import ConnectError, RemoteProtocolError, TransportTimeout
from derp.keys import NodePrivate
from derp.map import DERPNode, DERPRegion
from derp.protocol.messages import RecvPacket
from tests.support.certificates import issue, server_context
from tests.support.twin import TwinRelay, open_twin

ALICE = NodePrivate(b"a" * 32)
A = ALICE.public().raw
DIRECT = DialOptions(environment=None)


def region(*nodes: DERPNode) -> DERPRegion:
    return DERPRegion(region_id=900, region_code="here", nodes=nodes)


def test_nodes_in_map_order_without_stun_only() -> None:
    first, second, third = region_addresses(
        region(
            DERPNode(name="900a", host_name="a.test"),
            DERPNode(name="900s", host_name="s.test", stun_only=True),
            DERPNode(name="900b", host_name="b.test", derp_port=8443, ipv4="10.0.0.1", ipv6="none", quic_port=53),
            DERPNode(name="900c", host_name="c.test", cert_name="x", insecure_for_tests=True, force_http=True),
        )
    )
    assert first == RelayAddress("a.test", 443, name="900a", quic_port=0)
    by_ipv4 = {"ipv4": "10.0.0.1", "ipv6": "none"}
    assert second == RelayAddress("b.test", 8443, **by_ipv4, name="900b", ideal_node="900a", quic_port=53)
    assert (third.cert_name, third.insecure_for_tests, third.is_tls) == ("x", True, False)
    assert second.label() == "https://b.test:8443/derp (node 900b)"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (region(), "DERP region 900 (here) has no nodes"),
        (region(DERPNode(name="900s", host_name="s", stun_only=True)), "DERP region 900 (here) has only STUN nodes"),
    ],
)
def test_regions_without_relays(broken: DERPRegion, said: str) -> None:
    with pytest.raises(ConnectError) as caught:
        region_addresses(broken)
    assert str(caught.value).startswith(said)


ADDRESSES = [RelayAddress(name, 443) for name in "abc"]


async def test_each_node_gets_a_share_of_the_time_left(autojump_clock: trio.testing.MockClock) -> None:
    given: list[tuple[str, float, float | None]] = []

    async def attempt(address: RelayAddress, seconds: float, tcp_seconds: float | None) -> str:
        given.append((address.host, seconds, tcp_seconds))
        await trio.sleep(1.0 if address.host == "a" else seconds)
        if address.host == "c":
            return "reached"
        raise TransportTimeout(f"{address.host} hangs")

    assert await walk(ADDRESSES, attempt, timeout_seconds=10, what="r") == "reached"
    assert given == [("a", pytest.approx(10 / 3), 1.5), ("b", pytest.approx(4.5), 1.5), ("c", pytest.approx(4.5), None)]


async def test_all_reasons_are_told() -> None:
    errors = [ConnectError("a refuses"), RemoteProtocolError("b babbles"), TransportTimeout("c hangs")]

    async def attempt(address: RelayAddress, seconds: float, tcp_seconds: float | None) -> str:
        raise errors["abc".index(address.host)]

    with pytest.raises(ConnectError, match=r"^r: no relay could be used: a refuses; b babbles; c hangs$"):
        await walk(ADDRESSES, attempt, timeout_seconds=10, what="r")
    with pytest.raises(TransportTimeout, match=r"^c hangs$"):
        await walk(ADDRESSES[2:], attempt, timeout_seconds=10, what="r")
    errors[:2] = [TransportTimeout("a hangs"), TransportTimeout("b hangs")]
    with pytest.raises(TransportTimeout, match="a hangs; b hangs; c hangs"):
        await walk(ADDRESSES, attempt, timeout_seconds=10, what="r")


async def test_bugs_end_the_walk() -> None:
    async def attempt(address: RelayAddress, seconds: float, tcp_seconds: float | None) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await walk(ADDRESSES, attempt, timeout_seconds=10, what="r")


async def test_a_real_region_with_a_dead_and_a_sick_node() -> None:
    certificate = issue("127.0.0.1")
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    dead_port = listener.socket.getsockname()[1]
    await listener.aclose()
    plain, good = TwinRelay(), TwinRelay()
    async with open_twin(plain), open_twin(good, tls=server_context(certificate)):
        there = region(
            DERPNode(name="900dead", host_name="127.0.0.1", derp_port=dead_port),
            DERPNode(name="900plain", host_name="127.0.0.1", derp_port=plain.port),  # TCP, but no TLS behind it
            DERPNode(
                name="900good",
                host_name="relay.test",
                ipv4="127.0.0.1",
                ipv6="none",
                derp_port=good.port,
                insecure_for_tests=True,
            ),
        )
        with trio.fail_after(10):
            async with open_derp_client(there, ALICE, options=DIRECT) as client:
                assert client.address.name == "900good"
                await client.send(A, b"x")
                assert await client.receive() == RecvPacket(A, b"x")
        assert good.requests[0].headers["ideal-node"] == "900dead"
        assert good.requests[0].headers["host"] == f"relay.test:{good.port}"

        with pytest.raises(ConnectError, match=r"^DERP region 900 \(here\): no relay could be used: .*nothing listens"):
            async with open_derp_client(region(*there.nodes[:2]), ALICE, options=DIRECT):
                pass


async def test_the_first_node_is_the_ideal_one() -> None:
    async with open_twin(TwinRelay()) as twin:
        there = region(DERPNode(name="900a", host_name="127.0.0.1", derp_port=twin.port, force_http=True))
        async with open_derp_client(there, ALICE, options=DIRECT) as client:
            assert client.address.label() == f"http://127.0.0.1:{twin.port}/derp (node 900a)"
        assert "ideal-node" not in twin.requests[0].headers


def test_labels() -> None:
    assert region_label(DERPRegion(region_id=7)) == "DERP region 7 (without a code)"
