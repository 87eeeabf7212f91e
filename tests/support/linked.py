"""Accounts at a provider of ours, linked as a browser does it, over the API of api_world.py."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import httpx

from tailnet.services.external_auth import ExternalAuth
from tailnet.store.sealing import Sealer
from tests.support.api_world import ACCESS_URL, SECRETS_KEY, World
from tests.support.providers import TestProvider
from tests.support.seeds import NOW, user_token


@dataclass
class Linking:
    """`await link("alice")` is what a user does; `later(seconds)` moves the server's clock."""

    world: World
    provider: TestProvider
    now: datetime = NOW

    def __post_init__(self) -> None:
        self.sealer = Sealer([SECRETS_KEY])
        self.external = self.another_server()
        self.world.services = replace(self.world.services, external_auth=self.external)

    def another_server(self) -> ExternalAuth:
        """One that shares the store and the clock."""
        return ExternalAuth(self.world.store, self.sealer, ACCESS_URL, self.provider.config(), clock=lambda: self.now)

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @asynccontextmanager
    async def browser(self, username: str) -> AsyncIterator[httpx.AsyncClient]:
        """Keeps cookies, and follows nothing by itself."""
        async with self.world.client() as client:
            client.cookies.set("coder_session_token", user_token(username))
            client.headers["accept"] = "text/html,application/xhtml+xml,*/*;q=0.8"
            yield client

    async def begin(self, browser: httpx.AsyncClient) -> dict[str, str]:
        """Goes to the provider and signs in there.  The query with which the provider sends the browser back."""
        answer = await browser.get("/external-auth/git")
        assert answer.status_code == 302, answer.text
        return self.provider.sign_in(answer.headers["location"])

    async def link(self, username: str) -> httpx.Response:
        """All of it."""
        async with self.browser(username) as browser:
            query = await self.begin(browser)
            return await browser.get("/external-auth/git/callback", params=query)


def path_of(url: str) -> str:
    return urlsplit(url).path
