"""The parts work as one object, and what was written is there after a restart."""

from uuid import UUID

from tailnet.store.store import Store
from tests.support.seeds import NOW, agent_token, came, fill, make_id, peer_id


async def test_everything_survives_a_restart(store_url: str) -> None:
    store = Store.open(store_url)
    await store.run(fill, store)
    await store.run(came, store, peer_id("main"), NOW)
    store.close()
    again = Store.open(store_url)
    agent = await again.run(again.callers.get_agent, peer_id("main"))
    again.close()
    assert agent is not None
    assert agent.first_connected_at == NOW


def test_agent_by_token(store: Store) -> None:
    fill(store)
    token = UUID(agent_token("gpu"))
    found = store.get_agent_by_token(token)
    assert found is not None
    assert found.id == peer_id("gpu")
    assert store.get_agent_by_token(make_id("nobody")) is None
