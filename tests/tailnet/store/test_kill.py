"""A process that is killed in the middle of its writes: what was acknowledged as written through is there."""

import signal
import subprocess
import sys
from uuid import UUID

import pytest

from tailnet.store.database import Database
from tailnet.store.store import Store
from tests.support.gobuild import ROOT
from tests.support.seeds import fill, make_id, peer_id

# Says each id once the store has it, from many tasks at a time; reports of agents go on beside it.
WRITER = """
import sys, trio
from datetime import UTC, datetime
from uuid import uuid4
from tailnet.services.reports import AgentReports
from tailnet.store.outbox import Outbox
from tailnet.store.rows import StatsReport
from tailnet.store.store import Store
from tailnet.types import PeerID
from tests.support.seeds import make_id, peer_id

async def main():
    store = Store.open(sys.argv[1])
    outbox = Outbox(store)
    reports = AgentReports(store, outbox)

    async def add_agents():
        while True:
            ident = uuid4()
            child = PeerID(ident.bytes)
            await store.run(
                store.callers.add_sub_agent, peer_id("main"), child, ident.bytes * 2, "child", datetime.now(UTC)
            )
            print("agent", ident, flush=True)

    async def add_tokens():
        while True:
            token = uuid4()
            now = datetime.now(UTC)
            await store.run(store.callers.add_user_token, make_id("alice"), str(token), token.bytes * 2, now)
            print("token", token, flush=True)

    async def report():
        while True:
            reports.note_stats(StatsReport(peer_id("main"), 1, 2, 3, {}, datetime.now(UTC)))
            await outbox.write_round()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(add_agents)
            nursery.start_soon(add_tokens)
        nursery.start_soon(report)

trio.run(main)
"""
# Some in one transaction, some in the next.
ENOUGH = 60


@pytest.mark.parametrize("after", [1, ENOUGH, 3 * ENOUGH])
def test_what_was_acknowledged_is_there(store_url: str, after: int) -> None:
    store = Store.open(store_url)
    fill(store)
    store.close()
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, store_url], cwd=ROOT, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    assert process.stdout is not None
    acknowledged: list[str] = []
    for line in process.stdout:
        acknowledged.append(line)
        if len(acknowledged) == after:
            break
    process.send_signal(signal.SIGKILL)
    # What it had said by then was true as well; the last line may be cut.
    rest = process.stdout.read()
    acknowledged += [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    database = Database.open(store_url)
    store = Store(database)
    said = [line.split() for line in acknowledged]
    agents = {UUID(ident) for kind, ident in said if kind == "agent"}
    tokens = {ident for kind, ident in said if kind == "token"}
    assert agents <= {UUID(bytes=bytes(row.id)) for row in store.callers.list_sub_agents(peer_id("main"))}
    assert store.callers.user_tokens(tokens).keys() == tokens
    assert store.callers.find_user("alice") is not None
    assert len(agents) + len(tokens) >= after
    assert make_id("alice")
    store.close()
