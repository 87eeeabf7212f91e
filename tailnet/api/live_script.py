"""The one script of our pages (layer L3): /live.js, from the file beside this one.

It has no secret and knows no caller, so browsers keep it; its address names its content, which changes with it.
"""

import hashlib
from importlib.resources import files
from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

SCRIPT: Final = files("tailnet.api").joinpath("live.js").read_bytes()
_PATH: Final = "/live.js"
SCRIPT_PATH: Final = f"{_PATH}?v={hashlib.sha256(SCRIPT).hexdigest()[:16]}"
_HEADERS: Final = {"cache-control": "public, max-age=31536000, immutable"}

router = APIRouter()


@router.get(_PATH, include_in_schema=False)
async def script() -> Response:
    """The script."""
    return Response(SCRIPT, media_type="text/javascript; charset=utf-8", headers=_HEADERS)
