"""Scripts and styles of our pages (layer L3): /live.js, /terminal.js and the others, from the files beside this one.

They have no secret and know no caller, so browsers keep them; the address of each names its content, and changes with
it.  What others made is in vendored/, with its licences.
"""

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

_FOLDER: Final = files("tailnet.api")
_CONTENT: Final[Mapping[str, bytes]] = {
    f"/{name.rpartition('/')[2]}": _FOLDER.joinpath(*name.split("/")).read_bytes()
    for name in (
        *("live.js", "terminal.js", "terminal.css"),
        *("vendored/xterm.js", "vendored/xterm-addon-fit.js", "vendored/xterm.css"),
    )
}
_TYPES: Final = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
_HEADERS: Final = {"cache-control": "public, max-age=31536000, immutable"}

router = APIRouter()


def address(path: str) -> str:
    """Where a page finds that file."""
    return f"{path}?v={hashlib.sha256(_CONTENT[path]).hexdigest()[:16]}"


async def _answer(request: Request) -> Response:
    path = request.url.path
    return Response(_CONTENT[path], media_type=_TYPES[path.rpartition(".")[2]], headers=_HEADERS)


for _path in _CONTENT:
    router.add_api_route(_path, _answer, include_in_schema=False)
