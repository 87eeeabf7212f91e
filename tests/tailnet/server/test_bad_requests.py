"""Every RPC of agents, with requests as no agent in its right mind sends them: answered, and nobody is harmed."""

from typing import Final

import pytest

from tailnet.errors import RpcError
from tailnet.proto.generated import agent_pb2 as agent
from tailnet.proto.services import AGENT as RPCS
from tailnet.server.server import CoordinatorServer
from tailnet.store.outbox import Loss
from tailnet.store.store import Store
from tests.support.bad_requests import requests_of
from tests.support.seeds import agent_token, defined_document, fill, make_id, peer_id
from tests.support.tailnet_driver import AGENT, AGENT_DOOR, open_peer, wait_for
from tests.tailnet.conftest import Serve

pytestmark = pytest.mark.stores

GPU = peer_id("gpu")
METHODS: Final = agent.DESCRIPTOR.services_by_name["Agent"].methods_by_name


def rows_of_others(store: Store) -> object:
    """What stands of agents that did not call."""
    [dev] = store.callers.list_workspaces(make_id("alice"))
    others = [each for each in dev.agents if each.name == "gpu"]
    return others, store.callers.list_workspaces(make_id("bob")), store.apps.definitions(GPU)


def is_written(server: CoordinatorServer, store: Store) -> bool:
    """Whether it stands in the store that the other agent is here, and nothing more of that comes."""
    other = store.callers.get_agent(GPU)
    return other is not None and other.seen_by is not None and not server.reading().outbox["presence"].waiting


@pytest.mark.parametrize("name", METHODS)
async def test_whatever_is_asked_is_answered_and_harms_nobody(
    serve: Serve, store: Store, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(store, defined_document())
    # No sign of life is due while this runs: a row of the other agent changes for no reason of its own.
    server = await serve(max_reports=1_000_000, max_report_bytes=1 << 30, agent_ping_seconds=3_600.0)
    rpc = RPCS[AGENT + name]
    async with (
        open_peer(server, AGENT_DOOR, agent_token("gpu")) as other,
        open_peer(server, AGENT_DOOR, agent_token("main")) as peer,
    ):
        # That the other one came is on its way to the store.
        await wait_for(lambda: is_written(server, store))
        before = rows_of_others(store)
        for what, request in requests_of(rpc.request):
            try:
                await peer.call(rpc.path, request, rpc.response)
            except RpcError as error:
                said = str(error)
                assert 0 < len(said) < 1_000, (what, said)
                assert "sqlalchemy" not in said.lower(), (what, said)
                assert "internal error" not in said, (what, said)
        # Its connection lives, and what others report is written, behind all of that.
        await peer.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)
        assert rows_of_others(store) == before
        honest = agent.BatchUpdateMetadataRequest(metadata=[{"key": "a", "result": {"value": "b"}}])
        await other.call(AGENT + "BatchUpdateMetadata", honest, agent.BatchUpdateMetadataResponse)
        await wait_for(lambda: [each.value for each in store.reports.list_metadata(GPU)] == ["b"])
        await wait_for(lambda: not any(each.waiting for each in server.reading().outbox.values()))
    assert not any(each.lost[Loss.UNFIT] for each in server.reading().outbox.values()), "a row that no store takes"
    assert not [record for record in caplog.records if record.exc_info], "a defect of ours, not a fault of the peer"
