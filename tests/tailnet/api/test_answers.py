"""Bodies of refusals, byte for byte, and the headers that go with them."""

import pytest

from tailnet.api.answers import GoJsonResponse, refusal_body, refusal_headers, refusal_response
from tailnet.refusals import Refused, Validation


@pytest.mark.parametrize(
    ("refused", "body"),
    [
        (Refused(404, "Route not found."), b'{"message":"Route not found."}\n'),
        (Refused(401, "No.", "Because."), b'{"message":"No.","detail":"Because."}\n'),
        (
            Refused(400, "No.", "", (Validation("version", "is <old>"),)),
            b'{"message":"No.","validations":[{"field":"version","detail":"is \\u003cold\\u003e"}]}\n',
        ),
    ],
)
def test_bodies(refused: Refused, body: bytes) -> None:
    assert refusal_body(refused) == body
    response = refusal_response(refused)
    assert (response.status_code, response.body) == (refused.status, body)


@pytest.mark.parametrize(
    ("status", "more"),
    [
        (400, []),
        (401, [("www-authenticate", "Bearer")]),
        (426, [("upgrade", "websocket"), ("connection", "Upgrade")]),
        (503, [("retry-after", "1")]),
    ],
)
def test_headers(status: int, more: list[tuple[str, str]]) -> None:
    assert refusal_headers(Refused(status, "x")) == [("content-type", "application/json; charset=utf-8"), *more]


def test_a_value_as_an_answer() -> None:
    response = GoJsonResponse({"a": "&"})
    assert response.body == b'{"a":"\\u0026"}\n'
    assert response.headers["content-type"] == "application/json; charset=utf-8"
