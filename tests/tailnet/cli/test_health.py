"""`tailnet health`: what it says of a running server, and the status that monitors go by."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from tailnet.cli.root import cli
from tailnet.health.codes import RULES, Code
from tailnet.server.server import CoordinatorServer
from tailnet.store.rows import Role
from tests.support.proxies import open_front, open_page
from tests.support.seeds import NOW, make_id, user_token

Serve = Callable[..., Awaitable[CoordinatorServer]]


async def health(*words: str) -> Result:
    """The command, in a thread, as it runs an event loop of its own."""
    return await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, ["health", *words]))


def url_of(server: CoordinatorServer) -> str:
    return f"http://127.0.0.1:{server.listening[0].port}"


async def test_a_warning(server: CoordinatorServer) -> None:
    said = await health(url_of(server))
    assert said.exit_code == 1
    lines = said.stdout.splitlines()
    assert lines[0].startswith("warning: one thing is wrong; measured at ")
    assert f"warning: address-unset: peers are told {url_of(server)}" in lines
    assert f"    {RULES[Code.ADDRESS_UNSET].advice}" in lines
    as_json = await health(url_of(server), "--json")
    assert as_json.exit_code == 1
    assert [each["code"] for each in json.loads(as_json.stdout)["findings"]] == ["address-unset"]


async def test_all_is_well(serve: Serve) -> None:
    async with open_front() as front:
        server = await serve(access_url=front.url)
        front.target = server.listening[0].port
        said = await health(url_of(server))
    assert said.exit_code == 0
    assert said.stdout.startswith("ok: nothing is wrong; ")


async def test_an_error(serve: Serve) -> None:
    server = await serve(derp_enabled=False)
    said = await health(url_of(server))
    assert said.exit_code == 2
    assert "error: map-empty: " in said.stdout


async def test_nobody_answers() -> None:
    with trio.socket.socket() as closed:
        await closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        said = await health(url)
        as_json = await health(url, "--json")
    assert said.exit_code == as_json.exit_code == 2
    assert said.stdout.startswith(f"error: {url} cannot be asked: ")
    assert json.loads(as_json.stdout)["state"] == "error"


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"state": "splendid"}', b"{}"])
async def test_somebody_else_answers(body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    async with open_page(lambda request: head + body) as page:
        said = await health(page.url)
    assert said.exit_code == 2
    assert "is it a coordinator of this version?" in said.stdout


async def test_a_server_that_takes_us_for_a_stranger(serve: Serve, tmp_path: Path) -> None:
    async with open_front() as front:
        front.pass_on = lambda head: head + b"\r\nX-Forwarded-For: 203.0.113.9"
        server = await serve(access_url=front.url)
        front.target = server.listening[0].port
        said = await health(front.url)
        assert (said.exit_code, said.stdout.partition(";")[0]) == (1, "unknown")
        (tmp_path / "token").write_text(user_token("alice"))
        said = await health(front.url, "--token-file", str(tmp_path / "token"))
        assert said.exit_code == 2
        assert "none of an administrator" in said.stdout
        server.store.callers.update_user(make_id("alice"), NOW, role=Role.ADMIN)
        with trio.fail_after(60):
            while said.exit_code == 2:  # callers in memory are compared each second
                said = await health(front.url, "--token-file", str(tmp_path / "token"))
        assert said.exit_code == 0
        assert said.stdout.startswith("ok: nothing is wrong; ")
