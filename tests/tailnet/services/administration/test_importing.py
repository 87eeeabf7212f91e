"""Files of JSON lines: all of one is stored, or nothing."""

import json

import pytest

from tailnet.errors import SeedError
from tailnet.services.administration.importing import import_lines, is_lines
from tailnet.services.administration.service import Administration
from tailnet.store.store import Store
from tests.support.administration import ACTOR, agent_line, everything
from tests.support.seeds import fill, make_id, peer_id, seed_document

pytestmark = pytest.mark.stores


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (agent_line("x"), True),
        (b'\xef\xbb\xbf\n {"kind" : "user"}', True),
        (json.dumps(seed_document()).encode(), False),
        (b'{"users": []}', False),
        (b"", False),
    ],
)
def test_which_form_it_is(text: bytes, is_one: bool) -> None:
    assert is_lines(text) is is_one


def test_all_or_nothing(store: Store) -> None:
    fill(store)
    work = Administration(store)
    before = everything(store)
    good = agent_line("new")
    for wrong in (b"{\n", agent_line("other", workspace_id=str(make_id("nowhere"))), agent_line("other", nam="x")):
        with pytest.raises(SeedError) as caught:
            import_lines(work, ACTOR, good * 3 + wrong + good, "a file")
        assert everything(store) == before
        assert caught.value.problems[0].startswith("a file: line 4: ")
    counts = import_lines(work, ACTOR, good, "a file")
    assert dict(counts["agent"]) == {"created": 1}
    assert store.callers.get_agent(peer_id("new")) is not None


def test_mistakes_are_told_up_to_twenty(store: Store) -> None:
    with pytest.raises(SeedError) as caught:
        import_lines(Administration(store), ACTOR, b"{\n" * 50, "a file")
    assert len(caught.value.problems) == 20
