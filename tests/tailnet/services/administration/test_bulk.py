"""Streams of lines: a result for each in order, wrong ones between good ones, a store that goes away half-way."""

import json
from collections.abc import Sequence

import pytest

from tailnet.errors import AdministrationError, Fault, StoreError, StoreTrouble
from tailnet.services.administration import bulk, lines
from tailnet.services.administration.bulk import LINES_AT_ONCE, BulkChange, LineResult, told
from tailnet.services.administration.service import Administration
from tailnet.store.store import Store
from tests.support.administration import ACTOR, DEV, MAIN, agent_line
from tests.support.seeds import agent_token, fill, make_id, peer_id

pytestmark = pytest.mark.stores


@pytest.fixture
def work(store: Store) -> Administration:
    fill(store)
    return Administration(store)


async def send(work: Administration, text: bytes, size: int = 1 << 16) -> list[LineResult]:
    change = BulkChange(work, ACTOR)
    results = [each for at in range(0, len(text), size) for each in await change.feed(text[at : at + size])]
    results += await change.finish()
    assert sum(change.counts.values()) == len(results)
    return results


def words(results: Sequence[LineResult]) -> list[object]:
    return [
        (each.number, each.error.fault if isinstance(each.error, AdministrationError) else told(each).get("result"))
        for each in results
    ]


async def test_wrong_lines_between_good_ones(work: Administration, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines.LineCutter.__init__, "__defaults__", (2_000,))
    text = b"".join(
        [
            agent_line("one"),
            b"{malformed\n",
            b"\n",
            agent_line("two", name="x" * 3_000),
            agent_line("three", token=agent_token("web")),
            agent_line("four", workspace_id=str(make_id("nowhere"))),
            b'{"kind": "user", "id": "' + str(make_id("carol")).encode() + b'", "username": "carol"}\n',
            agent_line("one"),
            agent_line("five").strip(),
        ]
    )
    for size in (1 << 16, 7):
        results = await send(work, text, size)
        good = "created" if size > 7 else "unchanged"
        assert words(results) == [
            (1, good),
            (2, Fault.INVALID),
            (4, Fault.TOO_LARGE),
            (5, Fault.CONFLICT),
            (6, Fault.INVALID),
            (7, good),
            (8, "unchanged"),
            (9, good),
        ]
    assert work.store.callers.get_agent(peer_id("five")) is not None
    assert work.store.callers.get_agent(peer_id("four")) is None


async def test_a_token_is_told_once(work: Administration) -> None:
    line = json.dumps({"kind": "agent", "id": str(make_id("new")), "name": "new", "workspace_id": str(DEV)}).encode()
    first, second = [told(each) for each in await send(work, line + b"\n" + line)]
    assert (first["result"], len(first["token"])) == ("created", 36)
    assert (second["result"], "token" in second) == ("unchanged", False)
    assert first["etag"] == second["etag"]


async def test_many_go_in_some_transactions(work: Administration) -> None:
    before = work.store.database.writer.transactions
    text = b"".join(agent_line(f"agent {number}") for number in range(3 * LINES_AT_ONCE))
    results = await send(work, text, len(text))
    assert [each.number for each in results] == list(range(1, 3 * LINES_AT_ONCE + 1))
    assert work.store.database.writer.transactions - before == 3
    assert len(work.store.audit.page({"action": "create"}, None, 1_000)) == 3 * LINES_AT_ONCE


async def test_a_line_that_the_store_cannot_hold(work: Administration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever slips through the checks is that line's trouble alone."""
    good = bulk.put_lines

    def put_lines(changes: object, some: Sequence[lines.Line]) -> object:
        if any(each.id == str(make_id("bad")) for each in some):
            raise StoreError("it does not fit", StoreTrouble.UNFIT)
        return good(changes, some)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(bulk, "put_lines", put_lines)
    results = await send(work, b"".join(agent_line(name) for name in ("one", "bad", "two")))
    assert [told(each).get("result") for each in results] == ["created", None, "created"]
    assert isinstance(results[1].error, StoreError)


async def test_a_store_that_goes_away(work: Administration, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is refused at once: each line that asked anew would wait until the store gives up."""
    asked = []

    def put_lines(changes: object, some: object) -> object:
        asked.append(some)
        raise StoreError("the disk is full", StoreTrouble.FULL)

    change = BulkChange(work, ACTOR)
    assert told((await change.feed(agent_line("one")))[0])["result"] == "created"
    monkeypatch.setattr(bulk, "put_lines", put_lines)
    results = await change.feed(agent_line("two") + b"{\n" + agent_line("three"))
    results += await change.feed(agent_line("four"))
    assert len(asked) == 1
    assert [type(each.error) for each in results] == [StoreError, AdministrationError, StoreError, StoreError]
    assert work.store.callers.get_agent(peer_id("one")) is not None
    assert MAIN
