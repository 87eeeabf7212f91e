"""services/workspaces.py: the difference of two states, and streams over a real store."""

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tailnet.coordinator.policy import ManyAgentsPolicy
from tailnet.errors import RpcError, StoreError
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.services import workspaces as workspaces_module
from tailnet.services.tailnet_rpc import Caller
from tailnet.services.workspaces import Agents, WorkspaceFeed, Workspaces, difference
from tailnet.store.rows import UserIdentity, WorkspaceRow, WorkspaceStatus
from tailnet.store.store import Store
from tailnet.types import PeerID
from tests.support.seeds import NOW, fill, make_id, peer_id
from tests.support.tailnet_driver import wait_for

pytestmark = pytest.mark.stores

IDS = st.integers(0, 5).map(lambda number: bytes([number]) * 16)
NAMES = st.sampled_from(["a", "b", "c"])
WORKSPACES = st.dictionaries(IDS, st.tuples(NAMES, st.integers(0, 10)))
AGENTS = st.dictionaries(IDS, st.tuples(NAMES, IDS))


def applied(update: tailnet.WorkspaceUpdate, workspaces: Workspaces, agents: Agents) -> tuple[Workspaces, Agents]:
    """What a client that follows the stream believes after one more message."""
    workspaces, agents = dict(workspaces), dict(agents)
    for workspace in update.deleted_workspaces:
        del workspaces[workspace.id]
    for agent in update.deleted_agents:
        assert agents.pop(agent.id)[1] == agent.workspace_id, "a deleted agent names its workspace"
    workspaces |= {each.id: (each.name, int(each.status)) for each in update.upserted_workspaces}
    agents |= {each.id: (each.name, each.workspace_id) for each in update.upserted_agents}
    return workspaces, agents


@given(WORKSPACES, AGENTS, WORKSPACES, AGENTS)
def test_whoever_applies_the_difference_has_the_new_state(
    workspaces: Workspaces, agents: Agents, now_workspaces: Workspaces, now_agents: Agents
) -> None:
    update = difference(workspaces, agents, now_workspaces, now_agents)
    assert applied(update, workspaces, agents) == (now_workspaces, now_agents)


@given(WORKSPACES, AGENTS)
def test_nothing_new_is_an_empty_message(workspaces: Workspaces, agents: Agents) -> None:
    assert difference(workspaces, agents, dict(workspaces), dict(agents)).SerializeToString() == b""


def caller(user_id: uuid.UUID) -> Caller:
    user = UserIdentity(user_id, "alice", active=True, admin=False)
    return Caller(PeerID(bytes(16)), ManyAgentsPolicy(), "alice", user)


def nobody(payload: bytes) -> bool:
    raise AssertionError("a refused stream sends nothing")


@pytest.fixture
def open_feed(tmp_path: Path) -> Callable[[], WorkspaceFeed]:
    return lambda: WorkspaceFeed(Store.open(f"sqlite:///{tmp_path / 'store.db'}"))


@pytest.mark.parametrize(
    ("owner", "text"),
    [(b"short", "5 bytes, a user id has 16"), (b"x" * 16, "another user")],
)
async def test_streams_that_are_refused(open_feed: Callable[[], WorkspaceFeed], owner: bytes, text: str) -> None:
    feed = open_feed()
    request = tailnet.WorkspaceUpdatesRequest(workspace_owner_id=owner)
    with pytest.raises(RpcError, match=text):
        await feed.stream(caller(uuid.uuid4()), request, nobody)


async def test_the_first_message_comes_even_when_there_is_nothing(open_feed: Callable[[], WorkspaceFeed]) -> None:
    feed, user = open_feed(), uuid.uuid4()
    request = tailnet.WorkspaceUpdatesRequest(workspace_owner_id=user.bytes)
    send, received = trio.open_memory_channel[bytes](1)

    def take(payload: bytes) -> bool:
        send.send_nowait(payload)
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.stream, caller(user), request, take)
        with trio.fail_after(10):
            assert await received.receive() == b""
        nursery.cancel_scope.cancel()


async def test_a_client_that_does_not_read_ends_its_stream(open_feed: Callable[[], WorkspaceFeed]) -> None:
    feed, user = open_feed(), uuid.uuid4()
    request = tailnet.WorkspaceUpdatesRequest(workspace_owner_id=user.bytes)
    with pytest.raises(RpcError, match="does not read"):
        await feed.stream(caller(user), request, lambda payload: False)


async def test_changes_told_and_untold_and_a_store_that_fails_for_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr(workspaces_module, "LOOK_SECONDS", 0.02)
    fill(store)
    feed = WorkspaceFeed(store)
    updates: list[tailnet.WorkspaceUpdate] = []
    real, fails, failures = store.list_workspaces, False, 0

    def sometimes(owner: uuid.UUID) -> list[WorkspaceRow]:
        nonlocal failures
        if fails:
            failures += 1
            raise StoreError("the disk is full")
        return real(owner)

    def take(payload: bytes) -> bool:
        updates.append(tailnet.WorkspaceUpdate.FromString(payload))
        return True

    async def next_update() -> tailnet.WorkspaceUpdate:
        await wait_for(lambda: updates)
        return updates.pop(0)

    monkeypatch.setattr(store, "list_workspaces", sometimes)
    alice = make_id("alice")
    request = tailnet.WorkspaceUpdatesRequest(workspace_owner_id=alice.bytes)
    nursery.start_soon(feed.stream, caller(alice), request, take)
    assert {each.id for each in (await next_update()).upserted_agents} == {peer_id("main"), peer_id("gpu")}
    store.set_workspace_status(make_id("dev"), WorkspaceStatus.STOPPED, NOW)
    feed.changed(alice)
    told = await next_update()
    assert [(each.name, each.status) for each in told.upserted_workspaces] == [("dev", WorkspaceStatus.STOPPED)]
    assert not told.upserted_agents
    fails = True
    await wait_for(lambda: failures == 2)
    store.delete_agent(peer_id("gpu"))
    fails = False
    assert [each.id for each in (await next_update()).deleted_agents] == [peer_id("gpu")]
    assert updates == []
