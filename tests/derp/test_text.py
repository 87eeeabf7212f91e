"""Text of others: what is masked, what is written out, and that a reason is never empty."""

import itertools
import ssl

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from derp.keys import NodePrivate
from derp.text import (
    MASK,
    error_text,
    fit_lines_to_show,
    fit_to_show,
    host_port,
    printable,
    some_of,
    span,
    without_halves,
    without_secrets,
)

PRIVATE = NodePrivate(b"\x11" * 32)
RANDOM = "f3Kq9ZpL2mXw8RtY5vBn7cJd"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://admin:s3cret@relay.example/allow", f"https://{MASK}@relay.example/allow"),
        ("https://s3cret@relay.example:8443/", f"https://{MASK}@relay.example:8443/"),
        ("http://u:s3cret@[2001:db8::1]:80/x cannot be reached", f"http://{MASK}@[2001:db8::1]:80/x cannot be reached"),
        ("postgresql+psycopg://db:s3cret@host/tailnet", f"postgresql+psycopg://{MASK}@host/tailnet"),
        ("'htps://u:s3cret@host' is no URL", f"'htps://{MASK}@host' is no URL"),
        # a password whose signs were not written as %2F and so on, with every sign that ends an authority
        ("http://u:s3/cr?e#t@host/x", f"http://{MASK}@host/x"),
        ("http://u:s3@cr@et@host/x", f"http://{MASK}@host/x"),
        ("http://u:p%40s3cret@host/x", f"http://{MASK}@host/x"),
        ("HTTPS_PROXY=u:s3cret@proxy.example:3128", f"HTTPS_PROXY={MASK}@proxy.example:3128"),
        ("https://h/m?token=s3cret&region=fra", f"https://h/m?token={MASK}&region=fra"),
        ("https://h/m?a=1;api_key=s3cret#access_token=s3cret", f"https://h/m?a=1;api_key={MASK}#access_token={MASK}"),
        ("https://h/m?X-Amz-Signature=s3cret", f"https://h/m?X-Amz-Signature={MASK}"),
        ("https://h/m?sv=2024&sig=s3cret", f"https://h/m?sv=2024&sig={MASK}"),
        ("https://h/m?key=s3cret&monkey=1", f"https://h/m?key={MASK}&monkey=1"),
        (f"https://h/m?t={RANDOM}", f"https://h/m?t={MASK}"),
        ("Authorization: Bearer s3cret", f"Authorization: Bearer {MASK}"),
        ("{'authorization': 'Basic czNjcmV0'}", f"{{'authorization': 'Basic {MASK}'}}"),
        ("Coder-Session-Token: s3cret", f"Coder-Session-Token: {MASK}"),
        ("it sent Bearer abcdefghij12345", f"it sent Bearer {MASK}"),
        (f"key {PRIVATE.text()} is taken", f"key privkey:{MASK} is taken"),
        ("mesh key " + "5" * 64, f"mesh key {MASK}"),
    ],
)
def test_secrets_are_masked(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert "s3" not in shown
    assert without_secrets(shown) == shown  # a text may pass two outputs


@pytest.mark.parametrize(
    "text",
    [
        "https://relay.example:8443/derp?region=fra&n=3",
        "https://relay.example/map?mail=me@relay.example",
        "https://[::1]:8443/a@b",
        f"/debug/why?from={PRIVATE.public()}&to=nodekey%3A00ff",
        "ask for ?from=KEY&to=KEY or ?key=KEY",
        "/debug/agent?id=01234567-89ab-cdef-0123-456789abcdef",
        f"pin sha256-raw:{'ab' * 32}",
        "me@relay.example wrote to mailto:you@relay.example",
        "> client 3 nodekey:abcdef01 from 203.0.113.7:4711",
        "the bearer of this token is unknown",
        "resume token: not valid any more",
        "",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


@given(
    user=st.text(st.characters(codec="ascii", exclude_characters=":/?#@\"'<>[] \\", categories=("L", "N", "P"))),
    password=st.text(st.characters(codec="ascii", exclude_characters="\"'<>", categories=("L", "N", "P", "S"))),
    host=st.sampled_from(["relay.example", "127.0.0.1:8443", "[::1]", "[2001:db8::1]:80"]),
    path=st.sampled_from(["", "/", "/map.json", "/a?x=1"]),
)
def test_no_password_of_a_url_is_shown_whatever_is_in_it(user: str, password: str, host: str, path: str) -> None:
    shown = without_secrets(f"see https://{user}:!{password}~S~@{host}{path} there")
    assert shown == f"see https://{MASK}@{host}{path} there"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Frankfurt (Main), Zürich, 東京", "Frankfurt (Main), Zürich, 東京"),
        ("\x1b]0;owned\x07\x1b[2J", "\\x1b]0;owned\\x07\\x1b[2J"),
        ("one\r\ntwo\t\x00", "one\\r\\ntwo\\t\\x00"),
        ("\x9b31m \x85 \x7f", "\\x9b31m \\x85 \\x7f"),  # C1: terminals obey these too
        ("right\u202eleft\u2066\u2028", "right\\u202eleft\\u2066\\u2028"),
        ("half \udc80", "half \\udc80"),
        ("\U000e0041tag", "\\U000e0041tag"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert shown.isprintable()


def test_a_long_text_is_cut() -> None:
    assert printable("x" * 1000, 10) == "x" * 10 + "..."
    assert printable("x" * 10, 10) == "x" * 10


@given(st.text())
def test_whatever_comes_can_be_printed(text: str) -> None:
    assert printable(text).isprintable()
    assert fit_to_show(text).isprintable()
    assert fit_lines_to_show(text).replace("\n", "").isprintable()


def test_a_text_of_lines_keeps_its_lines_and_nothing_else() -> None:
    assert fit_lines_to_show("one\ntwo \x1b[31m https://u:p@h/\n") == f"one\ntwo \\x1b[31m https://{MASK}@h/\n"


class Silent(Exception):
    """What libraries raise without a word."""


def chain(*errors: BaseException) -> BaseException:
    for outer, inner in itertools.pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("not a number"), "not a number"),
        (OSError(111, "Connection refused"), "Connection refused"),
        (OSError("no number"), "no number"),
        (ssl.SSLError(1, "[SSL] bad"), "[SSL] bad"),
        (KeyError("x"), "KeyError, for which no reason is given"),
        (Silent(), "Silent, for which no reason is given"),
        (Silent(" \n"), "Silent, for which no reason is given"),
        (ssl.SSLError(), "SSLError, for which no reason is given"),
        (TimeoutError(), "TimeoutError, for which no reason is given"),
        (chain(Silent(), Silent(), ValueError("the reason")), "the reason"),
        (ExceptionGroup("several", [ValueError("one"), ValueError("two"), ValueError("one")]), "one; two"),
        (ExceptionGroup("", [Silent()]), "Silent, for which no reason is given"),
        (ValueError("first\n  second\x1b[2J"), "first second\\x1b[2J"),
        (ValueError("Invalid URL 'http://u:s3cret@h:x'"), f"Invalid URL 'http://{MASK}@h:x'"),
        (trio.TooSlowError(), "TooSlowError, for which no reason is given"),
    ],
)
def test_a_reason_is_never_empty(error: BaseException, said: str) -> None:
    assert error_text(error) == said


@given(st.text(st.characters(exclude_categories=())))
def test_what_has_no_halves_can_be_encoded(text: str) -> None:
    whole = without_halves(text)
    assert len(whole.encode()) >= len(text)
    assert whole == text or any("\ud800" <= each <= "\udfff" for each in text)


def test_a_half_is_what_go_reads_it_as() -> None:
    assert without_halves("a\ud800b\udfffc\N{GRINNING FACE}") == "a\ufffdb\ufffdc\N{GRINNING FACE}"


def test_a_circle_of_causes_ends() -> None:
    one, two = Silent(), Silent()
    one.__cause__, two.__cause__ = two, one
    assert error_text(one) == "Silent, for which no reason is given"


def test_a_document_in_a_reason_is_cut() -> None:
    assert len(error_text(ValueError("x" * 100_000))) < 600


@pytest.mark.parametrize(
    ("host", "port", "shown"),
    [
        ("192.0.2.7", 443, "192.0.2.7:443"),
        ("relay.example", 1, "relay.example:1"),
        ("2001:db8::7", 80, "[2001:db8::7]:80"),
    ],
)
def test_a_place_is_one_text(host: str, port: int, shown: str) -> None:
    assert host_port(host, port) == shown


def test_durations_have_two_figures() -> None:
    assert [span(seconds) for seconds in (0.4, 119, 120, 7199, 7200, 172_800)] == [
        *("0 s", "119 s", "2 min", "120 min", "2 h", "2 d"),
    ]


def test_the_first_of_many() -> None:
    assert [some_of(["a", "b", "c"][:count], 2) for count in (0, 1, 2, 3)] == ["", "a", "a, b", "a, b and 1 more"]
