"""Every mistake in a seed is named with its place, no line repeats a token, garbage raises only SeedError."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.errors import SeedError
from tailnet.store import seed
from tailnet.store.problems import MAX_PROBLEMS
from tailnet.store.rows import Right, Role
from tailnet.store.seed import parse_seed
from tests.support.seeds import AgentSpec, make_id, peer_id, seed_document, user_token

GRANT = {"workspace_id": str(make_id("dev")), "user_id": str(make_id("bob")), "rights": ["ssh"]}
SECRET = "00000000-dead-beef-dead-000000000000"


def with_change(path: str, value: object) -> str:
    """The small world with one value changed; path as in messages, e.g. agents[0].name.  `...` removes the key."""
    document: Any = seed_document()
    where, _, key = path.rpartition(".")
    target = document
    if where:
        name, index = where.rstrip("]").split("[")
        target = document[name][int(index)]
    if value is ...:
        del target[key]
    else:
        target[key] = value
    return json.dumps(document)


def problems(text: str | bytes) -> list[str]:
    with pytest.raises(SeedError) as caught:
        parse_seed(text, "world.json")
    return list(caught.value.problems)


def test_a_good_seed() -> None:
    parsed = parse_seed(json.dumps(seed_document()))
    assert [user.username for user in parsed.users] == ["alice", "bob"]
    assert parsed.users[0].token.id == user_token("alice")[:10]
    assert parsed.agents[0].id == peer_id("main")
    assert parsed.agents[0].workspace_id == make_id("dev")
    assert parsed.warnings == []


def test_roles_and_grants() -> None:
    document: Any = seed_document()
    document["users"][0]["role"] = "auditor"
    document["grants"] = [GRANT]
    parsed = parse_seed(json.dumps(document))
    assert [user.role for user in parsed.users] == [Role.AUDITOR, None]
    [grant] = parsed.grants
    assert (grant.workspace_id, grant.user_id) == (make_id("dev"), make_id("bob"))
    assert grant.rights == {Right.SSH, Right.READ}  # who may enter may look


def test_both_lists_may_be_absent() -> None:
    parsed = parse_seed("{}")
    assert (list(parsed.users), list(parsed.agents)) == ([], [])


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("agents[1].id", ..., "agents[1].id: is missing"),
        ("agents[1].id", "abc", "agents[1].id: wants a UUID such as 01234567-89ab-cdef-0123-456789abcdef, got 'abc'"),
        ("agents[1].id", 7, "agents[1].id: wants text, got 7"),
        ("agents[1].id", None, "agents[1].id: wants text, got null"),
        ("agents[1].id", "00000000-0000-0000-0000-000000000000", "agents[1].id: is the nil UUID, which peers refuse"),
        ("agents[1].id", str(make_id("main")), "agents[1].id: clashes with agents[0].id"),
        ("agents[1].token", "hunter2-hunter2", "agents[1].token: wants a UUID"),
        ("agents[1].token", str(make_id("token of main")), "agents[1].token: clashes with agents[0].token"),
        ("agents[1].token", str(make_id("token of main")).upper(), "agents[1].token: clashes with agents[0].token"),
        ("agents[1].name", "", "agents[1].name: is empty"),
        ("agents[1].name", "a\nb", "agents[1].name: has characters that cannot be printed"),
        ("agents[1].name", "half \ud800", "agents[1].name: has characters that cannot be printed"),
        ("agents[1].name", "x" * 257, "agents[1].name: has 257 characters, at most 256"),
        ("agents[1].workspace_name", "other", "agents[1].workspace_name: is other, but agents[0] of the same"),
        ("agents[1].owner_id", str(make_id("bob")), "agents[1].owner_id: is "),
        ("agents[1].owner_id", [], "agents[1].owner_id: wants text, got a list"),
        ("users[1].username", "alice", "users[1].username: clashes with users[0].username"),
        ("users[1].token", user_token("alice"), "users[1].token: clashes with users[0].token"),
        ("users[1].token", "with blank in it", "users[1].token: wants visible ASCII"),
        ("users[1].token", "semi;colon", "users[1].token: wants visible ASCII"),
        ("users[1].token", {}, "users[1].token: wants text, got an object"),
        ("users[1].role", "root", "users[1].role: wants one of user, auditor, admin, got 'root'"),
        ("users[1].role", 1, "users[1].role: wants one of user, auditor, admin, got 1"),
        ("grants", [7], "grants[0]: wants an object with workspace_id, user_id, rights, got 7"),
        ("grants", [GRANT | {"rights": "read"}], "grants[0].rights: wants a list of rights, got text"),
        ("grants", [GRANT | {"rights": ["ssh", "root"]}], "grants[0].rights[1]: wants one of read, ssh, application-"),
        ("grants", [GRANT | {"user_id": "bob"}], "grants[0].user_id: wants a UUID"),
        ("grants", [GRANT | {"right": []}], "grants[0].right: unknown key: known are workspace_id, user_id, rights;"),
        ("grants", [GRANT, GRANT], "grants[1].user_id: clashes with grants[0].user_id"),
        ("users", {}, "users: wants a list, got an object"),
        ("agents", "many", "agents: wants a list, got text"),
    ],
)
def test_one_mistake_one_line(path: str, value: object, reason: str) -> None:
    [line] = problems(with_change(path, value))
    assert line.startswith(f"world.json: {reason}")


@pytest.mark.parametrize("path", ["agents[0].token", "users[0].token"])
@pytest.mark.parametrize("value", [SECRET + "x", SECRET + "\n", SECRET * 40, f"{SECRET};"])
def test_no_line_repeats_a_token(path: str, value: str) -> None:
    if path == "users[0].token" and value == SECRET + "x":
        return  # a user's token may look like that
    assert all("dead" not in line for line in problems(with_change(path, value)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1, column 1: not JSON"),
        ('{"users": [\n{"id": }]}', "line 2, column 8: not JSON"),
        (b"\xff\xfe\x00", "not "),
        ("[]", "wants an object"),
        ("null", "wants an object"),
        ('{"users": [1]}', "users[0]: wants an object with id, username, token, role, got 1"),
        ('{"users": [], "users": []}', "an object has the key 'users' twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_texts_that_are_no_seed(text: str | bytes, reason: str) -> None:
    [line] = problems(text)
    assert line.startswith("world.json: ")
    assert reason in line


def test_all_mistakes_at_once_up_to_twenty() -> None:
    document = seed_document()
    document["agents"][0]["id"] = "x"
    document["agents"][2]["name"] = ""
    document["users"][0]["token"] = ""
    assert len(problems(json.dumps(document))) == 3
    many = seed_document(tuple(AgentSpec(str(number), "ws", "alice") for number in range(100)))
    for agent in many["agents"]:
        agent["token"] = "no"
    lines = problems(json.dumps(many))
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1].endswith("these are the first 20")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"groups": []}, "groups: unknown key: known are users, agents, grants"),
        ({"user": [], "users": []}, "user: unknown key: known are users, agents, grants; did you mean users?"),
        ({"Agents": []}, "Agents: unknown key: known are users, agents, grants; did you mean agents?"),
        ({"\x1b[2J": []}, "\\x1b[2J: unknown key"),
    ],
)
def test_an_unknown_list_is_a_mistake(change: dict[str, object], says: str) -> None:
    """Under a misspelt key stands somebody whom the import would leave out without a word."""
    [line] = problems(json.dumps(seed_document() | change))
    assert line.startswith(f"world.json: {says}")


def test_unknown_keys_are_mistakes_with_their_places() -> None:
    document: Any = seed_document()
    document["agents"][1]["tokne"] = "x"
    document["users"][0]["admin"] = True
    assert [line.split(": ")[1] for line in problems(json.dumps(document))] == ["users[0].admin", "agents[1].tokne"]


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("place", ["users[0].username", "agents[2].id", "users", "agents[0].apps"])
def test_a_number_of_thousands_of_digits_is_a_mistake_with_its_place(place: str, sign: str) -> None:
    text = with_change(place, "HERE").replace('"HERE"', sign + "1" * 5000)
    [line] = problems(text)
    assert line.startswith(f"world.json: {place}: wants ")
    assert line.endswith("got a number of 5,000 digits")


def test_short_tokens_are_told() -> None:
    parsed = parse_seed(with_change("users[0].token", "hunter2"), "world.json")
    assert parsed.users[0].token.opaque
    [warning] = parsed.warnings
    assert "1 user tokens are shorter" in warning
    assert "hunter2" not in warning


def test_a_file_that_is_far_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seed, "MAX_SEED_BYTES", 10)
    [line] = problems("{" + " " * 20 + "}")
    assert "is it the right file" in line


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(SECRET),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["users", "agents", "id", "token", "username", "name", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_read_or_refused(value: object) -> None:
    with suppress(SeedError):
        parse_seed(json.dumps(value))


@given(st.binary(max_size=64) | st.text(max_size=64))
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    with suppress(SeedError):
        parse_seed(text)
