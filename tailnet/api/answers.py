"""Answers of the API: JSON bodies and refusals in the form that SDKs read (layer L3).

`{"message": str, "detail": str?, "validations": [{"field": str, "detail": str}]?}`; what is empty is left out.
"""

from typing import Any, Final

from starlette.responses import Response

from tailnet.go_json import go_json
from tailnet.refusals import Refused

CONTENT_TYPE: Final = "application/json; charset=utf-8"


class GoJsonResponse(Response):
    """One JSON value and a newline, as Go writes it."""

    media_type = CONTENT_TYPE

    def render(self, content: Any) -> bytes:
        return go_json(content)


def refusal_body(refused: Refused) -> bytes:
    """The body of a refusal."""
    body: dict[str, object] = {"message": refused.message}
    if refused.detail:
        body["detail"] = refused.detail
    if refused.validations:
        body["validations"] = [{"field": each.field, "detail": each.detail} for each in refused.validations]
    return go_json(body)


def refusal_headers(refused: Refused) -> list[tuple[str, str]]:
    """What goes with it: 401 names how to authenticate, 426 what to upgrade to, 503 when to come back."""
    headers = [("content-type", CONTENT_TYPE)]
    match refused.status:
        case 401:
            headers.append(("www-authenticate", "Bearer"))
        case 426:
            headers += [("upgrade", "websocket"), ("connection", "Upgrade")]
        case 503:
            headers.append(("retry-after", "1"))
    return headers


def refusal_response(refused: Refused) -> Response:
    """A refusal as an answer of the app."""
    return Response(refusal_body(refused), refused.status, dict(refusal_headers(refused)))
