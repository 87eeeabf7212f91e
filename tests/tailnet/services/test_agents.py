"""An agent at one moment: what the clock makes of it, its latencies, and that its halves belong together."""

import threading
from datetime import timedelta

import pytest

from derp.map import DERPMap, DERPRegion
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.services.agents import Agents, Latency, measured_latencies
from tailnet.store.rows import (
    AgentStatus,
    ConnectionAction,
    ConnectionReport,
    ConnectionType,
    LifecycleChange,
    LifecycleState,
    LogSource,
    RunStage,
    RunStatus,
    ScriptRun,
)
from tailnet.store.store import Store
from tailnet.types import PeerID
from tests.support.seeds import NOW, came, defined_document, fill, make_id, peer_id

MAIN = peer_id("main")
MAP = DERPMap({5: DERPRegion(5, "five", "Five")})


class LastNode:
    def __init__(self, **fields: object) -> None:
        self.raw = tailnet.Node(**fields).SerializeToString()  # type: ignore[arg-type]  # tests spell the fields

    def node(self, peer_id: PeerID) -> bytes | None:
        return self.raw if peer_id == MAIN else None


@pytest.fixture
def agents(store: Store) -> Agents:
    fill(store, defined_document())
    node = LastNode(preferred_derp=5, derp_latency={"5-v4": 0.25})
    return Agents(store, node, lambda: MAP, 30.0, lambda: NOW)


async def test_all_of_an_agent(agents: Agents, store: Store) -> None:
    came(store, MAIN, NOW)
    store.reports.add_log_source(LogSource(MAIN, make_id("source"), "Start", "/icon.png", NOW))
    run = ScriptRun(make_id("start of main"), NOW, NOW, 7, RunStage.START, RunStatus.EXIT_FAILURE)
    store.apps.add_script_runs([(MAIN, run)])
    view = await agents.describe(MAIN)
    assert view is not None
    assert (view.agent.name, view.status, view.unhealthy) == ("main", AgentStatus.CONNECTED, "")
    assert [each.slug for each in view.apps] == ["editor", "shell"]
    assert view.apps[0].healthcheck.interval == 5
    assert view.start_blocks_login
    start, nightly = view.scripts
    assert (start.exit_code, start.status, nightly.exit_code, nightly.status) == (7, RunStatus.EXIT_FAILURE, None, None)
    assert [each.display_name for each in view.log_sources] == ["Start"]
    assert view.latencies == {"Five": Latency(0.25, True)}


async def test_nobody(agents: Agents) -> None:
    assert await agents.describe(peer_id("nobody")) is None
    assert await agents.describe_history(peer_id("nobody")) is None


async def test_who_was_on_it(agents: Agents, store: Store) -> None:
    session = ConnectionReport(
        MAIN, make_id("session"), ConnectionAction.CONNECT, ConnectionType.SSH, NOW, "::1", 0, "", "ssh"
    )
    store.reports.insert_connections([session], NOW)
    history = await agents.describe_history(MAIN)
    assert history is not None
    assert list(history.connections) == [session]
    assert history.view == await agents.describe(MAIN)


async def test_an_agent_that_is_deleted_meanwhile_is_whole_or_not_there(
    agents: Agents, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row, apps and scripts come from one snapshot: whoever deletes the agent between two reads changes nothing."""
    read = store.apps.definitions

    def delete_first(agent_id: PeerID) -> object:
        deleter = threading.Thread(target=store.callers.delete_agent, args=(agent_id,))
        deleter.start()
        deleter.join()
        return read(agent_id)

    monkeypatch.setattr(store.apps, "definitions", delete_first)
    view = await agents.describe(MAIN)
    assert view is not None
    assert [each.slug for each in view.apps] == ["editor", "shell"]
    assert await agents.describe(MAIN) is None


@pytest.mark.parametrize(
    ("silent_seconds", "status", "unhealthy"),
    [
        (29, AgentStatus.CONNECTED, "agent startup script exited with an error"),
        (31, AgentStatus.DISCONNECTED, "agent has lost connection"),
    ],
)
async def test_the_clock_decides(
    agents: Agents, store: Store, silent_seconds: float, status: AgentStatus, unhealthy: str
) -> None:
    seen = NOW - timedelta(seconds=silent_seconds)
    came(store, MAIN, seen)
    store.reports.update_lifecycles([LifecycleChange(MAIN, LifecycleState.START_ERROR, NOW)])
    view = await agents.describe(MAIN)
    assert view is not None
    assert (view.status, view.unhealthy) == (status, unhealthy)
    assert view.disconnected_at == (seen if status is AgentStatus.DISCONNECTED else None)


@pytest.mark.parametrize("raw", [b"\xff\xff", b"", None])
def test_a_node_that_does_not_parse_has_no_latencies(raw: bytes | None) -> None:
    assert measured_latencies(raw, MAP) == {}


def test_keys_and_numbers_that_are_none_cost_only_themselves() -> None:
    latencies = {"5-v4": 0.25, "7-v6": 0.5, "no": 1.0, "8-v4": float("nan"), "9" * 20: 1.0, "": 2.0}
    raw = LastNode(preferred_derp=7, derp_latency=latencies).raw
    assert measured_latencies(raw, MAP) == {"Five": Latency(0.25, False), "Unnamed 7": Latency(0.5, True)}
