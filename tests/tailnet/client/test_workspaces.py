"""A user's workspaces, followed: what changes, over a lost coordinator too."""

from pathlib import Path

import pytest
import trio

from derp.client.reconnect import BackOff
from derp.errors import DerpError
from tailnet.client import workspaces as workspaces_module
from tailnet.client.workspaces import Change, Workspace, WorkspaceAgent, Workspaces, open_workspaces
from tailnet.config import CoordinatorConfig
from tailnet.errors import MalformedField, RpcError
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.server.server import CoordinatorServer, serve_coordinator
from tailnet.store.store import Store
from tests.support.restartable import Restartable
from tests.support.seeds import AgentSpec, fill, make_id, seed_document, user_token
from tests.tailnet.client.test_rpc import url_of

PATIENCE_SECONDS = 60
AT_ONCE = BackOff(first_seconds=0.05, limit_seconds=0.05)
DEV, MAIN = make_id("dev"), make_id("main")


def a_workspace(name: str, status: int = 3) -> tailnet.Workspace:
    return tailnet.Workspace(id=make_id(name).bytes, name=name, status=status)  # type: ignore[arg-type]


def an_agent(name: str, workspace: str = "dev") -> tailnet.Agent:
    return tailnet.Agent(id=make_id(name).bytes, name=name, workspace_id=make_id(workspace).bytes)


def test_changes_are_what_became_different() -> None:
    known = Workspaces()
    whole = tailnet.WorkspaceUpdate(upserted_workspaces=[a_workspace("dev")], upserted_agents=[an_agent("main")])
    dev, main = Workspace(DEV, "dev", "running"), WorkspaceAgent(MAIN, "main", DEV)
    assert known.take(whole, is_whole=True) == Change((dev,), (main,))
    assert known.take(whole, is_whole=True) == Change()
    stopped = tailnet.WorkspaceUpdate(upserted_workspaces=[a_workspace("dev", 5)])
    assert known.take(stopped, is_whole=False) == Change((Workspace(DEV, "dev", "stopped"),))
    gone = tailnet.WorkspaceUpdate(deleted_agents=[an_agent("main"), an_agent("nobody")])
    assert known.take(gone, is_whole=False) == Change(gone_agents=(main,))
    assert (known.all, known.agents) == ({DEV: Workspace(DEV, "dev", "stopped")}, {})
    # What went while nobody told.
    other = tailnet.WorkspaceUpdate(upserted_workspaces=[a_workspace("shop")])
    change = known.take(other, is_whole=True)
    assert change.gone_workspaces == (Workspace(DEV, "dev", "stopped"),)
    assert [each.name for each in change.workspaces] == ["shop"]


def test_a_status_of_tomorrow() -> None:
    change = Workspaces().take(tailnet.WorkspaceUpdate(upserted_workspaces=[a_workspace("dev", 99)]), is_whole=True)
    assert change.workspaces[0].status == "unknown"


def test_what_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MalformedField):
        Workspaces().take(tailnet.WorkspaceUpdate(upserted_agents=[tailnet.Agent(id=b"x")]), is_whole=True)
    monkeypatch.setattr(workspaces_module, "MAX_KNOWN", 1)
    with pytest.raises(RpcError, match="more than 1"):
        Workspaces().take(
            tailnet.WorkspaceUpdate(upserted_workspaces=[a_workspace("a"), a_workspace("b")]), is_whole=True
        )


async def test_a_user_s_workspaces_over_a_lost_coordinator(filled_url: str, tmp_path: Path) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            place = Restartable(
                nursery,
                serve_coordinator,
                lambda port: CoordinatorConfig(
                    listen=(("127.0.0.1", port),), stun_listen=(), store=filled_url, drain_seconds=0.0, self_check=False
                ),
            )
            await place.start()
            async with open_workspaces(url_of(place.server), user_token("alice"), back_off=AT_ONCE) as workspaces:
                first = await anext(workspaces)
                assert [each.name for each in first.workspaces] == ["dev"]
                assert {each.name for each in first.agents} == {"main", "gpu"}
                await place.stop()
                store = Store.open(filled_url)
                fill(store, seed_document((AgentSpec("late", "lab", "alice"),)))
                store.close()
                await place.start()
                second = await anext(workspaces)
                assert [each.name for each in second.workspaces] == ["lab"]
                assert [each.name for each in second.agents] == ["late"]
                assert set(workspaces.all) == {DEV, make_id("lab")}
            nursery.cancel_scope.cancel()


async def test_who_has_no_token_is_told(server: CoordinatorServer) -> None:
    with trio.fail_after(PATIENCE_SECONDS), pytest.raises(DerpError, match="token"):
        async with open_workspaces(url_of(server), "nobody"):
            pass
