"""Ways to a relay, on real sockets: plaintext, TLS, fast start, websockets chosen and fallen back to, proxies."""

import re
import ssl

import pytest
import trio
import trio.testing

from derp.client.client import open_derp_client
from derp.client.dial import Carrier, DialOptions, RelayAddress, dial_relay, has_way
from derp.errors import ConfigError, ConnectError, TransportTimeout
from derp.keys import NodePrivate
from derp.protocol.handshake import server_key_frame
from derp.protocol.messages import RecvPacket
from derp.protocol.upgrade import derp_answer
from derp.transport.http import Request, ServerHttp
from derp.transport.proxy import Proxy
from tests.support.certificates import client_context, issue, issue_meta, server_context
from tests.support.proxies import open_http_proxy, open_page
from tests.support.twin import TwinRelay, open_twin

ALICE = NodePrivate(b"a" * 32)
A = ALICE.public().raw
AUTHORITY = issue(common_name="test authority", is_authority=True)
LEAF = issue("relay.test", "127.0.0.1", issuer=AUTHORITY)
SELF_SIGNED = issue("127.0.0.1")
DIRECT = DialOptions(environment=None)


def trusting(**options: object) -> DialOptions:
    return DialOptions(environment=None, context=client_context(AUTHORITY), **options)


def page(status: int, headers: list[tuple[str, str]], body: bytes) -> bytes:
    http = ServerHttp()
    http.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    return http.send_response(status, headers, body)


LOGIN = page(200, [("Content-Type", "text/html")], b"<html><title>Sign in &amp; pay\n</title>...")


async def talk_to_oneself(url: str, options: DialOptions = DIRECT) -> tuple[Carrier, str, str]:
    """Connect, send a packet to oneself through the relay; (carrier, TLS version, why a websocket)."""
    with trio.fail_after(10):
        async with open_derp_client(url, ALICE, options=options) as client:
            await client.send(A, b"round")
            assert await client.receive() == RecvPacket(A, b"round")
            return client.carrier, client.tls_version, client.websocket_reason


@pytest.mark.parametrize(
    ("url", "host_header", "label"),
    [
        ("https://relay.example", "relay.example", "https://relay.example/derp"),
        ("https://relay.example:8443/", "relay.example:8443", "https://relay.example:8443/derp"),
        ("http://relay.example/other?x=1#f", "relay.example", "http://relay.example/other?x=1"),
        ("http://[fd00::1]:3340/derp", "[fd00::1]:3340", "http://[fd00::1]:3340/derp"),
        ("wss://relay.example:443/derp", "relay.example", "https://relay.example/derp"),
    ],
)
def test_urls(url: str, host_header: str, label: str) -> None:
    address = RelayAddress.from_url(url, DIRECT)
    assert (address.host_header(), address.label()) == (host_header, label)
    assert address.force_websocket is url.startswith("ws")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("relay.example", "must look like"),
        ("ftp://relay.example", "must look like"),
        ("https://", "must look like"),
        ("https://relay.example:port/", "relay URL"),
        ("https://user:secret@relay.example/", "as a header"),
    ],
)
def test_bad_urls(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        RelayAddress.from_url(url, DIRECT)
    assert "secret" not in str(caught.value)


async def test_plaintext() -> None:
    async with open_twin(TwinRelay()) as twin:
        assert await talk_to_oneself(f"http://127.0.0.1:{twin.port}/derp") == (Carrier.DERP, "", "")
        assert twin.requests[0].headers["host"] == f"127.0.0.1:{twin.port}"
        assert "ideal-node" not in twin.requests[0].headers


async def test_tls_with_meta_certificate_is_a_fast_start() -> None:
    twin = TwinRelay()
    async with open_twin(twin, tls=server_context(LEAF, issue_meta(twin.key))):
        carrier, version, _ = await talk_to_oneself(f"https://127.0.0.1:{twin.port}", trusting())
        assert (carrier, version) == (Carrier.DERP_FAST_START, "TLSv1.3")
        assert twin.requests[0].headers["derp-fast-start"] == "1"


async def test_tls_without_meta_certificate() -> None:
    async with open_twin(TwinRelay(), tls=server_context(LEAF)) as twin:
        carrier, version, _ = await talk_to_oneself(f"https://127.0.0.1:{twin.port}", trusting())
        assert (carrier, version) == (Carrier.DERP, "TLSv1.3")


async def test_a_meta_certificate_with_another_relays_key_ends_in_a_clear_error() -> None:
    async with open_twin(TwinRelay(), tls=server_context(LEAF, issue_meta(A))) as twin:
        with pytest.raises(ConnectError, match=r"DERP handshake with .*closed the connection during the handshake"):
            await talk_to_oneself(f"https://127.0.0.1:{twin.port}", trusting())


async def test_a_pin_given_with_a_url() -> None:
    async with open_twin(TwinRelay(), tls=server_context(SELF_SIGNED)) as twin:
        url = f"https://127.0.0.1:{twin.port}"
        await talk_to_oneself(url, DialOptions(environment=None, cert_name=SELF_SIGNED.pin))
        await talk_to_oneself(url, DialOptions(environment=None, insecure_for_tests=True))
        with pytest.raises(ConnectError, match="not the pinned one"):
            await talk_to_oneself(url, DialOptions(environment=None, cert_name=LEAF.pin))


@pytest.mark.parametrize("forced_by", ["scheme", "option"])
async def test_a_websocket_when_forced(forced_by: str) -> None:
    async with open_twin(TwinRelay(), tls=server_context(LEAF)) as twin:
        scheme = "wss" if forced_by == "scheme" else "https"
        options = trusting(force_websocket=forced_by == "option", headers=[("X-Token", "t")])
        used = await talk_to_oneself(f"{scheme}://127.0.0.1:{twin.port}/derp", options)
        assert used == (Carrier.WEBSOCKET, "TLSv1.3", "")
        assert [request.headers["upgrade"] for request in twin.requests] == ["websocket"]
        assert twin.requests[0].headers["x-token"] == "t"
        assert twin.requests[0].headers["sec-websocket-protocol"] == "derp"


async def test_big_packets_pass_a_websocket() -> None:
    async with open_twin(TwinRelay()) as twin:
        url = f"ws://127.0.0.1:{twin.port}/derp"
        async with open_derp_client(url, ALICE, options=DIRECT) as client, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                for number in range(20):
                    await client.send(A, bytes([number]) * 65536)

            with trio.fail_after(10):
                packets = [await client.receive() for _ in range(20)]
        assert packets == [RecvPacket(A, bytes([number]) * 65536) for number in range(20)]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (page(403, [("Content-Type", "text/plain")], b"no upgrades\nhere"), "status 403, which says 'no upgrades'"),
        (page(426, [], b""), "status 426"),
        (LOGIN, "status 200.*portal.*'Sign in & pay'"),
        (page(302, [("Location", "https://login.example/")], b""), "status 302.*'https://login.example/'"),
    ],
)
async def test_a_websocket_when_the_upgrade_does_not_get_through(answer: bytes, said: str) -> None:
    def only_websockets(request: Request) -> bytes | None:
        return None if request.headers["upgrade"] == "websocket" else answer

    async with open_twin(TwinRelay(answer=only_websockets)) as twin:
        carrier, _, reason = await talk_to_oneself(f"http://127.0.0.1:{twin.port}/derp")
        assert carrier is Carrier.WEBSOCKET
        assert re.search(said, reason)
        assert [request.headers["upgrade"] for request in twin.requests] == ["DERP", "websocket"]


