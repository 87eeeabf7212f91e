"""Queries of /debug/clients/: what the genuine relay takes and refuses, and that pages neither repeat nor skip."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derp.relay.clients import Client
from derp.server.clients_query import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    SORTS,
    ClientsQuery,
    QueryError,
    parse_query,
    remote_of,
    select,
)
from derp.server.pages import read_query

NOW = 1_000.0
EPOCH = 1_700_000_000 * 10**9


def wall(moment: float) -> int:
    return EPOCH + round(moment * 1e9)


def parse(text: str) -> ClientsQuery | None:
    asked = read_query(text)
    assert asked is not None
    return parse_query(asked, NOW, wall)


def parsed(text: str) -> ClientsQuery:
    query = parse(text)
    assert query is not None
    return query


def client(
    number: int, name: str = "a", address: str = "192.0.2.1", port: int = 1, app: str = "", at: float = 0.0
) -> Client:
    return Client(name.encode().ljust(32, b"."), number, None, at, address=address, port=port, app_name=app)


KEY = "nodekey:" + "0a" * 32
ZERO = "nodekey:" + "00" * 32


@pytest.mark.parametrize("text", ["", "format=json", "sort=rx", "limit=5", "ip=", "key=&cidr="])
def test_without_a_filter_the_index_is_wanted(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("all", "all clients"),
        ("all=0", "all clients"),
        (f"key={ZERO}", "all clients"),  # as the genuine relay takes it
        ("ip=192.0.2.1", "clients from 192.0.2.1"),
        ("ip=::ffff:192.0.2.1", "clients from 192.0.2.1"),
        ("ip=2001:DB8::1", "clients from 2001:db8::1"),
        ("cidr=192.0.2.77/24", "clients from 192.0.2.0/24"),
        ("cidr=::ffff:192.0.2.0/120", "clients from 192.0.2.0/24"),
        (f"key={KEY}", f"connections for {KEY}"),
        ("app=x", "all clients with app x"),
        ("app=x&app=&ip=192.0.2.1", "clients from 192.0.2.1 with app x or (none)"),
    ],
)
def test_filters(text: str, words: str) -> None:
    assert parsed(text).describe() == words


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("all&format=xml", "bad format 'xml'; want json or html"),
        ("all&ip=192.0.2.1", "only one of all, ip, cidr, or key may be given"),
        (f"cidr=192.0.2.0/24&key={KEY}", "only one of"),
        ("ip=nonsense", "bad ip 'nonsense'"),
        ("ip=1.2.3.4.5", "bad ip"),
        ("cidr=192.0.2.1", "bad cidr"),
        ("cidr=192.0.2.0/33", "bad cidr"),
        ("key=abc", "bad key 'abc'"),
        ("all&sort=size", "bad sort 'size'; want key, ip, conn"),
        ("all&sort=--rx", "bad sort"),
        ("all&limit=0", "bad limit '0'"),
        ("all&limit=-1", "bad limit"),
        ("all&limit=x", "bad limit"),
        ("all&limit=" + "9" * 5000, "bad limit"),
        ("all&after=x", "bad after 'x' for sort by key"),
        ("all&sort=ip&after=x", "bad after 'x' for sort by ip"),
        ("all&sort=ip&after=192.0.2.1:x", "bad after"),
        ("all&sort=conn&after=x", "bad after"),
        ("all&sort=connected&after=soon", "want Unix nanoseconds or a duration"),
        ("all&sort=rx&after=1.5", "bad after"),
        ("all&sort=rx&after=" + "1" * 5000, "bad after"),
        ("all&sort=rx&after=1&afterconn=x", "bad afterconn 'x'"),
        ("all&after=\x1b[2J", "bad after '\\x1b[2J'"),
    ],
)
def test_what_makes_no_sense_is_one_line(text: str, says: str) -> None:
    with pytest.raises(QueryError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_a_page_has_a_hundred_and_never_more_than_a_thousand() -> None:
    assert parsed("all").limit == DEFAULT_LIMIT == 100
    assert parsed("all&limit=7").limit == 7
    assert parsed("all&limit=5000").limit == MAX_LIMIT == 1000


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("sort=connected&after=1700000000000000000", EPOCH),
        ("sort=connected&after=30m", wall(NOW) - 30 * 60 * 10**9),
        ("sort=connected&after=1h30m1.5s", wall(NOW) - 5_401_500_000_000),
        ("sort=connected&after=250ms", wall(NOW) - 250_000_000),
        ("sort=rx&after=17", 17),
        (f"after={KEY}", b"\x0a" * 32),
    ],
)
def test_cursors_by_hand(text: str, after: object) -> None:
    assert parsed(f"all&{text}").after == after


def names(query: ClientsQuery, clients: Sequence[Client]) -> list[int]:
    return [one.number for one in select(query, clients, wall).clients]


FIVE = (
    client(1, "d", "192.0.2.9", 5, "x", 5.0),
    client(2, "c", "2001:db8::1", 4, "", 4.0),
    client(3, "b", "192.0.2.10", 3, "y", 3.0),
    client(4, "b", "192.0.2.10", 2, "x", 2.0),
    client(5, "a", "10.0.0.1", 1, "", 1.0),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", [5, 3, 4, 2, 1]),
        ("all&sort=-key", [1, 2, 4, 3, 5]),
        ("all&sort=ip", [5, 1, 4, 3, 2]),  # as numbers, and IPv4 first
        ("all&sort=-ip", [2, 3, 4, 1, 5]),
        ("all&sort=conn", [1, 2, 3, 4, 5]),
        ("all&sort=connected", [5, 4, 3, 2, 1]),  # the longest here first
        ("ip=192.0.2.10", [3, 4]),
        ("cidr=192.0.2.0/24", [3, 4, 1]),
        ("cidr=::/0", [2]),
        ("app=x", [4, 1]),
        ("app=", [5, 2]),
        ("app=x&app=", [5, 4, 2, 1]),
        ("cidr=192.0.2.0/24&app=x", [4, 1]),
        ("all&limit=2", [5, 3]),
        # Without a connection number all of that value are behind us, and the cursor itself is in no page.
        ("all&sort=ip&after=192.0.2.10", [2]),
        ("all&sort=-ip&after=192.0.2.10", [1, 5]),
        ("all&sort=ip&after=192.0.2.10:2", [3, 2]),
        ("all&sort=ip&after=[2001:db8::1]:3", [2]),
        ("all&sort=conn&after=3", [4, 5]),
        ("all&sort=-conn&after=3", [2, 1]),
        ("all&sort=connected&after=996s", [1]),
        ("all&sort=connected&after=997s", [2, 1]),
        (f"all&after=nodekey:{FIVE[2].key.hex()}", [2, 1]),
        (f"all&after=nodekey:{FIVE[2].key.hex()}&afterconn=3", [4, 2, 1]),
        (f"all&sort=-key&after=nodekey:{FIVE[2].key.hex()}&afterconn=4", [3, 5]),
    ],
)
def test_selections(text: str, expected: list[int]) -> None:
    assert names(parsed(text), FIVE) == expected


def test_counts_do_not_know_of_the_cursor() -> None:
    selection = select(parsed("all&sort=conn&after=2&limit=2"), FIVE, wall)
    assert (selection.connections, selection.keys, selection.remaining) == (5, 4, 1)
    assert selection.next_after == ("4", "")
    assert select(parsed("all"), FIVE, wall).next_after is None


NUMBERS = st.integers(min_value=0, max_value=3)
ADDRESSES = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "fe80::1%eth0", ""])


@st.composite
def clients(draw: st.DrawFn) -> list[Client]:
    made = []
    for number in range(1, draw(st.integers(min_value=0, max_value=25)) + 1):
        one = client(number, "abc"[draw(NUMBERS) % 3], draw(ADDRESSES), draw(NUMBERS), at=float(draw(NUMBERS)))
        one.bytes_in, one.bytes_out, one.packets_in = draw(NUMBERS), draw(NUMBERS), draw(NUMBERS)
        made.append(one)
    return made


@given(clients(), st.sampled_from(SORTS), st.booleans(), st.integers(min_value=1, max_value=7))
def test_page_by_page_everybody_comes_once_in_order(
    made: list[Client], sort: str, is_descending: bool, limit: int
) -> None:
    whole = ClientsQuery(is_all=True, sort=sort, is_descending=is_descending, limit=MAX_LIMIT)
    query: ClientsQuery = replace(whole, limit=limit)
    seen: list[int] = []
    while True:
        selection = select(query, made, wall)
        seen += [one.number for one in selection.clients]
        assert selection.remaining == len(made) - len(seen)
        if selection.next_after is None:
            break
        # Over the link, as a browser goes.
        link = query.link(query.order, *selection.next_after)
        following = parse_query(read_query(link.removeprefix("?")) or {}, NOW, wall)
        assert following is not None
        query = following
    assert seen == names(whole, made)
    assert sorted(seen) == [one.number for one in made]


@pytest.mark.parametrize(
    "text",
    [
        "all=1&sort=key",
        "app=a&app=b+c&ip=192.0.2.1&limit=7&sort=-rx",
        "cidr=2001%3Adb8%3A%3A%2F32&format=json&sort=connected",
        f"key={KEY.replace(':', '%3A')}&sort=key",
    ],
)
def test_a_link_asks_the_same(text: str) -> None:
    query = parsed(text)
    assert query.link(query.order) == f"?{text}"
    assert parsed(query.link(query.order).removeprefix("?")) == query


def test_how_an_address_is_written() -> None:
    assert remote_of(FIVE[0]) == "192.0.2.9:5"
    assert remote_of(FIVE[1]) == "[2001:db8::1]:4"


def test_a_query_of_too_many_parts_is_none() -> None:
    assert read_query("&".join(["a=1"] * 1000)) is None
    expected: Mapping[str, list[str]] = {"a": ["", "1"], "b": [""]}
    assert read_query("a&a=1&b=") == expected
