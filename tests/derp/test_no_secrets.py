"""Passwords and tokens of URLs, from settings to every output: no log line, page, table or error shows one."""

import logging
from pathlib import Path

import pytest
import trio

from derp.keys import NodePrivate
from derp.server.server import RelayServer
from derp.transport.http import Request
from tests.derp.server.control_plane import NO, Answer, open_control_plane
from tests.derp.server.test_door import last_get
from tests.derp.server.test_server import UPGRADE, client_info
from tests.derp.server.test_verify import unused_url
from tests.derp.server.world import HOST, ask, open_server, relay_config
from tests.support.command import Ran, run_derp
from tests.support.sites import Site, answer

SECRET = "s3cretHunter2"
MASKED = "<secret>@127.0.0.1"


def with_secrets(url: str) -> str:
    """User, password and token in a URL of loopback."""
    return f"{url.replace('://', f'://admin:{SECRET}@')}?region=fra&token={SECRET}"


async def every_page(server: RelayServer, stranger: NodePrivate) -> str:
    """All that a browser on the relay's machine is shown."""
    why = f"/debug/why?key=nodekey:{stranger.public().raw.hex()}"
    pages = [await ask(server, last_get(path.encode())) for path in (*server.pages.pages, "/", "/healthz", why)]
    return b"\n".join(pages).decode()


@pytest.mark.parametrize("kind", ["nobody there", "a redirect", "a page", "no", "broken URL"])
async def test_of_an_admission_url_neither_log_nor_pages_tell_the_password(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "derp")

    def answer_all(request: Request) -> Answer:
        return {"a redirect": (302, b""), "a page": (200, b"<html>")}.get(kind, NO)

    stranger = NodePrivate.generate()
    async with open_control_plane(answer_all) as plane:
        url = unused_url() if kind == "nobody there" else plane.url
        if kind == "broken URL":  # a slash in the password, which had to be %2F
            url = url.replace(HOST, f"x/{SECRET}@{HOST}")
        async with open_server(relay_config(verify_client_url=with_secrets(url))) as server:
            await ask(server, UPGRADE + client_info(stranger, server.relay.public_key.raw))
            pages = await every_page(server, stranger)
    log = "\n".join(record.getMessage() for record in caplog.records)
    assert SECRET not in log + pages
    assert MASKED in log
    assert "region=fra" in log  # what is no secret helps to find the fault
    assert MASKED.replace("<", "&lt;").replace(">", "&gt;") in pages or MASKED in pages


@pytest.fixture
async def site(nursery: trio.Nursery) -> Site:
    made = Site()
    await nursery.start(made.serve)
    return made


MAP_COMMANDS = (("map", "show"), ("map", "lint"), ("netcheck",), ("probe",), ("probe", "--json", "--every", "60"))


@pytest.mark.parametrize("command", MAP_COMMANDS, ids=" ".join)
@pytest.mark.parametrize("kind", ["nobody there", "not found", "no map"])
async def test_of_the_address_of_a_map_no_command_tells_the_password(
    command: tuple[str, ...], kind: str, site: Site
) -> None:
    site.respond = lambda head: answer(b"x", status="404 Not Found") if kind == "not found" else answer(b"no map {")
    url = with_secrets(unused_url() + "/map" if kind == "nobody there" else site.url)
    ran = await run_derp(*command, url)
    assert ran.status != 0
    assert SECRET not in ran.out + ran.err
    if command != ("map", "lint") or kind != "no map":  # that one needs no name for what it was given
        assert MASKED in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--verify-client-url", f"htps://admin:{SECRET}@relay.example/allow"),
        ("serve", "--verify-client-url", f"https://admin:{SECRET}/x@relay.example:port/allow"),
        ("serve", "--verify-client-url", f"https://admin:{'x' * 100}/{SECRET}@relay.example:port/allow"),
        ("serve", "--home", f"ftp://admin:{SECRET}@relay.example/"),
        ("ping", "--via", f"https://admin:{SECRET}@relay.example/derp"),
        ("ping", "--via", f"https://admin:{SECRET}/x@relay.example/derp"),
        ("ping", "--via", f"htps://admin:{SECRET}@relay.example/derp"),
        ("map", "snippet", f"https://admin:{SECRET}@relay.example/derp"),
        ("netcheck", f"https://admin:{SECRET}@relay.example"),
        ("map", "show", f"htps://admin:{SECRET}@relay.example"),
    ],
    ids=" ".join,
)
async def test_of_a_wrong_url_no_error_tells_the_password(arguments: tuple[str, ...]) -> None:
    ran = await run_derp(*arguments)
    assert ran.status in (1, 2)
    assert ran.err
    assert SECRET not in ran.out + ran.err
    assert "Traceback" not in ran.err


async def test_of_a_settings_file_no_error_tells_the_password(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(f'verify_client_url = ["https://admin:{SECRET}@relay.example/?token={SECRET}"]\n')
    ran = await run_derp("serve", "--config", str(file))
    assert ran.status == 2
    assert "relay.toml: verify_client_url: wants" in ran.err
    assert SECRET not in ran.err


@pytest.mark.parametrize(
    "proxy",
    [
        f"http://admin:{SECRET}@127.0.0.1:1",
        f"http://admin:{SECRET}/x@127.0.0.1:1",
        f"admin:{SECRET}@127.0.0.1:1",
        f"socks5://admin:{SECRET}@127.0.0.1:1",
        f"http://admin:{SECRET}@127.0.0.1:port",
    ],
)
async def test_of_a_proxy_no_error_tells_the_password(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_environment(), "HTTPS_PROXY", proxy)
    ran: Ran = await run_derp("ping", "--via", "https://relay.example/derp", "--count", "1")
    assert ran.status in (1, 2)
    assert SECRET not in ran.err
    assert "HTTPS_PROXY" in ran.err or "127.0.0.1:1" in ran.err


def _environment() -> dict[str, str]:
    from tests.support import command

    return command.ENVIRONMENT
