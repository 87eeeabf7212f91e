"""Pages that miss nothing and show nothing twice, and all of a store in an order in which it can be made again."""

from itertools import pairwise

from tailnet.services.administration.service import Administration
from tailnet.store.administration.kinds import AGENT, KINDS, USER
from tailnet.store.store import Store
from tests.support.administration import DEV, MAIN, put
from tests.support.seeds import defined_document, fill, make_id, peer_id


def test_pages(store: Store) -> None:
    fill(store)
    work = Administration(store)
    for number in range(25):
        put(work, "user", make_id(f"user {number}"), username=f"user {number}")
    seen: list[object] = []
    after = None
    while page := store.administration.page(USER, {}, after, 10):
        seen += [row["id"] for row in page]
        after = seen[-1]
        store.callers.update_user(page[0]["id"], work.clock(), active=False)  # moves nothing
    assert len(seen) == 27
    assert seen == sorted(seen, key=str)
    assert len(store.administration.page(USER, {"active": False}, None, 10)) == 3


def test_everything_comes_behind_what_it_refers_to(store: Store) -> None:
    fill(store, defined_document())
    work = Administration(store)
    parents = [MAIN, make_id("child"), make_id("grandchild")]
    for parent, child in pairwise(parents):
        put(work, "agent", child, name="x", workspace_id=str(DEV), parent_id=str(parent))
    seen: dict[object, set[object]] = {}
    agents = []
    for exported in store.administration.everything():
        for column, table in exported.kind.references.items():
            value = exported.row[column]
            assert value is None or value in seen[table.name]
        seen.setdefault(exported.kind.table.name, set()).add(exported.kind.ident(exported.row))
        if exported.kind is AGENT:
            agents.append((exported.row["id"], {sort: len(items) for sort, items in exported.definitions.items()}))
    assert len(agents) == 5
    assert dict(agents)[peer_id("main")] == {"apps": 2, "scripts": 2, "metadata": 2}
    assert agents[-1][0] == peer_id("grandchild")


def test_one_that_is_not_there(store: Store) -> None:
    for kind in KINDS.values():
        ident = (make_id("x"), make_id("y")) if len(kind.key) > 1 else "x" if kind.name == "token" else peer_id("x")
        if kind.name in ("user", "workspace", "app", "script"):
            ident = make_id("x")
        assert store.administration.get(kind, ident) is None
