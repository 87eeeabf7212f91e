"""Agents ask for their owner's tokens: every documented answer, in the newest form and in the oldest."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tailnet.api.external_auth_agents import REQUESTS_PER_MINUTE
from tailnet.services import external_auth as service
from tailnet.services import link_watch
from tests.support.api_world import ACCESS_URL, World
from tests.support.linked import Linking
from tests.support.providers import open_provider
from tests.support.seeds import agent_token, make_id, peer_id, user_token
from tests.support.sites import answer

ME = "/api/v2/workspaceagents/me/"
REPOSITORY = "https://git.example.com/team/repository.git"
VECTORS = Path(__file__).parents[2] / "vectors" / "api"


@pytest.fixture
async def linking(world: World) -> AsyncIterator[Linking]:
    async with open_provider() as provider:
        yield Linking(world, provider)


async def ask(linking: Linking, path: str = "external-auth", agent: str = "main", **query: str) -> httpx.Response:
    async with linking.world.client(token=agent_token(agent)) as client:
        return await client.get(ME + path, params=query)


def vector(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


@pytest.mark.parametrize("query", [{"match": REPOSITORY, "id": ""}, {"match": "", "id": "git"}, {"url": REPOSITORY}])
async def test_not_linked(linking: Linking, query: dict[str, str]) -> None:
    found = await ask(linking, **query)
    assert (found.status_code, found.content) == (200, vector("external_auth_unlinked.json"))


async def test_linked(linking: Linking) -> None:
    await linking.link("alice")
    [token] = linking.provider.good_tokens
    for agent in ("main", "gpu"):
        found = await ask(linking, agent=agent, match=REPOSITORY)
        assert found.content == vector("external_auth.json").replace(b"TOKEN", token.encode())
    assert (await ask(linking, agent="web", id="git")).json()["url"], "it is alice's alone"


@pytest.mark.parametrize(
    ("kind", "username", "password"),
    [
        ("github", "TOKEN", ""),
        ("gitlab", "oauth2", "TOKEN"),
        ("bitbucket-cloud", "x-token-auth", "TOKEN"),
        ("bitbucket-server", "x-token-auth", "TOKEN"),
        ("gitea", "TOKEN", ""),
    ],
)
async def test_how_git_presents_it(linking: Linking, kind: str, username: str, password: str) -> None:
    linking.external.configure(linking.provider.config(type=kind, extra_token_keys=["team"]))
    linking.provider.life_seconds = None
    await linking.link("alice")
    [token] = linking.provider.good_tokens
    body = (await ask(linking, id="git")).json()
    assert body == {
        "access_token": token,
        "token_extra": {"team": "t1"},
        "url": "",
        "type": kind,
        "username": username.replace("TOKEN", token),
        "password": password.replace("TOKEN", token),
        "expires_at": "0001-01-01T00:00:00Z",
    }


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ({}, 400, "'url' or 'id' must be provided!"),
        ({"match": "", "id": ""}, 400, "'url' or 'id' must be provided!"),
        ({"match": "x", "id": "git"}, 400, "'url' and 'id' cannot be provided together!"),
        ({"match": "x" * 1025}, 400, "An address has 1024 characters at the most."),
        (
            {"match": "https://me:hunter2@else.example"},
            404,
            'No matching external auth provider found in Coder for the url "https://<secret>@else.example".',
        ),
        ({"id": "else"}, 404, 'No matching external auth provider found in Coder for the url "else".'),
    ],
)
async def test_what_is_asked_wrong(linking: Linking, query: dict[str, str], status: int, message: str) -> None:
    for path in ("external-auth", "gitauth") if query.get("match") or query.get("id") else ("external-auth",):
        refused = await ask(linking, path, **query)
        assert (refused.status_code, refused.json()["message"]) == (status, message)
        if status == 404:
            assert r"must match one of these regexes: ^(https?://)?git\.example" in refused.json()["detail"]


async def test_no_provider_at_all(linking: Linking) -> None:
    linking.external.configure(())
    refused = await ask(linking, match=REPOSITORY)
    assert (refused.status_code, refused.json()["detail"]) == (404, "External auth provider not found.")


async def test_the_last_one_that_matches_counts(linking: Linking) -> None:
    others = linking.provider.config(id="first", regex="git"), linking.provider.config(id="last", regex="team")
    linking.external.configure((*others[0], *linking.external.providers, *others[1]))
    assert (await ask(linking, match=REPOSITORY)).json()["url"] == f"{ACCESS_URL}/external-auth/last"
    assert (await ask(linking, match="https://git.example.com/x")).json()["url"] == f"{ACCESS_URL}/external-auth/git"
    assert (await ask(linking, match="git@else")).json()["url"] == f"{ACCESS_URL}/external-auth/first"
    assert (await ask(linking, id="first")).json()["url"] == f"{ACCESS_URL}/external-auth/first"


async def test_the_oldest_form(linking: Linking) -> None:
    found = await ask(linking, "gitauth", url=REPOSITORY)
    assert found.content == vector("gitauth_unlinked.json")
    await linking.link("alice")
    [token] = linking.provider.good_tokens
    found = await ask(linking, "gitauth", url=REPOSITORY)
    assert found.content == vector("gitauth.json").replace(b"TOKEN", token.encode())
    newer = await ask(linking, "gitauth", match=REPOSITORY, id="")
    assert newer.content == vector("external_auth.json").replace(b"TOKEN", token.encode())
    for query in ({}, {"url": ""}):
        missing = await ask(linking, "gitauth", **query)
        assert (missing.status_code, missing.json()) == (400, {"message": "Missing 'url' query parameter!"})
    unknown = await ask(linking, "gitauth", url="https://else.example")
    assert (unknown.status_code, unknown.json()["message"]) == (
        404,
        'No git provider found for URL "https://else.example"',
    )


@pytest.mark.parametrize("token", ["", user_token("alice"), str(make_id("nobody"))])
@pytest.mark.parametrize("path", ["external-auth?id=git", "gitauth?url=x"])
async def test_agents_only(linking: Linking, token: str, path: str) -> None:
    async with linking.world.client(token=token) as client:
        assert (await client.get(ME + path)).status_code == 401


async def test_a_provider_that_is_away(linking: Linking) -> None:
    await linking.link("alice")
    linking.provider.misbehave = lambda path: b""
    refused = await ask(linking, id="git")
    assert (refused.status_code, refused.json()["message"]) == (502, 'External auth provider "git" cannot be asked.')
    assert linking.provider.good_tokens.isdisjoint(refused.text.split('"'))


async def test_a_loop_of_fetches_is_slowed_down(linking: Linking) -> None:
    async with linking.world.client(token=agent_token("main")) as client:
        statuses = [(await client.get(f"{ME}gitauth?url=x")).status_code for _ in range(REQUESTS_PER_MINUTE + 1)]
    assert statuses[-2:] == [404, 429]
    assert (await ask(linking, agent="gpu", id="git")).status_code == 200


@pytest.mark.parametrize("value", ["true", "", "false"])
async def test_it_listens_until_the_account_is_linked(linking: Linking, nursery: trio.Nursery, value: str) -> None:
    nursery.start_soon(linking.external.watch.run)
    found: list[httpx.Response] = []

    async def listen() -> None:
        found.append(await ask(linking, id="git", listen=value))

    with trio.fail_after(60):
        async with trio.open_nursery() as listeners:
            listeners.start_soon(listen)
            await _wait(lambda: len(linking.external.watch) == 1)
            assert found == []
            await linking.link("alice")
    [token] = linking.provider.good_tokens
    assert found[0].json()["access_token"] == token
    at_once = await ask(linking, id="git", listen="")
    assert at_once.json()["access_token"] == token
    assert len(linking.external.watch) == 0


async def test_nobody_links_it(linking: Linking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "LISTEN_SECONDS", 0.01)
    refused = await ask(linking, id="git", listen="true")
    assert (refused.status_code, refused.json()["message"]) == (503, "Nobody linked Git Example within that time.")
    assert refused.headers["retry-after"] == "1"


async def test_too_many_listen(linking: Linking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_watch, "MAX_WATCHERS_PER_LINK", 0)
    refused = await ask(linking, id="git", listen="true")
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "10")


async def test_an_agent_that_is_deleted_while_it_listens_gets_nothing(linking: Linking, nursery: trio.Nursery) -> None:
    nursery.start_soon(linking.external.watch.run)
    nursery.start_soon(linking.world.services.callers.run)  # type: ignore[attr-defined]  # of StoreCallers
    found: list[httpx.Response] = []

    async def listen() -> None:
        found.append(await ask(linking, id="git", listen=""))

    with trio.fail_after(60):
        async with trio.open_nursery() as listeners:
            listeners.start_soon(listen)
            await _wait(lambda: len(linking.external.watch) == 1)
            linking.world.store.callers.delete_agent(peer_id("main"))
            before = linking.world.services.callers.changes.count
            await linking.world.services.callers.changes.wait(before)
            await linking.link("alice")
    assert found[0].status_code == 401


async def _wait(until: Any) -> None:
    while not until():
        await trio.lowlevel.checkpoint()


async def test_html_of_a_provider_is_no_answer(linking: Linking) -> None:
    await linking.link("alice")
    linking.later(3600)
    linking.provider.misbehave = lambda path: answer(b"<html>", status="200 OK") if path == "/token" else None
    refused = await ask(linking, id="git")
    assert refused.status_code == 502
    assert "no JSON" in refused.json()["detail"]
