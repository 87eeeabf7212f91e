"""`tailnet login` and `logout`: what is stored, where it is sent, and what is refused."""

import json
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from derp.errors import DerpError
from tailnet.cli.login import checked_url, read_login, read_stored, store, stored_path
from tailnet.cli.root import cli
from tailnet.client.agents import Login
from tailnet.errors import ConfigError
from tailnet.server.server import CoordinatorServer
from tests.support.proxies import open_page
from tests.support.seeds import user_token
from tests.tailnet.client.test_rpc import url_of

TOKEN = user_token("alice")


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("CODER_URL", "CODER_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "config"


async def run(*words: str, stdin: str = "") -> Result:
    return await trio.to_thread.run_sync(lambda: CliRunner().invoke(cli, list(words), input=stdin))


async def test_logging_in_and_out(server: CoordinatorServer, config: Path) -> None:
    url = url_of(server)
    said = await run("login", f"{url}/", stdin=f"{TOKEN}\n")
    assert said.exit_code == 0, said.output
    path = config / "tailnet" / "login.json"
    assert said.stdout == f"logged in to {url} as alice; the token is in {path}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert (await run("agents")).exit_code == 0
    again = await run("login", "--token", TOKEN, "--json", url)
    assert json.loads(again.stdout)["username"] == "alice"
    assert [each.name for each in path.parent.iterdir()] == ["login.json"]
    assert json.loads((await run("logout", "--json")).stdout) == {"event": "logout", "was_logged_in": True}
    assert not path.exists()
    assert (await run("logout")).stdout == "nobody was logged in\n"


async def test_a_token_that_is_not_taken(server: CoordinatorServer) -> None:
    said = await run("login", "--token", user_token("nobody"), url_of(server))
    assert isinstance(said.exception, DerpError)
    assert "does not take the token" in str(said.exception)
    assert not stored_path().exists()


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        ("200 OK", b"<html>", "answers 200 and no JSON: is it a coordinator?"),
        ("404 Not Found", b'{"message": "Nothing here."}', "knows no /api/v2/users/me: Nothing here."),
        ("503 Service Unavailable", b'{"message": "Later."}', "answers 503: Later."),
        ("302 Found", b"[]", "answers 302"),
    ],
)
async def test_somebody_else_answers(status: str, body: bytes, reason: str) -> None:
    head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status.encode(), len(body))
    async with open_page(lambda request: head + body) as page:
        said = await run("login", "--token", TOKEN, page.url)
    assert reason in str(said.exception)
    assert TOKEN not in str(said.exception)


@pytest.mark.parametrize(
    "url", ["", "tailnet.example", "ftp://a", "http://", "https://a:0", "https://a:x", "https://u:p@a", "https://a?b"]
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError, match="must look like"):
        checked_url(url, True)


def test_a_token_in_the_clear() -> None:
    with pytest.raises(ConfigError, match="--insecure-http"):
        checked_url("http://192.0.2.1:3000", False)
    assert checked_url("http://192.0.2.1:3000/", True) == "http://192.0.2.1:3000"
    assert checked_url("http://localhost:3000", False)
    assert checked_url("http://[::1]:3000", False)


def test_a_stored_token_is_for_its_server_alone() -> None:
    with pytest.raises(ConfigError, match="tailnet login URL"):
        read_login(None, None, False)
    store(Login("https://a.example", TOKEN))
    assert read_login(None, None, False) == read_login("https://a.example/", None, False) == read_stored()
    assert read_login(None, "other", False) == Login("https://a.example", "other")
    assert read_login("https://b.example", "other", False) == Login("https://b.example", "other")
    with pytest.raises(ConfigError, match="no token for"):
        read_login("https://b.example", None, False)
    assert TOKEN not in repr(read_stored())


@pytest.mark.parametrize("token", ["", " ", "two\nlines", "ö", "x" * 5000])
def test_tokens_that_are_none(token: str) -> None:
    with pytest.raises(ConfigError, match="the token is"):
        read_login("https://a.example", token or "\t", False)


def test_a_file_that_others_can_read() -> None:
    path = store(Login("https://a.example", TOKEN))
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_stored()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"url": "https://a.example"}', '{"url": 1, "token": ""}'])
def test_a_broken_file(text: str) -> None:
    path = store(Login("https://a.example", TOKEN))
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_stored()


def test_where_it_lies(config: Path) -> None:
    assert stored_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/tailnet/login.json")
    for environ in ({}, {"XDG_CONFIG_HOME": ""}, {"XDG_CONFIG_HOME": "relative"}):
        assert stored_path(environ) == Path.home() / ".config" / "tailnet" / "login.json"


def test_a_folder_that_cannot_be_made(config: Path) -> None:
    config.write_text("a file")
    with pytest.raises(ConfigError, match="cannot be written"):
        store(Login("https://a.example", TOKEN))
