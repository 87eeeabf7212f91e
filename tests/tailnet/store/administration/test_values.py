"""ETags name a state, and preconditions hold or do not."""

import pytest

from tailnet.errors import AdministrationError, Fault
from tailnet.store.administration.kinds import GRANT, USER
from tailnet.store.administration.values import ANY, Match, etag_of
from tailnet.store.rows import Right, Role
from tests.support.seeds import NOW, make_id

ROW = {"id": make_id("alice"), "username": "alice", "active": True, "role": Role.USER, "created_at": NOW}


def test_an_etag_is_that_of_the_state() -> None:
    assert etag_of(USER, ROW) == etag_of(USER, {**ROW, "created_at": None})
    changed = [{"username": "bob"}, {"active": False}, {"role": Role.ADMIN}, {"id": make_id("bob")}]
    assert len({etag_of(USER, {**ROW, **each}) for each in [{}, *changed]}) == 5


def test_an_etag_of_a_set_does_not_depend_on_its_order() -> None:
    ids = {"workspace_id": make_id("dev"), "user_id": make_id("bob")}
    one = etag_of(GRANT, {**ids, "rights": frozenset([Right.READ, Right.SSH])})
    assert one == etag_of(GRANT, {**ids, "rights": frozenset([Right.SSH, Right.READ])})
    assert one != etag_of(GRANT, {**ids, "rights": frozenset([Right.READ])})


@pytest.mark.parametrize(
    ("match", "etag", "holds"),
    [
        (ANY, None, True),
        (ANY, "a", True),
        (Match(frozenset({"a", "b"})), "b", True),
        (Match(frozenset({"a"})), "b", False),
        (Match(frozenset()), "b", False),
        (Match(frozenset({"a"})), None, False),
        (Match(must_exist=True), "a", True),
        (Match(must_exist=True), None, False),
        (Match(must_be_new=True), None, True),
        (Match(must_be_new=True), "a", False),
    ],
)
def test_preconditions(match: Match, etag: str | None, holds: bool) -> None:
    if holds:
        match.check(USER, etag)
        return
    with pytest.raises(AdministrationError) as caught:
        match.check(USER, etag)
    assert caught.value.fault is Fault.STALE