async def test_a_websocket_when_http2_was_chosen() -> None:
    tls = server_context(LEAF)
    tls.set_alpn_protocols(["h2"])
    offering = client_context(AUTHORITY)
    offering.set_alpn_protocols(["h2", "http/1.1"])
    async with open_twin(TwinRelay(), tls=tls) as twin:
        options = DialOptions(environment=None, context=offering)
        carrier, _, reason = await talk_to_oneself(f"https://127.0.0.1:{twin.port}/derp", options)
        assert carrier is Carrier.WEBSOCKET
        assert "HTTP/2" in reason
        assert [request.headers["upgrade"] for request in twin.requests] == ["websocket"]


async def test_a_known_reason_goes_straight_to_the_websocket() -> None:
    async with open_twin(TwinRelay()) as twin:
        address = RelayAddress.from_url(f"http://127.0.0.1:{twin.port}", DIRECT)
        dialled = await dial_relay(address, DIRECT, timeout_seconds=5, websocket_reason="as last time")
        await trio.aclose_forcefully(dialled.stream)
        assert (dialled.carrier, dialled.websocket_reason) == (Carrier.WEBSOCKET, "as last time")


async def test_a_login_page_for_everything_is_reported_with_both_attempts() -> None:
    async with open_page(lambda request: LOGIN) as portal:
        said = r"portal\?, which says 'Sign in & pay'; then websocket to .*status 200"
        with pytest.raises(ConnectError, match=said):
            await talk_to_oneself(f"{portal.url}/derp")
        assert len(portal.requests) == 2


async def test_a_sick_relay_is_not_asked_for_a_websocket() -> None:
    async with open_page(lambda request: page(503, [("Content-Type", "text/plain")], b"draining")) as sick:
        with pytest.raises(ConnectError, match="status 503, which says 'draining'"):
            await talk_to_oneself(f"{sick.url}/derp")
        assert len(sick.requests) == 1


async def test_a_fast_start_that_is_refused_says_why() -> None:
    answer = page(404, [("Content-Type", "text/plain")], b"derp server disabled")
    twin = TwinRelay(answer=lambda request: answer)
    async with open_twin(twin, tls=server_context(LEAF, issue_meta(twin.key))):
        with pytest.raises(ConnectError, match="status 404, which says 'derp server disabled'"):
            await talk_to_oneself(f"https://127.0.0.1:{twin.port}/derp", trusting())


