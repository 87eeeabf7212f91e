"""Where tokens stand in a request, which one wins, and what is looked up for them."""

from contextlib import suppress
from hashlib import sha256
from itertools import combinations
from urllib.parse import parse_qsl
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailnet.refusals import Refused
from tailnet.tokens import (
    MAX_TOKEN_CHARS,
    agent_token_digest,
    bearer,
    can_be_sent,
    find_token,
    parse_agent_token,
    parse_user_token,
    query_values,
    without_user_tokens,
)

UUID_TEXT = "0d5d2bc7-06e5-4a9b-9b0e-0a6ac2a4c4c1"
# Each place where a token may stand, in the order in which they win.
PLACES = ("cookie", "query", "header", "bearer", "access_token")


def request(values: dict[str, str]) -> str:
    headers: dict[str, str] = {}
    query = []
    for place, value in values.items():
        match place:
            case "cookie":
                headers["cookie"] = f"a=b; coder_session_token={value}; c=d"
            case "query":
                query.append(f"coder_session_token={value}")
            case "header":
                headers["coder-session-token"] = value
            case "bearer":
                headers["authorization"] = f"Bearer {value}"
            case "access_token":
                query.append(f"access_token={value}")
    return find_token(headers, query_values("&".join(query)))


@pytest.mark.parametrize("place", PLACES)
def test_every_place_is_found(place: str) -> None:
    assert request({place: "tok"}) == "tok"


@pytest.mark.parametrize(("first", "second"), list(combinations(PLACES, 2)))
def test_the_first_place_wins_unless_it_is_empty(first: str, second: str) -> None:
    assert request({second: "late", first: "early"}) == "early"
    assert request({second: "late", first: ""}) == "late"


def test_no_token() -> None:
    assert find_token({}, {}) == ""
    assert find_token({"authorization": "Basic dTpw", "cookie": "session=1"}, {}) == ""


@pytest.mark.parametrize(
    ("cookie", "token"),
    [
        ("coder_session_token=abc", "abc"),
        ('coder_session_token="abc"', "abc"),
        ("x=1;coder_session_token=abc", "abc"),
        ("x=1, coder_session_token=abc", "abc"),  # two headers joined on the way
        ("coder_session_token=; coder_session_token=abc", "abc"),
        ("my_coder_session_token=abc", ""),
        ("coder_session_token", ""),
        ("coder_session_token=a=b", "a=b"),
    ],
)
def test_cookies(cookie: str, token: str) -> None:
    assert find_token({"cookie": cookie}, {}) == token


@pytest.mark.parametrize("value", ["Bearer abc", "bearer abc", "BEARER  abc "])
def test_bearer_in_any_case(value: str) -> None:
    assert find_token({"authorization": value}, {}) == "abc"


@given(st.text(st.sampled_from("ab=&;1%20+\xe9 "), max_size=30))
def test_query_values_are_those_of_the_library(query: str) -> None:
    wanted: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        wanted.setdefault(name, value)
    assert query_values(query) == wanted


def test_query_values_are_first_and_decoded() -> None:
    assert query_values("a=1&a=2&b=%2Fx+y&c=") == {"a": "1", "b": "/x y", "c": ""}


def test_a_query_of_thousands_is_not_read() -> None:
    assert query_values("&".join(f"a{number}=1" for number in range(5_000))) == {}


@pytest.mark.parametrize("text", [UUID_TEXT, UUID_TEXT.upper(), UUID_TEXT.replace("-", "")])
def test_one_agent_token_has_one_digest(text: str) -> None:
    assert agent_token_digest(parse_agent_token(text)) == sha256(UUID_TEXT.encode()).digest()


@pytest.mark.parametrize(
    ("token", "message", "detail"),
    [
        ("", 'Cookie "coder_session_token" must be provided.', ""),
        ("abc", "Workspace agent token invalid.", "An agent token must be a valid UUIDv4. (len 3)"),
        ("x" * 36, "Workspace agent token invalid.", "An agent token must be a valid UUIDv4. (len 36)"),
        ("0" * 100_000, "Workspace agent token invalid.", "An agent token must be a valid UUIDv4. (len 100000)"),
    ],
)
def test_agent_tokens_that_are_none(token: str, message: str, detail: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_agent_token(token)
    assert (caught.value.status, caught.value.message, caught.value.detail) == (401, message, detail)


@pytest.mark.parametrize("sign", [*' ";,\\\t\0\x7f', "ü", "\u2028"])
def test_what_no_request_carries(sign: str) -> None:
    assert can_be_sent("abcdefghij-!#~=")
    assert not can_be_sent(f"abc{sign}def")


def test_other_schemes_bear_nothing() -> None:
    assert [bearer(each) for each in ("", "Basic YTpi", "Bearer", "bearer  x ", " BEARER x")] == ["", "", "", "x", "x"]


def test_a_user_token_is_id_and_secret() -> None:
    presented = parse_user_token("abcdefghij-0123456789012345678901")
    assert (presented.id, presented.opaque) == ("abcdefghij", False)
    assert presented.secret_digest == sha256(b"0123456789012345678901").digest()


@pytest.mark.parametrize("token", ["hunter2", "abcdefghij-short", "abcdefghi-0123456789012345678901x", UUID_TEXT, "ü"])
def test_other_user_tokens_get_a_derived_id(token: str) -> None:
    presented = parse_user_token(token)
    assert presented.opaque
    assert presented.secret_digest == sha256(token.encode()).digest()
    assert token not in repr(presented)
    assert parse_user_token(token + "x").id != presented.id


@pytest.mark.parametrize("token", ["", "x" * (MAX_TOKEN_CHARS + 1)])
def test_user_tokens_that_are_refused_unread(token: str) -> None:
    with pytest.raises(Refused, match="signed out") as caught:
        parse_user_token(token)
    assert caught.value.status == 401


@given(st.text(max_size=80))
def test_any_text_is_judged(token: str) -> None:
    for parse in (parse_agent_token, parse_user_token):
        with suppress(Refused):
            parse(token)


@given(st.dictionaries(st.sampled_from(["cookie", "authorization", "coder-session-token"]), st.text(max_size=80)))
def test_any_header_is_read(headers: dict[str, str]) -> None:
    assert isinstance(find_token(headers, {}), str)


@given(st.uuids())
def test_digests_differ(token: UUID) -> None:
    assert agent_token_digest(token) != agent_token_digest(UUID(int=token.int ^ 1))


def test_a_users_token_in_a_path_is_masked() -> None:
    token = "aB3defghij-0123456789ABCDEFGHIJkl"
    assert without_user_tokens(f"/nowhere/{token}/x") == "/nowhere/<secret>/x"
    for harmless in ("/api/v2/workspaceagents/7a1fffd4-2b1c-4d5e-8f90-0123456789ab/logs", "/debug/derp-map", ""):
        assert without_user_tokens(harmless) == harmless
