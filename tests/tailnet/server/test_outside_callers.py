"""Agents and users whom only the control plane knows: end to end on real sockets, and for as long as they may."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trio

from derp.protocol.websocket import CloseCode
from tailnet.auth.call_out_wire import SIGNATURE_HEADER, TIMESTAMP_HEADER, signature
from tailnet.proto.generated import agent_pb2 as agent_messages
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer
from tests.support.control_plane import SECRET, ControlPlane, agent, http, user
from tests.support.seeds import agent_token, make_id, peer_id, user_token
from tests.support.signed_tokens import AUDIENCE, ISSUER, key_set, public, sign, standard
from tests.support.tailnet_driver import (
    AGENT,
    AGENT_DOOR,
    MANY_DOOR,
    Coordination,
    Peer,
    RefusedUpgrade,
    client_door,
    open_peer,
    wait_for,
)
from tests.support.text_sockets import open_text_socket

NEW = peer_id("new")
DISCONNECTED = tailnet.CoordinateResponse.PeerUpdate.DISCONNECTED
REVOKED = "authorization withdrawn"
Serve = Callable[..., Awaitable[CoordinatorServer]]


@pytest.fixture
async def plane(nursery: trio.Nursery) -> ControlPlane:
    made = ControlPlane()
    await nursery.start(made.serve)
    made.more = {"max_age": 1}
    made.users |= {"carol's": user("carol"), "dora's": user("dora"), "root's": user("root", role="admin")}
    made.agents["new's"] = agent("new", "lab", "carol")
    made.rights["dora", "new"] = ["ssh"]
    return made


@pytest.fixture
async def server(serve: Serve, plane: ControlPlane) -> CoordinatorServer:
    return await serve(auth_url=plane.url, auth_secret=SECRET)


async def meet(mine: Coordination, agent_peer: Peer, theirs: Coordination, client: Peer) -> bytes:
    """An agent and a client of it come to know each other; the client's id."""
    await mine.update(agent_peer.node(NEW))
    await theirs.update(client.node(peer_id("somebody")))
    await theirs.tunnel(NEW)
    await theirs.next_node()
    return (await mine.next_node())[0]


@pytest.mark.parametrize("door", [client_door(NEW), MANY_DOOR], ids=["of one", "of many"])
async def test_end_to_end(server: CoordinatorServer, plane: ControlPlane, door: str) -> None:
    async with open_peer(server, AGENT_DOOR, "new's") as agent_peer, open_peer(server, door, "dora's") as client:
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        await meet(mine, agent_peer, theirs, client)
        manifest = await agent_peer.call(
            AGENT + "GetManifest", agent_messages.GetManifestRequest(), agent_messages.Manifest
        )
        assert (manifest.owner_username, manifest.workspace_name, manifest.agent_name) == ("carol", "lab", "new")
        stats = agent_messages.UpdateStatsRequest(stats={"connection_count": 3, "rx_bytes": 7})
        await agent_peer.call(AGENT + "UpdateStats", stats, agent_messages.UpdateStatsResponse)
        assert plane.unsigned == 0
    row = await server.store.run(server.store.callers.get_agent, NEW)
    assert row is not None
    assert row.name == "new"


async def test_the_api_for_users_of_the_control_plane(server: CoordinatorServer) -> None:
    host, port = next((each.host, each.port) for each in server.listening if each.kind != "stun")
    url = f"http://{host}:{port}"
    async with open_peer(server, AGENT_DOOR, "new's"), httpx.AsyncClient(base_url=url) as client:

        async def get(path: str, token: str) -> httpx.Response:
            return await client.get(path, headers={"Coder-Session-Token": token})

        for token, status in (("carol's", 200), ("dora's", 200), (user_token("alice"), 404), ("nobody's", 401)):
            assert (await get(f"/api/v2/workspaceagents/{NEW}", token)).status_code == status
        me = (await get("/api/v2/users/me", "dora's")).json()
        assert (me["id"], me["username"], me["created_at"]) == (str(make_id("dora")), "dora", "0001-01-01T00:00:00Z")
        assert (await get("/api/v2/users/me", "root's")).json()["roles"] == [{"name": "owner", "display_name": "Owner"}]
        metrics = (await client.get("/metrics", headers={"Host": "localhost"})).text
        assert 'tailnet_auth_questions_total{end="yes"}' in metrics
        assert "carol's" not in metrics


