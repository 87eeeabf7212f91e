"""Which proxy the environment names, and tunnels through a small real one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from derp.errors import ConfigError, ConnectError
from derp.transport import tls_client
from derp.transport.proxy import Proxy, dial_through, is_excepted, open_tunnel, proxy_from_environment
from tests.support.certificates import issue, server_context
from tests.support.proxies import open_http_proxy

SECURE = Proxy("http", "secure.example", 3128)
PLAIN = Proxy("http", "plain.example", 80)
OTHER = Proxy("https", "other.example", 443)
ENVIRONMENT = {"HTTPS_PROXY": "http://secure.example:3128", "http_proxy": "plain.example", "NO_PROXY": "inside.example"}


@pytest.mark.parametrize(
    ("environment", "is_tls", "host", "proxy"),
    [
        ({}, True, "relay.example", None),
        (ENVIRONMENT, True, "relay.example", SECURE),
        (ENVIRONMENT, False, "relay.example", PLAIN),
        (ENVIRONMENT, True, "a.inside.example", None),
        (ENVIRONMENT, True, "127.0.0.1", None),
        (ENVIRONMENT | {"REQUEST_METHOD": "GET"}, False, "relay.example", None),
        ({"HTTPS_PROXY": "", "https_proxy": "secure.example:3128"}, True, "relay.example", SECURE),
        ({"ALL_PROXY": "https://other.example"}, True, "relay.example", OTHER),
        ({"ALL_PROXY": "https://other.example"}, False, "relay.example", OTHER),
        (ENVIRONMENT | {"ALL_PROXY": "https://other.example"}, True, "relay.example", SECURE),
        ({"HTTP_PROXY": "plain.example"}, True, "relay.example", None),
        ({"HTTPS_PROXY": "secure.example:3128", "no_proxy": "*"}, True, "relay.example", None),
    ],
)
def test_the_environment(environment: dict[str, str], is_tls: bool, host: str, proxy: Proxy | None) -> None:
    assert proxy_from_environment(is_tls, host, 443, environment) == proxy


@pytest.mark.parametrize(
    ("host", "no_proxy", "excepted"),
    [
        ("localhost", "", True),
        ("127.9.9.9", "", True),
        ("::1", "", True),
        ("relay.example", "", False),
        ("relay.example", " , ", False),
        ("relay.example", "a,*", True),
        ("relay.example", "example", True),
        ("relay.example", "relay.example", True),
        ("relay.example", "RELAY.example:443", True),
        ("relay.example", "relay.example:80", False),
        ("xrelay.example", "relay.example", False),
        ("relay.example", ".relay.example", False),
        ("a.relay.example.", ".relay.example", True),
        ("a.relay.example", "*.relay.example", True),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3:443", True),
        ("10.1.2.3", "10.1.2.3:80", False),
        ("fd00::7", "fd00::/8", True),
        ("fd00::7", "[fd00::7]:443", True),
        ("fd00::7", "fd00::7", True),
        ("relay.example", "10.0.0.0/8", False),
    ],
)
def test_no_proxy(host: str, no_proxy: str, excepted: bool) -> None:
    assert is_excepted(host, 443, no_proxy) is excepted


def test_a_port_of_thousands_of_digits_is_no_port() -> None:
    assert not is_excepted("relay.example", 443, f"relay.example:{'1' * 5000}")
    assert is_excepted("relay.example", 443, "relay.example:0443")


def test_a_password_is_sent_but_never_shown() -> None:
    proxy = Proxy.parse("http://user%40corp:p%3Ass@proxy.example:8080")
    assert proxy.authorization == "Basic dXNlckBjb3JwOnA6c3M="
    assert "dXNlc" not in repr(proxy)
    assert proxy.label() == "http://proxy.example:8080"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("socks5://proxy.example:1080", "ALL_PROXY: socks5 proxies are not supported"),
        ("http://:3128", "ALL_PROXY: a proxy URL needs a host"),
        ("http://user:secret@proxy.example:port", "ALL_PROXY: not a proxy URL"),
        ("http://user:secret@proxy.example:99999", "ALL_PROXY: not a proxy URL"),
    ],
)
def test_bad_proxies_are_named_by_their_variable(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        proxy_from_environment(True, "relay.example", 443, {"ALL_PROXY": text})
    assert "secret" not in str(caught.value)


@asynccontextmanager
async def greeting_server() -> AsyncIterator[int]:
    async def greet(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"hello " + await stream.receive_some())

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, greet, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_a_tunnel_through_a_real_proxy() -> None:
    proxy_secret = Proxy.parse("http://u:p@x").authorization
    async with greeting_server() as port, open_http_proxy(authorization=proxy_secret) as running:
        proxy = Proxy("http", "127.0.0.1", running.port, proxy_secret)
        async with await dial_through(proxy, "127.0.0.1", port, timeout_seconds=5) as stream:
            await stream.send_all(b"you")
            assert await stream.receive_some() == b"hello you"
        assert running.requests[0].target == f"127.0.0.1:{port}"
        assert running.requests[0].headers["host"] == f"127.0.0.1:{port}"


async def test_a_proxy_behind_tls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = issue(common_name="corporate roots", is_authority=True)
    roots = tmp_path / "roots.pem"
    roots.write_bytes(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    tls_client._context.cache_clear()
    try:
        context = server_context(issue("127.0.0.1", issuer=authority))
        async with greeting_server() as port, open_http_proxy(tls=context) as running:
            proxy = Proxy("https", "127.0.0.1", running.port)
            async with await dial_through(proxy, "127.0.0.1", port, timeout_seconds=5) as stream:
                await stream.send_all(b"you")
                assert await stream.receive_some() == b"hello you"
    finally:
        tls_client._context.cache_clear()


async def test_an_https_proxy_that_speaks_plain_http() -> None:
    async with open_http_proxy() as running:
        with pytest.raises(ConnectError, match=r"^proxy https://.*does not speak TLS|closed the connection"):
            await dial_through(Proxy("https", "127.0.0.1", running.port), "a", 1, timeout_seconds=5)


@pytest.mark.parametrize(
    ("authorization", "refuse", "said"),
    [
        ("", 0, "wants a name and a password"),
        ("Basic eDp5", 0, "refuses our name and password"),
        ("", 403, r"does not connect to relay.example:8443 \(403 Forbidden\): let it allow CONNECT"),
        ("", 302, r"a redirect \(302 Found\) to somewhere"),
    ],
)
async def test_what_proxies_refuse(authorization: str, refuse: int, said: str) -> None:
    async with open_http_proxy(authorization="Basic secret", refuse=refuse) as running:
        proxy = Proxy("http", "127.0.0.1", running.port, authorization)
        with pytest.raises(ConnectError, match=f"^proxy http://127.0.0.1:{running.port}: .*{said}"):
            await dial_through(proxy, "relay.example", 8443, timeout_seconds=5)


async def test_a_proxy_that_is_not_there() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = Proxy("http", "127.0.0.1", listener.socket.getsockname()[1])
    await listener.aclose()
    with pytest.raises(ConnectError, match=r"^proxy http://127.*nothing listens"):
        await dial_through(proxy, "relay.example", 443, timeout_seconds=5)


async def answered(answer: bytes) -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(answer)
    await far.send_stream.aclose()
    await open_tunnel(near, PLAIN, "relay.example", 443)


async def test_what_is_no_proxy_says_so() -> None:
    with pytest.raises(ConnectError, match=r"CONNECT relay.example:443: malformed"):
        await answered(b"220 mail.example ESMTP\r\n\r\n")
    with pytest.raises(ConnectError, match="instead of answering"):
        await answered(b"")
    with pytest.raises(ConnectError, match="spoke before it was asked"):
        await answered(b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0-OpenSSH")


async def test_ipv6_targets_are_bracketed() -> None:
    near, far = trio.testing.memory_stream_pair()
    await far.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
    await open_tunnel(near, PLAIN, "fd00::1", 443)
    assert bytes(await far.receive_some()).startswith(b"CONNECT [fd00::1]:443 HTTP/1.1\r\nHost: [fd00::1]:443\r\n")


async def test_a_silent_proxy_runs_into_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        proxy = Proxy("http", "127.0.0.1", listener.socket.getsockname()[1])
        start = trio.current_time()
        with pytest.raises(ConnectError, match="no answer to CONNECT within 7 s"):
            await dial_through(proxy, "relay.example", 443, timeout_seconds=7)
        assert trio.current_time() - start == pytest.approx(7)
