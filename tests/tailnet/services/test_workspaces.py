"""services/workspaces.py: the difference of two states, and streams over a real store."""

import uuid
from collections.abc import Callable, Collection
from dataclasses import replace
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
from tailnet.services.workspaces import OwnedState, WorkspaceUpdates, difference
from tailnet.store.rows import Right, UserIdentity, WorkspaceRow, WorkspaceStatus
from tailnet.store.store import Store
from tailnet.types import PeerID
from tests.support.seeds import NOW, fill, make_id, peer_id
from tests.support.tailnet_driver import wait_for

pytestmark = pytest.mark.stores

IDS = st.integers(0, 5).map(lambda number: bytes([number]) * 16)
NAMES = st.sampled_from(["a", "b", "c"])
STATES = st.builds(
    OwnedState,
    st.dictionaries(IDS, st.tuples(NAMES, st.integers(0, 10))),
    st.dictionaries(IDS, st.tuples(NAMES, IDS)),
)


def applied(update: tailnet.WorkspaceUpdate, told: OwnedState) -> OwnedState:
    """What a client that follows the stream believes after one more message."""
    workspaces, agents = dict(told.workspaces), dict(told.agents)
    for workspace in update.deleted_workspaces:
        del workspaces[workspace.id]
    for agent in update.deleted_agents:
        assert agents.pop(agent.id)[1] == agent.workspace_id, "a deleted agent names its workspace"
    workspaces |= {each.id: (each.name, int(each.status)) for each in update.upserted_workspaces}
    agents |= {each.id: (each.name, each.workspace_id) for each in update.upserted_agents}
    return OwnedState(workspaces, agents)


@given(STATES, STATES)
def test_whoever_applies_the_difference_has_the_new_state(told: OwnedState, now: OwnedState) -> None:
    assert applied(difference(told, now), told) == now


@given(STATES)
def test_nothing_new_is_an_empty_message(state: OwnedState) -> None:
    assert difference(state, OwnedState(dict(state.workspaces), dict(state.agents))).SerializeToString() == b""


def caller(user_id: uuid.UUID) -> Caller:
    user = UserIdentity(user_id, "alice", active=True)
    return Caller(PeerID(bytes(16)), ManyAgentsPolicy(), "alice", user)


def nobody(payload: bytes) -> bool:
    raise AssertionError("a refused stream sends nothing")


@pytest.fixture
def open_updates(tmp_path: Path) -> Callable[[], WorkspaceUpdates]:
    return lambda: WorkspaceUpdates(Store.open(f"sqlite:///{tmp_path / 'store.db'}"))


@pytest.mark.parametrize(
    ("owner", "text"),
    [(b"short", "5 bytes, a user id has 16"), (b"x" * 16, "another user")],
)
async def test_streams_that_are_refused(open_updates: Callable[[], WorkspaceUpdates], owner: bytes, text: str) -> None:
    updates = open_updates()
    request = tailnet.WorkspaceUpdatesRequest(workspace_owner_id=owner)
    with pytest.raises(RpcError, match=text):
        await updates.stream(caller(uuid.uuid4()), request, nobody)


async def test_the_first_message_comes_even_when_there_is_nothing(open_updates: Callable[[], WorkspaceUpdates]) -> None:
    updates, user = open_updates(), uuid.uuid4()
    request = tailnet.WorkspaceUpdatesRequest(workspace_owner_id=user.bytes)
    send, received = trio.open_memory_channel[bytes](1)

    def take(payload: bytes) -> bool:
        send.send_nowait(payload)
        return True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(updates.stream, caller(user), request, take)
        with trio.fail_after(60):
            assert await received.receive() == b""
        nursery.cancel_scope.cancel()


