"""Identities in JSON: each field that is wrong is named, none is repeated."""

from typing import Any

import pytest

from tailnet.auth.claims import MAX_GRANTS, Nonsense, read_agent, read_grants, read_rights, read_user
from tailnet.store.rows import Right, Role
from tests.support.control_plane import agent, user
from tests.support.seeds import make_id, peer_id

SECRET = "s3cretHunter2"


def test_right_values() -> None:
    found = read_agent(agent("main", parent_id=str(make_id("p"))))
    assert (found.id, found.parent_id, found.owner_name) == (peer_id("main"), peer_id("p"), "alice")
    assert read_agent(agent("main", parent_id=None, unheard_of=1)).parent_id is None
    assert (read_user(user("bob")).role, read_user(user("bob")).active) == (Role.USER, True)
    assert read_user(user("bob", role="auditor", active=False)).role is Role.AUDITOR
    assert read_rights(["ssh"], "rights") == {Right.SSH, Right.READ}
    assert read_rights([], "rights") == frozenset()
    assert read_grants({str(make_id("dev")): ["read"]}, "rights") == {make_id("dev"): {Right.READ}}
    assert read_grants(None, "rights") == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", SECRET),
        ("id", None),
        ("id", 7),
        ("id", "00000000-0000-0000-0000-000000000000"),
        ("workspace_id", [SECRET]),
        ("owner_id", {}),
        ("parent_id", SECRET),
        ("name", ""),
        ("name", "x" * 257),
        ("owner_name", f"{SECRET}\x1b[2J"),
        ("workspace_name", "half \ud800"),
    ],
)
def test_what_is_wrong_with_an_agent_is_named(field: str, value: object) -> None:
    with pytest.raises(Nonsense, match=rf"agent\.{field}") as caught:
        read_agent(agent("main") | {field: value})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("field", ["id", "name", "workspace_id", "workspace_name", "owner_id", "owner_name"])
def test_what_is_missing_is_named(field: str) -> None:
    said: dict[str, Any] = agent("main")
    del said[field]
    with pytest.raises(Nonsense, match=rf"agent\.{field}"):
        read_agent(said)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"role": "root"}, "user.role"),
        ({"role": []}, "user.role"),
        ({"role": None}, "user.role"),
        ({"active": "yes"}, "user.active"),
        ({"active": None}, "user.active"),
        ({"username": 7}, "user.username"),
    ],
)
def test_what_is_wrong_with_a_user_is_named(change: dict[str, object], names: str) -> None:
    with pytest.raises(Nonsense, match=names):
        read_user(user("bob") | change)


@pytest.mark.parametrize("given", [None, {}, "read", ["root"], [None], [[]], ["read"] * 5])
def test_rights_that_are_none(given: object) -> None:
    with pytest.raises(Nonsense, match="rights"):
        read_rights(given, "rights")


@pytest.mark.parametrize(
    "given", [[], "x", {"dev": ["read"]}, {str(make_id("a")): "read"}, {str(number): [] for number in range(300)}]
)
def test_grants_that_are_none(given: object) -> None:
    with pytest.raises(Nonsense, match="rights"):
        read_grants(given, "rights")
    assert MAX_GRANTS < 300


@pytest.mark.parametrize("given", [None, [], "x", 7])
def test_no_objects(given: object) -> None:
    for read in (read_agent, read_user):
        with pytest.raises(Nonsense, match="is no object"):
            read(given)
