"""SIGUSR2: another process takes the sockets over, and nobody sees more of it than a reconnect."""

from collections import Counter
from pathlib import Path

import trio

from tailnet.store.rows import AgentStatus
from tailnet.store.store import Store
from tests.support.replacement import Replaced, agents
from tests.support.seeds import fill, peer_id, seed_document
from tests.support.tailnet_driver import GOING_AWAY


async def test_a_coordinator_is_replaced_under_its_peers(
    store: Store, store_url: str, tmp_path: Path, nursery: trio.Nursery
) -> None:
    specs = agents(12)
    fill(store, seed_document(specs))
    names = [spec.name for spec in specs]
    run = Replaced(tmp_path, store_url, nursery)
    try:
        await run.start()
        await run.join(names, names[:4], relay_clients=4)
        await run.replace()
        assert await trio.to_thread.run_sync(store.database.dialect.claim) is is_shared(store_url)
        await run.wait_told(2)
        await wait_connected(store, names)
        assert [seen.troubles for seen in run.seen.values() if seen.troubles] == [], "nobody was refused"
        assert {seen.connects for seen in run.seen.values()} == {2}
        ends = Counter(end for name, seen in run.seen.items() for end in seen.ends if not name.startswith("relay"))
        assert ends == {GOING_AWAY: 16}
        assert set(run.probes) == {"HTTP/1.1 200 OK"} or set(run.probes) == {"HTTP/1.1 200 "}
    finally:
        await run.stop()


def is_shared(store_url: str) -> bool:
    """Whether servers may have the store together: of a file the new process has had the claim from the start."""
    return not store_url.startswith("sqlite")


async def wait_connected(store: Store, names: list[str]) -> None:
    """What the old process wrote last may not stand: everybody is here."""
    with trio.fail_after(60):
        while await trio.to_thread.run_sync(lambda: statuses(store, names)) != {AgentStatus.CONNECTED}:  # noqa: ASYNC110
            await trio.sleep(0.1)


def statuses(store: Store, names: list[str]) -> set[AgentStatus]:
    rows = [store.callers.get_agent(peer_id(name)) for name in names]
    return {row.status(row.last_connected_at, 30.0) for row in rows if row is not None and row.last_connected_at}