async def test_a_client_that_does_not_read_ends_its_stream(
    open_updates: Callable[[], WorkspaceUpdates], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tailnet")
    updates, user = open_updates(), uuid.uuid4()
    request = tailnet.WorkspaceUpdatesRequest(workspace_owner_id=user.bytes)
    with pytest.raises(RpcError, match="does not read"):
        await updates.stream(caller(user), request, lambda payload: False)
    name = caller(user).name
    assert name
    assert f"! {name} is told of no more workspaces: this client does not read" in caplog.text


class Watcher:
    """A client of one owner's stream."""

    def __init__(self, updates: WorkspaceUpdates, owner: uuid.UUID) -> None:
        self._updates = updates
        self._owner = owner
        self.caller = caller(owner)
        self.received: list[tailnet.WorkspaceUpdate] = []

    async def run(self) -> None:
        request = tailnet.WorkspaceUpdatesRequest(workspace_owner_id=self._owner.bytes)
        await self._updates.stream(self.caller, request, self._take)

    def _take(self, payload: bytes) -> bool:
        self.received.append(tailnet.WorkspaceUpdate.FromString(payload))
        return True

    async def next(self) -> tailnet.WorkspaceUpdate:
        await wait_for(lambda: self.received)
        return self.received.pop(0)


class CountedReads:
    """The store's own reads, counted; they fail while `fails` is set."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real = store.callers.list_workspaces
        self.fails = False
        self.count = self.failures = 0
        monkeypatch.setattr(store.callers, "list_workspaces", self._read)

    def _read(self, owner: uuid.UUID, shared: Collection[uuid.UUID]) -> list[WorkspaceRow]:
        self.count += 1
        if self.fails:
            self.failures += 1
            raise StoreError("the disk is full")
        return self._real(owner, shared)


async def test_changes_told_and_untold_and_a_store_that_fails_for_a_while(
    store: Store, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr(workspaces_module, "LOOK_SECONDS", 0.02)
    fill(store)
    updates, reads = WorkspaceUpdates(store), CountedReads(store, monkeypatch)
    alice = make_id("alice")
    watcher = Watcher(updates, alice)
    nursery.start_soon(updates.run)
    nursery.start_soon(watcher.run)
    assert {each.id for each in (await watcher.next()).upserted_agents} == {peer_id("main"), peer_id("gpu")}
    store.callers.set_workspace_status(make_id("dev"), WorkspaceStatus.STOPPED, NOW)
    updates.changed(alice)
    told = await watcher.next()
    assert [(each.name, each.status) for each in told.upserted_workspaces] == [("dev", WorkspaceStatus.STOPPED)]
    assert not told.upserted_agents
    reads.fails = True
    store.callers.delete_agent(peer_id("gpu"))
    await wait_for(lambda: reads.failures >= 2)
    reads.fails = False
    assert [each.id for each in (await watcher.next()).deleted_agents] == [peer_id("gpu")]
    assert watcher.received == []


async def test_a_store_that_fails_at_first_is_waited_for(
    store: Store, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """The end of the stream would end the client's whole connection."""
    monkeypatch.setattr(workspaces_module, "LOOK_SECONDS", 0.02)
    fill(store)
    updates, reads = WorkspaceUpdates(store), CountedReads(store, monkeypatch)
    reads.fails = True
    watcher = Watcher(updates, make_id("bob"))
    nursery.start_soon(watcher.run)
    await wait_for(lambda: reads.failures >= 2)
    reads.fails = False
    assert [each.name for each in (await watcher.next()).upserted_workspaces] == ["shop"]


async def test_the_store_is_read_once_for_all_streams_of_an_owner_and_not_at_all_for_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr(workspaces_module, "LOOK_SECONDS", 0.02)
    fill(store)
    updates, reads = WorkspaceUpdates(store), CountedReads(store, monkeypatch)
    watchers = [Watcher(updates, make_id("alice")) for _ in range(10)]
    other = Watcher(updates, make_id("bob"))
    looked: list[int] = []
    real = store.callers.callers_generation
    monkeypatch.setattr(store.callers, "callers_generation", lambda: looked.append(1) or real())
    nursery.start_soon(updates.run)
    for watcher in (*watchers, other):
        nursery.start_soon(watcher.run)
    for watcher in (*watchers, other):
        await watcher.next()
    assert updates.counts.followers == 11
    await wait_for(lambda: len(looked) >= 2)  # so nothing of the start is still to be read
    before, seen = reads.count, len(looked)
    await wait_for(lambda: len(looked) >= seen + 3)
    assert reads.count == before, "a store in which nothing changed is asked for one number"
    updates.changed(make_id("carol"))
    store.callers.delete_agent(peer_id("gpu"))
    updates.changed(make_id("alice"))
    for watcher in watchers:
        assert [each.id for each in (await watcher.next()).deleted_agents] == [peer_id("gpu")]
    assert reads.count <= before + 3, "one read of alice, and one of both when the count of changes is looked at"
    assert other.received == []


async def test_nothing_is_kept_of_owners_whom_nobody_watches(store: Store) -> None:
    fill(store)
    updates = WorkspaceUpdates(store)
    async with trio.open_nursery() as nursery:
        watchers = [Watcher(updates, make_id("alice")) for _ in range(3)]
        for watcher in watchers:
            nursery.start_soon(watcher.run)
        for watcher in watchers:
            await watcher.next()
        updates.changed(make_id("alice"))
        nursery.cancel_scope.cancel()
    assert (updates.counts.followers, updates._watched, updates._changed) == (0, {}, set())


async def test_what_is_shared_comes_and_goes_for_whoever_it_is_shared_with(
    store: Store, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr(workspaces_module, "LOOK_SECONDS", 0.02)
    fill(store)
    updates, alice, shop = WorkspaceUpdates(store), make_id("alice"), make_id("shop")
    grants = {shop: frozenset({Right.READ})}
    watcher, other = Watcher(updates, alice), Watcher(updates, alice)
    assert isinstance(watcher.caller.identity, UserIdentity)
    without, watcher.caller.identity = watcher.caller.identity, replace(watcher.caller.identity, grants=grants)
    nursery.start_soon(updates.run)
    nursery.start_soon(watcher.run)
    nursery.start_soon(other.run)
    first = await watcher.next()
    assert {each.name for each in first.upserted_workspaces} == {"dev", "shop"}
    assert {each.name for each in first.upserted_agents} == {"main", "gpu", "web"}
    assert {each.name for each in (await other.next()).upserted_workspaces} == {"dev"}
    store.callers.set_workspace_status(shop, WorkspaceStatus.STOPPED, NOW)
    assert [each.status for each in (await watcher.next()).upserted_workspaces] == [WorkspaceStatus.STOPPED]
    # services/rights.py puts what somebody may do now into his caller.
    watcher.caller.identity = without
    gone = await watcher.next()
    assert [each.id for each in gone.deleted_workspaces] == [shop.bytes]
    assert [each.id for each in gone.deleted_agents] == [peer_id("web")]
    other.caller.identity = replace(without, grants=grants)
    assert [each.name for each in (await other.next()).upserted_agents] == ["web"]
    assert (watcher.received, other.received) == ([], [])
