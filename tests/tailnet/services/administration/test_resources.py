"""From JSON to rows and back, ids of each kind, and tokens that are made or brought."""

import hashlib
import json
from typing import Any

import pytest

from tailnet.errors import AdministrationError, Fault
from tailnet.services.administration.resources import RESOURCES, new_token
from tailnet.store.administration.kinds import AGENT, TOKEN
from tailnet.tokens import agent_token_digest, parse_user_token
from tailnet.types import PeerID
from tests.support.administration import ALICE, DEV, MAIN
from tests.support.seeds import make_id


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("user", "x"),
        ("user", str(ALICE).replace("-", "")),
        ("user", "{" + str(ALICE) + "}"),
        ("user", "00000000-0000-0000-0000-000000000000"),
        ("agent", "../x"),
        ("token", ""),
        ("token", "short"),
        ("token", "aaaaaaaaa!"),
        ("token", "opaque:xyz"),
        ("token", "opaque:ABCDEF0123456789"),
        ("grant", str(ALICE)),
        ("grant", f"{ALICE}:x"),
        ("grant", f"{ALICE}:{ALICE}:{ALICE}"),
    ],
)
def test_what_is_no_id(kind: str, text: str) -> None:
    with pytest.raises(AdministrationError) as caught:
        RESOURCES[kind].parse_id(text)
    assert caught.value.fault is Fault.INVALID


def test_ids() -> None:
    assert RESOURCES["user"].parse_id(str(ALICE).upper()) == ALICE
    assert RESOURCES["agent"].parse_id(str(MAIN)) == PeerID(MAIN.bytes)
    assert RESOURCES["token"].parse_id("opaque:0123456789abcdef") == "opaque:0123456789abcdef"
    assert RESOURCES["grant"].parse_id(f"{DEV}:{ALICE}") == (DEV, ALICE)
    for resource in RESOURCES.values():
        if resource.name != "grant":
            made = [resource.new_id() for _ in range(3)]
            assert len(set(made)) == 3
            assert [resource.parse_id(str(each)) for each in made] == made


def wanted(kind: str, ident: object, **fields: Any) -> Any:
    resource = RESOURCES[kind]
    return resource.wanted(ident, resource.read(json.dumps(fields)))


def test_a_token_is_made_where_none_is_brought() -> None:
    main = PeerID(MAIN.bytes)
    asked, made = wanted("agent", main, workspace_id=str(DEV), name="main")
    assert asked.if_new == {"token_digest": made.digest}
    assert "token_digest" not in asked.values
    token = str(make_id("a token"))
    for brought in ({"token": token}, {"token_sha256": hashlib.sha256(token.encode()).hexdigest()}):
        asked, made = wanted("agent", main, workspace_id=str(DEV), name="main", **brought)
        assert (made, asked.if_new) == (None, {})
        assert asked.values["token_digest"] == agent_token_digest(make_id("a token"))
    text = "aaaaaaaaaa-" + "b" * 22
    presented = parse_user_token(text)
    for brought in ({"token": text}, {"secret_sha256": presented.secret_digest.hex()}):
        asked, made = wanted("token", "aaaaaaaaaa", user_id=str(ALICE), **brought)
        assert asked.values["secret_digest"] == presented.secret_digest


@pytest.mark.parametrize(
    ("ident", "fields", "field"),
    [
        ("aaaaaaaaaa", {"token": "bbbbbbbbbb-" + "b" * 22}, "token"),
        ("aaaaaaaaaa", {"token": "aaaaaaaaaa-" + "b" * 22, "secret_sha256": "0" * 64}, "secret_sha256"),
        ("aaaaaaaaaa", {"token": "has a blank"}, "token"),
    ],
)
def test_tokens_that_do_not_fit(ident: str, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(AdministrationError) as caught:
        wanted("token", ident, user_id=str(ALICE), **fields)
    assert [name for name, _ in caught.value.problems] == [field]


def test_new_tokens_are_what_callers_present() -> None:
    made = new_token(TOKEN, "aaaaaaaaaa")
    presented = parse_user_token(made.text)
    assert (presented.id, presented.opaque, presented.secret_digest) == ("aaaaaaaaaa", False, made.digest)
    assert made.text not in repr(made)
    assert new_token(TOKEN, "aaaaaaaaaa").text != made.text
    assert len(new_token(AGENT, None).text) == 36


def test_no_message_repeats_what_was_sent() -> None:
    secret = "hunter2" * 10
    for kind, text in (
        ("user", f'{{"username": "{secret}", "x": "{secret}", "active": "{secret}"}}'),
        ("user", f"{secret}"),
    ):
        with pytest.raises(AdministrationError) as caught:
            RESOURCES[kind].read(text)
        assert secret not in str(caught.value)


def test_definitions_that_make_no_sense() -> None:
    app = {"id": str(make_id("app")), "slug": "x", "healthcheck": {"url": "http://x"}}
    with pytest.raises(AdministrationError) as caught:
        wanted("agent", PeerID(MAIN.bytes), workspace_id=str(DEV), name="main", apps=[app, {**app, "slug": "x"}])
    assert "apps[0].healthcheck.interval" in [name for name, _ in caught.value.problems]
