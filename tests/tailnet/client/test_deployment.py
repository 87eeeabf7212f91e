"""What a deployment says of connections, from a real coordinator and in forms that are not known."""

import pytest

from derp.client.dial import DialOptions
from derp.errors import ConnectError, UpgradeRefused
from tailnet.client.deployment import ConnectionInfo, ask_connection_info, read_connection_info
from tailnet.server.server import CoordinatorServer
from tests.support.proxies import open_page
from tests.support.seeds import peer_id, user_token
from tests.tailnet.client.test_rpc import url_of
from tests.tailnet.conftest import Serve

MAIN = peer_id("main")


@pytest.mark.parametrize("is_direct", [False, True])
@pytest.mark.parametrize("force_websocket", [False, True])
async def test_what_a_coordinator_was_told(serve: Serve, is_direct: bool, force_websocket: bool) -> None:
    server = await serve(disable_direct_connections=not is_direct, derp_force_websockets=force_websocket)
    said = await ask_connection_info(f"{url_of(server)}/", user_token("alice"), MAIN)
    assert said == ConnectionInfo(is_direct, force_websocket)


@pytest.mark.parametrize(("token", "status"), [(user_token("bob"), 404), ("nobody's", 401)])
async def test_who_may_not_know_is_told_why(server: CoordinatorServer, token: str, status: int) -> None:
    with pytest.raises(UpgradeRefused, match=r"there is no such agent|does not take the token") as caught:
        await ask_connection_info(url_of(server), token, MAIN)
    assert caught.value.status == status
    assert token not in str(caught.value)


async def test_a_coordinator_that_is_not_there() -> None:
    async with open_page(lambda request: b"") as page:
        url = page.url
    with pytest.raises(ConnectError, match="cannot be asked"):
        await ask_connection_info(url, "token", MAIN)


async def test_headers_of_ours_go_along() -> None:
    async with open_page(lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as page:
        said = await ask_connection_info(page.url, "token", MAIN, DialOptions(headers=[("X-Way", "here")]))
    assert said == ConnectionInfo()
    (request,) = page.requests
    headers = request.headers
    assert (headers["x-way"], headers["coder-session-token"]) == ("here", "token")


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"[" * 100_000, b'{"disable_direct_connections": "no"}', b"\xff"]
)
def test_another_form(body: bytes) -> None:
    with pytest.raises(ConnectError, match=r"tailnet\.example"):
        read_connection_info(body, "tailnet.example")
