"""A user links his account in a browser: the whole way, and everything that makes no link."""

import html
import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tailnet.api.link_page import COOKIE
from tailnet.services.external_auth import BEGUN_FOR, ExternalAuth
from tailnet.store.sealing import Sealer
from tests.support.api_world import ACCESS_URL, World
from tests.support.linked import Linking
from tests.support.providers import CLIENT_SECRET, JSON, open_provider
from tests.support.seeds import NOW, make_id, user_token
from tests.support.sites import answer

CALLBACK = "/external-auth/git/callback"


@pytest.fixture
async def linking(world: World) -> AsyncIterator[Linking]:
    async with open_provider() as provider:
        yield Linking(world, provider)


def said(response: httpx.Response) -> str:
    """What a page says to its reader."""
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    return html.unescape(re.sub(r"<[^>]*>", "", "<h1>" + response.text.partition("<h1>")[2]))


def is_linked(linking: Linking, username: str = "alice") -> bool:
    row = linking.world.store.credentials.link(make_id(username), "git")
    return row is not None and row.sealed is not None


@pytest.mark.stores
async def test_the_whole_way(linking: Linking, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with linking.browser("alice") as browser:
        begun = await browser.get("/external-auth/git")
        cookie = begun.headers["set-cookie"]
        assert all(each in cookie for each in ("HttpOnly", "Path=/external-auth/git;", "SameSite=lax", "Max-Age=900"))
        assert "Secure" not in cookie, "access_url is plain HTTP here"
        query = linking.provider.sign_in(begun.headers["location"])
        done = await browser.get(CALLBACK, params=query)
        assert (done.status_code, done.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "<h1>Git Example is linked</h1>" in done.text
        assert 'tailnet_external_auth=""' in done.headers["set-cookie"]
        assert "Max-Age=0" in done.headers["set-cookie"]
        links = (await browser.get("/api/v2/external-auth")).json()
    assert [link["provider_id"] for link in links["links"]] == ["git"]
    assert links["links"][0]["authenticated"] is True
    assert links["providers"][0]["url"] == f"{ACCESS_URL}/external-auth/git"
    row = linking.world.store.credentials.link(make_id("alice"), "git")
    assert row is not None
    assert row.expires_at == NOW + timedelta(hours=1)
    paths = [path for path, _, _ in linking.provider.asked]
    assert paths == ["/token", "/user"]
    [token] = linking.provider.good_tokens
    secrets = [token, *linking.provider.refresh_tokens, query["code"], CLIENT_SECRET, begun.cookies[COOKIE]]
    for secret in secrets:
        assert secret.encode() not in (row.sealed or b"")
        assert secret not in caplog.text + done.text + str(links) + repr(row)


async def test_secure_cookies_behind_tls(linking: Linking) -> None:
    linking.world.services = replace(linking.world.services, access_url="https://tailnet.example.com")
    async with linking.browser("alice") as browser:
        assert "; Secure" in (await browser.get("/external-auth/git")).headers["set-cookie"]


Change = Callable[[dict[str, str], httpx.AsyncClient], Any]


def _drop_cookie(query: dict[str, str], browser: httpx.AsyncClient) -> None:
    browser.cookies.delete(COOKIE)


def _spoil_cookie(query: dict[str, str], browser: httpx.AsyncClient) -> None:
    value = browser.cookies[COOKIE]
    browser.cookies.delete(COOKIE)
    browser.cookies.set(COOKIE, value[:40] + ("A" if value[40] != "A" else "B") + value[41:])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda query, _: query.update(state="x" * 43), "the state is not the one"),
        (lambda query, _: query.update(state="é"), "the state is not the one"),
        (_drop_cookie, "did not begin here"),
        (_spoil_cookie, "did not begin here"),
        (lambda query, _: query.update(code="made-up"), "refuses the code (invalid_grant: it is invalid_grant)"),
    ],
)
async def test_what_comes_back_wrong(linking: Linking, change: Change, reason: str) -> None:
    async with linking.browser("alice") as browser:
        query = await linking.begin(browser)
        change(query, browser)
        refused = await browser.get(CALLBACK, params=query)
    assert refused.status_code == 400
    assert said(refused).startswith("Git Example is not linked.")
    assert reason in said(refused)
    assert query["code"] not in refused.text
    assert not is_linked(linking)


async def test_too_late(linking: Linking) -> None:
    async with linking.browser("alice") as browser:
        query = await linking.begin(browser)
        linking.later(BEGUN_FOR.total_seconds() + 1)
        refused = await browser.get(CALLBACK, params=query)
    assert "begun too long ago" in said(refused)
    assert not is_linked(linking)


async def test_somebody_else_s_way(linking: Linking) -> None:
    async with linking.browser("alice") as alice, linking.browser("bob") as bob:
        query = await linking.begin(alice)
        bob.cookies.set(COOKIE, alice.cookies[COOKIE])
        refused = await bob.get(CALLBACK, params=query)
        assert "somebody else began this" in said(refused)
        async with linking.world.client() as nobody:
            nobody.cookies.set(COOKIE, alice.cookies[COOKIE])
            assert (await nobody.get(CALLBACK, params=query)).status_code == 401
            assert (await nobody.get("/external-auth/git")).status_code == 401
    assert not is_linked(linking)
    assert not is_linked(linking, "bob")
    assert linking.provider.asked == []


