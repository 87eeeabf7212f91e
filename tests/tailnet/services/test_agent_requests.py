"""Reports over HTTP as a service: who hears of them, and agents that are gone.  What is kept: tests/tailnet/api."""

from uuid import UUID

import pytest

from tailnet.services.agent_requests import AgentRequests
from tailnet.services.reports import AgentReports
from tailnet.store.outbox import Outbox
from tailnet.store.rows import AgentIdentity, AppHealth, AppState
from tailnet.store.store import Store
from tests.support.seeds import NOW, defined_document, fill, make_id, peer_id

MAIN = peer_id("main")
EDITOR = make_id("editor of main")


@pytest.fixture
def heard() -> list[UUID]:
    return []


@pytest.fixture
def requests(store: Store, heard: list[UUID]) -> AgentRequests:
    fill(store, defined_document())
    reports = AgentReports(store, Outbox(store), clock=lambda: NOW)
    return AgentRequests(store, reports, changed=heard.append, clock=lambda: NOW)


def identity(store: Store) -> AgentIdentity:
    [found] = store.callers.agent_identities([MAIN]).values()
    return found


async def test_owners_hear_of_what_was_taken(store: Store, requests: AgentRequests, heard: list[UUID]) -> None:
    caller = identity(store)
    assert await requests.set_healths(caller, {make_id("nobody"): AppHealth.HEALTHY})
    assert not await requests.add_status(caller, "nobody", AppState.IDLE, "", "")
    assert heard == []
    assert await requests.set_healths(caller, {EDITOR: AppHealth.HEALTHY}) == ""
    assert await requests.add_status(caller, "editor", AppState.IDLE, "", "")
    assert heard == [make_id("alice")] * 2


async def test_an_agent_that_was_deleted(store: Store, requests: AgentRequests) -> None:
    caller = identity(store)
    store.callers.delete_agent(MAIN)
    assert await requests.read(MAIN) is None
    assert await requests.set_healths(caller, {EDITOR: AppHealth.HEALTHY})
    assert not await requests.add_status(caller, "editor", AppState.IDLE, "", "")
