"""Which websites' scripts may use the API (layer L3): nobody's, unless `cors_origins` names them.

Exact origins only: an allowed one reads whatever its visitors may, with their cookie or with a token of its own, so a
wildcard would hand every website their rights.  Operators' pages, metrics and the administration API are never shared.
Called by middleware.py.  Specification: the Fetch standard, CORS protocol.
"""

from collections.abc import Collection, Mapping
from typing import Final

Headers = list[tuple[bytes, bytes]]

# Where it is shared, and where not within that.
_SHARED: Final = "/api/v2/"
_CLOSED: Final = "/api/v2/admin"
METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"
# What scripts may send beside what browsers always let them: tokens, and what the API reads.
HEADERS: Final = (
    b"Authorization, Coder-Session-Token, Content-Type, Last-Event-ID, X-Request-Id, Traceparent, Tracestate"
)
EXPOSED: Final = b"X-Request-Id, Retry-After"
# How long a browser remembers what it was told: a change of the setting should be seen soon.
_MAX_AGE_SECONDS: Final = b"600"


def shared_headers(origins: Collection[str], path: str, headers: Mapping[bytes, bytes]) -> Headers:
    """What an answer on that path says to a browser, if it asks for a website that may have it."""
    if not origins or not _is_shared(path):
        return []
    # Whoever caches must not give one website's answer to another.
    vary = [(b"vary", b"Origin")]
    origin = headers.get(b"origin", b"")
    if origin.decode("latin-1") not in origins:
        return vary
    return [
        *vary,
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-expose-headers", EXPOSED),
    ]


def preflight(origins: Collection[str], method: str, path: str, headers: Mapping[bytes, bytes]) -> Headers | None:
    """The whole answer, a 204, to a browser that asks whether it may ask; None for any other request."""
    if method != "OPTIONS" or b"access-control-request-method" not in headers:
        return None
    shared = shared_headers(origins, path, headers)
    if len(shared) < 2:
        return None  # the app answers as it does to everybody
    return [
        *shared,
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", HEADERS),
        (b"access-control-max-age", _MAX_AGE_SECONDS),
    ]


def _is_shared(path: str) -> bool:
    return path.startswith(_SHARED) and path != _CLOSED and not path.startswith(f"{_CLOSED}/")