async def test_a_code_is_good_once(linking: Linking) -> None:
    async with linking.browser("alice") as browser:
        query = await linking.begin(browser)
        cookie = browser.cookies[COOKIE]
        assert (await browser.get(CALLBACK, params=query)).status_code == 200
        before = linking.world.store.credentials.link(make_id("alice"), "git")
        browser.cookies.set(COOKIE, cookie)
        again = await browser.get(CALLBACK, params=query)
    assert "refuses the code" in said(again)
    assert linking.world.store.credentials.link(make_id("alice"), "git") == before, "what was linked stays"


async def test_a_code_of_another_way_is_of_no_use(linking: Linking) -> None:
    """PKCE: a code that was stolen from another browser is refused by the provider."""
    async with linking.browser("alice") as alice, linking.browser("bob") as bob:
        stolen, own = await linking.begin(alice), await linking.begin(bob)
        refused = await bob.get(CALLBACK, params=own | {"code": stolen["code"]})
    assert "refuses the code" in said(refused)
    assert not is_linked(linking, "bob")


async def test_the_user_says_no(linking: Linking) -> None:
    async with linking.browser("alice") as browser:
        query = {"error": "access_denied", "error_description": "The user\x1b[2J said no", "state": "x"}
        refused = await browser.get(CALLBACK, params=query)
        assert refused.status_code == 400
        assert "Git Example did not link the account." in said(refused)
        assert "access_denied: The user\\x1b[2J said no" in said(refused)
        for query in ({}, {"code": "x"}, {"state": "x"}, {"code": "x" * 5000, "state": "x"}):
            assert (await browser.get(CALLBACK, params=query)).status_code == 400


@pytest.mark.parametrize(
    ("path", "response", "status", "reason"),
    [
        ("/token", answer(b"<html>Sign in</html>", "Content-Type: text/html"), 502, "no JSON"),
        ("/token", answer(b"x" * 300_000, JSON), 502, "more than"),
        ("/token", answer(b"", "Location: http://127.0.0.1:1/", status="302 Found"), 502, "answers 302"),
        ("/token", answer(b"", status="503 Away"), 502, "answers 503"),
        ("/token", b"", 502, "cannot be asked"),
        ("/token", b"nonsense\r\n\r\n", 502, "cannot be asked"),
        ("/token", answer(b'{"token_type": "bearer"}', JSON), 502, "no access_token"),
        ("/user", answer(b"", status="401 Unauthorized"), 400, "does not take the token that it just gave"),
        ("/user", answer(b"", status="500 Broken"), 502, "answers 500 when it is asked"),
    ],
)
async def test_providers_that_misbehave(
    linking: Linking, path: str, response: bytes, status: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    linking.provider.misbehave = lambda asked: response if asked == path else None
    refused = await linking.link("alice")
    assert refused.status_code == status
    assert reason in said(refused)
    assert not is_linked(linking)
    assert CLIENT_SECRET not in refused.text + caplog.text
    assert "code-1" not in refused.text + caplog.text
    if status == 502:
        assert "external auth provider git" in caplog.text
        assert [asked for asked, _, _ in linking.provider.asked if asked == path] == [path], "nobody else was asked"


@pytest.mark.parametrize("name", ["nothing", "GIT", "git/x"])
async def test_providers_that_are_none(linking: Linking, name: str) -> None:
    async with linking.browser("alice") as browser:
        assert (await browser.get(f"/external-auth/{name}")).status_code == 404
        assert (await browser.get(f"/external-auth/{name}/callback?code=x&state=y")).status_code == 404


async def test_without_keys_nothing_begins(linking: Linking) -> None:
    closed = ExternalAuth(linking.world.store, Sealer(), ACCESS_URL, linking.provider.config())
    linking.world.services = replace(linking.world.services, external_auth=closed)
    async with linking.browser("alice") as browser:
        refused = await browser.get("/external-auth/git")
    assert refused.status_code == 501
    assert "--secrets-key-file" in said(refused)


async def test_whoever_is_not_signed_in_is_asked_to(linking: Linking) -> None:
    async with linking.world.client() as nobody:
        assert (await nobody.get("/external-auth/git")).json()["message"], "programs are told in their own form"
        nobody.headers["accept"] = "text/html"
        asked = await nobody.get("/external-auth/git")
        assert asked.status_code == 401
        assert 'name="after" value="/external-auth/git"' in asked.text
        form = {"token": user_token("alice"), "after": "/external-auth/git"}
        signed_in = await nobody.post("/login", data=form, headers={"sec-fetch-site": "same-origin"})
        assert (signed_in.status_code, signed_in.headers["location"]) == (303, "/external-auth/git")
        token = {"coder_session_token": user_token("alice")}
        in_address = await nobody.get("/external-auth/git", params=token, headers={"cookie": ""})
        assert in_address.status_code == 401, "an address stays in a browser's history"


async def test_from_our_own_form_by_a_page(linking: Linking) -> None:
    async with linking.browser("alice") as browser:
        begun = await browser.get("/external-auth/git", headers={"sec-fetch-site": "same-origin"})
        assert begun.status_code == 200
        where = begun.headers["refresh"].removeprefix("0; url=")
        query = linking.provider.sign_in(where)
        assert html.escape(where) in begun.text
        assert (await browser.get(CALLBACK, params=query)).status_code == 200