async def test_accounts_are_linked_where_the_control_plane_says(serve: Serve, plane: ControlPlane) -> None:
    forge = {"id": "forge", "type": "gitea", "client_id": "us", "client_secret": "s", "regex": "^https://forge"}
    urls = {"auth_url": "https://forge.example/a", "token_url": "https://forge.example/t"}
    plane.external_auth = [forge | urls]
    server = await serve(auth_url=plane.url, auth_secret=SECRET, external_auth_call_out=True, secrets_keys=(bytes(32),))
    await wait_for(lambda: server.external_auth.find("forge") is not None)
    host, port = next((each.host, each.port) for each in server.listening if each.kind != "stun")
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}/api/v2") as client:
        own = {"Coder-Session-Token": "new's"}
        answer = await client.get("/workspaceagents/me/external-auth?match=https://forge.example/x", headers=own)
        assert answer.status_code == 200
        assert answer.json()["url"].endswith("/external-auth/forge")
        listed = (await client.get("/external-auth", headers={"Coder-Session-Token": "carol's"})).json()
        assert [each["id"] for each in listed["providers"]] == ["forge"]


@pytest.mark.parametrize("door", [client_door(NEW), MANY_DOOR], ids=["of one", "of many"])
async def test_a_right_that_is_taken_away_ends_what_it_gave(
    server: CoordinatorServer, plane: ControlPlane, door: str
) -> None:
    logs = f"/api/v2/workspaceagents/{NEW}/logs?follow"
    async with open_peer(server, AGENT_DOOR, "new's") as agent_peer, open_peer(server, door, "dora's") as client:
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        ident = await meet(mine, agent_peer, theirs, client)
        async with open_text_socket(server, logs, "dora's") as followed:
            assert await followed.read() == []
            plane.rights["dora", "new"] = ["update"]
            update = await mine.next()
            assert (update.id, update.kind, update.reason) == (ident, DISCONNECTED, REVOKED)
            if door == MANY_DOOR:
                update = await theirs.next()
                assert (update.id, update.kind, update.reason) == (NEW, DISCONNECTED, REVOKED)
            else:
                assert await client.wait_closed() == CloseCode.POLICY_VIOLATION
            plane.rights["dora", "new"] = []
            assert await followed.end() == (CloseCode.POLICY_VIOLATION, REVOKED)


async def test_a_user_who_is_nobody_any_more(server: CoordinatorServer, plane: ControlPlane) -> None:
    async with (
        open_peer(server, AGENT_DOOR, "new's") as agent_peer,
        open_peer(server, MANY_DOOR, "dora's") as client,
        open_peer(server, MANY_DOOR, user_token("alice")) as of_the_store,
    ):
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        ident = await meet(mine, agent_peer, theirs, client)
        plane.users["dora's"] = user("dora", active=False)
        assert await client.wait_closed() == CloseCode.POLICY_VIOLATION
        update = await mine.next()
        assert (update.id, update.kind, update.reason) == (ident, DISCONNECTED, REVOKED)
        await wait_for(lambda: server.reading().statistics.tunnels == 0)
        assert not of_the_store.closed.is_set()
        assert not agent_peer.closed.is_set()
        assert server.reading().revoked_connections == 1


async def test_at_once_when_the_control_plane_says_so(server: CoordinatorServer, plane: ControlPlane) -> None:
    plane.more = {"max_age": 3_600}
    host, port = next((each.host, each.port) for each in server.listening if each.kind != "stun")
    async with open_peer(server, AGENT_DOOR, "new's") as agent_peer, open_peer(server, MANY_DOOR, "dora's") as client:
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        await meet(mine, agent_peer, theirs, client)
        del plane.users["dora's"]
        timestamp = str(int(time.time()))
        headers = {TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: signature(SECRET, timestamp, b"{}")}
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as caller:
            assert (await caller.post("/api/v2/auth/changed", content=b"{}")).status_code == 401
            assert not client.closed.is_set()
            answer = await caller.post("/api/v2/auth/changed", content=b"{}", headers=headers)
            assert answer.status_code == 204
        assert await client.wait_closed() == CloseCode.POLICY_VIOLATION
        assert not agent_peer.closed.is_set()


async def test_an_agent_that_is_replaced(server: CoordinatorServer, plane: ControlPlane) -> None:
    """A newer build: the control plane knows another token for it, or another agent instead."""
    async with open_peer(server, AGENT_DOOR, "new's") as agent_peer, open_peer(server, MANY_DOOR, "carol's") as client:
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        await meet(mine, agent_peer, theirs, client)
        plane.agents["newer's"] = plane.agents.pop("new's")
        assert await agent_peer.wait_closed() == CloseCode.POLICY_VIOLATION
        update = await theirs.next()
        assert (update.id, update.kind, update.reason) == (NEW, DISCONNECTED, REVOKED)
        with pytest.raises(RefusedUpgrade) as caught:
            async with open_peer(server, AGENT_DOOR, "new's"):
                pass
        assert caught.value.answer.status == 401
        async with open_peer(server, AGENT_DOOR, "newer's") as again:
            node = await (await again.coordinate()).update(again.node(NEW))
            assert await theirs.next_node() == (NEW, node)


