"""Linking an account in a real browser: from the address that git shows, over signing in and the provider, and back."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tailnet.config.key_file import add_key
from tailnet.store.store import Store
from tests.support.browser import LAPTOP, PHONE, Window, look, require_browser
from tests.support.command import serving
from tests.support.providers import CLIENT_ID, CLIENT_SECRET, TestProvider, open_provider
from tests.support.seeds import fill, make_id, user_token


def settings(folder: Path, provider: TestProvider) -> str:
    return f"""
listen = ["127.0.0.1:0"]
stun_listen = "off"
store = "sqlite:///{folder / "tailnet.db"}"
secrets_key_file = "{folder / "secrets.keys"}"

[[external_auth]]
id = "git"
type = "gitea"
client_id = "{CLIENT_ID}"
client_secret = "{CLIENT_SECRET}"
auth_url = "{provider.url}/authorize"
token_url = "{provider.url}/token"
validate_url = "{provider.url}/user"
display_name = "Git <Example>"
"""


@asynccontextmanager
async def coordinator(folder: Path, provider: TestProvider) -> AsyncIterator[str]:
    """Its URL."""
    require_browser()
    add_key(folder / "secrets.keys")
    store = Store.open(f"sqlite:///{folder / 'tailnet.db'}")
    fill(store)
    store.close()
    await trio.Path(folder / "tailnet.toml").write_text(settings(folder, provider))
    command = [sys.executable, "-m", "tailnet", "serve", "--json", "--config", str(folder / "tailnet.toml")]
    async with serving(*command) as events:
        yield f"http://127.0.0.1:{next(each['port'] for each in events if each['event'] == 'listening')}"


@pytest.mark.parametrize(("name", "size"), [("laptop", LAPTOP), ("phone", PHONE)])
async def test_from_the_address_that_git_shows_and_back(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    async with open_provider() as provider, coordinator(tmp_path, provider) as url:

        def use(window: Window) -> None:
            from selenium.webdriver.support.wait import WebDriverWait

            window.go(f"{url}/external-auth/git")
            window.complaints()  # of the 401 with which the form comes
            window.fill("form[action='/login']", token=user_token("alice"))
            # From our own form the way leads over a page that sends the browser on.
            WebDriverWait(window.driver, 30).until(lambda driver: "/callback" in driver.current_url)
            assert "Git <Example> is linked" in window.text()
            assert window.overflow() <= 0
            assert window.complaints() == []
            window.shoot(f"linked-{name}")
            window.go(f"{url}/external-auth/git")  # signed in: straight there and back
            assert "Git <Example> is linked" in window.text()
            window.go(window.driver.current_url)  # the way back again
            assert "is not linked" in window.text()

        await look(use, size)
    store = Store.open(f"sqlite:///{tmp_path / 'tailnet.db'}")
    row = store.credentials.link(make_id("alice"), "git")
    store.close()
    assert row is not None
    assert row.sealed is not None
    assert sum(form.get("grant_type") == "authorization_code" for _, form, _ in provider.asked) == 2
