"""Questions and answers as bytes: what docs/auth.md shows, what each signature covers, and what is no answer."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.auth.call_out_wire import (
    MAX_NO_SECONDS,
    MAX_SECONDS,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    AgentQuestion,
    ProvidersQuestion,
    Question,
    RightsQuestion,
    UserQuestion,
    is_signed,
    question_body,
    read_answer,
    signature,
)
from tailnet.auth.callers import ControlPlaneUser, Reach
from tailnet.auth.claims import Nonsense
from tailnet.store.rows import Right
from tests.support.control_plane import SECRET, agent, user
from tests.support.seeds import make_id, peer_id

AGENT, USER = AgentQuestion("t"), UserQuestion("t")
RIGHTS = RightsQuestion(make_id("bob"), peer_id("main"))


def body(**said: object) -> bytes:
    return json.dumps(said).encode()


def test_questions() -> None:
    assert question_body(AGENT) == b'{"version":1,"question":"agent","token":"t"}'
    assert question_body(USER) == b'{"version":1,"question":"user","token":"t"}'
    assert question_body(ProvidersQuestion()) == b'{"version":1,"question":"external_auth"}'
    assert json.loads(question_body(RIGHTS)) == {
        "version": 1,
        "question": "rights",
        "user_id": str(make_id("bob")),
        "agent_id": str(make_id("main")),
    }


def test_a_signature_is_that_of_the_document() -> None:
    """Computed with openssl dgst -sha256 -hmac."""
    assert signature(b"0123456789abcdef0123456789abcdef", "1767323045", b'{"version":1}') == (
        "v1=3c0f9d6c947d87fbacb4cbe28d88f12f6f8eec61c8f60e17948aa7eb37d7287e"
    )


@pytest.mark.parametrize(
    ("timestamp", "now", "secret", "content", "fine"),
    [
        ("1000", 1000.0, SECRET, b"{}", True),
        ("1000", 1060.0, SECRET, b"{}", True),
        ("1000", 940.0, SECRET, b"{}", True),
        ("1000", 1061.0, SECRET, b"{}", False),  # replayed
        ("1000", 939.0, SECRET, b"{}", False),
        ("1000", 1000.0, b"another secret of 32 characters.", b"{}", False),
        ("1000", 1000.0, SECRET, b"{ }", False),
        ("", 0.0, SECRET, b"{}", False),
        ("-1", 0.0, SECRET, b"{}", False),
        ("1" * 40, 1000.0, SECRET, b"{}", False),
        ("\u0661", 1.0, SECRET, b"{}", False),
    ],
)
def test_signatures(timestamp: str, now: float, secret: bytes, content: bytes, fine: bool) -> None:
    headers = {TIMESTAMP_HEADER: timestamp, SIGNATURE_HEADER: signature(SECRET, timestamp, b"{}")}
    assert is_signed(secret, headers, content, now) == fine
    assert not is_signed(SECRET, headers | {SIGNATURE_HEADER: "v1=\u00e9"}, b"{}", now)
    assert not is_signed(SECRET, {}, b"{}", now)


def test_answers() -> None:
    said = read_answer(body(known=True, agent=agent("main"), max_age=7), AGENT)
    assert (getattr(said.found, "id", None), said.seconds) == (peer_id("main"), 7)
    said = read_answer(body(known=True, user=user("bob", role="admin")), USER)
    assert isinstance(said.found, ControlPlaneUser)
    assert (said.found.id, said.found.admin, said.seconds) == (make_id("bob"), True, 60)
    said = read_answer(body(known=True, agent=agent("main"), rights=["ssh"]), RIGHTS)
    assert isinstance(said.found, Reach)
    assert said.found.rights == {Right.SSH, Right.READ}
    assert read_answer(body(known=False), AGENT).found is None
    assert read_answer(body(known=False), AGENT).seconds == 5
    # Whoever is not active is nobody.
    assert read_answer(body(known=True, user=user("bob", active=False)), USER).found is None


@pytest.mark.parametrize(
    ("known", "max_age", "seconds"),
    [(True, 0, 1), (True, 0.1, 1), (True, 1e9, MAX_SECONDS), (False, 1e9, MAX_NO_SECONDS), (False, 0, 1)],
)
def test_an_answer_sets_its_time_within_bounds(known: bool, max_age: float, seconds: float) -> None:
    assert read_answer(body(known=known, agent=agent("main"), max_age=max_age), AGENT).seconds == seconds


@pytest.mark.parametrize(
    ("content", "question", "says"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", AGENT, "it is a web page: does the URL lead to a login form"),
        (b"  <html>", AGENT, "it is a web page"),
        (b"", AGENT, "it is empty"),
        (b"yes", AGENT, "it is no JSON"),
        (b"[" * 100_000, AGENT, "it is no JSON"),
        (b"\xff", AGENT, "it is no JSON"),
        (b"[]", AGENT, "the answer is no object"),
        (b"{}", AGENT, '"known" is neither'),
        (body(known="true"), AGENT, '"known" is neither'),
        (body(known=1), AGENT, '"known" is neither'),
        (body(known=True), AGENT, "agent is no object"),
        (body(known=True, user=user("bob")), AGENT, "agent is no object"),  # the answer to another question
        (body(known=True, agent=agent("main")), USER, "user is no object"),
        (body(known=True, agent=agent("gpu"), rights=["ssh"]), RIGHTS, "agent.id is not the"),
        (body(known=True, agent=agent("main")), RIGHTS, "rights is no list"),
        (body(known=True, agent=agent("main"), rights=["root"]), RIGHTS, "names a right that is none"),
        (body(known=True, agent=agent("main"), max_age=-1), AGENT, "max_age"),
        (body(known=False, max_age="60"), AGENT, "max_age"),
        (body(known=False, max_age=True), AGENT, "max_age"),
        (b'{"known": false, "max_age": Infinity}', AGENT, "it is no JSON"),
        (b'{"known": false, "max_age": 1e999}', AGENT, "max_age"),
        (b'{"known": false, "max_age": ' + b"9" * 399 + b"}", AGENT, "max_age"),
        (b'{"known": false, "max_age": ' + b"9" * 9_999 + b"}", AGENT, "max_age"),
    ],
)
def test_what_is_no_answer(content: bytes, question: Question, says: str) -> None:
    with pytest.raises(Nonsense) as caught:
        read_answer(content, question)
    assert says in str(caught.value)


@given(st.binary(max_size=200))
def test_garbage_is_only_nonsense(content: bytes) -> None:
    for question in (AGENT, USER, RIGHTS):
        with pytest.raises(Nonsense):
            read_answer(content, question)
