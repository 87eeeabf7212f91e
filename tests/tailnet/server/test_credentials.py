"""Sessions of cloud instances and linked accounts on a whole coordinator, over real sockets."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import trio

from tailnet.config import CoordinatorConfig
from tailnet.config.key_file import add_key, read_key_file
from tailnet.server.server import CoordinatorServer
from tests.support.administration import revoke_issued, set_instance
from tests.support.clouds import Aws, Azure, Google, write_anchors
from tests.support.providers import open_provider
from tests.support.seeds import agent_token, user_token
from tests.support.tailnet_driver import AGENT_DOOR, RefusedUpgrade, open_peer

Serve = Callable[..., Awaitable[CoordinatorServer]]
ME = "/api/v2/workspaceagents/me/"
POLICY_VIOLATION = 1008
IDENTITY = "/api/v2/workspaceagents/aws-instance-identity"


def url(server: CoordinatorServer) -> str:
    return f"http://127.0.0.1:{server.listening[0].port}"


def proof(aws: Aws) -> Mapping[str, str]:
    document = aws.document()
    return {"document": document, "signature": aws.sign(document)}


async def test_an_instance_comes_in_and_is_sent_away(serve: Serve, tmp_path: Path) -> None:
    aws = Aws()
    folder = write_anchors(tmp_path / "anchors", aws, Azure(), Google())
    server = await serve(identity_anchors=folder)
    set_instance(server.store, "main", "i-0123")
    async with httpx.AsyncClient(base_url=url(server)) as client:
        token = (await client.post(IDENTITY, json=proof(aws))).json()["session_token"]
        assert (await client.post(IDENTITY, json={**proof(aws), "document": "{}"})).status_code == 401
    with trio.fail_after(60):
        async with open_peer(server, AGENT_DOOR, token) as agent:
            await trio.to_thread.run_sync(revoke_issued, server.store, "main")
            assert await agent.wait_closed() == POLICY_VIOLATION
        with pytest.raises(RefusedUpgrade, match="401"):
            async with open_peer(server, AGENT_DOOR, token):
                pass
        async with open_peer(server, AGENT_DOOR, agent_token("main")):
            pass  # its own token stays
    reading = server.reading().identity_proofs
    assert reading == {"issued": 1, "refused": 1, "unknown": 0, "rate_limited": 0}


async def test_settings_are_read_again(serve: Serve, tmp_path: Path) -> None:
    aws, anchors, keys = Aws(), tmp_path / "anchors", tmp_path / "secrets.keys"
    anchors.mkdir()
    settings = {"identity_anchors": anchors}
    latest: list[CoordinatorConfig] = []
    server = await serve(lambda: latest[-1], **settings)
    set_instance(server.store, "main", "i-0123")
    async with open_provider() as provider, httpx.AsyncClient(base_url=url(server)) as client:
        own = {"Coder-Session-Token": agent_token("main")}
        assert (await client.post(IDENTITY, json=proof(aws))).status_code == 401
        assert (await client.get(f"{ME}gitsshkey", headers=own)).status_code == 501
        assert (await client.get(f"{ME}external-auth?id=git", headers=own)).status_code == 404
        assert (await client.get(f"{ME}manifest", headers=own)).json()["git_auth_configs"] == 0
        write_anchors(anchors / "new", aws, Azure(), Google())
        for each in (anchors / "new").iterdir():
            each.rename(anchors / each.name)
        add_key(keys)
        given = {"secrets_key_file": keys, "external_auth": provider.config()}
        latest.append(
            replace(
                server.config,
                secrets_keys=read_key_file(keys),
                external_auth=provider.config(),
                given={**server.config.given, **given},
            )
        )
        server.reload()
        assert (await client.post(IDENTITY, json=proof(aws))).status_code == 200
        assert (await client.get(f"{ME}gitsshkey", headers=own)).status_code == 200
        found = (await client.get(f"{ME}external-auth?id=git", headers=own)).json()
        assert found["url"] == f"{url(server)}/external-auth/git"
        assert (await client.get(f"{ME}manifest", headers=own)).json()["git_auth_configs"] == 1


async def test_an_account_is_linked_while_git_waits(serve: Serve, tmp_path: Path) -> None:
    keys = tmp_path / "secrets.keys"
    add_key(keys)
    async with open_provider() as provider:
        server = await serve(secrets_keys=read_key_file(keys), external_auth=provider.config())
        own = {"Coder-Session-Token": agent_token("main")}
        found: list[httpx.Response] = []

        async def listen() -> None:
            async with httpx.AsyncClient(base_url=url(server), timeout=30) as client:
                found.append(await client.get(f"{ME}external-auth?match=&id=git&listen=true", headers=own))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen)
                while not server.reading().external_auth_waiting:
                    await trio.lowlevel.checkpoint()
                async with httpx.AsyncClient(
                    base_url=url(server), cookies={"coder_session_token": user_token("alice")}
                ) as browser:
                    begun = await browser.get("/external-auth/git")
                    query = provider.sign_in(begun.headers["location"])
                    done = await browser.get("/external-auth/git/callback", params=query)
                    assert "Git Example is linked" in done.text
        assert found[0].json()["access_token"] in provider.good_tokens
        assert server.reading().external_auth["linked"] == 1
        assert server.reading().external_auth_waiting == 0
