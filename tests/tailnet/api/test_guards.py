"""Requests as resources see them."""

from fastapi import Request

from tailnet.api.guards import headers_of, query_of


def request(headers: list[tuple[bytes, bytes]], query: bytes = b"") -> Request:
    return Request({"type": "http", "headers": headers, "query_string": query, "path": "/"})


def test_repeated_headers_are_joined() -> None:
    made = request([(b"x-forwarded-for", b"a"), (b"accept", b"b"), (b"x-forwarded-for", b"c")])
    assert headers_of(made) == {"x-forwarded-for": "a, c", "accept": "b"}


def test_the_first_value_of_a_parameter() -> None:
    assert query_of(request([], b"a=1&a=2&b=%20")) == {"a": "1", "b": " "}
    assert query_of(request([], b"\xff=\xfe")) != {}
