"""Maps from files, addresses and URLs of relays, and what is said when there is none."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from derp.client import mapsource
from derp.client.mapsource import is_relay_url, load_map, map_of_relay
from derp.errors import ConfigError, ConnectError
from derp.netcheck.lint import errors, lint
from tests.support.maps import map_text


@asynccontextmanager
async def web(body: bytes, status: str = "200 OK") -> AsyncIterator[str]:
    """A web server with one page."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("https://relay.example", True),
        ("https://relay.example/", True),
        ("http://relay.example:3340/derp", True),
        ("wss://relay.example/derp/", True),
        ("https://example.com/derpmap/default", False),
        ("map.json", False),
        ("-", False),
    ],
)
def test_what_names_a_relay(source: str, expected: bool) -> None:
    assert is_relay_url(source) is expected


async def test_a_file_and_an_address_give_the_same_map(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_bytes(b"// ours\n" + map_text(901, 902))
    from_file = await load_map(str(path))
    async with web(path.read_bytes()) as url:
        assert await load_map(f"{url}/map") == from_file
    assert await load_map(f"file://{path}") == from_file
    assert from_file.region_ids() == [901, 902]


async def test_what_is_no_map_is_named(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    with pytest.raises(ConfigError, match=r"map\.json: cannot be read"):
        await load_map(str(path))
    path.write_text('{"Regions": 1}')
    with pytest.raises(ConfigError, match=r"map\.json: DERP map: Regions: wants an object.*derp map lint"):
        await load_map(str(path))
    path.write_text("/* ")
    with pytest.raises(ConfigError, match="never ends"):
        await load_map(str(path))


async def test_an_address_that_gives_no_map_is_named() -> None:
    async with web(b"", "404 Not Found") as url:
        with pytest.raises(ConfigError, match="status 404"):
            await load_map(f"{url}/map")
    with pytest.raises(ConnectError, match="cannot be reached"):
        await load_map("http://127.0.0.1:1/map")


async def test_a_file_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mapsource, "MAX_MAP_BYTES", 10)
    path = tmp_path / "map.json"
    path.write_bytes(b" " * 11)
    with pytest.raises(ConfigError, match="larger than 10 bytes"):
        await load_map(str(path))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://relay.example", ("relay.example", "", "", 0, False)),
        ("https://192.0.2.1:8443", ("192.0.2.1", "192.0.2.1", "none", 8443, False)),
        ("https://[2001:db8::1]:8443/derp", ("2001:db8::1", "none", "2001:db8::1", 8443, False)),
        ("http://relay.example", ("relay.example", "", "", 80, True)),
    ],
)
def test_a_relay_becomes_a_map_without_mistakes(url: str, expected: tuple[str, str, str, int, bool]) -> None:
    pin = "" if url.startswith("http:") else f"sha256-raw:{'ab' * 32}"
    derp_map = map_of_relay(url, pin=pin, stun_port=3478)
    node = derp_map.regions[900].nodes[0]
    assert (node.host_name, node.ipv4, node.ipv6, node.derp_port, node.force_http) == expected
    assert (node.stun_port, node.cert_name) == (0, pin)
    assert errors(lint(derp_map.to_json())) == []


async def test_only_the_usual_path_fits_into_a_map() -> None:
    with pytest.raises(ConfigError, match="always use the path /derp"):
        map_of_relay("https://relay.example/other")