async def test_who_is_inside_stays_while_the_control_plane_is_down(
    server: CoordinatorServer, plane: ControlPlane
) -> None:
    async with open_peer(server, AGENT_DOOR, "new's") as agent_peer, open_peer(server, MANY_DOOR, "dora's") as client:
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        await meet(mine, agent_peer, theirs, client)
        assert server.callers.call_out is not None
        failures = server.callers.call_out.ended
        plane.respond = lambda question: http("200 OK", b"<html>Under construction</html>")
        await wait_for(lambda: sum(count for end, count in failures.items() if end.value == "nonsense") >= 2)
        # Nobody new comes in, and the two go on.
        with pytest.raises(RefusedUpgrade) as caught:
            async with open_peer(server, MANY_DOOR, "carol's"):
                pass
        assert caught.value.answer.status == 503
        node = await mine.update(agent_peer.node(NEW, preferred_derp=7))
        assert await theirs.next_node() == (NEW, node)
        assert server.reading().revoked_connections == 0


# --- signed tokens


@dataclass
class Signed:
    server: CoordinatorServer
    path: Path

    def user(self, name: str, seconds: float = 3600, **more: object) -> str:
        claims = standard(time.time(), seconds, kind="user", sub=str(make_id(name)), username=name, **more)
        return sign(claims, "ed")

    def agent(self) -> str:
        said = agent("new", "lab", "carol")
        return sign(standard(time.time(), kind="agent", sub=said.pop("id"), **said), "rsa")


@pytest.fixture
async def signed(serve: Serve, tmp_path: Path) -> Signed:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set())
    server = await serve(auth_jwks=str(path), auth_issuer=ISSUER, auth_audience=AUDIENCE, auth_leeway_seconds=0.0)
    await wait_for(lambda: server.reading().identities.jwks_keys == 3)
    return Signed(server, path)


async def test_signed_end_to_end_and_no_longer_than_it_says(signed: Signed) -> None:
    server = signed.server
    rights = {str(make_id("lab")): ["ssh"]}
    async with (
        open_peer(server, AGENT_DOOR, signed.agent()) as agent_peer,
        open_peer(server, client_door(NEW), signed.user("dora", 4, rights=rights)) as client,
        open_peer(server, AGENT_DOOR, agent_token("main")) as of_the_store,
    ):
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        ident = await meet(mine, agent_peer, theirs, client)
        update = await mine.next()
        assert (update.id, update.kind, update.reason) == (ident, DISCONNECTED, REVOKED)
        assert await client.wait_closed() == CloseCode.POLICY_VIOLATION
        assert not agent_peer.closed.is_set()
        assert not of_the_store.closed.is_set()


async def test_the_keys_are_counted(signed: Signed) -> None:
    host, port = next((each.host, each.port) for each in signed.server.listening if each.kind != "stun")
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers={"Host": "localhost"}) as client:
        lines = (await client.get("/metrics")).text.splitlines()
    [age] = [line.split()[1] for line in lines if line.startswith("tailnet_auth_jwks_age_seconds ")]
    assert 0 <= float(age) < 60
    assert "tailnet_auth_jwks_keys 3.0" in lines


async def test_a_key_that_is_withdrawn_sends_its_holders_away(signed: Signed) -> None:
    server = signed.server
    async with (
        open_peer(server, AGENT_DOOR, signed.agent()) as agent_peer,
        open_peer(server, MANY_DOOR, signed.user("carol")) as client,
    ):
        mine, theirs = await agent_peer.coordinate(), await client.coordinate()
        await meet(mine, agent_peer, theirs, client)
        signed.path.with_suffix(".new").write_bytes(key_set(public("ed")))
        signed.path.with_suffix(".new").rename(signed.path)
        assert await agent_peer.wait_closed() == CloseCode.POLICY_VIOLATION
        update = await theirs.next()
        assert (update.id, update.kind, update.reason) == (NEW, DISCONNECTED, REVOKED)
        assert not client.closed.is_set()


@pytest.mark.parametrize(
    "claims", [{"nbf": time.time() + 3_600}, {"exp": 1}, {"aud": "another"}, {"iss": "https://evil"}]
)
async def test_signed_tokens_that_are_refused_at_the_door(signed: Signed, claims: dict[str, object]) -> None:
    with pytest.raises(RefusedUpgrade) as caught:
        async with open_peer(signed.server, MANY_DOOR, signed.user("carol", **claims)):  # type: ignore[arg-type]
            pass
    assert caught.value.answer.status == 401