async def test_headers_are_asked_for_at_each_attempt() -> None:
    tokens = iter(["first", "second", "third"])
    refusal = page(401, [], b"")
    async with open_twin(TwinRelay(answer=lambda r: refusal if r.headers["upgrade"] == "DERP" else None)) as twin:
        options = DialOptions(environment=None, headers=lambda: [("Authorization", next(tokens))])
        await talk_to_oneself(f"http://127.0.0.1:{twin.port}/derp", options)
        assert [request.headers["authorization"] for request in twin.requests] == ["first", "second"]


async def test_a_name_may_be_dialled_elsewhere() -> None:
    async with open_twin(TwinRelay(), tls=server_context(LEAF)) as twin:
        await talk_to_oneself(f"https://relay.test:{twin.port}/derp", trusting(dial_host="127.0.0.1"))
        assert twin.requests[0].headers["host"] == f"relay.test:{twin.port}"


# Proxies.


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_through_the_proxy_of_the_environment(scheme: str) -> None:
    tls = server_context(LEAF) if scheme == "https" else None
    async with open_twin(TwinRelay(), tls=tls) as twin, open_http_proxy(hosts={"relay.test": twin.port}) as proxy:
        environment = {f"{scheme.upper()}_PROXY": proxy.url, "NO_PROXY": "other.test"}
        options = DialOptions(environment=environment, context=client_context(AUTHORITY))
        carrier, _, _ = await talk_to_oneself(f"{scheme}://relay.test:9/derp", options)
        assert carrier is Carrier.DERP
        assert proxy.requests[0].target == "relay.test:9"


async def test_through_a_given_proxy_with_a_websocket() -> None:
    async with open_twin(TwinRelay()) as twin, open_http_proxy(hosts={"relay.test": twin.port}) as running:
        options = DialOptions(proxy=Proxy.parse(running.url), force_websocket=True)
        await talk_to_oneself("http://relay.test/derp", options)
        assert running.requests[0].target == "relay.test:80"


async def test_a_proxy_that_fails_is_named() -> None:
    async with open_http_proxy(refuse=403) as proxy:
        options = DialOptions(environment={"HTTP_PROXY": proxy.url})
        with pytest.raises(ConnectError, match=f"^proxy {proxy.url}: it does not connect to relay.test:80"):
            await talk_to_oneself("http://relay.test/derp", options)


async def test_a_bad_proxy_variable_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="HTTPS_PROXY: socks5"):
        await talk_to_oneself("https://relay.test/", DialOptions(environment={"HTTPS_PROXY": "socks5://x"}))


# Time.


async def test_a_relay_that_never_answers_runs_into_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/derp"
        start = trio.current_time()
        with pytest.raises(TransportTimeout, match=rf"^connect to {url} within 10 s: no answer in time"):
            async with open_derp_client(url, ALICE, options=DIRECT):
                pass
        assert trio.current_time() - start == pytest.approx(10)


async def test_a_relay_that_never_greets_runs_into_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async def hold(twin_stream: trio.abc.Stream, received: bytes = b"") -> None:
        await trio.sleep_forever()

    twin = TwinRelay()
    twin.speak = hold
    async with open_twin(twin):
        start = trio.current_time()
        with pytest.raises(TransportTimeout, match=r"^DERP handshake with .*: no answer in time"):
            async with open_derp_client(f"http://127.0.0.1:{twin.port}", ALICE, options=DIRECT):
                pass
        assert trio.current_time() - start == pytest.approx(10)


async def test_a_cancelled_attempt_is_cancelled_and_nothing_else() -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await dial_relay(RelayAddress("127.0.0.1", 9), DIRECT, timeout_seconds=10)
    assert scope.cancelled_caught


async def test_the_greeting_may_come_with_the_answer() -> None:
    private = NodePrivate.generate()
    answer = derp_answer(private.public().raw) + server_key_frame(private.public().raw)
    async with open_page(lambda request: answer) as relay:
        address = RelayAddress.from_url(f"{relay.url}/derp", DIRECT)
        dialled = await dial_relay(address, DIRECT, timeout_seconds=5)
        await trio.aclose_forcefully(dialled.stream)
        assert dialled.received == server_key_frame(private.public().raw)


async def test_system_roots_are_the_default() -> None:
    async with open_twin(TwinRelay(), tls=server_context(SELF_SIGNED)) as twin:
        with pytest.raises(ConnectError, match="self-signed: pin it in the DERP map") as caught:
            await talk_to_oneself(f"https://127.0.0.1:{twin.port}")
        assert isinstance(caught.value.__cause__, trio.BrokenResourceError)
        assert isinstance(caught.value.__cause__.__cause__, ssl.SSLCertVerificationError)


def test_a_proxy_is_a_way_whatever_the_routes() -> None:
    nowhere = RelayAddress("relay.invalid", 443, ipv4="none", ipv6="none")
    proxied = DialOptions(environment={"HTTPS_PROXY": "http://127.0.0.1:3128"})
    assert has_way(nowhere, proxied)
    assert has_way(nowhere, DialOptions(environment=None, proxy=Proxy.parse("http://127.0.0.1:3128", source="test")))
    with pytest.raises(ConnectError, match="off"):
        has_way(nowhere, DialOptions(environment=None))
