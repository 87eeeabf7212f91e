"""Maps for relays that run: a client can use what comes out, and what could not be verified is said."""

import ssl
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding

from derp.client import snippet as snippets
from derp.client.client import open_derp_client
from derp.client.dial import DialOptions
from derp.client.snippet import make_snippet, snippet_base
from derp.errors import ConnectError
from derp.keys import NodePrivate
from derp.map import DERPMap
from derp.netcheck.lint import errors, lint
from tests.support.inprocess import HOST, open_relay_here, port_of

DIRECT = DialOptions(environment=None)


def base(url: str, *, pin: str = "", stun_port: int = -1) -> DERPMap:
    return snippet_base(url, pin=pin, stun_port=stun_port, region_id=901, code="fra", name="Frankfurt")


async def test_a_self_signed_relay_is_pinned_and_clients_can_use_the_map() -> None:
    async with open_relay_here() as server:
        assert server.tls is not None
        url, stun_port = f"https://{HOST}:{port_of(server)}", port_of(server, "stun")
        snippet = await make_snippet(base(url, stun_port=stun_port), options=DIRECT)
        node = snippet.derp_map.regions[901].nodes[0]
        assert (node.cert_name, node.stun_port) == (server.tls.pin, stun_port)
        async with open_derp_client(snippet.derp_map.regions[901], NodePrivate.generate(), options=DIRECT) as client:
            assert client.server_key == server.config.private_key.public().raw
    assert errors(lint(snippet.derp_map.to_json())) == []
    assert "from this machine only" in snippet.notes[0]
    assert "compare the pin" in snippet.notes[1]
    assert str(server.config.private_key.public()) in snippet.notes[-1]


async def test_a_relay_that_answers_over_quic_is_named_so() -> None:
    async with open_relay_here(quic=True) as server, open_relay_here() as other:
        for relay, port in ((server, port_of(server)), (other, 0)):
            snippet = await make_snippet(base(f"https://{HOST}:{port_of(relay)}"), options=DIRECT)
            assert snippet.derp_map.regions[901].nodes[0].quic_port == port
            assert any("QUICPort" in note for note in snippet.notes) is bool(port)


async def test_a_trusted_relay_is_not_pinned(tmp_path: Path) -> None:
    async with open_relay_here() as server:
        url = f"https://{HOST}:{port_of(server)}"
        roots = tmp_path / "roots.pem"
        assert server.tls is not None
        roots.write_bytes(server.tls.leaf.public_bytes(Encoding.PEM))
        options = DialOptions(environment=None, context=ssl.create_default_context(cafile=roots))
        snippet = await make_snippet(base(url), options=options)
    assert snippet.derp_map.regions[901].nodes[0].cert_name == ""


async def test_a_wrong_pin_is_an_error_and_not_replaced() -> None:
    async with open_relay_here() as server:
        wrong = base(f"https://{HOST}:{port_of(server)}", pin=f"sha256-raw:{'00' * 32}")
        with pytest.raises(ConnectError, match="not the pinned one"):
            await make_snippet(wrong, options=DIRECT)


async def test_silent_stun_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snippets, "_STUN_SECONDS", 0.05)
    async with open_relay_here(stun_enabled=False) as server:
        snippet = await make_snippet(base(f"https://{HOST}:{port_of(server)}", stun_port=1), options=DIRECT)
    assert snippet.derp_map.regions[901].nodes[0].stun_port == -1
    assert any("no STUN answer on UDP port 1" in note for note in snippet.notes)


async def test_plain_http_is_pointed_out() -> None:
    async with open_relay_here(tls=False) as server:
        snippet = await make_snippet(base(f"http://{HOST}:{port_of(server)}"), options=DIRECT)
    assert snippet.derp_map.regions[901].nodes[0].force_http
    assert any("plain HTTP" in note for note in snippet.notes)


async def test_a_relay_that_admits_only_some_is_told_from_one_that_does_not_work() -> None:
    admitted = NodePrivate.generate()
    async with open_relay_here(allow_keys=frozenset([admitted.public().raw])) as server:
        url = f"https://{HOST}:{port_of(server)}"
        stranger = await make_snippet(base(url), options=DIRECT)
        known = await make_snippet(base(url), admitted, DIRECT)
        unknown = await make_snippet(base(url), NodePrivate.generate(), DIRECT)
    assert any("turned away" in note and "name one with --key-file" in note for note in stranger.notes)
    assert not any("turned away" in note for note in known.notes)
    assert any("the key of --key-file was turned away" in note for note in unknown.notes)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_nothing_there_is_an_error(scheme: str) -> None:
    with pytest.raises(ConnectError, match="nothing listens on that port"):
        await make_snippet(base(f"{scheme}://{HOST}:1"), options=DIRECT)


async def test_a_web_server_is_no_relay() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host=HOST))
        url = f"http://{HOST}:{listeners[0].socket.getsockname()[1]}"
        with pytest.raises(ConnectError, match=f"no relay answers at {url}.*status 200"):
            await make_snippet(base(url), options=DIRECT)
        nursery.cancel_scope.cancel()
